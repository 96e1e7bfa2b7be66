"""Explanations of a schedule, and of what parts two schedules; they print, and carry their figures as data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from nanort.scheduling.bounds import NAMES, PHYSICAL, ideal
from nanort.scheduling.critical import critical_path, stretches
from nanort.scheduling.whatif import twice_as_fast
from nanort.timeline.units import duration, percent, plain

if TYPE_CHECKING:
    from nanort.scheduling.schedule import Schedule

SHOWN = 8
NAMED = 4
"""Operators that fit on a line."""
OPERATORS = 5
"""Of the critical path, those that are asked what if they were faster."""
MANY_NODES = 20_000
"""From which on only one is asked: every answer plays the schedule again."""

REACH = {"sms": "disjoint SM groups", "coresident": "co-resident streams", "": "any mechanism"}


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a schedule is as long as it is; ``data`` has the figures."""

    data: dict[str, Any]

    def __str__(self) -> str:
        rows = [*self._plan(), *self._bounds(), *self._time()]
        rows += [("" if index else "why", plain(line)) for index, line in enumerate(self.data["why"])]
        return "\n".join(f"{label:<11}{text}" for label, text in rows)

    def _plan(self) -> list[tuple[str, str]]:
        """What is planned, and what that gains."""
        data = self.data
        rows = [
            ("plan", f"{data['mechanism']}, {data['nano_batches']}, {data['nodes']} nodes, {data['waits']} waits"),
            ("costs", plain(data["costs"])),
            ("serial", duration(data["serial_seconds"])),
            ("predicted", f"{duration(data['seconds'])}, {data['gain']:.2f}x serial"),
        ]
        for index, point in enumerate(data["outlooks"]):
            where = f"if {point['saturation']} SMs saturate memory"
            rows.append(("" if index else "outlook", f"{duration(point['seconds'])}, {point['gain']:.2f}x {where}"))
        if data["nano_batches"] != "uncut":
            cost, won = percent(data["split_cost"]), percent(data["won_back"])
            cut = f"{duration(data['cut_serial_seconds'])} in series once cut"
            rows.append(("split", f"{cut}: splitting cost {cost} of serial, overlap won back {won}"))
        return rows

    def _bounds(self) -> list[tuple[str, str]]:
        """What no schedule can beat, and how far from it this one is."""
        data, rows = self.data, list[tuple[str, str]]()
        for family, (name, seconds) in data["families"].items():
            shown = f"{family} {duration(seconds)}, {NAMES[name]}"
            if family == "physical":
                others = [f"{NAMES[n]} {duration(data['bounds'][n])}" for n in data["physical"] if n != name]
                shown += f" ({', '.join(others)})" if others else ""
            rows.append(("" if rows else "bounds", shown))
        unit, seconds = NAMES[data["ideal_unit"]], duration(data["ideal_seconds"])
        gap, reach = percent(data["gap"]), REACH[data["bound_of"]]
        return [
            *rows,
            ("limited by", f"{NAMES[data['limit']]}: the prediction is {gap} above the least of {reach}"),
            ("ideal", f"{seconds}, {percent(data['ideal_gap'])} below: the {unit} of the uncut graph by itself"),
        ]

    def _time(self) -> list[tuple[str, str]]:
        """What the time goes to."""
        data, seconds = self.data, self.data["seconds"]
        if not seconds:
            return []
        shares = {cause: percent(spent / seconds) for cause, spent in data["causes"].items() if spent > 0.005 * seconds}
        path, rest = list(data["path_seconds"].items())[:NAMED], list(data["path_seconds"].values())[NAMED:]
        faster = list(data["twice_as_fast"].items())[:NAMED]
        return [
            ("bound by", ", ".join(f"{cause} {share}" for cause, share in shares.items())),
            ("path", _listed([*path, *([("others", sum(rest))] if rest else [])])),
            ("2x as fast", _listed(faster)),
        ]


def _listed(spent: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{plain(name) or 'nothing'} {duration(seconds)}" for name, seconds in spent)


def explain(schedule: Schedule) -> Explanation:
    """Serial and predicted time, lower bounds, what limits it, where its time goes, and what was given up."""
    ideal_seconds, unit = ideal(schedule.source, schedule.costs)
    pieces = len({node.piece for node in schedule.graph.nodes})
    bounds, seconds, serial = schedule.bounds, schedule.makespan, schedule.serial_makespan
    cut = sum(schedule.costs.solo(node, schedule.device.sms).seconds for node in schedule.graph.nodes)
    return Explanation(
        {
            "graph": schedule.source.name,
            "device": schedule.device.name,
            "mechanism": schedule.mechanism,
            "nano_batches": f"{pieces} nano-batches" if schedule.split else "uncut",
            "nodes": len(schedule.assignments),
            "waits": len(schedule.waits),
            "costs": str(schedule.profile)
            if schedule.profile
            else f"the model of {schedule.device.name}, not measured",
            "serial_seconds": serial,
            "seconds": seconds,
            "gain": schedule.outlooks[0].gain,
            "outlooks": [asdict(outlook) | {"gain": outlook.gain} for outlook in schedule.outlooks],
            "cut_serial_seconds": cut,
            "split_cost": cut / serial - 1 if serial else 0.0,
            "won_back": (cut - seconds) / serial if serial else 0.0,
            "bounds": bounds.seconds,
            "physical": [name for name in PHYSICAL if bounds.seconds[name]],
            "families": {family: list(bounds.largest(names)) for family, names in bounds.families.items()},
            "bound_of": bounds.own,
            "limit": bounds.limit,
            "gap": seconds / bounds.best - 1 if bounds.best else 0.0,
            "ideal_seconds": ideal_seconds,
            "ideal_unit": unit,
            "ideal_gap": 1 - ideal_seconds / seconds if seconds else 0.0,
            **_time(schedule),
            "effort": schedule.effort,
            "truncated": schedule.truncated,
            "why": list(schedule.why),
        }
    )


def _time(schedule: Schedule) -> dict[str, Any]:
    """What binds each stretch of time, the critical path, and what faster operators on it would gain."""
    path = critical_path(schedule)
    found = stretches(schedule, path)
    nodes = [schedule.graph.nodes[schedule.assignments[step.place].node] if step.place >= 0 else None for step in path]
    operators = _summed(
        (node.op.name if node else "", step.end - step.start) for step, node in zip(path, nodes, strict=True)
    )
    asked = 1 if len(schedule.assignments) > MANY_NODES else OPERATORS
    longest = [name for name in operators if name][:asked]
    return {
        "stretches": [[stretch.start, stretch.end, stretch.cause, stretch.detail] for stretch in found],
        "causes": _summed((stretch.cause, stretch.end - stretch.start) for stretch in found),
        "critical_path": [
            [node.name if node else "", step.start, step.end, step.reason]
            for step, node in zip(path, nodes, strict=True)
        ],
        "path_seconds": operators,
        "twice_as_fast": twice_as_fast(schedule, longest),
    }


def _summed(spent: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Seconds by name, the most first."""
    sums: dict[str, float] = {}
    for name, seconds in spent:
        sums[name] = sums.get(name, 0.0) + seconds
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


@dataclass(frozen=True, slots=True)
class Difference:
    """What two schedules decide otherwise; ``data`` has the figures, pairs are (this, the other)."""

    data: dict[str, Any]

    def __str__(self) -> str:
        data = self.data
        rows = [f"{name}: {here} -> {there}" for name, (here, there) in data["decisions"].items()]
        rows.append(f"predicted: {duration(data['seconds'][0])} -> {duration(data['seconds'][1])}")
        moved = data["moved"]
        rows += [f"{plain(name)}: {here} -> {there}" for name, (here, there) in list(moved.items())[:SHOWN]]
        if len(moved) > SHOWN:
            rows.append(f"and {len(moved) - SHOWN} more of {data['common']} nodes on another stream or other SMs")
        if data["reordered"]:
            rows.append(f"{data['reordered']} nodes follow another node on their stream")
        return "\n".join(rows)


def diff(one: Schedule, other: Schedule) -> Difference:
    """What ``other`` decides otherwise than ``one``, compared by the names of their nodes."""
    decisions = {
        "graph": (one.source.fingerprint[:12], other.source.fingerprint[:12]),
        "device": (one.device.name, other.device.name),
        "split": (one.split, other.split),
        "mechanism": (one.mechanism, other.mechanism),
    }
    here, there = ({a.name: a for a in schedule.assignments} for schedule in (one, other))
    common = [name for name in here if name in there]
    before, after = _previous(one), _previous(other)
    return Difference(
        {
            "decisions": {name: pair for name, pair in decisions.items() if pair[0] != pair[1]},
            "seconds": (one.makespan, other.makespan),
            "common": len(common),
            "moved": {
                name: tuple(f"{a.stream} ({a.sms} SMs)" for a in (here[name], there[name]))
                for name in common
                if (here[name].stream, here[name].sms) != (there[name].stream, there[name].sms)
            },
            "reordered": sum(before[name] != after[name] for name in common if here[name].stream == there[name].stream),
        }
    )


def _previous(schedule: Schedule) -> dict[str, str]:
    """For each node, the one before it on its stream."""
    last: dict[str, str] = {}
    found = {}
    for assignment in schedule.assignments:
        found[assignment.name] = last.get(assignment.stream, "")
        last[assignment.stream] = assignment.name
    return found
