"""The named steps at which daemons are still to die, in the order of their turns."""

from __future__ import annotations

import random
from collections.abc import Iterable

SOON = 3  # lives until a step is tried once more
# Steps that some mode of removal never comes to.
ONLY = {"compare+unlink": "delete", "aside": "delete", "unlink": "delete", "restore": "delete"}
ONLY |= {"compare+rename": "archive", "rename": "archive"}
ACTIONS = ("delete", "archive", "keep")
LARGE = ("resumed", "create", "record multipart", "record part", "complete", "forget multipart", "abort")
FAILING = ("record retry", "claim")
STARTING = ("lock", "migrate", "ledger", "watch", "control", "scan")
WHEN = ("before", "after")


class Steps:
    """A step is "before:NAME" or "after:NAME"; "": a random moment."""

    def __init__(self, todo: list[str], rng: random.Random) -> None:
        self._todo = todo
        self._rng = rng
        self._missed: set[str] = set()  # where one was to die already, but did not come to

    def take(self, *, left_aside: bool) -> str:
        """`left_aside`: a file is out of the way, as it has to be before one can put it back."""
        ready = [step for step in self._todo if left_aside or not step.endswith(":restore")]
        restoring = [step for step in ready if step.endswith(":restore")]
        if not ready or (not restoring and self._rng.random() < 0.2):
            return ""
        step = (restoring or ready)[0]
        self._todo.remove(step)
        return step

    def call(self, step: str) -> int:
        """Around which of its calls to die."""
        rare = step.partition(":")[2] in {*STARTING, *LARGE, *FAILING, "restore"} or step in self._missed
        return self._rng.choice([1] if rare else [1, 1, 2, 3, 10, 40])

    def miss(self, step: str) -> None:
        """The life ended before it came to that: soon again, or another time."""
        self._todo.insert(len(self._todo) if step in self._missed else SOON, step)
        self._missed.add(step)

    def again(self, step: str) -> None:
        self._todo.insert(0, step)


def plan(action: str, seed: int, steps: Iterable[str]) -> list[str]:
    """Steps that only this mode comes to, then all others; each mode begins elsewhere, so that together they do all."""
    rng = random.Random(f"{seed} steps")
    own = [f"{when}:{step}" for step in steps if ONLY.get(step) == action for when in WHEN]
    others = [f"{when}:{step}" for step in steps if step not in ONLY for when in WHEN]
    rng.shuffle(own)
    rng.shuffle(others)
    start = len(others) * ACTIONS.index(action) // len(ACTIONS)
    return [*own, *others[start:], *others[:start]]
