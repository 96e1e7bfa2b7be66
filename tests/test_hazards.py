"""Races are found and nothing else is: against a second judge, on programs broken in one place, and on sound ones."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch

import mutants
import nanort as nr
import random_dags
import referee
from nanort import graphs
from nanort.errors import ProgramError
from nanort.programs.clocks import FEW
from nanort.programs.hazards import RACES, hazards, refuse_hazards
from nanort.programs.memory import MemoryPlan, plan_memory
from nanort.programs.program import Launch, Program, View, Wait


def sound(seed: int, family: random_dags.Family) -> tuple[Program, MemoryPlan]:
    """A random graph on one to four streams, whole or cut, with its memory planned."""
    graph, _ = family(seed)
    rng = random.Random(seed)
    program = nr.lower(random_dags.placed(random_dags.cut(graph, rng) if seed % 2 else graph, rng))
    return program, plan_memory(program)


@pytest.mark.parametrize("family", random_dags.FAMILIES)
@pytest.mark.parametrize("first", range(0, 60, 20))
def test_planned_programs_are_free_of_hazards(first: int, family: random_dags.Family) -> None:
    for seed in range(first, first + 20):
        program, memory = sound(seed, family)
        assert program.hazards(memory) == program.hazards() == ()
        if seed < first + 2:
            assert not referee.is_racy(program, memory)


@pytest.mark.parametrize("kind", mutants.KINDS)
def test_a_mutant_is_reported_exactly_if_it_is_racy(kind: str) -> None:
    verdicts = Counter[bool]()
    for seed in range(5):
        for family in random_dags.FAMILIES:
            rng = random.Random(seed)
            made = list(mutants.KINDS[kind](*sound(seed, family)))
            for program, memory in rng.sample(made, min(4, len(made))):
                truth = referee.is_racy(program, memory)
                assert bool(hazards(program, memory)) == truth, f"{family.__name__}({seed}): {hazards(program, memory)}"
                verdicts[truth] += 1
    assert verdicts[True] > 5
    assert verdicts[False] > (0 if kind == "dropped wait" else 2)


@pytest.mark.parametrize("family", random_dags.FAMILIES)
def test_the_sanitizer_of_torch_sees_the_same_races(family: random_dags.Family) -> None:
    """It knows of races alone: not of what is overwritten in a wrong order, nor of what was never written."""
    for seed in range(12):
        program, memory = sound(seed, family)
        assert referee.sanitizer_errors(program, memory) == 0
        for broken, _ in list(mutants.dropped_waits(program, memory))[:3]:
            races = [hazard for hazard in hazards(broken, memory) if hazard.kind in RACES]
            assert bool(referee.sanitizer_errors(broken, memory)) == bool(races)


def two_streams() -> Program:
    """relu on one stream, added to a state on the other; neg of that on the first, added to it again on the other."""
    graph = nr.Graph("two")
    x, total = graph.input("x", (4, 2), torch.float32, batch=0), graph.state("total", (4, 2), torch.float32)
    y = graph.call(torch.relu, x, demand=random_dags.WORK, name="relu")
    _add(total, y)
    z = graph.call(torch.neg, total, demand=random_dags.WORK, name="neg")
    _add(total, z)
    graph.output(y=y, z=z)
    streams = random_dags.streams(nr.device("h200"), random.Random(1))
    assert len(streams) >= 2
    return nr.lower(random_dags.schedule(graph, streams, [0, 1, 0, 1]))


@nr.op(demand=random_dags.WORK, writes=("total",), axes="rows")
def _add(total: torch.Tensor, x: torch.Tensor) -> None:
    total += x


def without(program: Program, *dropped: int) -> Program:
    """The program without its n-th waits."""
    waits = [step for step in program.instructions if isinstance(step, Wait)]
    gone = {id(waits[at]) for at in dropped}
    return replace(program, instructions=tuple(step for step in program.instructions if id(step) not in gone))


@pytest.mark.parametrize(
    ("dropped", "first", "second", "buffer"),
    [(0, "relu", "_add", "relu"), (1, "_add", "neg", "total"), (2, "neg", "_add.1", "neg")],
)
def test_a_hazard_names_nodes_range_wait_and_lines(dropped: int, first: str, second: str, buffer: str) -> None:
    program = without(two_streams(), dropped)
    said = rf"read-after-write: {second} may read bytes 0:32 of '{buffer}' before {first} has written it: "
    wait = rf"(\S+) has to wait for {first} on (\S+) "
    lines = r"\(tests/test_hazards\.py:\d+ and tests/test_hazards\.py:\d+\)$"
    assert any(re.match(said + wait + lines, str(h)) for h in hazards(program)), list(map(str, hazards(program)))
    with pytest.raises(ProgramError, match="program two is racy: "):
        refuse_hazards(program)


def test_order_on_one_stream_can_be_wrong_too() -> None:
    """Nothing is left to chance there, but what runs is not what the graph says."""
    graph = nr.Graph("one")
    x, total = graph.input("x", (4, 2), torch.float32), graph.state("total", (4, 2), torch.float32)
    _add(total, x)
    graph.output(y=graph.call(torch.neg, total, demand=random_dags.WORK, name="neg"))
    program = nr.lower(nr.co_schedule(graph, nr.device("h200"), policy="serial"))
    (hazard,) = hazards(replace(program, instructions=program.instructions[::-1]))
    assert (hazard.kind, hazard.buffer, hazard.first, hazard.second) == ("read-after-write", "total", "_add", "neg")
    assert hazard.missing == "_add has to be launched first"


def test_reading_what_nobody_wrote_is_a_hazard() -> None:
    program = two_streams()
    gone = next(step for step in program.instructions if isinstance(step, Launch) and step.name == "relu")
    left = replace(program, instructions=tuple(step for step in program.instructions if step is not gone))
    assert str(hazards(left)[0]).startswith("unwritten: _add reads bytes 0:32 of 'relu' before anything has written it")


def test_outputs_have_to_be_there_in_the_end() -> None:
    program = two_streams()
    memory = plan_memory(program)
    y, z = (next(b.index for b in program.buffers if b.name == name) for name in ("relu", "neg"))
    device = [memory.device[y] if at == z else offset for at, offset in enumerate(memory.device)]
    assert any("whoever takes output 'y'" in str(h) for h in hazards(program, replace(memory, device=tuple(device))))


def test_an_output_that_nobody_wrote_is_told_of() -> None:
    program = two_streams()
    left = replace(program, instructions=tuple(s for s in program.instructions if getattr(s, "name", "") == "relu"))
    assert [str(h) for h in hazards(left)] == [
        "unwritten: whoever takes output 'z' reads 'neg' before anything has written it"
    ]


def test_rows_of_a_matrix_and_its_columns_meet_where_they_cross() -> None:
    program = replace(two_streams(), outputs={})
    at, step = next((at, s) for at, s in enumerate(program.instructions) if isinstance(s, Launch) and s.name == "neg")
    column = View(step.outs[0].buffer, 1, (4, 1), (2, 1))
    narrow = replace(step, outs=(column,))
    changed = replace(program, instructions=(*program.instructions[:at], narrow, *program.instructions[at + 1 :]))
    assert [h.kind for h in hazards(changed)] == ["unwritten"], "the other column is read, and was never written"
    last = next(at for at, s in enumerate(changed.instructions) if isinstance(s, Launch) and s.name == "_add.1")
    reads = changed.instructions[last]
    assert isinstance(reads, Launch)
    same = replace(reads, args=(reads.args[0], column))
    both = (*changed.instructions[:last], same, *changed.instructions[last + 1 :])
    assert hazards(replace(changed, instructions=both)) == ()


def test_large_programs_are_judged_by_machine_code_alike() -> None:
    step = graphs.decoder_step(graphs.CONFIGS["tiny"], decode=5, context=30, prefill=9)
    small = nr.lower(random_dags.placed(step, random.Random(0)))
    assert len(small) < FEW < sum(len(s.reads) + len(s.outs) for s in LARGE.instructions if isinstance(s, Launch))
    assert hazards(LARGE) == ()
    waits = [at for at, s in enumerate(LARGE.instructions) if isinstance(s, Wait) and s.reason == "data"]
    at = waits[len(waits) // 2]
    assert hazards(replace(LARGE, instructions=LARGE.instructions[:at] + LARGE.instructions[at + 1 :])) != ()


@nr.op(demand=random_dags.WORK, writes=("kv",), cells={"kv": lambda layout, **_: layout.own_cells}, axes="rows")
def _append(kv: torch.Tensor, x: torch.Tensor, *, layout: nr.Layout | None = None) -> None:
    kv[: len(x)] += x


def test_boxes_of_a_state_with_cells_meet_its_cells_and_not_each_other() -> None:
    graph = nr.Graph("boxes", layout=nr.Layout(decode=4, kv_tokens=40))
    x, kv = graph.input("x", (4, 2), torch.float32), graph.state("kv", (8, 2), torch.float32)
    _append(kv, x)
    _add(kv[0:4], x)
    _add(kv[4:8], x)
    streams = random_dags.streams(nr.device("h200"), random.Random(1))
    program = nr.lower(random_dags.schedule(graph, streams, [0, 0, 1]))
    assert hazards(program) == ()
    assert hazards(without(program, 0)) != ()


@nr.op(demand=random_dags.WORK, writes=("kv",), cells={"kv": lambda layout, *, rows: (rows,)}, axes="whole")
def _rows(kv: torch.Tensor, x: torch.Tensor, *, rows: tuple[int, int]) -> None:
    kv[slice(*rows)] += x.sum()


@nr.op(demand=random_dags.WORK, writes=("kv",), axes="whole")
def _part(kv: torch.Tensor, x: torch.Tensor) -> None:
    kv += x.sum()


@pytest.mark.parametrize(("part", "rows"), [((0, 4), (3, 3)), ((4, 4), (0, 2))])
def test_no_rows_of_a_state_with_cells_meet_nothing(part: tuple[int, int], rows: tuple[int, int]) -> None:
    graph = nr.Graph("none", layout=nr.Layout(decode=4, kv_tokens=40))
    x, kv = graph.input("x", (4, 2), torch.float32), graph.state("kv", (8, 2), torch.float32)
    _part(kv[slice(*part)], x)
    _rows(kv, x, rows=rows)
    streams = random_dags.streams(nr.device("h200"), random.Random(1))
    program = nr.lower(random_dags.schedule(graph, streams, [0, 1]))
    alone = tuple(step for step in program.instructions if isinstance(step, Launch))
    assert len(alone) == 2
    assert hazards(replace(program, instructions=alone)) == ()


def changed_in_place() -> Program:
    graph = nr.Graph("in place")
    x = graph.input("x", (4, 2), torch.float32)
    y = graph.call(torch.relu, x, demand=random_dags.WORK, name="relu")
    z = graph.call(torch.abs, graph.call(torch.neg, x, demand=random_dags.WORK, name="neg"), demand=random_dags.WORK)
    _add(y, z)
    graph.output(o=graph.call(torch.exp, y, demand=random_dags.WORK, name="exp"))
    return nr.lower(nr.co_schedule(graph, nr.device("h200"), policy="serial"))


def moved(program: Program, one: str, to: str, far: int = 0) -> MemoryPlan:
    memory, at = plan_memory(program), {buffer.name: buffer.index for buffer in program.buffers}
    device = list(memory.device)
    device[at[one]] = (device[at[to]] or 0) + far
    return replace(memory, device=tuple(device))


def test_what_is_changed_in_place_has_to_be_there() -> None:
    program = changed_in_place()
    left = replace(program, instructions=tuple(s for s in program.instructions if getattr(s, "name", "") != "relu"))
    assert [h.kind for h in hazards(left)] == ["unwritten"]
    spoilt = moved(program, "neg", "relu")
    assert {h.kind for h in hazards(program, spoilt)} == {"overwritten"}
    assert referee.is_racy(program, spoilt)


@pytest.mark.parametrize("far", [0, 4])
def test_a_step_may_not_write_over_what_it_reads(far: int) -> None:
    program = changed_in_place()
    spoilt = moved(program, "exp", "relu", far)
    assert hazards(replace(program, outputs={}), spoilt) != ()
    assert referee.is_racy(replace(program, outputs={}), spoilt)


def test_what_is_changed_in_place_too_early_was_read_on_the_same_stream() -> None:
    """The step that changes it reads it as well, which must not hide who should have read it before."""
    graph = nr.Graph("early")
    y = graph.call(torch.relu, graph.input("x", (4, 2), torch.float32), demand=random_dags.WORK, name="relu")
    _add(y, y)
    graph.output(o=graph.call(torch.neg, y, demand=random_dags.WORK, name="neg"))
    program = nr.lower(nr.co_schedule(graph, nr.device("h200"), policy="serial"))
    relu, add, neg = program.instructions
    early = replace(program, instructions=(relu, neg, add))
    assert [(h.kind, h.first, h.second) for h in hazards(early)] == [("read-after-write", "_add", "neg")]
    assert referee.is_racy(early)


def test_two_results_of_a_step_may_not_lie_in_the_same_bytes() -> None:
    graph = nr.Graph("two results")
    x = graph.input("x", (4, 2), torch.float32)
    graph.output(low=graph.call(torch.aminmax, x, dim=0, demand=random_dags.WORK, name="both")[0])
    program = nr.lower(nr.co_schedule(graph, nr.device("h200"), policy="serial"))
    spoilt = moved(program, "both:1", "both:0")
    assert hazards(program, plan_memory(program)) == ()
    assert hazards(replace(program, outputs={}), spoilt) != ()
    assert referee.is_racy(replace(program, outputs={}), spoilt)


def _large() -> Program:
    config = replace(graphs.CONFIGS["tiny"], layers=60)
    step = graphs.decoder_step(config, decode=40, context=30, prefill=40)
    return nr.lower(random_dags.placed(nr.nano_batch(step, 2), random.Random(3)))


LARGE = _large()
