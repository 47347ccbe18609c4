"""Small files ride together: one of the workers whose files they are drives, the others sleep meanwhile."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from s3spool.s3.content import Carrier, Sender

BATCH = 16  # answers judged before the next requests go out: neither end of the line is to run dry


class Wheel:
    """Leader and followers. All but `ride` is called under the gate.

    Waking one thread for each answer costs more than all the rest of a small file. So whoever drives judges the
    answers of all, and sends each worker's next file for it; a worker is woken only when there is none for it, when
    its file takes longer than the others may wait, or when the driver's own ride ends, to drive in its place.
    """

    def __init__(
        self,
        carrier: Carrier,
        gate: threading.Lock,
        seats: int,
        arrived: Callable[[int, Sender], bool],
    ) -> None:
        """`arrived`: judge the answer for this worker; True when it has prepared the next file on the same sender."""
        self._carrier = carrier
        self._gate = gate
        self._arrived = arrived
        self._calls = [threading.Lock() for _ in range(seats)]  # locked; each call unlocks it once
        for call in self._calls:
            call.acquire()
        self._riding: dict[Sender, int] = {}  # whose it is; guarded by the gate
        self._wrecked: dict[int, BaseException | None] = {}  # whose ride broke off, and why if that is its own fault
        self._boarding: deque[Sender] = deque()
        self._over: deque[Sender] = deque()
        self.driver: int | None = None

    def board(self, seat: int, sender: Sender) -> None:
        """Take this prepared sender along. The worker then calls `ride`, without the gate."""
        self._riding[sender] = seat
        self._boarding.append(sender)
        if self.driver is None:
            self._hand_over(seat)
        elif len(self._boarding) == 1:
            self._carrier.wake()

    def riders(self) -> set[int]:
        """Whose files are under way here; also without the gate."""
        return set(self._riding.copy().values())

    def ride(self, seat: int) -> bool:
        """Until the worker has something to do by itself; False when the ride broke off.

        Raises what `arrived` raised for this worker, and in the driver whatever went wrong at the wheel.
        """
        self._calls[seat].acquire()
        if self.driver == seat:
            try:
                self._drive(seat)
            except BaseException:
                # Whatever this was: nobody can tell any more what is under way.
                with self._gate:
                    self._wreck()
                raise
        if seat not in self._wrecked:
            return True
        error = self._wrecked.pop(seat)
        if error is not None:
            raise error
        return False

    def close(self) -> None:
        """When no worker is left."""
        self._carrier.close()

    def _drive(self, seat: int) -> None:
        with self._gate:
            own = next(sender for sender, whose in self._riding.items() if whose == seat)
        while True:
            self._carrier.turn(self._boarding, self._over, wait=not self._over)
            with self._gate:
                for _ in range(min(BATCH, len(self._over))):
                    self._let_off(self._over.popleft(), seat)
                if own not in self._riding:
                    # Left to the next: this worker has a file of another kind, or should wait for one.
                    self._hand_over(next(iter(self._riding.values()), None))
                    return

    def _hand_over(self, seat: int | None) -> None:
        self.driver = seat
        if seat is not None:
            self._calls[seat].release()

    def _let_off(self, sender: Sender, driver: int) -> None:
        seat = self._riding[sender]
        try:
            if self._arrived(seat, sender):
                self._boarding.append(sender)
                return
        except BaseException as exc:  # noqa: BLE001 - it is that worker's, who is to die of it
            self._wrecked[seat] = exc
        del self._riding[sender]
        if seat != driver:
            self._calls[seat].release()

    def _wreck(self) -> None:
        driver, self.driver = self.driver, None
        for seat in self._riding.values():
            if seat != driver:
                self._wrecked[seat] = None
                self._calls[seat].release()
        self._riding.clear()
        self._boarding.clear()
        self._over.clear()
        self._carrier.reset()
