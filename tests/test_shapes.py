from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

import nanort as nr
from nanort.serving.batching import Batch, Share
from nanort.serving.beside import Beside
from nanort.serving.requests import Request
from nanort.serving.sampling import SamplingParams
from nanort.serving.shapes import Shape, octaves

SEGMENTS = st.lists(st.builds(nr.Segment, st.integers(1, 400), st.integers(0, 900)), max_size=4)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    decode, segments = draw(st.integers(0, 300)), tuple(draw(SEGMENTS))
    layout = nr.Layout(decode, segments, draw(st.integers(decode, 4000 * decode)) if decode else 0)
    return Shape(layout, decode + len(segments), draw(st.integers(1, 9000)))


@given(shapes().filter(lambda shape: shape.requests > 0))
def test_the_bucket_of_a_step_suits_it(step: Shape) -> None:
    bucket = step.bucket
    assert bucket.suits(step)
    padded = bucket.layout.rows > step.layout.rows
    assert bucket.requests >= step.requests + padded, "padding has a request of its own"
    assert bucket.bucket.layout == bucket.layout


def test_a_plan_suits_steps_of_its_kind_and_size_only() -> None:
    plan = Shape(nr.Layout(64, (nr.Segment(128, 512),), 8192), requests=66, width=64)
    step = Shape(nr.Layout(60, (nr.Segment(120),), 7000), requests=61, width=20)
    assert plan.suits(step)
    layout = step.layout
    for other in (
        replace(step, sampling=True),
        replace(step, beside=Beside(0, 1, 2)),
        replace(step, width=65),
        replace(step, requests=66),  # no room for a request of the padding
        replace(step, layout=nr.Layout(65, layout.segments, 7000)),
        replace(step, layout=nr.Layout(60, (nr.Segment(8),), 7000)),
        replace(step, layout=nr.Layout(60, layout.segments, 3000)),
        replace(step, layout=nr.Layout(60, layout.segments, 7000, h2d_bytes=4096)),
    ):
        assert not plan.suits(other)


def test_the_shape_of_a_batch_tells_pages_and_whether_anything_is_drawn() -> None:
    def share(length: int, **params: float) -> Share:
        return Share(Request("a", (1,) * length, SamplingParams(**params)), length - 1, length, draws=True)

    greedy = Batch((share(30),), (share(100),))
    assert Shape.of(greedy, 16) == Shape(greedy.layout, 2, width=8)
    assert Shape.of(Batch((share(30), share(9, temperature=1.0))), 16).sampling
    assert Shape.of(greedy, 16, 64, 32).layout == replace(greedy.layout, h2d_bytes=64, d2h_bytes=32)


def test_octaves_tell_how_far_layouts_are_apart() -> None:
    one, other = nr.Layout(decode=3, kv_tokens=127), nr.Layout(decode=7, kv_tokens=63)
    assert octaves(one, one) == 0
    assert octaves(one, other) == octaves(other, one) == 2
    assert octaves(nr.Layout(prefill=7), nr.Layout(prefill=(nr.Segment(7, 8),))) == 1
