"""Schedules as files: readable JSON that holds decisions; the graph is given again when one is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from nanort.costs import files
from nanort.costs.profile import Profile
from nanort.costs.shipped import shipped
from nanort.devices import Datasheet, Device
from nanort.errors import DeviceError, FileError, ForeignFileError, ScheduleError, SplitError
from nanort.graph import Graph
from nanort.partition import Group, Stream
from nanort.scheduling.schedule import Assignment, Outlook, Schedule, Split
from nanort.scheduling.waits import Wait

SCHEMA, VERSION = "nanort.schedule", 2

FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "graph": str,
    "fingerprint": str,
    "profile": str,
    "split": (dict, type(None)),
    "device": dict,
    "mechanism": str,
    "groups": list,
    "streams": list,
    "outlooks": list,
    "seed": int,
    "effort": int,
    "truncated": bool,
    "versions": dict,
    "why": list,
    "assignments": list,
    "waits": list,
}


def save(schedule: Schedule, path: str | os.PathLike[str]) -> None:
    """Writes the decisions, an assignment a line."""
    split, nodes = schedule.split, schedule.graph.nodes
    files.write(
        path,
        SCHEMA,
        VERSION,
        {
            "graph": schedule.source.name,
            "fingerprint": schedule.source.fingerprint,
            "profile": schedule.profile.identity if schedule.profile else "",
            "split": {"sizes": split.sizes, "per_op": dict(split.per_op)} if split else None,
            "device": asdict(schedule.device),
            "mechanism": schedule.mechanism,
            "groups": [asdict(group) for group in schedule.partition],
            "streams": [[s.name, s.group.name if s.group else "", s.engine] for s in schedule.streams],
            "outlooks": [[o.saturation, o.seconds, o.serial_seconds] for o in schedule.outlooks],
            "seed": schedule.seed,
            "effort": schedule.effort,
            "truncated": schedule.truncated,
            "versions": dict(schedule.versions),
            "why": schedule.why,
            "assignments": [[a.name, a.stream, a.sms, a.kernel, a.start, a.end] for a in schedule.assignments],
            "waits": [[nodes[w.node].name, nodes[w.on].name, w.reason] for w in schedule.waits],
        },
    )


def load(path: str | os.PathLike[str], source: Graph, profile: Profile | None) -> Schedule:
    """The schedule of ``source`` that :func:`save` wrote, checked.

    Raises:
        TruncatedFileError, ForeignFileError, NewerVersionError, FileError, ScheduleError
    """
    data = files.record(files.read(path, SCHEMA, VERSION), str(path), FIELDS)
    if data["fingerprint"] != source.seal().fingerprint:
        raise ForeignFileError(
            f"{path} plans another graph, {data['graph']!r}: build the graph as it was, or plan {source.name!r} again"
        )
    device = _device(data["device"], f"{path}: device")
    if profile is None and data["profile"]:
        profile = shipped(device)  # what a plan rests on by default
    if data["profile"] != (profile.identity if profile else ""):
        which = f"the profile {data['profile'][:12]}" if data["profile"] else "no profile"
        raise ForeignFileError(f"{path} rests on {which}: give Schedule.load(..., profile=) the same, or plan again")
    split = _split(data["split"], f"{path}: split", len(data["assignments"]) + 64)
    try:
        graph = split.cut(source) if split else source
    except SplitError as error:
        raise FileError(f"{path}: split: {error}") from error
    index = {node.name: node.index for node in graph.nodes}

    def node(name: str, where: str) -> int:
        if name not in index:
            raise FileError(f"{path}: {where} names the node {name!r}, which the graph does not have")
        return index[name]

    rows = [
        files.row(row, f"{path}: assignment {n}", (str, str, int, str, float, float))
        for n, row in enumerate(data["assignments"])
    ]
    pairs = [files.row(row, f"{path}: wait {n}", (str, str, str)) for n, row in enumerate(data["waits"])]
    points = [files.row(row, f"{path}: outlook {n}", (int, float, float)) for n, row in enumerate(data["outlooks"])]
    if not points or any(not 1 <= sms <= device.sms or min(seconds) < 0 for sms, *seconds in points):
        raise FileError(
            f"{path}: outlooks are {points}: give one or more, of 1 to {device.sms} SMs and seconds from 0 on"
        )
    schedule = Schedule(
        source=source,
        split=split,
        graph=graph,
        device=device,
        mechanism=data["mechanism"],
        streams=_streams(data, path),
        assignments=tuple(Assignment(node(row[0], "an assignment"), *row) for row in rows),
        waits=tuple(Wait(node(a, "a wait"), node(b, "a wait"), reason) for a, b, reason in pairs),
        outlooks=tuple(Outlook(*point) for point in points),
        seed=data["seed"],
        effort=data["effort"],
        truncated=data["truncated"],
        profile=profile,
        why=tuple(files.row(data["why"], f"{path}: why", (str,) * len(data["why"]))),
        versions=tuple(
            files.record(data["versions"], f"{path}: versions", dict.fromkeys(data["versions"], str)).items()
        ),
    )
    try:
        schedule.check()
    except ScheduleError as error:
        raise ScheduleError(f"{path}: {error}") from error
    return schedule


def _split(value: Any, where: str, most: int) -> Split | None:
    """How the graph is cut, into ``most`` pieces: more than are assigned would be made for nothing."""
    if value is None:
        return None
    found = files.record(value, where, {"sizes": (int, list), "per_op": dict})
    sizes, per_op = found["sizes"], found["per_op"]
    if isinstance(sizes, list):
        sizes = tuple(files.row(sizes, where, (int,) * len(sizes)))
    counts = files.record(per_op, where, dict.fromkeys(per_op, int))
    if (pieces := max(len(sizes) if isinstance(sizes, tuple) else sizes, *counts.values(), 0)) > most:
        raise FileError(f"{where}: {pieces} pieces are more than the assignments are of: plan again")
    return Split(sizes, tuple(counts.items()))


def _streams(data: Mapping[str, Any], path: str | os.PathLike[str]) -> tuple[Stream, ...]:
    groups: dict[str, Group | None] = {"": None}
    for number, value in enumerate(data["groups"]):
        where = f"{path}: group {number}"
        found = files.record(value, where, {"name": str, "sms": int, "units": (list, type(None)), "lanes": int})
        units = None if found["units"] is None else tuple(files.row(found["units"], where, (int, int)))
        groups[found["name"]] = Group(**found | {"units": units})
    streams = []
    for number, value in enumerate(data["streams"]):
        name, group, engine = files.row(value, f"{path}: stream {number}", (str, str, str))
        if group not in groups:
            raise FileError(f"{path}: stream {name!r} is on group {group!r}, which is not among the groups")
        streams.append(Stream(name, groups[group], engine))
    return tuple(streams)


def _device(value: Any, where: str) -> Device:
    kinds: dict[str, Any] = {"str": str, "int": int, "float": float}
    if isinstance(value, dict):
        value = {"capability": 0} | value  # which files of the first version do not tell
    found = files.record(value, where, {f.name: kinds.get(str(f.type), (dict, list)) for f in fields(Device)})
    sheet = files.record(
        found["datasheet"], f"{where}: datasheet", {"flops": dict, "hbm_bandwidth": float, "source": str}
    )
    if not isinstance(found["flops"], dict):
        raise FileError(f"{where}: flops is a list, not an object")
    for flops in (found["flops"], sheet["flops"]):
        flops |= files.record(flops, f"{where}: flops", dict.fromkeys(flops, float))
    saturation = files.row(found["hbm_saturation_sms"], f"{where}: hbm_saturation_sms", (int, int))
    try:
        return Device(**found | {"datasheet": Datasheet(**sheet), "hbm_saturation_sms": tuple(saturation)})
    except DeviceError as error:
        raise FileError(f"{where}: {error}") from error
