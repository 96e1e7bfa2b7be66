from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanort.errors import GraphError
from nanort.layered import APART, layered


@st.composite
def dags(draw: st.DrawFn) -> list[list[int]]:
    """Predecessors of up to 30 nodes, numbered in an order that says nothing."""
    count = draw(st.integers(0, 30))
    number = draw(st.permutations(range(count)))
    preds: list[list[int]] = [[] for _ in range(count)]
    for node in range(1, count):
        preds[number[node]] = [number[pred] for pred in draw(st.sets(st.integers(0, node - 1), max_size=4))]
    return preds


@given(dags())
def test_every_edge_goes_down_with_a_bend_in_each_row_between(preds: list[list[int]]) -> None:
    places = layered(preds)
    assert sorted(edge[:2] for edge in places.edges) == sorted((a, b) for b, before in enumerate(preds) for a in before)
    assert all(len(bends) == places.y[b] - places.y[a] - 1 for a, b, bends in places.edges)


@given(dags())
def test_boxes_of_a_row_keep_apart_from_each_other_and_from_bends(preds: list[list[int]]) -> None:
    places = layered(preds)
    rows: dict[int, list[tuple[float, int]]] = {}
    for x, y in zip(places.x, places.y, strict=True):
        rows.setdefault(y, []).append((x, 0))
    for a, _, bends in places.edges:
        for y, x in enumerate(bends, places.y[a] + 1):
            rows[y].append((x, 1))
    for row in rows.values():
        for (left, is_bend), (right, other) in pairwise(sorted(row)):
            assert right - left > APART[is_bend + other] - 0.01
    assert set(rows) == set(range(len(rows)))
    assert min(places.x, default=0) >= 0


def test_rows_are_longest_paths_and_a_source_lies_right_above_its_first_reader() -> None:
    chain_and_late_source: list[list[int]] = [[], [0], [1], [], [2, 3]]
    assert layered(chain_and_late_source).y == (0, 1, 2, 2, 3)


def test_a_chain_is_straight_and_an_edge_past_it_is_too_beside_the_boxes() -> None:
    places = layered([[], [0], [1], [2], [3, 0]])
    assert max(places.x) - min(places.x) < 0.1  # of a box: the long edge pulls its ends a little
    (bends,) = (bends for a, b, bends in places.edges if (a, b) == (0, 4))
    assert max(bends) - min(bends) < 0.1
    assert abs(bends[0] - places.x[1]) == pytest.approx(APART[1], abs=0.1)


def test_a_ladder_that_can_be_drawn_without_crossings_is() -> None:
    rungs = 12  # node 2k stands left, 2k + 1 right; listed so that the given order crosses in every row
    preds: list[list[int]] = [[], []]
    for rung in range(1, rungs):
        preds += [[2 * rung - 1], [2 * rung - 2]] if rung % 2 else [[2 * rung - 2], [2 * rung - 1]]
    places = layered(preds)
    sides = [
        (places.x[a] - places.x[b]) * (places.x[c] - places.x[d])
        for (a, c, _), (b, d, _) in pairwise(sorted(places.edges, key=lambda edge: places.y[edge[0]]))
        if places.y[a] == places.y[b]
    ]
    assert len(sides) == rungs - 1
    assert min(sides) > 0


def test_the_same_predecessor_twice_is_one_edge() -> None:
    assert len(layered([[], [0, 0]]).edges) == 1


def test_where_bends_run_out_the_longest_edges_are_straight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanort.layered.BENDS", 3)
    spans = {(a, b): len(bends) for a, b, bends in layered([[], [0], [1], [2, 1], [3, 0]]).edges}
    assert (spans[1, 3], spans[0, 4]) == (1, 0)


@pytest.mark.parametrize("preds", [[[0]], [[1], [0]], [[], [0, 2], [1]]])
def test_a_cycle_is_refused_with_a_node_on_it(preds: list[list[int]]) -> None:
    with pytest.raises(GraphError, match=r"node [01] of \d lies on a cycle"):
        layered(preds)
