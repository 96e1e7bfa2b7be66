"""compare: policies and mechanisms side by side, and SM splits side by side; both print, and carry their figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from textwrap import wrap
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from nanort.costs.profile import Profile
from nanort.devices import Device
from nanort.errors import CapacityError
from nanort.graph import Graph
from nanort.scheduling import structures
from nanort.scheduling.bounds import PHYSICAL
from nanort.scheduling.coschedule import LARGE, POLICIES, co_schedule
from nanort.scheduling.flat import Flat
from nanort.scheduling.list_schedule import ORDERS, ListPolicy, serial
from nanort.scheduling.players import Player
from nanort.scheduling.schedule import Outlook, Schedule, Split
from nanort.scheduling.search import saturations
from nanort.scheduling.structures import COPIES, CORESIDENT, ISOLATED, Structure
from nanort.scheduling.workload import Workload
from nanort.timeline.units import counted, duration, percent, unit_of

NAMES = (*POLICIES, "auto")
MECHANISMS = (COPIES, CORESIDENT, ISOLATED)
RULES = tuple(product(ORDERS, (False, True)))
"""List policies: the order, and whether idle streams borrow."""
FAMILIES = {"sms": "partitioned", "coresident": "co-resident"}
FOOTNOTE = "last rows: the best list schedule of each mechanism, not refined, used or not"

LETTERS = "abc"
"""Of curves: there are no more saturation points."""
HEIGHT, CEILING = 16, 1.2
"""Lines of a plot, and how many times the serial makespan stands at its top at most."""


@dataclass(frozen=True, slots=True)
class Only(ListPolicy):
    """List scheduling in the structures of one mechanism."""

    mechanism: str = ""

    def structures(self, work: Workload) -> Iterable[Structure]:
        """Those of the mechanism."""
        return [one for one in ListPolicy.structures(self, work) if one.mechanism == self.mechanism]


@dataclass(frozen=True, slots=True)
class Row:
    """What one policy made: a schedule, how many it judged for that, and the seconds it took."""

    policy: str
    schedule: Schedule
    judged: int
    took_seconds: float

    @staticmethod
    def of(graph: Graph, device: Device, policy: str, **options: Any) -> Row:
        """What ``co_schedule`` makes with one of ``NAMES`` and its other ``options``."""
        began = perf_counter()
        schedule = co_schedule(graph, device, policy=policy, **options)
        return Row(policy, schedule, schedule.effort, perf_counter() - began)

    @staticmethod
    def only(graph: Graph, device: Device, mechanism: str, **options: Any) -> Row | None:
        """The best list schedule of one mechanism, however slow; None where the device or graph has no use for it."""
        began = perf_counter()
        policies = [Only(*rule, mechanism=mechanism) for rule in RULES]
        made = [co_schedule(graph, device, policy=policy, guard=False, **options) for policy in policies]
        fitting = [schedule for schedule in made if schedule.mechanism.startswith(mechanism)]  # the others are serial
        if not fitting:
            return None
        best = max(fitting, key=lambda schedule: schedule.outlooks[0].gain)
        return Row(mechanism, best, sum(one.effort for one in made), perf_counter() - began)

    @property
    def data(self) -> dict[str, Any]:
        """Its figures."""
        schedule, bounds = self.schedule, self.schedule.bounds
        return {
            "policy": self.policy,
            "nano_batches": len({node.piece for node in schedule.graph.nodes}),
            "mechanism": schedule.mechanism,
            "seconds": schedule.makespan,
            "gain": schedule.outlooks[0].gain,
            "bound_seconds": bounds.best,
            "bound": "physical" if bounds.limit in PHYSICAL else FAMILIES[bounds.own],
            "gap": schedule.makespan / bounds.best - 1 if bounds.best else 0.0,
            "judged": self.judged,
            "truncated": schedule.truncated,
            "took_seconds": self.took_seconds,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """A row for each policy and each mechanism; prints as a table."""

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        data = self.data
        size, unit = unit_of(max(row["seconds"] for row in data))
        head = ("policy", "cut", "mechanism", unit, "gain", "bound", "family", "gap", "judged", "took")
        lines = [
            (
                row["policy"],
                str(row["nano_batches"]),
                row["mechanism"].removesuffix(" SMs"),
                f"{row['seconds'] / size:.1f}",
                f"{row['gain']:.2f}x",
                f"{row['bound_seconds'] / size:.1f}",
                row["bound"],
                percent(row["gap"]),
                f"{row['judged']}{'!' * row['truncated']}",
                f"{row['took_seconds']:.1f}s",
            )
            for row in data
        ]
        cut_short = ["!: stopped before its effort was spent"] if any(row["truncated"] for row in data) else []
        return "\n".join([*_aligned([head, *lines], left=(0, 2, 6)), FOOTNOTE, *cut_short])

    @property
    def data(self) -> list[dict[str, Any]]:
        """The figures of all rows."""
        large = any(len(row.schedule.graph.nodes) > LARGE for row in self.rows)
        became = {"auto": f"auto ({'list' if large else 'brief'})"}
        return [row.data | {"policy": became.get(row.policy, row.policy)} for row in self.rows]


def compare(graph: Graph, device: Device, *, known: Sequence[Row] = (), **options: Any) -> Comparison:
    """What every policy makes of ``graph``, and every mechanism that has a use for it.

    ``known`` rows are not made again; ``options`` are those of ``co_schedule``, but for its policy and guard.
    """
    made = {row.policy: row for row in known}
    rows = [made.get(name) or Row.of(graph, device, name, **options) for name in NAMES]
    forced = [Row.only(graph, device, mechanism, **options) for mechanism in MECHANISMS]
    return Comparison((*rows, *filter(None, forced)))


@dataclass(frozen=True, slots=True)
class Sweep:
    """Makespans over all splits of a device into two groups of SMs; prints as a table.

    Attributes:
        title: what was swept.
        memory_sms: by split, the SMs of the group for what memory binds; the other group has the rest.
        seconds: by saturation point, the least makespan of each split, planned for that point alone.
        serial_seconds: by saturation point, that of the uncut graph, node after node.
    """

    title: str
    memory_sms: tuple[int, ...]
    seconds: dict[int, tuple[float, ...]]
    serial_seconds: dict[int, float]

    def __str__(self) -> str:
        size, unit = unit_of(max(self.serial_seconds.values()))
        best = max(self.gains)
        head = ("SMs for memory", *(f"{unit} at {point}" for point in self.seconds), "worst gain")
        lines = [
            (str(sms), *(f"{s / size:.1f}" for s in seconds), f"{gain:.2f}x{' best' if gain == best else '     '}")
            for sms, gain, *seconds in zip(self.memory_sms, self.gains, *self.seconds.values(), strict=True)
        ]
        last = ("serial", *(f"{seconds / size:.1f}" for seconds in self.serial_seconds.values()), "1.00x     ")
        return "\n".join([self.title, *_aligned([head, *lines, last], between="  ")])

    @property
    def gains(self) -> list[float]:
        """By split, how many times faster than the serial schedule it is at its worst saturation point."""
        return [
            min(Outlook(point, s[at], self.serial_seconds[point]).gain for point, s in self.seconds.items())
            for at in range(len(self.memory_sms))
        ]

    @property
    def data(self) -> dict[str, Any]:
        """The figures."""
        rows = [
            {"memory_sms": sms, "seconds": {str(point): s[at] for point, s in self.seconds.items()}, "worst_gain": gain}
            for at, (sms, gain) in enumerate(zip(self.memory_sms, self.gains, strict=True))
        ]
        return {"serial_seconds": {str(point): s for point, s in self.serial_seconds.items()}, "splits": rows}

    def plot(self, width: int = 80) -> str:
        """A curve for each saturation point, drawn in ``width`` columns."""
        return "\n".join(_plot(self, width))


def sweep_sms(
    graph: Graph,
    device: Device,
    split: Split | None = None,
    *,
    profile: Profile | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """The least makespans of list schedules of ``graph``, cut by ``split``, for every two groups of the device's SMs.

    Raises:
        CapacityError: the device cannot be split.
        PolicyError: a node is pinned to a stream that such schedules lack.
    """
    least, usable = structures.least_group(device), device.partitionable_sms
    memory_sms = tuple(sms for sms in structures.sizes(device) if usable - sms >= least)
    if not memory_sms:
        raise CapacityError(
            f"{device.name} has no two groups of {least} SMs: it cannot be split; plan it with --compare"
        )
    source = Flat(graph.seal(), device, profile)
    flat = Flat(split.cut(graph), device, profile) if split else source
    points = sorted(saturations(device))
    seconds: dict[int, tuple[float, ...]] = {}
    for done, point in enumerate(points):
        work, found = Workload(flat, point), list[float]()
        for sms in memory_sms:
            player = Player(work, work.isolated(sms, usable - sms))
            found.append(min(player.seconds(ListPolicy(*rule)) for rule in RULES))
            if progress:
                progress(done * len(memory_sms) + len(found), len(points) * len(memory_sms))
        seconds[point] = tuple(found)
    pieces = counted(len({node.piece for node in flat.graph.nodes}), "nano-batch") if split else "uncut"
    title = f"makespan of {graph.name}, {pieces}, over splits of {usable} SMs of {device.name}"
    return Sweep(title, memory_sms, seconds, {point: serial(source, point).makespan for point in points})


def _aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (), between: str = " ") -> Iterator[str]:
    """Cells in columns as wide as their widest; those of ``left`` begin where the others end."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, strict=True)
        yield between.join(f"{c:<{w}}" if at in left else f"{c:>{w}}" for at, (c, w) in enumerate(cells)).rstrip()


def _plot(sweep: Sweep, width: int) -> Iterator[str]:
    """Points of a curve are letters, its least is a capital; what is above the top stands there as ``^``."""
    curves, serials = list(sweep.seconds.values()), set(sweep.serial_seconds.values())
    least, highest = min(map(min, curves)), max(map(max, curves))
    floor, top = min(least, *serials), max(*serials, min(highest, CEILING * max(least, *serials)))

    def line(seconds: float) -> int:
        return max(0, round((top - seconds) / (top - floor) * (HEIGHT - 1))) if top > floor else HEIGHT - 1

    labels = {HEIGHT - 1: duration(floor), 0: duration(top)}
    labels |= {line(seconds): f"serial {duration(seconds)}" for seconds in serials}
    margin = max(map(len, labels.values()))
    columns = width - margin - 3
    grid = np.full((HEIGHT, columns), " ")
    places = np.linspace(1, columns - 2, len(sweep.memory_sms)).round().astype(int).tolist()
    for seconds in serials:
        grid[line(seconds)] = "-"
    _draw(grid, curves, places, lambda seconds: (line(seconds), seconds <= top))
    for at, cells in enumerate(grid):
        yield f"{labels.get(at, ''):>{margin}} |{''.join(cells)}".rstrip()
    yield f"{'':>{margin}} +{'-' * columns}"
    yield " " * (margin + 2) + _ticks(sweep.memory_sms, places, columns)
    yield " " * (margin + 2) + "SMs for memory, the others for compute"
    keys = ", ".join(f"{letter} {point}" for letter, point in zip(LETTERS, sweep.seconds, strict=False))
    yield from wrap(f"{keys} SMs saturate memory; a capital is the least of its curve, ^ is above the top", width)


def _draw(
    grid: npt.NDArray[np.str_],
    curves: Sequence[Sequence[float]],
    places: Sequence[int],
    at: Callable[[float], tuple[int, bool]],
) -> None:
    """Draws curves through ``places``, what matters most last; ``at`` has a makespan's line, and whether it fits."""
    for curve in curves:
        for column in range(places[0], places[-1] + 1):
            line, fits = at(float(np.interp(column, places, curve)))
            if fits:
                grid[line, column] = "·"
    for letter, curve in zip(LETTERS, curves, strict=False):
        for column, seconds in zip(places, curve, strict=True):
            line, fits = at(seconds)
            grid[line, column] = letter if fits else "^"
    for letter, curve in zip(LETTERS, curves, strict=False):
        line, fits = at(least := min(curve))
        if fits:
            grid[line, places[curve.index(least)]] = letter.upper()


def _ticks(values: Sequence[int], places: Sequence[int], columns: int) -> str:
    """``values`` under their places, as far as there is room."""
    cells, free = [" "] * columns, 0
    for value, place in zip(values, places, strict=True):
        start = min(max(0, place - len(str(value)) // 2), columns - len(str(value)))
        if start >= free:
            cells[start : start + len(str(value))] = str(value)
            free = start + len(str(value)) + 1
    return "".join(cells).rstrip()
