"""Saboteur: a FakeDriver whose work hangs or fails where a test says, what it may leave, and where calls stand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fake_driver import FakeDriver
from fault_table import (
    HANG,
)
from nanort import driver
from nanort.driver.work import Node
from nanort.programs.program import Copy, Launch, Program, Record, Wait
from nanort.runtime import faults
from nanort.runtime import partitions as lending


class Saboteur(FakeDriver):
    """A FakeDriver whose work can hang, or fail when it is carried out, at any call that queues some."""

    def __init__(self, seed: int = 1, **options: Any) -> None:
        super().__init__(seed=seed, **options)
        self.spoilt: dict[tuple[str, int], str] = {}
        self.grant: int | None = None

    def spoil_at(self, method: str, nth: int, how: str) -> None:
        """What the ``nth`` call of ``method`` from now on queues hangs, or fails with the message ``how``."""
        self.spoilt[method, self.count(method) + nth] = how

    def spoil_graph(self, graph: int, position: int, how: str) -> None:
        """The same for what stands at ``position`` in a captured graph, in all replays."""
        node = self._graphs[graph].nodes[position]
        node.hangs = how == HANG
        node.work = node.work if node.hangs else self._failing(how)

    def heal(self) -> None:
        """Nothing is refused, spoilt or hangs any more."""
        self._failures.clear()
        self.spoilt.clear()
        self.unhang()

    def granted(self, context: int) -> int:
        """The SMs of a context, or what the test says."""
        found = super().granted(context)
        return found if self.grant is None else self.grant

    def spoil(self, node: Node) -> None:
        super().spoil(node)
        how = self.spoilt.get((self._method, self.count(self._method)), "")
        node.hangs = node.hangs or how == HANG
        if how and how != HANG:
            node.work = self._failing(how)


@contextmanager
def machine(fake: Saboteur) -> Iterator[Saboteur]:
    """``fake`` is the machine's GPU, asked seldom; afterwards nothing of it is left."""
    before, free = held(), fake.memory
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "current", lambda: fake)
        patch.setattr(faults, "POLL_SECONDS", 20 * faults.POLL_SECONDS)
        yield fake
    if made := lending._MADE.pop(fake, None):
        made.close()
    assert not any(fake.live.values()), fake.live
    assert (fake.memory, fake.pinned) == (free, 0), "memory of the device or of the host is left"
    assert held() == before, "threads or descriptors are left"


def held() -> tuple[int, int]:
    """Threads and open descriptors of this process."""
    return threading.active_count(), sum(1 for _ in Path("/proc/self/fd").iterdir())


def census(fake: Saboteur) -> tuple[object, ...]:
    """All that a run may leave behind."""
    return {kind: set(handles) for kind, handles in fake.live.items()}, fake.memory, fake.pinned, held()


@dataclass(frozen=True, slots=True)
class Site:
    """One call of the driver: its method, the phase it is in, the activity it is made for, and what it is."""

    method: str
    phase: str
    node: int | None
    what: str


def body(program: Program) -> list[Site]:
    """The calls that queue a program whose activities are marked: the fork, its instructions, the join."""
    used = {step.stream for step in program.instructions}
    others = [s for s in program.streams[1:] if s.name in used]
    sites = [Site("record", "launch", None, "fork")] * bool(others)
    sites += [Site("wait", "launch", None, "fork")] * len(others)
    index = -1
    for step in program.instructions:
        if isinstance(step, Record):
            sites.append(Site("record", _phase(program, index), index, "event"))
        elif isinstance(step, Wait):
            sites.append(Site("wait", _phase(program, index + 1), index + 1, "wait"))
        else:
            index += 1
            phase = _phase(program, index)
            work = Site("launch" if isinstance(step, Launch) else "copy", phase, index, "work")
            sites += [Site("record", phase, index, "start"), work, Site("record", phase, index, "stop")]
    return sites + [Site(method, "finish", None, "join") for _ in others for method in ("record", "wait")]


def steps(program: Program) -> list[Launch | Copy]:
    """What a program launches and copies."""
    return [step for step in program.instructions if isinstance(step, (Launch, Copy))]


def _phase(program: Program, index: int) -> str:
    return "copy" if isinstance(steps(program)[index], Copy) else "launch"
