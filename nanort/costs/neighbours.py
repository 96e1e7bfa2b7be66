"""neighbours: what calls that ran side by side did to each other, as slowdowns and exchange curves of a profile."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import accumulate
from statistics import median

from nanort.costs.profile import Pair, Profile
from nanort.costs.provenance import gpu
from nanort.costs.samples import Call, Place, Sample

NOTICED = 1.05
"""How much slower than alone on the same SMs an operator must run beside others to be given an exchange curve."""


def profile_of(place: Place, samples: Iterable[Sample], figures: Mapping[str, float] | None = None) -> Profile:
    """The profile of what was measured at ``place``, with ``figures`` that were fitted to it.

    Two calls that shared all SMs become a Pair. An operator that ran on a part of the SMs beside others, and was
    noticeably slower there than alone, gets an Exchange: the median over its neighbours. One that was not keeps the
    seconds that it took alone.
    """
    found = tuple(samples)
    alone = {sample.call: sample.seconds for sample in found if sample.beside is None}
    beside = [sample for sample in found if sample.beside is not None]
    return Profile(
        place.device,
        place.sms,
        place.gpu if place.device == "cpu" else gpu(place.gpu, place.driver),
        (sample.measurement for sample in found if sample.beside is None),
        _pairs(place.sms, beside, alone),
        _exchanges(place.sms, beside, alone),
        place.versions,
        figures,
    )


def _pairs(sms: int, beside: Iterable[Sample], alone: dict[Call, float]) -> list[Pair]:
    """Slowdowns of operators that held all SMs together: the median of their calls.

    Each is of the fastest kernel alone, whichever ran beside the other: plans know what a node takes at its best.
    """
    best = dict[Call, float]()
    for call, seconds in alone.items():
        one = call._replace(kernel="")
        best[one] = min(seconds, best.get(one, seconds))
    slowdowns = defaultdict[tuple[str, str], list[float]](list)
    for sample in beside:
        assert sample.beside is not None
        whole = best.get(sample.call._replace(kernel=""))
        if sample.call.sms + sample.beside.sms > sms and whole is not None:
            names = sample.call.name, sample.beside.name
            slowdowns[names].append(max(1.0, sample.seconds / whole))
    return [
        Pair(one, other, median(found), median(slowdowns[other, one]))
        for (one, other), found in list(slowdowns.items())
        if one <= other and (other, one) in slowdowns
    ]


def _exchanges(sms: int, beside: Iterable[Sample], alone: dict[Call, float]) -> dict[str, list[tuple[float, float]]]:
    """By operator that its neighbours slow: (share of the SMs, performance as a share of that on all of them)."""
    performed = defaultdict[str, defaultdict[float, list[float]]](lambda: defaultdict(list))
    slower = defaultdict[str, float](float)
    for sample in beside:
        assert sample.beside is not None
        call, whole = sample.call, sample.call._replace(sms=sms)
        if call.sms + sample.beside.sms <= sms and call in alone and whole in alone:
            performed[call.name][call.sms / sms].append(min(1.0, alone[whole] / sample.seconds))
            slower[call.name] = max(slower[call.name], sample.seconds / alone[call])
    curves = {}
    for name, points in performed.items():
        if slower[name] > NOTICED:
            shares = sorted(points)
            rising = accumulate((median(points[share]) for share in shares), max)
            curves[name] = list(zip(shares, rising, strict=True))
    return curves
