"""What co-resident nodes do to each other: who gets the SMs of a group, and slowdowns that were measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from nanort.partition import Stream


class Coresidence:
    """How fast jobs progress on streams that share SMs.

    The job that started first holds the SMs it asks for; a later one runs on those left over, or stands still where
    none are. Two jobs whose operators were measured together both run instead, each slowed as it was measured.

    Args:
        sms: SMs of each stream's group.
        sharing: for each stream, the others that share SMs with it: lanes of one group, and groups that overlap.
        operators: of each job.
        pairs: slowdowns of (first, second) operator run together.
        seconds_on: seconds that a job takes alone on so many SMs; infinite where it cannot run on so few.
    """

    def __init__(
        self,
        sms: Sequence[int],
        sharing: Sequence[frozenset[int]],
        operators: Sequence[str],
        pairs: Mapping[tuple[str, str], tuple[float, float]],
        seconds_on: Callable[[int, int], float],
    ) -> None:
        self.sms = sms
        self.sharing = sharing
        self.operators = operators
        self.pairs = {**pairs, **{(b, a): (y, x) for (a, b), (x, y) in pairs.items()}}
        self.seconds_on = seconds_on

    def speeds(self, busy: Sequence[int], running: Sequence[int], sms: Sequence[int]) -> tuple[list[float], list[int]]:
        """Each stream's progress per second of solo work, before bandwidths are shared, and the SMs it really holds.

        Args:
            busy: streams that run something, in order of their start.
            running: the job of each stream.
            sms: SMs that it asks for.
        """
        speeds, held = [1.0] * len(sms), list(sms)
        for place, lane in enumerate(busy):
            if not sms[lane]:
                continue  # a copy
            free = self.sms[lane]
            for other in busy[:place]:
                if other in self.sharing[lane] and held[other]:
                    pair = self.pairs.get((self.operators[running[lane]], self.operators[running[other]]))
                    if pair is None:
                        free -= held[other]
                    else:
                        speeds[lane] /= pair[0]
                        speeds[other] /= pair[1]
            if free < sms[lane]:
                job, held[lane] = running[lane], max(free, 0)
                speeds[lane] *= self.seconds_on(job, sms[lane]) / self.seconds_on(job, free) if free > 0 else 0.0
        return speeds, held


def coresidence(
    streams: Sequence[Stream],
    operators: Sequence[str],
    seconds_on: Callable[[int, int], float],
    pairs: Mapping[tuple[str, str], tuple[float, float]] | None = None,
) -> Coresidence | None:
    """How jobs share SMs on these streams; None where no two streams have an SM in common."""
    groups = [stream.group for stream in streams]
    sharing = [
        frozenset(at for at, other in enumerate(groups) if at != lane and group and other and group.overlaps(other))
        for lane, group in enumerate(groups)
    ]
    return Coresidence([s.sms for s in streams], sharing, operators, pairs or {}, seconds_on) if any(sharing) else None
