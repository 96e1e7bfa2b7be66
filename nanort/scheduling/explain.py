"""Explanations of a schedule, and of what parts two schedules; they print, and carry their figures as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from nanort.scheduling.bounds import ideal
from nanort.timeline.units import duration, percent, plain

if TYPE_CHECKING:
    from nanort.scheduling.schedule import Schedule

NAMES = {
    "critical_path": "longest path",
    "sms": "SMs",
    "compute": "compute",
    "hbm": "device memory",
    "h2d": "PCIe down",
    "d2h": "PCIe up",
    "net": "network",
}
SHOWN = 8


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a schedule is as long as it is; ``data`` has the figures."""

    data: dict[str, Any]

    def __str__(self) -> str:
        data = self.data
        bounds = [f"{NAMES[name]} {duration(seconds)}" for name, seconds in data["bounds"].items() if seconds]
        limit = NAMES[data["limit"]]
        near = data["bounds"][data["limit"]] / data["seconds"] if data["seconds"] else 1.0
        rows = [
            ("plan", f"{data['mechanism']}, {data['nano_batches']}, {data['nodes']} nodes, {data['waits']} waits"),
            ("serial", duration(data["serial_seconds"])),
            ("predicted", f"{duration(data['seconds'])}, {data['gain']:.2f}x serial"),
            *(
                (
                    "" if index else "outlook",
                    f"{duration(point['seconds'])}, {point['gain']:.2f}x if {point['saturation']} SMs saturate memory",
                )
                for index, point in enumerate(data["outlooks"])
            ),
            ("bounds", ", ".join(bounds) or "none"),
            ("limited by", f"{limit}: no schedule of this cut can be under {percent(near)} of the prediction"),
            (
                "ideal",
                f"{duration(data['ideal_seconds'])}: the {NAMES[data['ideal_unit']]} of the uncut graph by itself",
            ),
            *(("" if index else "why", plain(line)) for index, line in enumerate(data["why"])),
        ]
        return "\n".join(f"{label:<11}{text}" for label, text in rows)


def explain(schedule: Schedule) -> Explanation:
    """Serial and predicted time, lower bounds, what limits it, and what was given up."""
    ideal_seconds, unit = ideal(schedule.source, schedule.costs)
    pieces = len({node.piece for node in schedule.graph.nodes})
    return Explanation(
        {
            "graph": schedule.source.name,
            "device": schedule.device.name,
            "mechanism": schedule.mechanism,
            "nano_batches": f"{pieces} nano-batches" if schedule.split else "uncut",
            "nodes": len(schedule.assignments),
            "waits": len(schedule.waits),
            "serial_seconds": schedule.serial_makespan,
            "seconds": schedule.makespan,
            "gain": schedule.outlooks[0].gain,
            "outlooks": [asdict(outlook) | {"gain": outlook.gain} for outlook in schedule.outlooks],
            "bounds": asdict(schedule.bounds),
            "limit": schedule.bounds.limit,
            "ideal_seconds": ideal_seconds,
            "ideal_unit": unit,
            "effort": schedule.effort,
            "truncated": schedule.truncated,
            "why": list(schedule.why),
        }
    )


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
