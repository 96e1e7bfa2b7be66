"""rivals: the plans of other mechanisms that are measured beside the one which is predicted to be fastest."""

from __future__ import annotations

import math
from collections.abc import Mapping

from nanort.costs.supposed import supposed_pairs
from nanort.scheduling.flat import Flat
from nanort.scheduling.list_schedule import ListPolicy
from nanort.scheduling.schedule import Split
from nanort.scheduling.search import Found, Search
from nanort.scheduling.structures import CORESIDENT

Cuts = Mapping[Split | None, Flat]


def rivals(search: Search, found: Found, cuts: Cuts) -> list[tuple[Found, Cuts]]:
    """The best plan of each mechanism that ``found`` does not use, with the cuts it was made of.

    On a real device another may win. Where no pair of operators was measured on the same SMs, the co-resident plan is
    made as if those that fit there together overlapped: only running it can tell.
    """
    tops = {found.candidate.structure.mechanism: found.candidate}
    for (_, mechanism), (_, candidate) in sorted(search.tops.items(), key=lambda item: item[1][0]):
        tops.setdefault(mechanism, candidate)
    others = [candidate for candidate in tops.values() if candidate is not found.candidate]
    supposed = overlapped(search, cuts)
    if supposed is not None:
        others = [candidate for candidate in others if candidate.structure.mechanism != CORESIDENT]
    return [(search.met(candidate), cuts) for candidate in others] + ([supposed] if supposed is not None else [])


def overlapped(search: Search, cuts: Cuts) -> tuple[Found, Cuts] | None:
    """The best co-resident plan if kernels overlap as far as their footprints allow; None where none can."""
    source = search.source
    profile = supposed_pairs(source.graph, source.device, source.profile)
    if profile is None:
        return None
    flats = {split: Flat(flat.graph, flat.device, profile) for split, flat in cuts.items()}
    own = Search(
        Flat(source.graph, source.device, profile), list(flats.values()), (ListPolicy(quick=True),), search.effort,
        search.deadline, search.seed, None,
    )  # fmt: skip  # its arguments in order
    own.run(refine=False)
    tops = [top for (_, mechanism), top in own.tops.items() if mechanism == CORESIDENT]
    _, best = min(tops, key=lambda top: top[0], default=(math.inf, None))
    return None if best is None else (own.met(best), flats)
