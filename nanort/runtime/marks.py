"""Marks: events round the activities of a program, which tell what of a run has ended, and when."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from nanort.compiled import Floats
from nanort.driver import Driver
from nanort.programs.program import Program


@dataclass(slots=True)
class Run:
    """One run: its slot, and how many activities were begun to be queued, and were queued whole."""

    slot: int
    begun: int = 0
    queued: int = 0
    replay: bool = False
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Marks:
    """Events of the beginning of a run, of each activity, and of its end; empty where nobody asks for them.

    Every run records the same ones again.
    """

    driver: Driver
    count: int  # of activities
    began: tuple[int, ...]
    starts: tuple[int, ...]
    stops: tuple[int, ...]

    @staticmethod
    def make(program: Program, driver: Driver, held: ExitStack, *, trace: bool, watched: bool, capture: bool) -> Marks:
        """Marks for a program, which ``held`` destroys.

        Args:
            program: what is run.
            driver: makes the events.
            held: closed by whoever uses them.
            trace: whether to tell when each activity starts and ends.
            watched: whether to tell at least which have ended.
            capture: whether graphs record them, where only their times tell one replay from another.
        """
        count, timed = len(program.activities), trace or (watched and capture)
        return Marks(
            driver,
            count,
            events(driver, held, int(timed), timed=True),
            events(driver, held, count if trace else 0, timed=True),
            events(driver, held, count if trace or watched else 0, timed=timed),
        )

    def has_ended(self, run: Run, index: int) -> bool:
        """Whether an activity has ended in this run, the latest; one that was not queued whole cannot be asked for."""
        if not self.driver.happened(self.stops[index]):
            return False
        if not run.replay:
            return True
        # A replay leaves an event as the one before left it, until it comes to it.
        (began,) = self.began
        return self.driver.happened(began) and self.driver.seconds(began, self.stops[index]) > 0

    def times(self, begun: Sequence[int], ended: Sequence[int]) -> tuple[Floats, Floats]:
        """Floats from the beginning of the run to each activity's start and end, NaN where there is none."""
        start, end = np.full(self.count, np.nan), np.full(self.count, np.nan)
        if self.starts:
            for events, asked, seconds in ((self.starts, begun, start), (self.stops, ended, end)):
                for index in asked:
                    seconds[index] = self.driver.seconds(self.began[0], events[index])
        return start, end


def events(driver: Driver, held: ExitStack, count: int, *, timed: bool = False) -> tuple[int, ...]:
    """So many events, which ``held`` destroys."""
    made = []
    for _ in range(count):
        made.append(driver.create_event(timed=timed))
        held.callback(driver.destroy_event, made[-1])
    return tuple(made)
