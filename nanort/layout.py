"""Layout: what a step's batch looks like, the part of demands and edges that shapes do not tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from nanort.errors import LayoutError, SizesError

Cells = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive prefill rows of one request.

    Attributes:
        rows: tokens of the prompt that this step processes.
        past: tokens of the same request that precede them, in the cache or earlier in this step.
        earlier: packed rows of this step that hold the request's earlier tokens (set by cutting).
    """

    rows: int
    past: int = 0
    earlier: Cells = ()

    def __repr__(self) -> str:
        past = f", past={self.past}" if self.past else ""
        return f"Segment({self.rows}{past}{f', earlier={self.earlier}' if self.earlier else ''})"

    @property
    def pairs(self) -> int:
        """Query-key pairs of causal attention: each row attends to everything up to itself."""
        return self.rows * self.past + self.rows * (self.rows + 1) // 2


@dataclass(frozen=True, slots=True)
class Layout:
    """The rows of one step: ``decode`` rows, one per request, then ``prefill`` rows, segment by segment.

    Args:
        decode: rows that generate one token each.
        prefill: rows of prompts; a count is one segment.
        kv_tokens: cached tokens that the decode rows read, in all.
        h2d_bytes, d2h_bytes: bytes that the step moves between host and device.

    A layout rounded up by :meth:`bucket` describes every step that :meth:`fits` in it.

    >>> Layout(decode=2, prefill=6, kv_tokens=100).cut([4, 4])[1]
    Layout(decode=1, prefill=(Segment(3, past=3, earlier=((1, 4),)),), kv_tokens=50, start=4, step_rows=8)
    """

    decode: int = 0
    prefill: int | tuple[Segment, ...] = ()
    kv_tokens: int = 0
    h2d_bytes: int = 0
    d2h_bytes: int = 0
    start: int = 0
    step_rows: int = -1
    cuts: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.prefill, int):
            object.__setattr__(self, "prefill", (Segment(self.prefill),) if self.prefill else ())
        elif not isinstance(self.prefill, tuple) or not all(isinstance(s, Segment) for s in self.prefill):
            raise LayoutError(f"prefill={self.prefill!r}: give a count of rows, or a tuple of nr.Segment")
        sizes = (self.decode, self.kv_tokens, self.h2d_bytes, self.d2h_bytes, *(s.rows for s in self.segments))
        if any(not isinstance(size, int) or size < 0 for size in sizes) or any(s.past < 0 for s in self.segments):
            raise LayoutError(f"{self!r}: rows, tokens and bytes are whole numbers, zero or more")
        if self.kv_tokens and not self.decode:
            raise LayoutError(f"kv_tokens={self.kv_tokens} are read by decode rows, and there are none: give decode=")
        if self.step_rows < 0:
            object.__setattr__(self, "step_rows", self.rows)

    def __repr__(self) -> str:
        hidden = {"h2d_bytes": 0, "d2h_bytes": 0, "start": 0, "cuts": ()}
        names = ["decode", "prefill", "kv_tokens", *(n for n, default in hidden.items() if getattr(self, n) != default)]
        if self.step_rows != self.rows:
            names.append("step_rows")
        return f"Layout({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The prefill segments, first to last."""
        assert isinstance(self.prefill, tuple)  # a count was made a segment on construction
        return self.prefill

    @property
    def prefill_rows(self) -> int:
        """Rows of all prefill segments."""
        return sum(segment.rows for segment in self.segments)

    @property
    def rows(self) -> int:
        """All rows: the dense batch."""
        return self.decode + self.prefill_rows

    @property
    def pairs(self) -> int:
        """Query-key pairs that causal attention over the prefill rows computes."""
        return sum(segment.pairs for segment in self.segments)

    @property
    def prefill_kv_tokens(self) -> int:
        """Cached tokens that the prefill segments read, each request's once."""
        return sum(segment.past + segment.rows for segment in self.segments)

    # State through an index: a cell per packed row, one for the tokens before the step, one for all other pages.

    @property
    def history(self) -> Cells:
        """The cell of tokens cached before this step."""
        return ((self.step_rows, self.step_rows + 1),)

    @property
    def elsewhere(self) -> Cells:
        """The cell of pages that belong to no request of this step."""
        return ((self.step_rows + 1, self.step_rows + 2),)

    @property
    def own_cells(self) -> Cells:
        """The cells of this piece's rows: what an append writes."""
        return ((self.start, self.start + self.rows),) if self.rows else ()

    @property
    def decode_cells(self) -> Cells:
        """What attention of the decode rows reads: the history and their own rows."""
        return (*self.history, (self.start, self.start + self.decode)) if self.decode else ()

    @property
    def prefill_cells(self) -> Cells:
        """What attention of the prefill rows reads: the history, their requests' rows up to the last of this piece."""
        if not self.segments:
            return ()
        first = self.start + self.decode
        earlier = (cells for segment in self.segments for cells in segment.earlier)
        return (*self.history, *earlier, (first, first + self.prefill_rows))

    # Cutting.

    def cut(self, sizes: Sequence[int]) -> tuple[Layout, ...]:
        """Pieces of ``sizes`` rows, each with an even mix of decode and prefill rows, packed one after the other.

        Raises:
            SizesError: the sizes do not add up to the rows.
        """
        if sum(sizes) != self.rows or any(size < 0 for size in sizes):
            raise SizesError(f"pieces of {tuple(sizes)} rows do not add up to the layout's {self.rows} rows")
        ends = list(accumulate(sizes))
        decode_ends = [self.decode * end // self.rows if self.rows else 0 for end in ends]
        pieces = []
        placed: list[list[tuple[int, int]]] = [[] for _ in self.segments]
        for size, end, d0, d1 in zip(sizes, ends, [0, *decode_ends], decode_ends, strict=False):
            first = end - size - d0
            pieces.append(self._piece(d0, d1, first, end - d1, self.start + end - size, placed))
        return tuple(pieces)

    def narrow(self, begin: int, end: int) -> Layout:
        """The rows ``begin`` to ``end`` of this piece, in packed order."""
        if not 0 <= begin <= end <= self.rows:
            raise SizesError(f"rows {begin}:{end} lie outside the {self.rows} rows of {self!r}")
        d0, d1 = min(begin, self.decode), min(end, self.decode)
        return self._piece(d0, d1, begin - d0, end - d1, self.start + begin, None)

    def _piece(
        self, d0: int, d1: int, p0: int, p1: int, start: int, placed: list[list[tuple[int, int]]] | None
    ) -> Layout:
        """Decode rows ``d0:d1`` and prefill rows ``p0:p1``, packed at row ``start``."""
        segments, row, at = [], 0, start + d1 - d0
        for index, segment in enumerate(self.segments):
            low, high = max(p0, row), min(p1, row + segment.rows)
            if low < high:
                if placed is not None:
                    before = tuple(placed[index])
                    placed[index].append((at, at + high - low))
                else:  # narrowing keeps the packing, so the segment's earlier rows of this piece lie just before
                    before = ((at - (low - row), at),) if low > row else ()
                segments.append(Segment(high - low, segment.past + low - row, (*segment.earlier, *before)))
                at += high - low
            row += segment.rows
        share = (d1 - d0) / self.decode if self.decode else 0.0
        fraction = (d1 - d0 + p1 - p0) / self.rows if self.rows else 0.0
        return Layout(
            decode=d1 - d0,
            prefill=tuple(segments),
            kv_tokens=round(self.kv_tokens * share),
            h2d_bytes=round(self.h2d_bytes * fraction),
            d2h_bytes=round(self.d2h_bytes * fraction),
            start=start,
            step_rows=self.step_rows,
        )

    # Packing: the host puts its rows in the order in which pieces hold them.

    @property
    def order(self) -> tuple[int, ...]:
        """The canonical row (decode, then prefill) that stands at each packed row."""
        if not self.cuts:
            return tuple(range(self.rows))
        order: list[int] = []
        decode, prefill = 0, self.decode
        for decode_rows, prefill_rows in self.cuts:
            order += range(decode, decode + decode_rows)
            order += range(prefill, prefill + prefill_rows)
            decode, prefill = decode + decode_rows, prefill + prefill_rows
        return tuple(order)

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` (rows, ...) in canonical order as this layout's pieces hold it."""
        return tensor[torch.tensor(self.order, dtype=torch.long)] if self.cuts else tensor

    def unpack(self, tensor: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`pack`."""
        if not self.cuts:
            return tensor
        out = torch.empty_like(tensor)
        out[torch.tensor(self.order, dtype=torch.long)] = tensor
        return out

    def packed(self, pieces: Sequence[Layout]) -> Layout:
        """This layout with its rows packed as ``pieces`` (from :meth:`cut`) hold them."""
        return replace(self, cuts=tuple((piece.decode, piece.prefill_rows) for piece in pieces))

    # Buckets: one plan for many steps.

    def bucket(self) -> Layout:
        """This layout, rows and tokens rounded up (to 1, 2, 3, 4, 6, 8, 12, 16, ...), its prefill one segment."""
        rows = _round_up(self.prefill_rows)
        past = _round_up(max((s.past for s in self.segments), default=0))
        decode = _round_up(self.decode)
        kv_tokens = _round_up(max(self.kv_tokens, decode))
        return Layout(
            decode, (Segment(rows, past),) if rows else (), kv_tokens if decode else 0, self.h2d_bytes, self.d2h_bytes
        )

    def fits(self, step: Layout) -> bool:
        """Whether a plan made for this layout gives right results for ``step``; its times may be off."""
        return step.decode <= self.decode and step.prefill_rows <= self.prefill_rows


def _round_up(count: int) -> int:
    """The next number of the form 2^k or 3 * 2^k: padding stays below a half, buckets few."""
    if count <= 2:
        return count
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if power * 3 // 4 >= count else power
