"""Heaps: queues of nodes by their rank, a row of one array each, in machine code."""

from __future__ import annotations

from nanort.compiled import Ints, Ints2, compiled


@compiled
def push(heaps: Ints2, which: int, size: int, rank: int) -> None:
    """Adds ``rank`` to the first ``size`` entries of a heap."""
    at = size
    while at > 0:
        parent = (at - 1) >> 1
        if heaps[which, parent] <= rank:
            break
        heaps[which, at] = heaps[which, parent]
        at = parent
    heaps[which, at] = rank


@compiled
def pop(heaps: Ints2, which: int, size: int) -> int:
    """Takes the least of ``size`` entries of a heap."""
    least: int = heaps[which, 0]
    last = heaps[which, size - 1]
    at, size = 0, size - 1
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and heaps[which, child + 1] < heaps[which, child]:
            child += 1
        if last <= heaps[which, child]:
            break
        heaps[which, at] = heaps[which, child]
        at = child
    heaps[which, at] = last
    return least


@compiled
def add(queue: int, rank: int, heaps: Ints2, sizes: Ints, filled: Ints) -> None:
    """Queues a node, by its rank."""
    push(heaps, queue, sizes[queue], rank)
    sizes[queue] += 1
    filled[0] |= 1 << queue


@compiled
def take(queue: int, heaps: Ints2, sizes: Ints, filled: Ints, by_rank: Ints) -> int:
    """The most urgent node of a queue."""
    sizes[queue] -= 1
    if sizes[queue] == 0:
        filled[0] &= ~(1 << queue)
    node: int = by_rank[pop(heaps, queue, sizes[queue] + 1)]
    return node
