from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

import nanort as nr
from nanort.errors import ScheduleError
from nanort.graphs import CONFIGS, decoder_step
from nanort.scheduling.coschedule import co_schedule
from nanort.scheduling.schedule import Schedule
from nanort.serving.planner import Planned, Planner, carried
from nanort.serving.shapes import Shape
from nanort.serving.steps import Steps, searcher

CPU, H200 = nr.device("cpu"), nr.device("h200")
double = nr.op(demand=nr.Demand(flops=1e6), name="double", axes="rows")(lambda x: 2 * x)


def doubling(shape: Shape) -> nr.Graph:
    """A step that doubles its rows."""
    graph = nr.Graph("double", shape.layout)
    graph.output(y=double(graph.input("x", (shape.layout.rows,), torch.float32, batch=0)))
    return graph


class Search:
    """Finds serial plans; it notes for which rows, and waits until it may."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.may = threading.Event()
        self.may.set()

    def __call__(self, shape: Shape, graph: nr.Graph) -> Schedule:
        self.may.wait()
        self.rows.append(shape.layout.rows)
        return co_schedule(graph, CPU, policy="serial", nano_batches=1)


def prompts(planner: Planner, counts: Sequence[int]) -> list[Planned]:
    """The plans for prompts of so many rows, one after the other."""
    return [planner.find(Shape(nr.Layout(prefill=count), 1)) for count in counts]


def test_steps_of_one_bucket_share_a_plan_and_others_do_not() -> None:
    search = Search()
    planner = Planner(doubling, search, CPU)
    first, same, larger = prompts(planner, [90, 96, 300])
    assert first is same is not larger
    assert planner.plans == (first, larger)
    assert search.rows == [96, 320]
    assert planner.find(Shape(nr.Layout(prefill=96), 40)) is not first, "it has no room for so many requests"
    assert planner.seconds > 0


def test_plans_used_least_lately_are_forgotten() -> None:
    planner = Planner(doubling, Search(), CPU, capacity=2)
    small, large, again, huge = prompts(planner, [16, 256, 16, 4096])
    assert small is again
    assert planner.plans == (small, huge)
    assert prompts(planner, [256])[0] is not large


def test_a_step_does_not_wait_for_a_search_in_the_background() -> None:
    search = Search()
    search.may.clear()
    planner = Planner(doubling, search, CPU, background=True)
    first, second = prompts(planner, [90, 90])
    assert first is second
    assert search.rows == []
    search.may.set()
    while (found := prompts(planner, [90])[0]) is first:
        pass
    assert search.rows == [96]
    assert found.shape == first.shape
    assert planner.plans == (found,)
    planner.close()


def test_a_search_in_the_background_that_fails_leaves_the_serial_plan_and_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def failing(shape: Shape, graph: nr.Graph) -> Schedule:
        raise ScheduleError("no plan today")

    planner = Planner(doubling, failing, CPU, background=True)
    first = prompts(planner, [90])[0]
    while not caplog.messages:
        assert prompts(planner, [90])[0] is first
    assert "no plan today" in caplog.text
    assert prompts(planner, [90])[0] is first
    planner.close()


def test_a_search_that_ctrl_c_cut_short_is_no_answer() -> None:
    def pressed(shape: Shape, graph: nr.Graph) -> Schedule:
        return replace(Search()(shape, graph), truncated=True)

    planner = Planner(doubling, pressed, CPU)
    with pytest.raises(KeyboardInterrupt):
        prompts(planner, [90])
    assert planner.plans == ()


def test_only_plans_that_gain_about_as_much_are_carried_over() -> None:
    config = replace(CONFIGS["llama-3-8b"], layers=6)

    def step(prefill: int) -> nr.Graph:
        return decoder_step(config, decode=670, context=1280, prefill=prefill)

    plan = co_schedule(step(1340), H200, nano_batches=2, effort=24)
    near = carried(plan, step(1300), guard=True)
    assert near is not None
    assert near.mechanism == plan.mechanism != "serial"
    assert carried(plan, step(64), guard=False) is None  # gains less by far
    assert carried(plan, decoder_step(CONFIGS["tiny"], decode=4, context=8, prefill=4), guard=True) is None
    serial = co_schedule(step(1340), H200, policy="serial")
    assert carried(serial, step(1300), guard=True) is None  # a search may find better


def test_the_plan_that_a_search_found_serves_shapes_near_it() -> None:
    steps = Steps(CONFIGS["tiny"], torch.float32, pages=9, page_size=16, seats=8, max_rows=64)
    search = searcher(H200, None, policy="list", nano_batches=(2,), guard=False)
    planner = Planner(steps.graph, search, H200, guard=False)
    found = [planner.find(Shape(nr.Layout(decode=8, kv_tokens=tokens), 8)) for tokens in (768, 1280, 1792, 8192)]
    assert [plan.searched for plan in found] == [True, False, True, True], "one that was carried starts no other"
    assert found[1].schedule.mechanism == found[0].schedule.mechanism != "serial"
    assert found[1].schedule.why[0].startswith("replanned from a plan for Layout(decode=8, prefill=(), kv_tokens=768)")
