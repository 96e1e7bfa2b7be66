"""Programs that were broken in one place: the race checker reports those that are racy, and no others.

All mutants of small programs, and a sample of those of larger ones, forty times as large with --soak.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

import mutants
import racing
import random_dags
import referee
from nanort.programs.hazards import hazards

CI, SOAK, EACH = 500, 20_000, 250
EXHAUSTED = range(12)  # seeds of small programs, by family


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "first" in metafunc.fixturenames:
        metafunc.parametrize("first", range(0, SOAK if metafunc.config.getoption("soak") else CI, EACH))


@pytest.mark.parametrize("family", racing.FAMILIES)
def test_all_mutants_of_small_programs_are_reported_exactly_if_they_are_racy(family: random_dags.Family) -> None:
    verdicts, programs = Counter[tuple[str, bool]](), 0
    for seed in EXHAUSTED:
        program, memory = racing.sound(seed, family)
        if len(program.graph.nodes) > racing.SMALL:
            continue
        assert not hazards(program, memory)
        assert not referee.is_racy(program, memory)
        programs += 1
        for kind, mutate in mutants.KINDS.items():
            for number, (broken, moved) in enumerate(mutate(program, memory)):
                truth = referee.is_racy(broken, moved)
                assert bool(hazards(broken, moved)) == truth, (seed, kind, number)
                verdicts[kind, truth] += 1
    assert programs >= len(EXHAUSTED) // 2
    assert {kind for kind, truth in verdicts if truth} == set(mutants.KINDS)
    told(f"{programs} programs", verdicts)


def test_mutants_of_larger_programs_are_reported_exactly_if_they_are_racy(first: int) -> None:
    """And the sanitizer sees those that leave something unordered, of which it knows alone."""
    verdicts, seed = Counter[tuple[str, bool]](), first * 1000
    while verdicts.total() < EACH:
        seed += 1
        rng = random.Random(seed)
        program, memory = racing.larger(seed, rng)
        for kind in mutants.KINDS:
            for broken in mutants.drawn(program, memory, rng, kind, 3):
                truth = referee.is_racy(*broken)
                assert bool(hazards(*broken)) == truth, (seed, kind)
                assert bool(referee.sanitizer_errors(*broken)) == referee.is_unordered(*broken), (seed, kind)
                verdicts[kind, truth] += 1
    assert {kind for kind, truth in verdicts if truth} == set(mutants.KINDS)
    told(f"{seed - first * 1000} programs", verdicts)


def told(what: str, verdicts: Counter[tuple[str, bool]]) -> None:
    """Prints the counts."""
    racy = {kind: count for (kind, truth), count in sorted(verdicts.items()) if truth}
    print(f"{what}, {verdicts.total()} mutants, {sum(racy.values())} of them racy: {racy}")
