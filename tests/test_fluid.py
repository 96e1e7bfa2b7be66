"""The simulator against closed forms, and against an integration in small steps."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from nanort.devices import device
from nanort.errors import SimulationError
from nanort.partition import ENGINES, Stream, split, streams, whole
from nanort.simulation.fluid import Jobs, Modes, replay, water_fill

H200 = device("h200")
EXACT = 1e-12


def played(
    plan: Sequence[tuple[int, float, float, int]],
    on: Sequence[Stream],
    waits: Sequence[Sequence[int]] | None = None,
    operators: Sequence[str] = (),
    **options: object,
) -> list[tuple[float, float]]:
    """Start and end of jobs (stream, seconds, share of HBM, SMs); on fewer SMs a job takes longer in proportion."""
    lane, seconds, hbm, sms = ([job[field] for job in plan] for field in range(4))
    jobs = Jobs(
        list(lane),
        Modes(list(seconds), list(sms), (list(hbm),)),
        list(operators) or ["op"] * len(plan),
        lambda job, held: seconds[job] * sms[job] / held,
    )
    start, end = replay(jobs, on, waits or [()] * len(plan), **options)
    return list(zip(start, end, strict=True))


def groups(*sizes: int) -> tuple[Stream, ...]:
    return streams(split(H200, sizes), ENGINES)


def test_one_job_takes_its_solo_time() -> None:
    assert played([(0, 3.0, 1.0, 64)], groups(64)) == [(0.0, 3.0)]


def test_nothing_takes_no_time() -> None:
    assert played([], groups(64)) == []
    assert played([(0, 0.0, 0.0, 64), (0, 0.0, 1.0, 64)], groups(64)) == [(0.0, 0.0), (0.0, 0.0)]


def test_a_stream_runs_its_jobs_in_order() -> None:
    assert played([(0, 1.0, 0.5, 8), (0, 2.0, 0.5, 8), (0, 0.5, 0.5, 8)], groups(8)) == [(0, 1), (1, 3), (3, 3.5)]


def test_jobs_that_draw_less_than_there_is_do_not_meet() -> None:
    assert played([(0, 1.0, 0.4, 64), (1, 2.0, 0.6, 64)], groups(64, 64)) == [(0, 1), (0, 2)]


def test_two_jobs_share_bandwidth_by_their_sms() -> None:
    """Both draw all of it: 96 SMs get 3/4, so that job ends at 4/3 s; the other has done 1/3 by then."""
    (_, first), (_, second) = played([(0, 1.0, 1.0, 96), (1, 1.0, 1.0, 32)], groups(96, 32))
    assert first == pytest.approx(4 / 3, rel=EXACT)
    assert second == pytest.approx(2.0, rel=EXACT)


def test_what_a_job_does_not_ask_for_goes_to_the_others() -> None:
    """The large group asks for 0.3 and gets it: the small one gets 0.7, until it is alone."""
    (_, first), (_, second) = played([(0, 1.0, 0.3, 120), (1, 1.0, 1.0, 8)], groups(120, 8))
    assert first == pytest.approx(1.0, rel=EXACT)
    assert second == pytest.approx(1.0 + 0.3, rel=EXACT)


def test_the_measured_slowdowns_of_unequal_partitions_are_of_that_kind() -> None:
    """A 10 % partition is slowed far more than its 90 % partner where both are bound by memory."""
    (_, small), (_, large) = played([(0, 1.0, 0.3, 8), (1, 1.0, 0.95, 120)], groups(8, 120))
    assert large < 1.1 < 1.3 < small


def test_a_copy_is_served_first() -> None:
    """The copy draws 0.5 for 1 s, in which the kernel gets the other half."""
    kernel, copy = played([(0, 1.0, 1.0, 132), (1, 1.0, 0.5, 0)], streams([whole(H200)], ["h2d"]))
    assert copy == (0.0, 1.0)
    assert kernel == (0.0, pytest.approx(1.5, rel=EXACT))


def test_copies_that_draw_more_than_all_stop_kernels() -> None:
    on = streams([whole(H200)], ENGINES)
    kernel, down, up = played([(0, 1.0, 0.5, 132), (1, 1.0, 1.0, 0), (2, 1.0, 0.5, 0)], on)
    assert up[1] == pytest.approx(1.5, rel=EXACT)  # each at 2/3
    assert down[1] == pytest.approx(1.5, rel=EXACT)
    assert kernel[1] == pytest.approx(2.5, rel=EXACT)


def test_a_wait_holds_a_job_back_and_costs_an_event() -> None:
    plan = [(0, 1.0, 0.1, 64), (1, 1.0, 0.1, 64)]
    assert played(plan, groups(64, 64), [(), (0,)]) == [(0, 1), (1, 2)]
    assert played(plan, groups(64, 64), [(), (0,)], event_seconds=0.25) == [(0, 1), (1, 2.25)]


def test_an_event_draws_no_bandwidth() -> None:
    """The jobs ask for 3 s of bandwidth and leave none unused: an event that drew some would make that 3.25 s."""
    plan = [(0, 0.0, 0.0, 64), (0, 2.0, 1.0, 64), (1, 1.0, 1.0, 64)]
    ends = [end for _, end in played(plan, groups(64, 64), [(), (), (0,)], event_seconds=0.25)]
    assert max(ends) == pytest.approx(3.0, rel=EXACT)


def test_lanes_of_a_group_run_one_after_the_other_with_a_shared_tail() -> None:
    """The first holds 100 of 132 SMs; the second starts on the 32 left over, at 32/132 of its speed."""
    on = streams([whole(H200, lanes=2)])
    (_, first), (start, second) = played([(0, 1.0, 0.0, 100), (1, 1.0, 0.0, 132)], on)
    assert (start, first) == (0.0, 1.0)
    assert second == pytest.approx(1.0 + (1.0 - 32 / 132), rel=EXACT)


def test_a_lane_stands_still_while_the_other_holds_all_sms() -> None:
    on = streams([whole(H200, lanes=2)])
    assert played([(0, 1.0, 0.0, 132), (1, 1.0, 0.0, 132)], on) == [(0, 1), (0, 2)]


@pytest.mark.parametrize("measured", [("linear", "attention"), ("attention", "linear")])
def test_a_measured_pair_runs_together_each_slowed_as_measured(measured: tuple[str, str]) -> None:
    slowdowns = {("linear", "attention"): (1.25, 2.0), ("attention", "linear"): (2.0, 1.25)}[measured]
    (_, linear), (_, attention) = played(
        [(0, 1.0, 0.0, 132), (1, 1.0, 0.0, 132)],
        streams([whole(H200, lanes=2)]),
        operators=["linear", "attention"],
        pairs={measured: slowdowns},
    )
    assert linear == pytest.approx(1.25, rel=EXACT)
    assert attention == pytest.approx(1.25 + (1 - 1.25 / 2), rel=EXACT)


def test_measured_pairs_share_bandwidth_all_the_same() -> None:
    """Slowed by 1.25, each draws 0.8, of which it gets 0.5."""
    (_, first), (_, second) = played(
        [(0, 1.0, 1.0, 132), (1, 1.0, 1.0, 132)],
        streams([whole(H200, lanes=2)]),
        pairs={("op", "op"): (1.25, 1.25)},
    )
    assert first == second == pytest.approx(2.0, rel=EXACT)


def test_waits_in_a_circle_are_refused() -> None:
    with pytest.raises(SimulationError, match="2 of 3 jobs can never start, the first is job 1"):
        played([(0, 1.0, 0.0, 8), (0, 1.0, 0.0, 8), (1, 1.0, 0.0, 8)], groups(8, 8), [(), (2,), (1,)])


def test_water_is_dealt_in_full_and_never_beyond_the_demand() -> None:
    chance = random.Random(0)
    for _ in range(500):
        count = chance.randint(2, 6)
        draws = [chance.choice((0.0, chance.random(), 1.0)) for _ in range(count)]
        weights = [chance.choice((0, chance.randint(1, 132))) for _ in range(count)]
        if sum(draws) <= 1:
            continue
        fractions = water_fill(draws, weights)
        got = [draw * fraction for draw, fraction in zip(draws, fractions, strict=True)]
        assert sum(got) == pytest.approx(1.0, rel=EXACT)
        assert all(0 <= fraction <= 1 + EXACT for fraction in fractions)
        levels = {round(g / w, 12) for g, w, f in zip(got, weights, fractions, strict=True) if w and f < 1 - 1e-9}
        assert len(levels) <= 1, "whoever is not served in full gets as much per SM as the others"


@pytest.mark.parametrize("seed", range(8))
def test_replay_agrees_with_an_integration_in_small_steps(seed: int) -> None:
    chance = random.Random(seed)
    on = groups(88, 40)
    plan = [
        (lane, chance.randint(1, 20) / 10, chance.random(), on[lane].sms)
        for lane in (chance.randrange(4) for _ in range(10))
    ]
    waits = [[w for w in range(job) if chance.random() < 0.15 and plan[w][0] != plan[job][0]] for job in range(10)]
    exact = [end for _, end in played(plan, on, waits)]
    assert _integrated(plan, len(on), waits, 1e-3) == pytest.approx(exact, abs=0.05)


def _integrated(
    plan: Sequence[tuple[int, float, float, int]], count: int, waits: Sequence[Sequence[int]], step: float
) -> list[float]:
    """Ends by an independent model, which deals bandwidth anew in every step."""
    left = {job: seconds for job, (_, seconds, _, _) in enumerate(plan)}
    queues = [[job for job, row in enumerate(plan) if row[0] == lane] for lane in range(count)]
    end, now = [0.0] * len(plan), 0.0
    while left:
        heads = [next((job for job in queue if job in left), -1) for queue in queues]
        runs = [job for job in heads if job >= 0 and not any(other in left for other in waits[job])]
        got = _dealt([(plan[job][2], plan[job][3]) for job in runs])
        now += step
        for job, share in zip(runs, got, strict=True):
            left[job] -= step * (share / plan[job][2])
            if left[job] <= 0:
                del left[job]
                end[job] = now
    return end


def _dealt(jobs: Sequence[tuple[float, int]]) -> list[float]:
    """Shares of bandwidth for jobs of (share, SMs), by bisection on the level of the water."""
    copies = sum(share for share, sms in jobs if not sms)
    scale, free = min(1.0, 1 / copies) if copies else 1.0, max(0.0, 1.0 - copies)
    low, high = 0.0, 1.0
    for _ in range(50):
        level = (low + high) / 2
        used = sum(min(share, level * sms) for share, sms in jobs if sms)
        low, high = (level, high) if used < free else (low, level)
    return [min(share, high * sms) if sms else share * scale for share, sms in jobs]
