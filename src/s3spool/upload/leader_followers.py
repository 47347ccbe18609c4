"""Leader/Followers (POSA2): one worker drives the requests of all small files while the other workers sleep."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from s3spool.s3.curl_transport import CurlTransport
from s3spool.s3.multi_client import MultiClient

BATCH = 16  # maximum responses handled before new requests are sent


class LeaderFollowers:
    """Multiplexes one request per worker slot. All methods but `join` and `members` are called under the gate.

    Waking a thread for each response costs more than all other work for a small file. So the leader handles the
    responses of all slots, and sends each slot's next file. A follower is woken when its slot has no next file, when
    its response needs blocking work, or to become the leader once the leader's own slot is complete.

    While a batch of responses waits to be handled, a free slot rests: a server that answers at once needs few requests
    to keep the leader busy, and a hundred connections in turn take more CPU. The leader never waits while a slot rests.
    """

    def __init__(
        self,
        client: MultiClient,
        gate: threading.Lock,
        slots: int,
        on_response: Callable[[int, CurlTransport], bool],
        begin_next: Callable[[int], bool],
    ) -> None:
        """`on_response`: handle a slot's response; True when the slot is free for the next file.

        `begin_next`: prepare the next request of a free slot on the same sender; True when there is one.
        """
        self._client = client
        self._gate = gate
        self._on_response = on_response
        self._begin_next = begin_next
        self._wakeups = [threading.Lock() for _ in range(slots)]  # held; a release wakes the slot's worker once
        for wakeup in self._wakeups:
            wakeup.acquire()
        self._slot_of: dict[CurlTransport, int] = {}  # requests in flight; guarded by the gate
        self._failed: dict[int, BaseException | None] = {}  # cancelled slots, with the error if it is their own
        self._pending: deque[CurlTransport] = deque()
        self._done: deque[CurlTransport] = deque()
        self._resting: list[CurlTransport] = []  # of slots that are free; in `_slot_of` as well
        self.leader: int | None = None

    def submit(self, slot: int, sender: CurlTransport) -> None:
        """Queue a prepared request. The worker then calls `join`, without the gate."""
        self._slot_of[sender] = slot
        self._pending.append(sender)
        if self.leader is None:
            self._promote(slot)
        elif len(self._pending) == 1:
            self._client.wake()

    def members(self) -> set[int]:
        """The slots with a request in flight."""
        return set(self._slot_of.copy().values())

    def join(self, slot: int) -> bool:
        """Block until the worker has work of its own; False when its request was cancelled.

        Raises what `on_response` raised for this slot; in the leader also any error of the event loop.
        """
        self._wakeups[slot].acquire()
        if self.leader == slot:
            try:
                self._lead(slot)
            except BaseException:
                # The loop's state is unknown: fail every request in flight.
                with self._gate:
                    self._fail_all()
                raise
        if slot not in self._failed:
            return True
        error = self._failed.pop(slot)
        if error is not None:
            raise error
        return False

    def close(self) -> None:
        """Call it when no worker is left."""
        self._client.close()

    def _lead(self, slot: int) -> None:
        with self._gate:
            own = next(sender for sender, its_slot in self._slot_of.items() if its_slot == slot)
        while True:
            self._client.poll(self._pending, self._done, wait=not (self._done or self._resting))
            with self._gate:
                if self._done:
                    for _ in range(min(BATCH, len(self._done))):
                        self._complete(self._done.popleft(), slot)
                else:
                    for _ in range(min(BATCH, len(self._resting))):
                        self._continue(self._resting.pop(), slot)
                if own not in self._slot_of:
                    # This worker has blocking work, or waits for its next file: another one leads.
                    self._promote(next(iter(self._slot_of.values()), None))
                    return

    def _promote(self, slot: int | None) -> None:
        self.leader = slot
        if slot is not None:
            self._wakeups[slot].release()

    def _complete(self, sender: CurlTransport, leader: int) -> None:
        slot = self._slot_of[sender]
        try:
            free = self._on_response(slot, sender)
        except BaseException as exc:  # noqa: BLE001 - the slot's own worker raises it, and dies
            self._leave(sender, leader, exc)
            return
        if not free:
            self._leave(sender, leader)
        elif len(self._done) >= BATCH:
            self._resting.append(sender)
        else:
            self._continue(sender, leader)

    def _continue(self, sender: CurlTransport, leader: int) -> None:
        """Send the next file of a free slot."""
        try:
            if self._begin_next(self._slot_of[sender]):
                self._pending.append(sender)
                return
        except BaseException as exc:  # noqa: BLE001 - the same
            self._leave(sender, leader, exc)
        else:
            self._leave(sender, leader)

    def _leave(self, sender: CurlTransport, leader: int, error: BaseException | None = None) -> None:
        slot = self._slot_of.pop(sender)
        if error is not None:
            self._failed[slot] = error
        if slot != leader:
            self._wakeups[slot].release()

    def _fail_all(self) -> None:
        leader, self.leader = self.leader, None
        for slot in self._slot_of.values():
            if slot != leader:
                self._failed[slot] = None
                self._wakeups[slot].release()
        self._slot_of.clear()
        self._pending.clear()
        self._done.clear()
        self._resting.clear()
        self._client.reset()
