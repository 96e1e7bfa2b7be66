"""FakeGpu: work that waits for work, carried out as late and in as odd an order as what it waits for allows."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import torch


@dataclass(eq=False, slots=True)
class Node:
    """A piece of work, or with none a point in a stream's order.

    Attributes:
        after: what it comes after.
        work: what it does.
        seconds: how long that takes.
        issued: the host's time at which it was queued.
        hangs: whether it never ends.
        end: the time at which it was done, or None.
    """

    after: list[Node]
    work: Callable[[], object] | None = None
    seconds: float = 0.0
    issued: float = 0.0
    hangs: bool = False
    end: float | None = None
    heirs: list[Node] = field(default_factory=list)
    blockers: int = 0


class FakeGpu:
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

    def clear(self) -> None:
        """Forgets what was queued: it is never carried out."""
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
