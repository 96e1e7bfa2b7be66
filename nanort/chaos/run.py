"""chaos: worlds one after the other, each told in a report, and what became of all of them."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from nanort.chaos.faults import KINDS
from nanort.chaos.report import Report, table
from nanort.chaos.world import World
from nanort.timeline.units import counted


@dataclass(slots=True)
class Sum:
    """What became of many worlds."""

    worlds: int = 0
    faults: dict[str, Counter[str]] = field(default_factory=dict)
    ends: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    breaches: list[int] = field(default_factory=list)

    def add(self, report: Report) -> None:
        """Counts one world more."""
        self.worlds += 1
        self.steps += report.steps
        self.ends.update(report.ends)
        for kind, counts in report.faults.items():
            self.faults.setdefault(kind, Counter()).update(counts)
        if report.breach:
            self.breaches.append(report.seed)

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {end}" for end, count in sorted(self.ends.items()))
        held = f"{len(self.breaches)} did not hold: seeds {self.breaches}" if self.breaches else "all held"
        lines = [*table(self.faults), f"{counted(self.worlds, 'world')}, {counted(self.steps, 'step')}; {ends}; {held}"]
        return "\n".join([*lines, ""])


def chaos(seeds: Sequence[int], *, requests: int = 12, kinds: Sequence[str] = tuple(KINDS)) -> Iterator[Report]:
    """The report of each seed's world, of so many requests, with faults of these kinds.

    It depends on its arguments alone: not on what ran before, nor on the machine.

    Raises:
        RequestError: there is no such fault, or nothing is asked.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # products of a few rows are faster so
    gc.freeze()  # what is there already is not looked through when a world asks what it has left
    try:
        for seed in seeds:
            yield World(seed, requests, kinds).run()
    finally:
        gc.unfreeze()
        torch.set_num_threads(threads)
