"""Gpu: work that waits for work, carried out as late and in as odd an order as what it waits for allows."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import torch


@dataclass(eq=False, slots=True, repr=False)  # it would spell out all that it comes after
class Node:
    """A piece of work, or with none a point in a stream's order.

    Attributes:
        after: what it comes after.
        work: what it does.
        seconds: how long that takes.
        issued: the host's time at which it was queued.
        hangs: whether it never ends.
        what: the call that queued it, "launch".
        end: the time at which it was done, or None.
    """

    after: list[Node]
    work: Callable[[], object] | None = None
    seconds: float = 0.0
    issued: float = 0.0
    hangs: bool = False
    what: str = ""
    end: float | None = None
    heirs: list[Node] = field(default_factory=list)
    blockers: int = 0


class Gpu:
    """Carries nodes out: at once and in order without a seed, else late and at random."""

    def __init__(self, seed: int | None) -> None:
        self.late = seed is not None
        self._random = random.Random(seed)
        self._ready: list[Node] = []
        self._hanging: list[Node] = []

    def add(self, node: Node) -> Node:
        """Queues a node."""
        for before in node.after:
            if before.end is None:
                before.heirs.append(node)
                node.blockers += 1
        if node.hangs:
            self._hanging.append(node)
        elif not node.blockers:
            self._ready.append(node)
        self._keep_up()
        return node

    def wander(self) -> None:
        """Carries out a few nodes, or none."""
        for _ in range(self._random.randrange(3) if self.late else 0):
            if self._ready:
                self._carry_out(self._random.choice(self._ready))

    def finish(self, ends: Collection[Node] | None = None) -> None:
        """Carries out what ``ends`` need, and now and then something else; None: everything."""
        if ends is None:
            ends = [*self._unfinished([*self._ready, *self._hanging], "heirs")]
        needed = set(self._unfinished(ends, "after"))
        while any(node.end is None for node in ends):
            useful = [node for node in self._ready if node in needed]
            assert useful, "the host would wait for ever: for work that never ends"
            self._carry_out(self._random.choice(self._ready if self._random.random() < 0.2 else useful))

    def unhang(self) -> None:
        """Lets everything that hangs end."""
        hanging, self._hanging = self._hanging, []
        for node in hanging:
            node.hangs = False
            if not node.blockers:
                self._ready.append(node)
        self._keep_up()

    def drop(self, ends: Collection[Node]) -> None:
        """Forgets all that was queued before ``ends``: it is never carried out, and keeps nothing alive."""
        for node in [*self._unfinished(ends, "after")]:
            node.work, node.after, node.heirs = None, [], []
        self._ready.clear()

    def _keep_up(self) -> None:
        while not self.late and self._ready:
            self._carry_out(self._ready[0])

    def _carry_out(self, node: Node) -> None:
        self._ready.remove(node)
        start = max([node.issued, *(before.end or 0.0 for before in node.after)])
        node.end = start + node.seconds
        if node.work:
            with torch.inference_mode():
                node.work()
        heirs, node.heirs, node.after = node.heirs, [], []
        for heir in heirs:
            heir.blockers -= 1
            if not heir.blockers and not heir.hangs:
                self._ready.append(heir)

    @staticmethod
    def _unfinished(ends: Collection[Node], direction: str) -> Iterator[Node]:
        seen, stack = set(ends), list(ends)
        while stack:
            node = stack.pop()
            if node.end is None:
                yield node
                more = set(getattr(node, direction)) - seen
                seen |= more
                stack.extend(more)


@dataclass(eq=False, slots=True)
class Event:
    """Its latest record, and the capture in which that was made; ``external`` ones are made by replays."""

    timed: bool
    record: Node | None = None
    graph: Capture | None = None


@dataclass(eq=False, slots=True)
class Capture:
    """What was captured, in the order it was queued, and the end of its latest replay."""

    origin: int
    nodes: list[Node] = field(default_factory=list)
    externals: dict[Node, int] = field(default_factory=dict)  # events that each replay records
    invalid: bool = False
    last: Node | None = None


@dataclass(eq=False, slots=True)
class Stream:
    """The end of what is queued on it, and of what is captured on it while it takes part in a capture."""

    context: int
    last: Node | None = None
    captured: Node | None = None
    joined: bool = False


def ancestors(node: Node | None) -> set[Node]:
    """All that ``node`` comes after, and itself."""
    seen, stack = set(), [node] if node else []
    while stack:
        if (here := stack.pop()) not in seen:
            seen.add(here)
            stack.extend(here.after)
    return seen
