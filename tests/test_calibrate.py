from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import nanort as nr
from nanort.costs.calibrate import Calibration, calibrate
from nanort.costs.neighbours import profile_of
from nanort.costs.profile import Profile
from nanort.costs.roofline import smooth_max
from nanort.costs.samples import Call, Place, Sample
from nanort.errors import CostError, NanortError

GUESS = nr.device("h200")
TRUE = GUESS.with_(
    hbm_bandwidth=3.9e12, hbm_saturation_sms=(58, 58), launch_seconds=2.5e-6, flops={**GUESS.flops, "bfloat16": 6.5e14}
)
PLACE = Place("h200", 132, "a GPU", "580.0", (("torch", "2.13"),))
COUNTS = (*range(8, 129, 8), 132)


def seconds(call: Call, device: nr.Device = TRUE) -> float:
    memory = call.hbm_bytes / device.hbm_bandwidth / min(1.0, call.sms / device.hbm_saturation_sms[0])
    rate = device.flops.get(call.dtype, device.flops["float32"])
    share = math.ceil(call.tiles / call.sms) / call.tiles if call.tiles else 1 / call.sms
    return device.launch_seconds + smooth_max(call.flops / rate * device.sms * share, memory)


def linear(rows: int, width: int, sms: int, dtype: str = "bfloat16", kernel: str = "reference") -> Call:
    nbytes = 2 * (rows * width + rows * 4096 + width * 4096)
    return Call("linear", kernel, ((rows, width), (4096, width)), dtype, 2.0 * rows * width * 4096, nbytes, sms)


def norm(rows: int, sms: int) -> Call:
    return Call("rms_norm(eps=1e-05)", "reference", ((rows, 8192),), "bfloat16", 4.0 * rows * 8192, rows * 32768, sms)


def calls(counts: tuple[int, ...] = COUNTS) -> list[Call]:
    shapes = [(64, 4096), (256, 4096), (1024, 4096), (1024, 14336)]
    return [
        call for n in counts for call in (*(linear(*s, n) for s in shapes), norm(16, n), norm(512, n), norm(4096, n))
    ]


def measured(
    made: list[Call], noise: float = 0.0, seed: int = 0, took: Callable[[Call], float] = seconds
) -> list[Sample]:
    """Samples of these calls, off by normal noise as a share."""
    numbers = random.Random(seed)
    return [Sample.of(call, [took(call) * numbers.gauss(1.0, noise)]) for call in made]


def test_a_last_round_of_tiles_is_no_lower_rate() -> None:
    """130 tiles take two rounds on 128 SMs and one on 132: the rate is found, and nothing is left to explain."""
    tiled = [call._replace(tiles=130) if call.operator == "linear" else call for call in calls()]
    fit = calibrate(GUESS, PLACE, measured(tiled))
    assert fit.device.flops["bfloat16"] == pytest.approx(TRUE.flops["bfloat16"], rel=1e-3)
    assert fit.error < 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_recovered_from_noisy_measurements(seed: int) -> None:
    fit = calibrate(GUESS, PLACE, measured(calls(), 0.03, seed), seed=seed)
    assert fit.device.hbm_bandwidth == pytest.approx(TRUE.hbm_bandwidth, rel=0.03)
    assert fit.device.flops["bfloat16"] == pytest.approx(TRUE.flops["bfloat16"], rel=0.03)
    assert fit.device.launch_seconds == pytest.approx(TRUE.launch_seconds, rel=0.06)
    least, most = fit.device.hbm_saturation_sms
    assert least == most == pytest.approx(58, abs=3)
    assert fit.held_out == len(calls()) // 5
    assert 0.01 < fit.error < 0.05, "noise of 3 % leaves that of the held-out points"
    assert fit.error < fit.worst


@pytest.mark.parametrize(
    "far",
    [
        GUESS,
        GUESS.with_(hbm_bandwidth=1e11, flops={**GUESS.flops, "bfloat16": 1e17}, launch_seconds=1e-3),
        GUESS.with_(hbm_bandwidth=1e14, flops={**GUESS.flops, "bfloat16": 1e12}, launch_seconds=1e-9),
    ],
)
def test_the_fit_is_exact_without_noise_wherever_it_begins(far: nr.Device) -> None:
    fit = calibrate(far, PLACE, measured(calls()))
    assert fit.device.hbm_saturation_sms == (58, 58)
    assert fit.worst < 1e-6
    for figure in ("hbm_bandwidth", "launch_seconds"):
        assert getattr(fit.device, figure) == pytest.approx(getattr(TRUE, figure), rel=1e-5)
    assert fit.device.flops["bfloat16"] == pytest.approx(TRUE.flops["bfloat16"], rel=1e-5)


def test_the_fit_depends_on_the_seed_and_not_on_the_order() -> None:
    samples = measured(calls(), 0.03)
    first, again, other = (
        calibrate(GUESS, PLACE, each, seed=seed) for each, seed in ((samples, 0), (samples[::-1], 0), (samples, 1))
    )
    assert (first.device, first.device.flops, first.error) == (again.device, again.device.flops, again.error)
    assert first.error != other.error


def test_held_out_calls_are_not_fitted_to() -> None:
    """Were one of them seen, an absurd value of it would change the fit."""
    samples = measured(calls(), 0.03)
    before, unseen = calibrate(GUESS, PLACE, samples), 0
    for at, sample in enumerate(samples[:25]):
        absurd = Sample.of(sample.call, [sample.seconds * 100])
        after = calibrate(GUESS, PLACE, [*samples[:at], absurd, *samples[at + 1 :]])
        if after.device == before.device and after.device.flops == before.device.flops:
            unseen += 1
            assert after.worst > 0.9 > before.worst
    assert 0 < unseen < 15


def test_only_the_fastest_kernel_of_a_call_is_fitted_to() -> None:
    slow = [call._replace(kernel="slow") for call in calls()]
    samples = measured(calls()) + measured(slow, took=lambda call: 3 * seconds(call))
    fit = calibrate(GUESS, PLACE, samples)
    assert fit.worst < 1e-6
    assert len(fit.profile.measurements) == 2 * len(calls())


def test_each_dtype_has_its_rate_and_one_that_the_device_lacks_that_of_float32() -> None:
    other = [
        linear(rows, 8192, n, dtype) for rows in (256, 2048) for n in COUNTS for dtype in ("float16", "float8_e5m2")
    ]
    samples = measured(
        [*calls(), *other], took=lambda call: seconds(call, TRUE.with_(flops={**TRUE.flops, "float16": 3e14}))
    )
    fit = calibrate(GUESS, PLACE, samples)
    assert fit.kept == ()
    assert fit.device.flops["float16"] == pytest.approx(3e14, rel=1e-4)
    assert fit.device.flops["float32"] == pytest.approx(TRUE.flops["float32"], rel=1e-4)
    assert "float16 300 TFLOP/s" in str(fit)


def test_a_figure_that_nothing_tells_stays_the_devices_own() -> None:
    long = [call for call in [*calls(), *(norm(1 << 16, n) for n in COUNTS)] if seconds(call) > 50e-6]
    fit = calibrate(GUESS, PLACE, measured(long, 0.01))
    assert "launch_seconds" in fit.kept
    assert fit.device.launch_seconds == pytest.approx(GUESS.launch_seconds)
    assert {"flops.float16", "flops.float32"} < set(fit.kept)
    assert "a launch" not in str(fit)
    assert fit.device.hbm_bandwidth == pytest.approx(TRUE.hbm_bandwidth, rel=0.02)


def test_copies_and_calls_beside_others_have_no_part_in_the_fit() -> None:
    copy = Call("to_device", "reference", ((1 << 20,),), "uint8", 0.0, float(1 << 20), 0)
    beside = [replace(sample, seconds=1.0, high=1.0, beside=norm(16, 8)) for sample in measured(calls())]
    fit = calibrate(GUESS, PLACE, [*measured(calls()), *beside, Sample.of(copy, [5.0])])
    assert fit.worst < 1e-6
    assert copy.operator in {m.operator for m in fit.profile.measurements}


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        ([], "0 calls were measured alone on h200, too few to fit 3 figures: measure 9 or more"),
        (
            measured([*calls((132,)), *(linear(64 * k, 8192, 132) for k in range(1, 9))]),
            "no calls that memory binds on other SM counts than 132",
        ),
        (measured([norm(rows, n) for rows in (64, 512, 4096) for n in COUNTS]), "no calls that arithmetic binds"),
        (
            measured([linear(4096, w, n) for w in (4096, 8192, 16384) for n in COUNTS]),
            "no calls that memory binds, such as",
        ),
        (
            measured([call for call in calls() if call.flops > call.hbm_bytes * 200 or call.sms < 40]),
            "no calls that memory binds on more than 32 SMs",
        ),
        (measured(calls(), took=lambda call: 1e-3), "no calls that arithmetic binds.*, and no calls that memory binds"),
    ],
)
def test_measurements_that_tell_too_little_are_refused_with_what_is_missing(samples: list[Sample], says: str) -> None:
    with pytest.raises(CostError, match=says):
        calibrate(GUESS, PLACE, samples)


def test_measurements_of_another_device_are_refused() -> None:
    with pytest.raises(CostError, match=r"these samples are of h200 \(132 SMs\), not of h100 \(132 SMs\)"):
        calibrate(nr.device("h100"), PLACE, measured(calls()))


def test_plans_take_the_fitted_device_and_its_profile() -> None:
    fit: Calibration = calibrate(GUESS, PLACE, measured(calls(), 0.03))
    assert (fit.profile.device, fit.profile.sms) == (fit.device.name, fit.device.sms)
    assert (fit.profile.machine, dict(fit.profile.versions)) == ("a GPU, driver 580.0", {"torch": "2.13"})
    g = nr.Graph("g")
    x = g.input("x", (1024, 4096), torch.bfloat16)
    g.output(y=g.call(torch.relu, x, demand=nr.Demand(hbm_bytes=3.9e9)))
    serial = nr.co_schedule(g, fit.device, profile=fit.profile, policy="serial")
    assert serial.makespan == pytest.approx(1e-3, rel=0.05)


def test_a_profile_carries_figures_that_tell_more_than_those_before(tmp_path: Path) -> None:
    fit = calibrate(GUESS, PLACE, measured(calls(), 0.03))
    assert fit.error < fit.before
    assert "with the figures before" in str(fit)
    fit.profile.save(tmp_path / "profile.json")
    again = Profile.load(tmp_path / "profile.json", stale=True)
    assert again.identity == fit.profile.identity
    fitted = again.fitted(GUESS)
    for figure in ("launch_seconds", "hbm_bandwidth", "hbm_saturation_sms", "flops"):
        assert getattr(fitted, figure) == getattr(fit.device, figure)
    assert fitted.sms == GUESS.sms


def test_a_profile_keeps_the_figures_before_if_the_fit_tells_less() -> None:
    fit = calibrate(TRUE, PLACE, measured(calls(), 0.03))  # of figures that were right, only noise can be fitted
    assert fit.error > fit.before
    assert "which are kept" in str(fit)
    assert fit.profile.figures == {}
    assert fit.profile.fitted(GUESS) is GUESS


@pytest.mark.parametrize(
    ("figures", "says"),
    [
        ({"speed": 1.0}, "there are no figures"),
        ({"hbm_bandwidth": -1.0}, "more than zero"),
        ({"hbm_bandwidth": "fast"}, "not of type float"),
    ],
)
def test_figures_that_cannot_be_are_refused(figures: dict[str, object], says: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    calibrate(GUESS, PLACE, measured(calls())).profile.save(path)
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"figures": figures}))
    with pytest.raises(NanortError, match=says):
        Profile.load(path, stale=True)


def beside(one: Call, other: Call, slower: float, took: float) -> Sample:
    return replace(Sample.of(one, [took * slower]), beside=other)


def test_slowdowns_on_all_sms_are_the_median_of_an_operators_calls() -> None:
    alone = measured([*(linear(rows, 4096, 132) for rows in (256, 512, 1024)), norm(512, 132)])
    small = alone[3]
    pairs = [
        sample
        for big, slower in zip(alone[:3], (1.2, 1.5, 1.3), strict=True)
        for sample in (
            beside(big.call, small.call, slower, big.seconds),
            beside(small.call, big.call, 0.9, small.seconds),
        )
    ]
    profile = profile_of(PLACE, alone + pairs)
    assert profile.slowdowns == {("linear", "rms_norm"): (pytest.approx(1.3), 1.0)}
    assert profile.exchange == {}


def test_an_operator_that_neighbours_slow_gets_an_exchange_curve_and_another_does_not() -> None:
    alone = measured([call for n in (32, 64, 68, 100, 132) for call in (linear(1024, 4096, n), norm(512, n))])
    took = {sample.call: sample.seconds for sample in alone}
    pairs = []
    for n in (32, 64):
        one, other = norm(512, n), linear(1024, 4096, 132 - n)
        pairs += [beside(one, other, 1.4, took[one]), beside(other, one, 1.02, took[other])]
    profile = profile_of(PLACE, alone + pairs)
    whole = took[norm(512, 132)]
    points = tuple((n / 132, pytest.approx(whole / took[norm(512, n)] / 1.4)) for n in (32, 64))
    assert profile.exchange["rms_norm"].points == points
    assert list(profile.exchange) == ["rms_norm"]
    assert profile.pairs == ()


def test_an_exchange_curve_never_falls_and_never_passes_one() -> None:
    alone = measured([norm(512, n) for n in (8, 64, 96, 132)])
    took = {sample.call: sample.seconds for sample in alone}
    whole = took[norm(512, 132)]
    rows = [(8, whole / 0.2), (64, whole / 0.1), (96, whole / 1.2)]
    pairs = [beside(norm(512, n), linear(64, 4096, 132 - n), 1.0, seconds) for n, seconds in rows]
    points = profile_of(PLACE, alone + pairs).exchange["rms_norm"].points
    assert [performance for _, performance in points] == pytest.approx([0.2, 0.2, 1.0])
