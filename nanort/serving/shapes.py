"""Shape: what of a step its plan depends on, rounded up so that few plans serve many steps."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

from nanort.layout import Layout, Segment
from nanort.serving.batching import Batch
from nanort.serving.beside import Beside

WIDTHS = tuple(4**power for power in range(2, 12))
"""Pages a row of the page table may have; few, since a wide table costs no more than its bytes."""

TILE = 64
"""Rows beyond a few tiles of them are rounded to tiles: a third of a large step would be much padding."""

KV_STEPS = 4
"""Steps an octave to which the cached tokens of decode rows are rounded; a plan differs by them in its times alone."""

SWAPPED = (0, 32, 128)
"""Pages that a step is made to move each way: few sizes, since each has plans of its own."""


def swapped(pages: int) -> int:
    """The smallest of these sizes, or the multiple of the largest, that has room for so many pages.

    >>> [swapped(pages) for pages in (0, 1, 9, 300)]
    [0, 32, 32, 384]
    """
    return next((size for size in SWAPPED if size >= pages), -(-pages // SWAPPED[-1]) * SWAPPED[-1])


@dataclass(frozen=True, slots=True)
class Shape:
    """The rows of a step, how many requests they belong to and how many pages these have at most.

    ``sampling`` says that tokens are drawn at random, ``beside`` which layers the prefill rows pass.
    """

    layout: Layout
    requests: int
    width: int = WIDTHS[0]
    sampling: bool = False
    beside: Beside | None = None

    @classmethod
    def of(cls, batch: Batch, page_size: int, h2d_bytes: int = 0, d2h_bytes: int = 0) -> Shape:
        """The shape of a batch that moves so many bytes between host and device."""
        layout = batch.layout
        if h2d_bytes or d2h_bytes:
            layout = Layout(layout.decode, layout.segments, layout.kv_tokens, h2d_bytes, d2h_bytes)
        width = max((share.request.length // page_size + 2 for share in batch.shares), default=1)
        return cls(layout, len(batch.decode) + len(batch.prefill), width, not batch.greedy, batch.beside)

    @property
    def bucket(self) -> Shape:
        """This shape rounded up; padded rows need a request of their own, whose page is scratch."""
        mine = self.layout
        decode, rows = rounded(mine.decode), rounded(mine.prefill_rows)
        past = rounded(max((segment.past for segment in mine.segments), default=0), tile=0)
        prefill = (Segment(rows, past),) if rows else ()
        kv_tokens = _stepped(max(mine.kv_tokens, decode)) if decode else 0
        layout = Layout(decode, prefill, kv_tokens, mine.h2d_bytes, mine.d2h_bytes)
        prefills = self.requests - mine.decode
        requests = decode + (1 << (prefills - 1).bit_length() if prefills else 0)
        requests = max(requests, self.requests + (layout.rows > mine.rows))
        width = next((width for width in WIDTHS if width >= self.width), self.width)
        return Shape(layout, requests, width, self.sampling, self.beside)

    def suits(self, step: Shape) -> bool:
        """Whether a plan for this shape is right for the step, pads it by little, and is timed for it."""
        mine, its = self.layout, step.layout
        if not mine.fits(its) or (self.sampling, self.beside) != (step.sampling, step.beside):
            return False
        if (mine.h2d_bytes, mine.d2h_bytes) != (its.h2d_bytes, its.d2h_bytes) or step.width > self.width:
            return False
        if step.requests + (mine.rows > its.rows) > self.requests or 2 * self.requests > 3 * step.requests + 4:
            return False
        if 4 * mine.kv_tokens > 6 * its.kv_tokens + 4 * TILE or 4 * its.kv_tokens > 5 * mine.kv_tokens + 4 * TILE:
            return False
        spare = max(its.rows // 8, 2 * TILE) if its.rows > 4 * TILE else max(its.rows // 2, 2)
        return mine.rows - its.rows <= spare


def rounded(count: int, *, up: bool = True, tile: int = TILE) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, ..., 192, 256, then of the multiples of a tile; the one before without ``up``.

    >>> [rounded(count) for count in (0, 5, 200, 300)], rounded(300, up=False), rounded(300, tile=0)
    ([0, 6, 256, 320], 256, 384)
    """
    if count <= 2:
        return count
    if tile and count > 4 * tile:
        return (count + (tile - 1) * up) // tile * tile
    power = 1 << (count.bit_length() - 1)
    steps = (power, power * 3 // 2, 2 * power)
    return min(step for step in steps if step >= count) if up else max(step for step in steps if step <= count)


def _stepped(count: int) -> int:
    """The next of several numbers an octave."""
    step = max(1, (1 << (count.bit_length() - 1)) // KV_STEPS)
    return -(-count // step) * step


def octaves(one: Layout, other: Layout) -> float:
    """How far two layouts are from each other: the sum, over what sizes a step has, of how often one doubles.

    >>> octaves(Layout(decode=3, kv_tokens=127), Layout(decode=7, kv_tokens=511))
    3.0
    """
    sizes = [(b.decode, b.kv_tokens, b.prefill_rows, b.prefill_kv_tokens) for b in (one, other)]
    return sum(abs(log2((size + 1) / (beside + 1))) for size, beside in zip(*sizes, strict=True))
