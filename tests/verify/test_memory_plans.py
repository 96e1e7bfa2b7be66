"""Buffer plans of 1,500 random schedules: nothing in use at once shares bytes, and they are near their lower bounds.

With --soak there are 5,000.
"""

from __future__ import annotations

import numpy as np
import pytest

from nanort.programs.memory import plan_memory
from test_memory import misplaced, overlaps, random_program

BLOCKS, CI, SOAK = 10, 150, 500


@pytest.mark.parametrize("block", range(BLOCKS))
def test_plans_overlap_nowhere_and_are_near_their_bound(block: int, pytestconfig: pytest.Config) -> None:
    each, ratios = SOAK if pytestconfig.getoption("soak") else CI, []
    for seed in range(block * each, (block + 1) * each):
        program, slots = random_program(seed)
        plan = plan_memory(program, slots=slots)
        assert overlaps(program, plan) == [], seed
        assert misplaced(program, plan, slots) == [], seed
        if bound := plan.lower_bound:
            ratios.append(plan.device_bytes / bound)
        else:
            assert plan.device_bytes == 0, seed
    assert len(ratios) > each // 2
    assert min(ratios) >= 1
    assert np.mean(ratios) <= 1.10
    print(
        f"{len(ratios)} plans with buffers: {np.mean(ratios) - 1:.3%} above the bound, {max(ratios) - 1:.1%} at worst"
    )
