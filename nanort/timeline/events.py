"""Timeline: what ran where, from when to when; planned, simulated or measured."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nanort.errors import TimelineError
from nanort.partition import ENGINES
from nanort.timeline import (
    analysis,
    comparison,
    critical,
    curves,
    diff,
    flat,
    idle,
    overlaps,
    picture,
    roofline,
    table,
    text,
    units,
)
from nanort.timeline.activities import Activity, Event

if TYPE_CHECKING:
    import pandas as pd

    from nanort.timeline.comparison import Comparison
    from nanort.timeline.critical import CriticalPath
    from nanort.timeline.curves import Binding, Curve
    from nanort.timeline.diff import Diff
    from nanort.timeline.flat import Flat
    from nanort.timeline.idle import Idle
    from nanort.timeline.overlaps import Overlap
    from nanort.timeline.roofline import Roofline

KINDS = ("planned", "simulated", "measured")
LATEST = 2.0**62 / 1e9
"""Seconds, 146 years, up to which whole nanoseconds can be told apart and added."""
CAPACITY = ("sm_capacity", "flops", "hbm_bandwidth", "h2d_bandwidth", "d2h_bandwidth")


class Timeline:
    """When every activity of a run, or of a plan, started and ended.

    Args:
        activities: what ran; a tuple is kept as it is, so that runs of one program share it.
        start, end: seconds from the run's start, one each per activity. NaN marks what never started or never ended:
            the timeline of a run that failed ends early.
        kind: ``"planned"``, ``"simulated"`` or ``"measured"``.
        device: the name of the device.
        foreign: whether the plan was made for another device than it ran on, so that its times cannot be compared.
        failure: why the run ended early, if it did.
        sm_capacity, flops, hbm_bandwidth, h2d_bandwidth, d2h_bandwidth: what the device gives (FLOP/s at the dtype of
            most of the work, bytes/s); 0 where not known.
        lost: events that were expected and not recorded, beside those that are here.
        limits: seconds to hold the makespan against, the ``"serial"`` schedule's and lower bounds, by name; or what
            finds them when they are asked for.
        plan: what was planned.

    Raises:
        TimelineError: an unknown kind, arrays that do not fit the activities, or times that run backwards.
    """

    def __init__(
        self,
        activities: Sequence[Activity],
        start: Sequence[float] | npt.NDArray[np.float64],
        end: Sequence[float] | npt.NDArray[np.float64],
        *,
        kind: str,
        device: str,
        foreign: bool = False,
        failure: str = "",
        sm_capacity: int = 0,
        flops: float = 0.0,
        hbm_bandwidth: float = 0.0,
        h2d_bandwidth: float = 0.0,
        d2h_bandwidth: float = 0.0,
        lost: int = 0,
        limits: Mapping[str, float] | Callable[[], Mapping[str, float]] = MappingProxyType({}),
        plan: Timeline | None = None,
    ) -> None:
        self.activities = tuple(activities)
        self.start = np.array(start, dtype=np.float64)  # copies: the runtime may fill its own arrays again
        self.end = np.array(end, dtype=np.float64)
        self.start.flags.writeable = self.end.flags.writeable = False
        self.kind = kind
        self.device = device
        self.foreign = foreign
        self.failure = failure
        self.sm_capacity = sm_capacity
        self.hbm_bandwidth = hbm_bandwidth
        self.h2d_bandwidth = h2d_bandwidth
        self.d2h_bandwidth = d2h_bandwidth
        self.flops = flops
        self.lost = lost
        self.plan = plan
        self._limits = limits
        if kind not in KINDS:
            raise TimelineError(f"a timeline cannot be {kind!r}: give one of {', '.join(KINDS)}")
        if not self.start.shape == self.end.shape == (len(self.activities),):
            raise TimelineError(
                f"a timeline of {len(self.activities)} activities needs as many starts and ends: "
                f"got shapes {self.start.shape} and {self.end.shape}"
            )
        if not ((self.start >= 0) & (self.start <= self.end) & (self.end <= LATEST)).all():
            self._check_times()

    def _check_times(self) -> None:
        """Refuse times that cannot be; NaN is a time that never came."""
        started, ended = ~np.isnan(self.start), ~np.isnan(self.end)
        good = (started & (self.start >= 0) & (self.start <= LATEST)) | (~started & ~ended)
        good &= ~ended | ((self.start <= self.end) & (self.end <= LATEST))
        if not good.all():
            bad = int(np.argmin(good))
            raise TimelineError(
                f"{self.activities[bad].name!r} cannot run from {self.start[bad]} to {self.end[bad]} seconds: "
                "give finite times from 0 on, 146 years at most, the end not before the start, NaN for what never came"
            )

    def __len__(self) -> int:
        return len(self.activities)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def __repr__(self) -> str:
        what = f"{units.counted(len(self), 'launch')} in {units.duration(self.makespan)}"
        return f"<Timeline {self.kind} on {self.device!r}: {what}>"

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return picture.html(self)

    @cached_property
    def limits(self) -> Mapping[str, float]:
        """Seconds by name: the ``"serial"`` schedule's, and lower bounds that no schedule can beat."""
        return self._limits() if callable(self._limits) else self._limits

    def with_times(
        self,
        start: Sequence[float] | npt.NDArray[np.float64],
        end: Sequence[float] | npt.NDArray[np.float64],
        *,
        kind: str,
        device: str = "",
        foreign: bool = False,
        failure: str = "",
    ) -> Timeline:
        """What became of this plan: the same activities at other times, on ``device``, or on that of the plan."""
        about = {name: getattr(self, name) for name in CAPACITY}
        limits = {} if foreign else self._limits
        device = device or self.device
        return Timeline(
            self.activities, start, end, kind=kind, device=device, foreign=foreign, failure=failure, limits=limits,
            plan=self, **about,
        )  # fmt: skip  # as many arguments as there are

    @cached_property
    def events(self) -> tuple[Event, ...]:
        """One event per activity, in the order of the activities."""
        return tuple(map(Event, self.activities, self.start.tolist(), self.end.tolist()))

    @cached_property
    def makespan(self) -> float:
        """Seconds from the run's start to the last thing known of it."""
        known = np.concatenate((self.start, self.end))
        return float(np.max(known, where=~np.isnan(known), initial=0.0))

    @cached_property
    def streams(self) -> tuple[str, ...]:
        """The streams that were used: SM groups in natural order (``g2`` before ``g10``), then the copy engines."""
        return tuple(sorted({activity.stream for activity in self.activities}, key=_natural))

    @property
    def beside(self) -> Timeline | None:
        """The plan at the times at which it is shown beside this timeline: its own, but for joined ones."""
        return self.plan

    def utilization(self) -> dict[str, float]:
        """Shares of the capacity, above 1 where caches served bytes: see :func:`.analysis.utilization`."""
        return analysis.utilization(self)

    @cached_property
    def flat(self) -> Flat:
        """It as arrays of whole nanoseconds, for analyses."""
        return flat.flat(self)

    def overlap(self) -> Overlap:
        """How much ran at once, and what else could have: see :class:`nanort.timeline.overlaps.Overlap`."""
        return overlaps.overlap(self)

    def idle(self) -> Idle:
        """Why each stream ran nothing when it did not: see :class:`nanort.timeline.idle.Idle`."""
        return idle.idle(self)

    def critical_path(self) -> CriticalPath:
        """What the makespan had to wait for, and what it would be were an operator faster."""
        return critical.critical_path(self)

    def roofline(self) -> Roofline:
        """Operators by what they compute a byte, under the device's roof."""
        return roofline.roofline(self)

    def binding(self) -> Binding:
        """Which of the device's roofs was nearest at each time."""
        return curves.binding(self)

    def curves(self) -> dict[str, Curve]:
        """What was in use at each time: see :func:`nanort.timeline.curves.curves`."""
        return curves.curves(self)

    def diff(self, other: Timeline) -> Diff:
        """What ``other`` has otherwise, aligned by name; false, and "no difference", where that is nothing."""
        return diff.diff(self, _timeline(other))

    def compare(self, plan: Timeline | None = None) -> Comparison:
        """This timeline beside ``plan``, by default its own, by activity and by operator; prints as tables."""
        return comparison.compare(self, self.planned(plan))

    def planned(self, plan: Timeline | None = None) -> Timeline:
        """``plan``, or else its own.

        Raises:
            TimelineError: there is neither.
        """
        if (found := self.plan if plan is None else plan) is None:
            raise TimelineError("this timeline came without a plan: give one, such as schedule.timeline()")
        return _timeline(found)

    def text(self, width: int = 100, *, color: bool = False) -> str:
        """One row per stream drawn to scale in ``width`` columns, a legend, and the numbers."""
        return text.render(self, width, color=color)

    def to_pandas(self) -> pd.DataFrame:
        """One row per activity with all that is known of it: see :func:`nanort.timeline.table.columns`.

        Raises:
            BackendError: pandas is not installed.
        """
        return table.to_pandas(self)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the same rows as CSV, in which no cell is a formula."""
        table.to_csv(self, path)

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the same rows as Parquet.

        Raises:
            BackendError: pyarrow is not installed.
        """
        table.to_parquet(self, path)

    def save(self, path: str | os.PathLike[str], plan: Timeline | None = None) -> None:
        """Write Kineto JSON, which ui.perfetto.dev opens; the plan, or ``plan``, is beside it as a second process."""
        from nanort.timeline import files

        files.save(self, path, self.plan if plan is None else plan)

    def to_perfetto(self, path: str | os.PathLike[str], plan: Timeline | None = None) -> None:
        """Write Perfetto's protobuf form, with nested tracks and units; the plan, or ``plan``, stands beneath.

        Raises:
            BackendError: the package perfetto is not installed.
        """
        from nanort.timeline import perfetto

        perfetto.save(self, path, self.beside if plan is None else plan)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Timeline:
        """The timeline that :meth:`save` wrote, to the nanosecond, with its plan.

        Raises:
            TruncatedFileError: the file is cut short, or is no timeline.
            NewerVersionError: a newer nanort wrote it.
            FileError: it says something that cannot be.
        """
        from nanort.timeline import files

        return files.load(path)

    @staticmethod
    def from_torch_profile(path: str | os.PathLike[str]) -> Timeline:
        """What ran on each stream, or thread, of a run that torch.profiler traced: see :mod:`.torch_profile`.

        Raises:
            TruncatedFileError: the file is cut short, or is no trace.
            FileError: it records nothing, too much, or what cannot be.
        """
        from nanort.timeline import torch_profile

        return torch_profile.load(path)


def _natural(stream: str) -> tuple[int, list[str | tuple[int, str]]]:
    """Figures of any length in the order of their numbers: the longer is the larger."""
    engine = ENGINES.index(stream) + 1 if stream in ENGINES else 0
    parts = re.split(r"0*([0-9]+)", stream)
    return engine, [(len(part), part) if index % 2 else part for index, part in enumerate(parts)]


def _timeline(given: object) -> Timeline:
    if not isinstance(given, Timeline):
        raise TimelineError(f"{given!r} is no Timeline: give schedule.timeline(), or nr.Timeline.load(path)")
    return given
