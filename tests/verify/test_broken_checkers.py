"""The race checker itself, broken in one place after the other: mutants of programs tell it from the right one."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

import mutants
import racing
import referee
from nanort.programs import accesses, clocks, hazards
from nanort.programs.memory import MemoryPlan
from nanort.programs.program import Program

BROKEN: tuple[tuple[Callable[..., Any], dict[str, tuple[str, str]]], ...] = (
    (
        clocks._scan,
        {
            "clocks never merge": ("max(clocks[lane, other], marks[events[step], other])", "clocks[lane, other]"),
            "clocks replaced, not merged": (
                "max(clocks[lane, other], marks[events[step], other])",
                "marks[events[step], other]",
            ),
            "waits ignored": ("if kinds[step] == WAIT:", "if kinds[step] == WAIT:\n            continue"),
            "records ignored": ("if kinds[step] == RECORD:", "if kinds[step] == RECORD:\n            continue"),
            "records know all lanes": (
                "marks[events[step], other] = clocks[lane, other]",
                "marks[events[step], other] = clocks[other, other]",
            ),
            "clocks stand still": ("clocks[lane, lane] = number", "pass"),
            "one step too many is over": (
                "written[1, atom] > clocks[lane, other]",
                "written[1, atom] > clocks[lane, other] + 1",
            ),
            "one step too few is over": (
                "written[1, atom] > clocks[lane, other]",
                "written[1, atom] >= clocks[lane, other]",
            ),
            "reads one step too late": (
                "reads[atom, other] > clocks[lane, other]",
                "reads[atom, other] > clocks[lane, other] + 1",
            ),
            "reads one step too soon": (
                "reads[atom, other] > clocks[lane, other]",
                "reads[atom, other] >= clocks[lane, other]",
            ),
            "reads not remembered": ("reads[atom, lane] = number", "pass"),
            "only reads of its own lane": (
                "if other != lane and reads[atom, other] > clocks[lane, other]:",
                "if other == lane and reads[atom, other] > clocks[lane, other]:",
            ),
            "only the last reader": (
                "if written[4, atom] == 0 or nodes[written[4, atom] - 1] < nodes[step]:",
                "if True:",
            ),
            "the last reader not forgotten": ("written[4, atom] = 0", "pass"),
            "writes not remembered": (
                "written[2, atom], written[3, atom] = lane, number, step, 1",
                "written[2, atom], written[3, atom] = lane, number, step, 0",
            ),
            "owners not tracked": ("owners[atom] = buffer", "pass"),
            "owners of no account": ("elif kind < 0 and owner != buffer:", "elif False:"),
            "what nobody wrote may be read": ("kind = 3", "kind = -1"),
            "writes in any order": ("(owner == buffer and nodes[written[2, atom]] > nodes[step])", "False"),
            "reads in any order": ("owner == buffer and nodes[reader] > nodes[step]", "False"),
            "order is wrong of any buffer": (
                "(owner == buffer and nodes[written[2, atom]] > nodes[step])",
                "nodes[written[2, atom]] > nodes[step]",
            ),
            "a step may write over what it reads": ("own = reads[atom, lane] == number or", "own = False or"),
            "results may lie in each other": ("(written[3, atom] == 1 and written[2, atom] == step)", "False"),
            "last byte left out": ("range(first[access], last[access])", "range(first[access], last[access] - 1)"),
            "last access left out": (
                "range(pointers[step], pointers[step + 1])",
                "range(pointers[step], pointers[step + 1] - 1)",
            ),
        },
    ),
    (
        hazards.judged,
        {
            "outputs not judged": ("if (spoilt != buffer).any():", "if False:"),
            "bound buffers not written yet": ("buffer.kind not in PLANNED", "False"),
            "all buffers bound": ("buffer.kind not in PLANNED", "True"),
        },
    ),
    (
        hazards.hazards,
        {
            "memory unknown": ("accesses(program, memory)", "accesses(program)"),
        },
    ),
    (
        accesses._place,
        {
            "one arena": ("return space, offset", "return DEVICE, offset"),
            "no arena": ("if memory is not None:", "if False:"),
        },
    ),
    (
        accesses.touched,
        {
            "copies read nothing": (
                "yield step.source, _cells(step.reads, buffers[step.source.buffer], indexed), 0",
                "pass",
            ),
            "copies write nothing": ("yield step.target, None, 1", "pass"),
            "results not written": ("yield view, None, 1", "yield view, None, 0"),
            "changes in place are reads": (
                "_cells(step.writes, buffers[view.buffer], indexed), 1",
                "_cells(step.writes, buffers[view.buffer], indexed), 0",
            ),
            "changes in place read nothing": ("if buffers[view.buffer].kind in PLANNED:", "if False:"),
        },
    ),
    (
        accesses._cells,
        {
            "cells unknown": ("if buffer.index not in indexed:", "if True:"),
        },
    ),
    (
        accesses.ranges,
        {
            "gaps of a view are its own": ("elif size > 1:", "elif False:"),
            "offsets of views unknown": ("view.offset * itemsize", "0"),
        },
    ),
    (
        accesses.stated,
        {
            "boxes are cells": ("cells is None and not view.is_whole(whole)", "False"),
        },
    ),
)
"""By function of the checker: what is wrong, the text of the right one, and what stands in its place."""


@cache
def judged() -> tuple[tuple[Program, MemoryPlan, bool], ...]:
    """Programs, whole and broken, and whether they are racy."""
    return tuple(_judged())


def _judged() -> Iterator[tuple[Program, MemoryPlan, bool]]:
    for seed in range(4):
        for family in racing.FAMILIES:
            for kind in mutants.KINDS:
                for broken in mutants.drawn(*racing.sound(seed, family), random.Random(seed), kind, 40):
                    yield *broken, referee.is_racy(*broken)
    for seed in range(100):
        program, memory = racing.sound(seed, racing.tangled)
        yield program, memory, False
        for broken in mutants.swapped_launches(program, memory):
            yield *broken, referee.is_racy(*broken)


def is_reported(program: Program, memory: MemoryPlan) -> bool:
    return hazards.hazards(program, memory) != ()


def test_the_checker_as_it_is_passes() -> None:
    assert all(is_reported(program, memory) == truth for program, memory, truth in judged())


@pytest.mark.parametrize(
    ("function", "right", "wrong"),
    [pytest.param(function, *texts, id=name) for function, lines in BROKEN for name, texts in lines.items()],
)
def test_a_broken_checker_is_found_out(
    function: Callable[..., Any], right: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = judged()  # before anything is broken
    source, name, module = inspect.getsource(function), function.__name__, inspect.getmodule(function)
    assert source.count(right) == 1, "this line of the checker reads otherwise now: break it otherwise"
    exec(  # noqa: S102  # the project's own, broken
        compile(source.replace(right, wrong), "<broken>", "exec"), changed := dict(vars(module))
    )
    for user in (accesses, clocks, hazards):
        if vars(user).get(name) is function:
            monkeypatch.setattr(user, name, changed[name])
    assert any(is_reported(program, memory) != truth for program, memory, truth in cases)
