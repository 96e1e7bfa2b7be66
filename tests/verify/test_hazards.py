"""2,500 random graphs, whole and cut, on 1 to 8 streams, their bytes reused: free of hazards by three judges.

With --soak there are 100,000.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

import nanort as nr
import random_dags
import referee
from nanort.programs.memory import plan_memory

CI, SOAK, EACH = 2_500, 100_000, 500


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("first", range(0, SOAK if metafunc.config.getoption("soak") else CI, EACH))


def test_programs_are_free_of_hazards(first: int) -> None:
    streams, families, reused, cut = Counter[int](), Counter[str](), 0, 0
    for seed in range(first, first + EACH):
        rng = random.Random(f"hazards {seed}")
        family = rng.choice(random_dags.FAMILIES)
        graph, _ = family(seed)
        cut += (is_cut := rng.random() < 0.5)
        program = nr.lower(random_dags.placed(random_dags.cut(graph, rng) if is_cut else graph, rng, most=8))
        memory = plan_memory(program)
        assert program.hazards(memory) == program.hazards() == (), seed
        assert referee.sanitizer_errors(program, memory) == 0, seed
        assert not referee.is_racy(program, memory), seed
        streams[len({step.stream for step in program.instructions})] += 1
        families[family.__name__] += 1
        reused += memory.device_bytes < memory.separate_bytes
    assert set(streams) >= set(range(1, 9))
    assert set(families) == {family.__name__ for family in random_dags.FAMILIES}
    assert min(reused, cut) > EACH // 4
    print(
        f"{EACH} programs, {cut} cut, {reused} reuse bytes, by streams that are used: {dict(sorted(streams.items()))}"
    )
