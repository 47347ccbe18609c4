"""Small files ride together: one of the workers whose files they are drives, the others sleep meanwhile."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from s3spool.s3.content import Carrier, Sender

BATCH = 16  # answers judged before the next requests go out: neither end of the line is to run dry


class LeaderFollowers:
    """Leader and followers. All but `ride` is called under the gate.

    Waking one thread for each answer costs more than all the rest of a small file. So whoever drives judges the
    answers of all, and sends each worker's next file for it; a worker is woken only when there is none for it, when
    its file takes longer than the others may wait, or when the driver's own ride ends, to drive in its place.
    """

    def __init__(
        self,
        carrier: Carrier,
        gate: threading.Lock,
        slots: int,
        arrived: Callable[[int, Sender], bool],
    ) -> None:
        """`arrived`: judge the answer for this worker; True when it has prepared the next file on the same sender."""
        self._carrier = carrier
        self._gate = gate
        self._arrived = arrived
        self._calls = [threading.Lock() for _ in range(slots)]  # locked; each call unlocks it once
        for call in self._calls:
            call.acquire()
        self._slot_of: dict[Sender, int] = {}  # whose it is; guarded by the gate
        self._broken: dict[int, BaseException | None] = {}  # whose ride broke off, and why if that is its own fault
        self._pending: deque[Sender] = deque()
        self._over: deque[Sender] = deque()
        self.leader: int | None = None

    def submit(self, slot: int, sender: Sender) -> None:
        """Take this prepared sender along. The worker then calls `ride`, without the gate."""
        self._slot_of[sender] = slot
        self._pending.append(sender)
        if self.leader is None:
            self._promote(slot)
        elif len(self._pending) == 1:
            self._carrier.wake()

    def members(self) -> set[int]:
        """Whose files are under way here; also without the gate."""
        return set(self._slot_of.copy().values())

    def join(self, slot: int) -> bool:
        """Until the worker has something to do by itself; False when the ride broke off.

        Raises what `arrived` raised for this worker, and in the driver whatever went wrong at the wheel.
        """
        self._calls[slot].acquire()
        if self.leader == slot:
            try:
                self._lead(slot)
            except BaseException:
                # Whatever this was: nobody can tell any more what is under way.
                with self._gate:
                    self._fail_all()
                raise
        if slot not in self._broken:
            return True
        error = self._broken.pop(slot)
        if error is not None:
            raise error
        return False

    def close(self) -> None:
        """When no worker is left."""
        self._carrier.close()

    def _lead(self, slot: int) -> None:
        with self._gate:
            own = next(sender for sender, whose in self._slot_of.items() if whose == slot)
        while True:
            self._carrier.poll(self._pending, self._over, wait=not self._over)
            with self._gate:
                for _ in range(min(BATCH, len(self._over))):
                    self._complete(self._over.popleft(), slot)
                if own not in self._slot_of:
                    # Left to the next: this worker has a file of another kind, or should wait for one.
                    self._promote(next(iter(self._slot_of.values()), None))
                    return

    def _promote(self, slot: int | None) -> None:
        self.leader = slot
        if slot is not None:
            self._calls[slot].release()

    def _complete(self, sender: Sender, leader: int) -> None:
        slot = self._slot_of[sender]
        try:
            if self._arrived(slot, sender):
                self._pending.append(sender)
                return
        except BaseException as exc:  # noqa: BLE001 - it is that worker's, who is to die of it
            self._broken[slot] = exc
        del self._slot_of[sender]
        if slot != leader:
            self._calls[slot].release()

    def _fail_all(self) -> None:
        leader, self.leader = self.leader, None
        for slot in self._slot_of.values():
            if slot != leader:
                self._broken[slot] = None
                self._calls[slot].release()
        self._slot_of.clear()
        self._pending.clear()
        self._over.clear()
        self._carrier.reset()
