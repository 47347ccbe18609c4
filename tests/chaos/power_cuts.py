"""Rounds of: start, work, a power cut, recovery. What was synced before the cut has to survive it."""

from __future__ import annotations

import contextlib
import os
import random
import time
from functools import partial
from typing import TYPE_CHECKING

from chaos.base_campaign import INSANE
from chaos.campaign import TESTS
from chaos.figures import Figures
from chaos.steps import FAILING, ONLY, STARTING
from chaos.witness import Digests, Witness
from s3spool.errors import LedgerError
from s3spool.folder.folder import REMOVING
from s3spool.ledger.queries import Known
from s3spool.ledger.reader import Reader
from s3spool.s3.keys import key_of
from support.daemon import Daemon
from support.killing import STEPS
from support.killing import program as dying_at
from support.power import Disk, cut
from support.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from chaos.oracle import Verdict

MIB = 2**20
START_S, DRAIN_S, STEP_S = 60.0, 120.0, 4.0
WITHOUT_DISK = {"ledger.failed", "watch.lost", "daemon.unhealthy"}  # a daemon may notice the cut before it is killed
UNREACHED = {"restore", "abort"}  # these follow a life of their own; the campaign of kills has them


class PowerCuts:
    """One kind of file system, one or two of them, one mode of removal."""

    def __init__(self, home: Path, kind: str, action: str, seed: int, *, apart: bool) -> None:
        """`apart`: the ledger has a file system of its own. Raises CannotMountError."""
        self.context = f"{kind}, {action}, {'two file systems' if apart else 'one'}, CHAOS_SEED={seed}"
        self.figures = Figures()
        self._rng = random.Random(self.context)
        self._action = action
        self._disks = [Disk(home / f"{name}.img", home / name, kind) for name in ("files", "ledger")[: 1 + apart]]
        self._witness = Witness(seed)
        folder, state = self._disks[0].place / "spool", self._disks[-1].place / "state"
        self._archive = folder.with_name("archive")
        self._daemon = Daemon(
            home,
            bucket=self._witness.bucket,
            environment=self._witness.environment()
            | {"PYTHONPATH": str(TESTS), "CUT_POWER": ":".join(str(disk.place) for disk in self._disks)},
            watch={"directory": str(folder), "settle_s": 0, "rescan_s": 5},
            after={"action": action, "archive_directory": str(self._archive)},
            upload={"multipart_threshold": "5MiB", "part_size": "5MiB", "workers": 20},
            state={"directory": str(state)},
        )
        self._daemon.folder, self._daemon.state_directory = folder, state
        self._ordinary = self._daemon.program
        self._synced: dict[str, Digests] = {}
        self._dropped = 0
        steps = [f"{when}:{step}" for step in STEPS for when in ("before", "after")]
        steps = [step for step in steps if self._comes_to(step.partition(":")[2])]
        self._todo = self._rng.sample(steps, len(steps))

    def __enter__(self) -> Self:
        for disk in self._disks:
            disk.mount()
        for directory in (self._daemon.folder, self._daemon.state_directory):
            directory.mkdir()
        for disk in self._disks:
            disk.flush()
        self._witness.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._daemon.__exit__(kind, error, trace)
        self._witness.stop()
        for disk in self._disks:
            disk.close()

    def round(self, files: int) -> None:
        """One life, its end, and a look at what is left."""
        step = self._todo.pop() if self._todo and self._rng.random() < 0.75 else ""
        name = step.partition(":")[2]
        faults = self._witness.faults
        faults.share, faults.only = (0.3, "500 InternalError") if name in FAILING else (0.0, "")
        self._daemon.program = dying_at(step, self._rng.choice([1, 1, 2, 5])) if step else self._ordinary
        early = files if name in STARTING else self._rng.randint(0, files // 2)
        self._drop(early)
        self._daemon.start()
        self.figures.starts += 1
        deadline = time.monotonic() + START_S
        while self._daemon.alive and time.monotonic() < deadline:
            if self._daemon.events("daemon.ready", this_run=True):
                break
            time.sleep(0.01)
        self._drop(files - early)
        ended = self._daemon.ends_within(STEP_S if step else self._rng.uniform(0.0, 1.0))
        if ended is None:
            for disk in self._disks:
                cut(disk.place)
            self._daemon.kill()
        else:
            assert ended == -9, f"{self.context}: it ended with {ended}\n{self._daemon.log_tail()}"
            self.figures.power_cuts_at_steps += 1
        self.figures.power_cuts += 1
        for disk in self._disks:
            eventually(partial(_recovered, disk), timeout_s=START_S, message=f"{disk.place} recovers")
        self._look(f"{self.context}, cut {self.figures.power_cuts} at {step or 'a random moment'}")

    def finish(self) -> Figures:
        """All that was synced is sent; in keep mode nothing that was logged as uploaded is sent again."""
        self._witness.faults.share = 0.0
        self._daemon.program = self._ordinary
        self._daemon.start().wait_ready(START_S)
        eventually(lambda: not self._unsent(), timeout_s=DRAIN_S, message=f"{self.context}: all is sent")
        assert self._daemon.stop(START_S) == 0
        self._look(self.context)
        if self._action == "keep":
            logged = [event["path"] for event in self._daemon.events("file.uploaded") if event["path"] in self._synced]
            again = {path for path in logged if logged.count(path) > 1}
            assert not again, f"{self.context}: sent again though uploaded: {again}"
        strange = [event for event in self._daemon.events() if event["event"] in INSANE - WITHOUT_DISK]
        assert not strange, f"{self.context}: {strange[:3]}"
        assert self._witness.deletions == 0
        self.figures.files = self._dropped
        self.figures.states = self._dropped
        self.figures.requests = self._witness.total
        return self.figures

    def _comes_to(self, step: str) -> bool:
        return step not in UNREACHED and ONLY.get(step, self._action) == self._action

    def _drop(self, files: int) -> None:
        """Most are synced, as a careful writer does it; of the others nothing is promised."""
        for _ in range(files):
            self._dropped += 1
            size = self._rng.randint(5 * MIB, 11 * MIB) if self._dropped % 40 == 7 else self._rng.randint(0, 8192)
            content = self._rng.randbytes(size)
            path, synced = f"{self._dropped:05d}", self._rng.random() < 0.8
            hidden = self._daemon.folder / f".{path}.part"
            try:
                with hidden.open("wb") as file:
                    file.write(content)
                    file.flush()
                    if synced:
                        os.fsync(file.fileno())
                hidden.rename(self._daemon.folder / path)
                if synced:
                    _sync(self._daemon.folder)
                    self._synced[path] = Digests.of(content)
            except OSError:
                return  # the power is off

    def _look(self, context: str) -> None:
        verdict = self.figures.verdict
        for _, version in self._witness.take_unseen():
            verdict.versions += version is not None
        known = self._known()
        for path, content in self._synced.items():
            self._see(path, content, known, verdict)
        uploaded = {event["path"] for event in self._daemon.events("file.uploaded")}
        archived = {str(file.relative_to(self._archive)) for file in self._archive.rglob("*") if file.is_file()}
        for path in uploaded | archived:
            if not self._is_received(path, known):
                verdict.early.append(f"{path!r} is logged as uploaded or archived, and has no receipt or no object")
        verdict.assert_clean(context)
        damaged = list(self._daemon.state_directory.glob("*.broken-*"))
        assert not damaged, f"{context}: the ledger did not open: {damaged}"

    def _see(self, path: str, content: Digests, known: dict[str, Known], verdict: Verdict) -> None:
        for name in (path, REMOVING + path):
            place = self._daemon.folder / name
            if place.exists():
                if Digests.of(place.read_bytes()) != content:
                    verdict.torn.append(f"{path!r} was synced, and is another in the folder")
                return
        version = self._witness.latest(key_of(path, ""))
        if version is None or version.content != content:
            verdict.lost.append(f"{path!r} was synced, is gone, and {version} is in the bucket")
        elif not self._is_received(path, known):
            verdict.early.append(f"{path!r} is gone without a receipt")
        elif self._action == "archive" and not (self._archive / path).exists():
            verdict.lost.append(f"{path!r} is neither in the folder nor in the archive")

    def _is_received(self, path: str, known: dict[str, Known]) -> bool:
        found = known.get(path)
        return found is not None and found.receipt is not None and self._witness.latest(key_of(path, "")) is not None

    def _known(self) -> dict[str, Known]:
        ledger = self._daemon.state_directory / "ledger.sqlite3"
        if not ledger.exists():
            return {}
        paths = [f"{number:05d}" for number in range(1, self._dropped + 1)]
        try:
            with Reader(ledger) as reader:
                return reader.known(paths) if reader.made() else {}
        except LedgerError as exc:
            # The power went while the ledger was created, the only time that it has a rollback journal (WAL follows):
            # it is empty, and only a daemon, which may write to it, can roll it back.
            if getattr(exc.__cause__, "sqlite_errorname", "") != "SQLITE_READONLY_ROLLBACK":
                raise
            return {}

    def _unsent(self) -> list[str]:
        return [path for path, content in self._synced.items() if self._there(path) != content]

    def _there(self, path: str) -> Digests | None:
        version = self._witness.latest(key_of(path, ""))
        return version and version.content


def _recovered(disk: Disk) -> bool:
    """Whether it can be written to again. A mount that another namespace has copied keeps the old state alive."""
    with contextlib.suppress(RuntimeError):
        disk.unmount()
    if disk.place.is_mount():
        return False
    disk.mount()
    probe = disk.place / "probe"
    with contextlib.suppress(OSError):
        probe.touch()
        probe.unlink()
        return True
    return False


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
