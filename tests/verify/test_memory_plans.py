"""Buffer plans of 5,000 random schedules: nothing in use at once shares bytes, and they are near their lower bounds."""

from __future__ import annotations

import numpy as np
import pytest

from nanort.programs.memory import plan_memory
from test_memory import misplaced, overlaps, random_program

BLOCKS, EACH = 10, 500


@pytest.mark.parametrize("block", range(BLOCKS))
def test_plans_overlap_nowhere_and_are_near_their_bound(block: int) -> None:
    ratios = []
    for seed in range(block * EACH, (block + 1) * EACH):
        program, slots = random_program(seed)
        plan = plan_memory(program, slots=slots)
        assert overlaps(program, plan) == [], seed
        assert misplaced(program, plan, slots) == [], seed
        if bound := plan.lower_bound:
            ratios.append(plan.device_bytes / bound)
        else:
            assert plan.device_bytes == 0, seed
    assert len(ratios) > EACH // 2
    assert min(ratios) >= 1
    assert np.mean(ratios) <= 1.10
    print(
        f"{len(ratios)} plans with buffers: {np.mean(ratios) - 1:.3%} above the bound, {max(ratios) - 1:.1%} at worst"
    )
