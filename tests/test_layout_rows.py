from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nanort as nr
from nanort.errors import LayoutError, SizesError

segments = st.lists(st.builds(nr.Segment, st.integers(1, 9), st.integers(0, 20)), max_size=4).map(tuple)
layouts = st.builds(
    lambda decode, prefill, kv: nr.Layout(decode, prefill, kv if decode else 0),
    st.integers(0, 12),
    segments,
    st.integers(0, 500),
)


@st.composite
def cuts(draw: st.DrawFn) -> tuple[nr.Layout, tuple[nr.Layout, ...]]:
    layout = draw(layouts)
    ends = sorted(draw(st.lists(st.integers(0, layout.rows), max_size=4)))
    return layout, layout.cut([b - a for a, b in zip([0, *ends], [*ends, layout.rows], strict=True)])


def tokens(layout: nr.Layout) -> list[tuple[int, int]]:
    """What stands at every canonical row: the request and the position of its token; decode rows count from -1 down."""
    decode = [(-1 - row, 0) for row in range(layout.decode)]
    return decode + [(i, s.past + k) for i, s in enumerate(layout.segments) for k in range(s.rows)]


def cells(ranges: tuple[tuple[int, int], ...]) -> set[int]:
    return {cell for low, high in ranges for cell in range(low, high)}


def test_a_count_of_prefill_rows_is_one_segment() -> None:
    assert nr.Layout(prefill=7) == nr.Layout(prefill=(nr.Segment(7),))
    assert nr.Layout(prefill=0) == nr.Layout()


@given(segments)
def test_pairs_are_those_of_the_causal_mask(prefill: tuple[nr.Segment, ...]) -> None:
    masks = (torch.ones(s.rows, s.past + s.rows).tril(s.past) for s in prefill)
    assert nr.Layout(prefill=prefill).pairs == sum(int(mask.sum()) for mask in masks)


@given(cuts())
def test_pieces_hold_every_row_once_and_an_even_mix(cut: tuple[nr.Layout, tuple[nr.Layout, ...]]) -> None:
    layout, pieces = cut
    packed = layout.packed(pieces)
    assert sorted(packed.order) == list(range(layout.rows))
    assert sum(piece.pairs for piece in pieces) == layout.pairs
    assert abs(sum(piece.kv_tokens for piece in pieces) - layout.kv_tokens) <= len(pieces) / 2
    begin = 0
    for piece in pieces:
        assert piece.start == begin
        assert abs(piece.decode * layout.rows - layout.decode * piece.rows) < layout.rows + 1
        begin += piece.rows


@given(cuts())
def test_prefill_reads_exactly_the_history_and_its_own_requests_up_to_its_last_row(
    cut: tuple[nr.Layout, tuple[nr.Layout, ...]],
) -> None:
    layout, pieces = cut
    standing = [tokens(layout)[row] for row in layout.packed(pieces).order]
    for piece in pieces:
        assert cells(piece.own_cells) == set(range(piece.start, piece.start + piece.rows))
        own = standing[piece.start + piece.decode : piece.start + piece.rows]
        last = dict(own)  # the last position of every request in this piece
        seen = {row for row, (request, at) in enumerate(standing) if request in last and at <= last[request]}
        assert cells(piece.prefill_cells) == (seen | cells(layout.history) if own else set())
        decode = set(range(piece.start, piece.start + piece.decode))
        assert cells(piece.decode_cells) == (decode | cells(layout.history) if decode else set())


@given(cuts(), st.data())
def test_narrowed_pieces_read_exactly_what_their_rows_do(
    cut: tuple[nr.Layout, tuple[nr.Layout, ...]], data: st.DataObject
) -> None:
    layout, pieces = cut
    standing = [tokens(layout)[row] for row in layout.packed(pieces).order]
    for piece in pieces:
        begin = data.draw(st.integers(0, piece.rows))
        part = piece.narrow(begin, data.draw(st.integers(begin, piece.rows)))
        own = standing[part.start + part.decode : part.start + part.rows]
        last = dict(own)
        seen = {row for row, (request, at) in enumerate(standing) if request in last and at <= last[request]}
        assert part.start == piece.start + begin
        assert cells(part.prefill_cells) == (seen | cells(layout.history) if own else set())
        assert [s.past for s in part.segments] == [min(at for r, at in own if r == request) for request in last]


@given(cuts())
def test_packing_puts_rows_where_pieces_hold_them(cut: tuple[nr.Layout, tuple[nr.Layout, ...]]) -> None:
    layout, pieces = cut
    packed, rows = layout.packed(pieces), torch.arange(layout.rows)
    decode, prefill = rows[: layout.decode], rows[layout.decode :]
    wanted = []
    for piece in pieces:
        wanted += [decode[: piece.decode], prefill[: piece.prefill_rows]]
        decode, prefill = decode[piece.decode :], prefill[piece.prefill_rows :]
    assert torch.equal(packed.pack(rows), torch.cat([rows[:0], *wanted]))
    assert torch.equal(packed.unpack(packed.pack(rows)), rows)


def test_history_rows_and_elsewhere_are_three_things() -> None:
    layout = nr.Layout(decode=3, prefill=4)
    everything = [cells(layout.own_cells), cells(layout.history), cells(layout.elsewhere)]
    assert sum(map(len, everything)) == len(set.union(*everything))
    assert {(piece.history, piece.elsewhere) for piece in layout.cut([2, 5])} == {(layout.history, layout.elsewhere)}


@given(layouts)
def test_a_bucket_fits_its_step_and_pads_by_less_than_half(layout: nr.Layout) -> None:
    bucket = layout.bucket()
    assert bucket.fits(layout)
    assert bucket.bucket() == bucket
    assert len(bucket.segments) <= 1
    for padded, asked in ((bucket.decode, layout.decode), (bucket.prefill_rows, layout.prefill_rows)):
        assert asked <= padded < max(1.5 * asked, 1)
    assert bucket.kv_tokens >= layout.kv_tokens
    assert bucket.pairs >= layout.pairs


def test_a_step_of_more_rows_does_not_fit() -> None:
    bucket = nr.Layout(decode=4, prefill=8)
    assert bucket.fits(nr.Layout(decode=4, prefill=(nr.Segment(3, 100), nr.Segment(5))))
    assert not bucket.fits(nr.Layout(decode=5, prefill=7))
    assert not bucket.fits(nr.Layout(prefill=9))


def test_layouts_are_plain_values() -> None:
    layout = nr.Layout(decode=2, prefill=3, kv_tokens=9)
    assert layout == nr.Layout(2, (nr.Segment(3),), 9)
    assert hash(layout) == hash(nr.Layout(2, 3, 9))
    assert repr(layout) == "Layout(decode=2, prefill=(Segment(3),), kv_tokens=9)"


@pytest.mark.parametrize(
    "wrong",
    [
        {"decode": -1},
        {"decode": 1.5},
        {"prefill": -3},
        {"prefill": (nr.Segment(2, -1),)},
        {"kv_tokens": 8},
        {"h2d_bytes": -1},
    ],
    ids=str,
)
def test_a_layout_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(LayoutError):
        nr.Layout(**wrong)


def test_sizes_that_do_not_add_up_are_refused() -> None:
    layout = nr.Layout(decode=2, prefill=3)
    with pytest.raises(SizesError, match=r"\(2, 2\) rows do not add up to the layout's 5 rows"):
        layout.cut([2, 2])
    with pytest.raises(SizesError):
        layout.cut([-1, 6])
    with pytest.raises(SizesError, match="rows 3:6 lie outside the 5 rows"):
        layout.narrow(3, 6)


def test_a_list_of_segments_is_refused_with_the_way_out() -> None:
    with pytest.raises(LayoutError, match=r"a tuple of nr\.Segment"):
        nr.Layout(prefill=[nr.Segment(4)])  # wrong on purpose
