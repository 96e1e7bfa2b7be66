"""Report: what went wrong in a world and what became of it, the same bytes for the same seed."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field

from nanort.chaos.faults import KINDS
from nanort.timeline.units import counted


@dataclass(slots=True)
class Report:
    """One world, told as it goes on.

    Attributes:
        seed: which.
        about: the model, and how it is served.
        events: what happened, a line each.
        faults: by kind, what became of them: "struck", "steps failed", "requests failed", "restarts", "missed".
        ends: how many requests ended how.
        steps, tokens, seconds: steps collected, tokens given out, and the world's time.
        breach: what did not hold; "" where all did.
        latest: calls of the device before that.
    """

    seed: int
    about: tuple[str, ...] = ()
    events: list[str] = field(default_factory=list)
    faults: dict[str, Counter[str]] = field(default_factory=dict)
    ends: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    breach: str = ""
    latest: tuple[str, ...] = ()

    def tell(self, now: float, step: int, what: str) -> None:
        """Adds a line."""
        self.events.append(f"{1e3 * now:10.3f} ms  step {step:<4} {what}")

    def count(self, kind: str, what: str, more: int = 1) -> None:
        """Counts what became of a fault."""
        self.faults.setdefault(kind, Counter())[what] += more

    def __str__(self) -> str:
        lines = [f"seed {self.seed}", *(f"  {line}" for line in self.about), *self.events]
        lines += table(self.faults)
        ends = ", ".join(f"{count} {end}" for end, count in sorted(self.ends.items()))
        lines.append(
            f"{counted(sum(self.ends.values()), 'request')} ({ends}), {counted(self.tokens, 'token')} in "
            f"{counted(self.steps, 'step')} and {1e3 * self.seconds:.3f} ms of its time"
        )
        if self.breach:
            lines += [f"BREACH in seed {self.seed}: {self.breach}", *(f"  before it: {call}" for call in self.latest)]
        return "\n".join([*lines, ""])

    @property
    def digest(self) -> str:
        """What tells two reports apart, in 16 characters."""
        return hashlib.sha256(str(self).encode()).hexdigest()[:16]


COLUMNS = ("struck", "missed", "steps failed", "requests failed", "restarts")


def table(faults: dict[str, Counter[str]]) -> list[str]:
    """A line for each kind of fault that was there, with what became of them."""
    if not faults:
        return []
    rows = [
        f"{kind:10}" + "".join(f"{faults[kind][column]:>{len(column) + 2}}" for column in COLUMNS)
        for kind in KINDS
        if kind in faults
    ]
    return [f"{'fault':10}" + "".join(f"  {column}" for column in COLUMNS), *rows]
