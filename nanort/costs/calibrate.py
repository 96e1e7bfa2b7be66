"""calibrate: the cost model's figures fitted to what was measured, and how far off it then is on calls held out."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from nanort.compiled import Floats
from nanort.costs.neighbours import profile_of
from nanort.costs.profile import RATE, Profile
from nanort.costs.roofline import SHARPNESS, unevenness
from nanort.costs.samples import Place, Sample
from nanort.devices import Device
from nanort.errors import CostError

TELLING = 0.2
"""The share of some call's time that a figure must decide, or nothing tells it and the device's own is kept."""
BOUND = 0.5
"""The share of a call's time from which on it counts as bound by something."""
RIDGE = 1e-3
"""Shortens steps along figures that hardly any call depends on."""
STEPS, HALVINGS = 100, 10
"""Of the descent, which mostly ends after ten."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A device with fitted figures, the profile of all that was measured on it, and how well the model then does.

    Attributes:
        device: its ``hbm_saturation_sms`` are one number.
        profile: every call that was measured alone, and what calls did to each other.
        kept: figures that no measurement tells, which are still the device's own.
        held_out: calls that were not fitted to.
        error, worst: mean and largest of abs(model / measured - 1) on those. They are calls whose like was measured on
            other SM counts, so this is how well the model fills in between.
        before: that mean with the figures that the device had. The profile carries better ones only.
    """

    device: Device
    profile: Profile
    kept: tuple[str, ...]
    held_out: int
    error: float
    worst: float
    before: float

    def __str__(self) -> str:
        device = self.device
        rates = {f"{RATE}{name}": f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in device.flops.items()}
        rates["launch_seconds"] = f"a launch {device.launch_seconds * 1e6:.3g} us"
        fitted = ", ".join(text for figure, text in rates.items() if figure not in self.kept)
        return (
            f"fitted: memory {device.hbm_bandwidth / 1e9:.4g} GB/s from {device.hbm_saturation_sms[0]} of {device.sms} "
            f"SMs on, {fitted}\n"
            f"error:  {self.error:.1%} on the mean of {self.held_out} calls held out, {self.worst:.0%} at worst; "
            f"{self.before:.1%} with the figures before{'' if self.is_better else ', which are kept'}"
        )

    @property
    def is_better(self) -> bool:
        """Whether the fitted figures tell more than those before."""
        return bool(self.profile.figures)


def calibrate(device: Device, place: Place, samples: Iterable[Sample], *, seed: int = 0) -> Calibration:
    """Fits the figures of the cost model to ``samples`` taken at ``place``, by least squares on log ratios.

    Fitted are the bandwidth of memory and the SMs that reach it, the FLOP/s of each dtype and the seconds of a launch,
    to the fastest kernel of each call. One call of five, drawn by ``seed``, is held out. Copies, which hold no SMs, are
    left out.

    Raises:
        CostError: the samples are of another device, or do not tell what is fitted; the message says what is missing.
    """
    if (place.device, place.sms) != (device.name, device.sms):
        raise CostError(
            f"these samples are of {place.device} ({place.sms} SMs), not of {device.name} ({device.sms} SMs): "
            "calibrate the device that was measured"
        )
    found = tuple(samples)
    points = _Points.of(device, found)
    if len(points.logs) < (least := 3 * (len(points.names) + 1)):
        raise CostError(
            f"{len(points.logs)} calls were measured alone on {device.name}, too few to fit {len(points.names) + 1} "
            f"figures: measure {least} or more, of several operators on several SM counts"
        )
    count = len(points.logs)
    unseen = sorted(random.Random(seed).sample(range(count), count // 5))
    seen = points.take([at for at in range(count) if at not in unseen])
    free = np.ones(len(points.names))
    fit = _fitted(seen, free)
    _demand_all(device, seen, fit)
    free = (fit.shares(seen).max(axis=0) >= TELLING).astype(float)
    if not free.all():
        fit = _fitted(seen, free)
    others = points.take(unseen)
    errors, before = (
        np.abs(np.exp(logs - others.logs) - 1.0)
        for logs in (fit.logs(others), _modelled(others, points.start, device.hbm_saturation_sms[1])[0])
    )
    told = {name for name, is_free in zip(points.names, free, strict=True) if is_free}
    figures = ("launch_seconds", *(f"{RATE}{dtype}" for dtype in device.flops))
    fitted = fit.device(device, points.names, f"fitted to {len(seen.logs)} calls measured on {place.gpu}")
    return Calibration(
        fitted,
        profile_of(place, found, _figures(fitted) if errors.mean() < before.mean() else None),
        tuple(name for name in figures if name not in told),
        len(unseen),
        float(errors.mean()),
        float(errors.max()),
        float(before.mean()),
    )


def _figures(device: Device) -> dict[str, float]:
    """What was fitted, as a profile carries it."""
    return {
        "launch_seconds": device.launch_seconds,
        "hbm_bandwidth": device.hbm_bandwidth,
        "hbm_saturation_sms": float(device.hbm_saturation_sms[0]),
        **{f"{RATE}{dtype}": rate for dtype, rate in device.flops.items()},
    }


@dataclass(frozen=True, slots=True)
class _Points:
    """Calls as arrays, and the figures that are fitted to them: seconds of a launch, of a byte, of a FLOP by dtype.

    ``start`` has the logs of the device's own figures, ``flops`` [calls, dtypes] the FLOPs times N / n, more by what a
    last round of tiles adds.
    """

    names: tuple[str, ...]
    start: Floats
    logs: Floats
    sms: Floats
    bytes: Floats
    flops: Floats

    @staticmethod
    def of(device: Device, samples: Iterable[Sample]) -> _Points:
        fastest: dict[tuple[object, ...], Sample] = {}
        for sample in samples:
            if sample.beside is None and sample.call.sms:
                call = sample.call._replace(kernel="")
                fastest[call] = min(sample, fastest.get(call, sample), key=lambda one: one.seconds)
        calls = sorted(fastest.values(), key=lambda sample: sample.call)
        named = [s.call.dtype if s.call.dtype in device.flops else "float32" for s in calls]
        dtypes = sorted({name for name, s in zip(named, calls, strict=True) if s.call.flops})
        figures = (device.launch_seconds, 1 / device.hbm_bandwidth, *(1 / device.flops[dtype] for dtype in dtypes))
        uneven = [unevenness(s.call.tiles, s.call.sms) if device.kind == "cuda" else 1.0 for s in calls]
        flops = [
            [s.call.flops * device.sms / s.call.sms * longer * (name == dtype) for dtype in dtypes]
            for name, s, longer in zip(named, calls, uneven, strict=True)
        ]
        return _Points(
            ("launch_seconds", "hbm_bandwidth", *(f"{RATE}{dtype}" for dtype in dtypes)),
            np.log(figures),
            np.log([s.seconds for s in calls]),
            np.array([float(s.call.sms) for s in calls]),
            np.array([s.call.hbm_bytes for s in calls]),
            np.array(flops).reshape(len(calls), len(dtypes)),
        )

    def take(self, rows: Sequence[int]) -> _Points:
        """Some of the calls."""
        return _Points(self.names, self.start, self.logs[rows], self.sms[rows], self.bytes[rows], self.flops[rows])


@dataclass(frozen=True, slots=True)
class _Fit:
    """The logs of the figures of :class:`_Points`, and the SMs that reach the full bandwidth."""

    figures: Floats
    saturation: int

    def logs(self, points: _Points) -> Floats:
        """The log of what the model says for each call."""
        return _modelled(points, self.figures, self.saturation)[0]

    def shares(self, points: _Points) -> Floats:
        """What share of each call's time each figure decides [calls, figures]."""
        return _modelled(points, self.figures, self.saturation)[1]

    def device(self, device: Device, names: tuple[str, ...], source: str) -> Device:
        """``device`` with these figures."""
        figures = dict(zip(names, np.exp(self.figures).tolist(), strict=True))
        flops = {
            dtype: 1 / figures[f"{RATE}{dtype}"] if f"{RATE}{dtype}" in figures else rate
            for dtype, rate in device.flops.items()
        }
        return device.with_(
            launch_seconds=figures["launch_seconds"],
            hbm_bandwidth=1 / figures["hbm_bandwidth"],
            hbm_saturation_sms=(self.saturation, self.saturation),
            flops=flops,
            source=source,
        )


def _modelled(points: _Points, figures: Floats, saturation: int, power: int = SHARPNESS) -> tuple[Floats, Floats]:
    """Log seconds by the cost model, and their derivatives by the logs of the figures, which are shares of the time."""
    launch, byte, *flop = np.exp(figures)
    memory = points.bytes * byte / np.minimum(1.0, points.sms / saturation)
    parts = points.flops * np.array(flop)
    compute = parts.sum(axis=1)
    large = np.maximum(np.maximum(memory, compute), 1e-30)
    weights = (memory / large) ** power, (compute / large) ** power
    whole = np.maximum(weights[0] + weights[1], 1e-30)
    body = large * whole ** (1.0 / power)
    total = launch + body
    shares = np.empty((len(total), len(figures)))
    shares[:, 0] = launch / total
    shares[:, 1] = body / total * weights[0] / whole
    shares[:, 2:] = (body / total * weights[1] / whole / np.maximum(compute, 1e-30))[:, None] * parts
    return np.log(total), shares


def _fitted(points: _Points, free: Floats) -> _Fit:
    """The best fit over all points of saturation between the fewest and the most SMs measured."""
    best, least = _Fit(points.start, int(points.sms.max())), np.inf
    for saturation in range(int(points.sms.min()), int(points.sms.max()) + 1):
        # In a plain sum every figure has its part, however far off it starts; from there the sharp maximum is near.
        figures, _ = _descended(points, points.start, saturation, free, power=1)
        figures, loss = _descended(points, figures, saturation, free, power=SHARPNESS)
        if loss <= least:  # of equals the last, which deems partitions slower
            best, least = _Fit(figures, saturation), loss
    return best


def _descended(points: _Points, figures: Floats, saturation: int, free: Floats, power: int) -> tuple[Floats, float]:
    """The figures at the bottom of the sum of squares, and that sum, by Gauss and Newton's steps, shortened."""
    logs, shares = _modelled(points, figures, saturation, power)
    loss = float(((logs - points.logs) ** 2).sum())
    for _ in range(STEPS):
        slopes = shares * free
        bent = slopes.T @ slopes + RIDGE * np.eye(len(figures))
        step = np.linalg.solve(bent, slopes.T @ (logs - points.logs))
        before = loss
        for halving in range(HALVINGS):
            tried = figures - step / 2**halving
            logs_there, shares_there = _modelled(points, tried, saturation, power)
            there = float(((logs_there - points.logs) ** 2).sum())
            if there < loss:
                figures, logs, shares, loss = tried, logs_there, shares_there, there
                break
        if loss > before * (1 - 1e-9):
            break
    return figures, loss


def _demand_all(device: Device, points: _Points, fit: _Fit) -> None:
    """Refuses measurements that do not tell bandwidth, saturation and FLOP/s."""
    shares = fit.shares(points)
    by_memory, by_compute = shares[:, 1] >= BOUND, shares[:, 2:].sum(axis=1) >= BOUND
    missing = []
    if not by_compute.any():
        missing.append("calls that arithmetic binds, such as large matrix products")
    if not by_memory.any():
        missing.append("calls that memory binds, such as norms of many rows")
    elif device.sms > 1 and len(counts := set(points.sms[by_memory])) == 1:
        missing.append(f"calls that memory binds on other SM counts than {counts.pop():.0f}")
    elif fit.saturation > (most := points.sms[by_memory].max()):
        missing.append(f"calls that memory binds on more than {most:.0f} SMs, where it may be faster still")
    if missing:
        raise CostError(
            f"{len(points.logs)} calls measured on {device.name} do not tell its figures: there are no "
            f"{', and no '.join(missing)}: measure such ones as well"
        )
