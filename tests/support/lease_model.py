"""Several nodes on one folder: claims, leases, fencing and takeover of the shared ledger, as a model.

`Cluster.step` is one action of one node, of a writer or of the clock. A paused node takes no step while time passes.
A cut connection: the effect of a statement stays, and its answer is not heard. `Cluster.finish` ends the faults.
The bucket keeps all versions: a request of a paused process may reach S3 late, and no lease can prevent that.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum
from itertools import count

LEASE = 10
PATHS = 2
NAMES = ("a", "a", "b")  # two nodes of one name
SKEWS = (0, 90_000, -90_000)  # of their wall clocks
LONGEST = 15  # of a delay; longer than a lease
LOST = 3  # one request in so many does not reach S3


class Guard(Enum):
    """What the protocol checks. Without any one of them an invariant breaks."""

    LIVING_OWNER = "a claim is not taken while the lease of its owner lasts"
    VOID = "a claim can be taken when the lease of its owner is over"
    OWN_AGAIN = "a node may repeat its own claim: it may not have heard the first answer"
    INCARNATION = "a process is known by a number of its own: names are used twice"
    DATABASE_CLOCK = "the clock of the database measures leases"
    SENT = "a node counts its lease from the moment at which it sent the renewal"
    OWN_CLOCK = "a node whose lease is over by its own clock starts nothing"
    NO_RETURN = "a lease that is over cannot be renewed: the node begins a new one and drops what it had not started"
    CONFIRMED = "a receipt is written after S3 has confirmed the content"
    FENCE = "a receipt is written only where the claim is still that of this attempt"
    RELEASE_FENCE = "a claim is given back only where it is still that of this attempt"
    RECEIPT_FIRST = "a file is removed after this node's receipt is durable"
    IDENTITY = "a file is removed only while it is the one that the receipt is for"


@dataclass
class Row:
    """What the database knows of one path."""

    owner: str
    claim: int  # counts claims; the protocol itself never looks at it
    content: int = 0  # that of the receipt
    uploaded: bool = False


@dataclass
class Attempt:
    """What a node knows of one path that it holds."""

    owner: str
    claim: int
    content: int = 0  # 0: not started
    sent: bool = False
    recorded: bool = False


@dataclass
class Node:
    name: str
    skew: int
    owner: str = ""  # "": not running
    lease_until: int = 0  # by its own steady clock
    held: dict[int, Attempt] = field(default_factory=dict)


class Cluster:
    """Three nodes, a folder, a bucket and a database. Raises AssertionError."""

    def __init__(self, without: Collection[Guard] = ()) -> None:
        self.guards = set(Guard) - set(without)
        self.now = 0
        self.numbers = count(1)
        self.nodes = [Node(*each) for each in zip(NAMES, SKEWS, strict=True)]
        self.folder: dict[int, int] = {}
        self.bucket: set[int] = set()
        self.rows: dict[int, Row] = {}
        self.leases: dict[str, int] = {}
        self.receipts: set[int] = set()

    def step(self, action: str, node: int, path: int, delay: int, heard: bool) -> None:
        if action == "drop":
            self.folder[path] = next(self.numbers)
        elif action == "wait":
            self.now += delay
        elif action == "crash":
            self.nodes[node].owner, self.nodes[node].held = "", {}
        elif action == "renew":
            self.renew(self.nodes[node], delay, heard=heard)
        elif self.nodes[node].owner:
            self.work(action, self.nodes[node], path, delay, heard=heard)

    def work(self, action: str, node: Node, path: int, delay: int, *, heard: bool) -> None:
        attempt = node.held.get(path)
        if attempt is None:
            if action == "claim":
                self.claim(node, path, heard=heard)
        elif action == "start" and not attempt.content:
            self.start(node, path, attempt)
        elif action == "send" and attempt.content and not attempt.sent:
            landed = bool(delay % LOST)
            self.bucket |= {attempt.content} if landed else set()
            attempt.sent = (landed and heard) or Guard.CONFIRMED not in self.guards
        elif action == "record" and attempt.sent and not attempt.recorded:
            self.record(node, path, attempt, heard=heard)
        elif action == "remove" and (attempt.recorded or (attempt.sent and Guard.RECEIPT_FIRST not in self.guards)):
            self.remove(path, attempt.content)
            del node.held[path]
        elif action == "release" and not attempt.recorded:
            self.release(node, path, attempt)

    def renew(self, node: Node, delay: int, *, heard: bool) -> None:
        """Begin a lease or renew it: `delay` passes on the way to the database, and again on the way back."""
        sent = self.now
        self.now += delay
        over = node.owner in self.leases and self.leases[node.owner] <= self.clock(node)
        if not node.owner or (over and Guard.NO_RETURN in self.guards):
            if not heard:
                return
            node.owner = f"{node.name}{next(self.numbers)}" if Guard.INCARNATION in self.guards else node.name
            node.held = {path: attempt for path, attempt in node.held.items() if attempt.content}
        self.leases[node.owner] = self.clock(node) + LEASE
        self.now += delay
        if heard:
            node.lease_until = (sent if Guard.SENT in self.guards else self.now) + LEASE

    def clock(self, node: Node) -> int:
        return self.now if Guard.DATABASE_CLOCK in self.guards else self.now + node.skew

    def may_start(self, node: Node) -> bool:
        return self.now < node.lease_until or Guard.OWN_CLOCK not in self.guards

    def claim(self, node: Node, path: int, *, heard: bool) -> None:
        """Look at the file; claim it, or remove it where a receipt for it is there."""
        found, row = self.folder.get(path), self.rows.get(path)
        if found is None or not self.may_start(node):
            return
        if row and row.uploaded and row.content == found:
            self.remove(path, row.content)
        elif row is None or row.uploaded or self.claimable(node, row):
            row = self.rows[path] = Row(node.owner, next(self.numbers))
            if heard:
                node.held[path] = Attempt(row.owner, row.claim)

    def claimable(self, node: Node, row: Row) -> bool:
        if row.owner == node.owner:
            return Guard.OWN_AGAIN in self.guards
        over = self.leases[row.owner] <= self.clock(node)
        return Guard.VOID in self.guards if over else Guard.LIVING_OWNER not in self.guards

    def start(self, node: Node, path: int, attempt: Attempt) -> None:
        if not self.may_start(node):
            return
        assert self.rows.get(path) == Row(attempt.owner, attempt.claim), (
            "an upload starts while another node has the claim"
        )
        attempt.content = self.folder.get(path, 0)
        if not attempt.content:
            self.release(node, path, attempt)

    def still_ours(self, path: int, attempt: Attempt) -> bool:
        row = self.rows.get(path)
        return row is not None and row.owner == attempt.owner and not row.uploaded

    def record(self, node: Node, path: int, attempt: Attempt, *, heard: bool) -> None:
        row = self.rows.get(path)
        if self.still_ours(path, attempt) or Guard.FENCE not in self.guards:
            assert row == Row(attempt.owner, attempt.claim), "a second receipt for a claim, or one without a claim"
            self.rows[path] = Row(attempt.owner, attempt.claim, attempt.content, uploaded=True)
            self.receipts.add(attempt.content)
        elif row is None or (row.owner, row.content) != (attempt.owner, attempt.content):
            del node.held[path]  # another node has it; nothing is removed
        attempt.recorded = heard

    def release(self, node: Node, path: int, attempt: Attempt) -> None:
        del node.held[path]
        if self.still_ours(path, attempt) or Guard.RELEASE_FENCE not in self.guards:
            self.rows.pop(path, None)

    def remove(self, path: int, content: int) -> None:
        found = self.folder.get(path)
        if found and (found == content or Guard.IDENTITY not in self.guards):
            assert found in self.bucket & self.receipts, "a file is removed without a receipt, or not in S3"
            del self.folder[path]

    def finish(self) -> None:
        """The faults end, and the nodes that run go on: within two lease times all files are uploaded and removed."""
        running = [index for index, node in enumerate(self.nodes) if node.owner] or [0]
        for _ in range(5):
            for action in ("renew", "remove", "claim", "start", "send", "record", "remove"):
                for index in running:
                    for path in range(PATHS):
                        self.step(action, index, path, 1 if action == "send" else 0, heard=True)
            self.now += LEASE // 2
        assert not self.folder, "a file is never uploaded, or never removed"
