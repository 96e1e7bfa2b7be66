"""Edges: which nodes must run after which, derived from the regions they read and write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nanort.values import Region, Value


@dataclass(frozen=True, slots=True)
class Access:
    """A node reads or writes a region of the root value ``root``."""

    root: int
    region: Region


class Edges:
    """The accesses made so far, from which the edges of the next node follow.

    A root of kind "node" is written by its node; what changes a root in place is remembered by region.
    """

    def __init__(self, roots: Sequence[Value]) -> None:
        self.roots = roots
        self.changed: set[int] = set()
        self._writers: dict[int, list[tuple[Region, int]]] = {}
        self._readers: dict[int, list[tuple[Region, int]]] = {}

    def derive(
        self, index: int, reads: Iterable[Access], writes: Iterable[Access], pinned: Iterable[int] = ()
    ) -> tuple[tuple[int, str], ...]:
        """``(node, reason)`` of all that node ``index`` must run after, and remembers its accesses."""
        found: dict[int, str] = {}
        for access in reads:
            for root, region in self.sources(access):
                self._read(index, root, region, found)
        for access in writes:
            self._write(index, access.root, access.region, found)
        for other in pinned:
            found.setdefault(other, "after")
        return tuple(sorted(found.items()))

    def sources(self, access: Access) -> Iterator[tuple[int, Region]]:
        """The roots that hold a region: for a join, those of its parts that the rows meet."""
        root, box = self.roots[access.root], access.region.box
        if root.kind != "join":
            yield access.root, access.region
            return
        rows, rest = (box[0], box[1:]) if box else ((0, root.shape[0]), tuple((0, size) for size in root.shape[1:]))
        first = 0
        for part in root.parts:
            low, high = max(rows[0], first), min(rows[1], first + part.shape[0])
            if low < high:
                yield part.index, Region(box=((low - first, high - first), *rest))
            first += part.shape[0]

    def _read(self, index: int, root: int, region: Region, found: dict[int, str]) -> None:
        value = self.roots[root]
        if value.node >= 0:
            found[value.node] = "data"
        elif value.kind != "state":
            return  # inputs and constants never change
        for written, writer in self._writers.get(root, ()):
            if writer != index and written.overlaps(region):
                found.setdefault(writer, "state")
        self._readers.setdefault(root, []).append((region, index))

    def _write(self, index: int, root: int, region: Region, found: dict[int, str]) -> None:
        self.changed.add(root)
        if self.roots[root].node >= 0:
            found[self.roots[root].node] = "data"
        for history in (self._writers, self._readers):
            kept = []
            for touched, other in history.get(root, ()):
                if other != index and touched.overlaps(region):
                    found.setdefault(other, "state")
                if not region.covers(
                    touched
                ):  # whoever comes later is ordered after this write, which stands for the rest
                    kept.append((touched, other))
            history[root] = kept
        self._writers[root].append((region, index))
