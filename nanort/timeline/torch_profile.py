"""A torch.profiler trace as a timeline: what ran on each stream of a GPU, or on each thread where no GPU took part.

Kernels, copies and fills are activities, streams are lanes. What the host did when it launched one says the rest: the
operator it was launched by (``scope``'s ``op``) and that one's shapes, the profiler's step, the module and the
``record_function`` block around it, the innermost line of Python outside of PyTorch (``with_stack=True``). Waits are
those of streams for events (``_ExperimentalConfig(enable_cuda_sync_events=True)``).

Without a GPU, activities are the outermost operators of each thread, such as ``aten::linear``: those within them would
count their time twice. What only wraps operators, as autograd's nodes and compiled regions do, gives way to what it
wraps, and stands for itself where that is nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from nanort.errors import FileError
from nanort.timeline import analysis, units
from nanort.timeline.activities import Activity
from nanort.timeline.events import Timeline
from nanort.timeline.kernel_names import operator_of
from nanort.timeline.torch_rows import BEGIN, END, LAUNCH, Columns, Recorded

LONGEST_SECONDS = 26 * 24 * 3600
OPERATOR = re.compile(r"(?!autograd::|torch::autograd::)\w+::\w").match
"""The name of a dispatched operator, ``aten::add``, and not that of a wrapper."""
COPIES = {"HtoD": ("h2d_bytes", 1, "pcie"), "DtoH": ("d2h_bytes", 1, "pcie"), "DtoD": ("hbm_bytes", 2, "memory")}
"""Which bytes a copy between host and device moves, how often, and what binds it."""


def load(path: str | os.PathLike[str]) -> Timeline:
    """The timeline of the profile that ``torch.profiler`` exported to ``path``, packed by gzip or not.

    Raises:
        TruncatedFileError: the file is cut short, or is no trace.
        NewerVersionError: a newer PyTorch wrote it.
        FileError: it records nothing, too much, or what cannot be.
    """
    recorded = Recorded(path)
    if not len(recorded.work) and not len(recorded.operators):
        raise FileError(
            f"{path} records neither kernels nor operators: give a trace that torch.profiler exported, of a run with "
            "activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]"
        )
    made = _of_streams(recorded) if len(recorded.work) else _of_threads(recorded)
    start, end = made.pop("start"), made.pop("end")
    zero = int(start.min())
    if (seconds := (int(end.max()) - zero) / 1e9) > LONGEST_SECONDS:
        raise FileError(f"{path} spans {units.duration(seconds)}: its times are wrong, 26 days are the most")
    return Timeline(start=(start - zero) / 1e9, end=(end - zero) / 1e9, kind="measured", **made)


def _of_streams(recorded: Recorded) -> dict[str, Any]:
    """The parts of a timeline of what ran on GPUs."""
    work = _sorted(recorded.work.columns())
    calls, operators, texts = recorded.calls.columns(), recorded.operators.columns(), recorded.texts
    call = _where(calls["correlation"], work["correlation"])
    external = np.where(work["external"] > 0, work["external"], _at(calls["external"], call, 0))
    by = _where(operators["external"], external)
    thread = np.where(call >= 0, _at(calls["thread"], call, -1), _at(operators["thread"], by, -1))
    when = np.where(call >= 0, _at(calls["start"], call, 0), _at(operators["start"], by, 0))
    gpus, devices = _devices(recorded.head), sorted(set(work["device"].tolist()))
    lanes = [
        f"stream {stream}" if len(devices) == 1 else f"gpu {device} stream {stream}"
        for device, stream in zip(work["device"].tolist(), work["stream"].tolist(), strict=True)
    ]
    about = _about(recorded, texts, thread, when, by)
    waits = _waits(work, when, calls, recorded.waits.columns())
    operator = {name: operator_of(texts[name]) for name in set(work["name"].tolist())}
    activities = []
    rows = zip(
        *(work[name].tolist() for name in ("name", "device", "sms", "bytes", "kernel")), lanes, about, strict=True
    )
    for index, (name, device, blocks, amount, is_kernel, lane, said) in enumerate(rows):
        what = {"group": f"gpu {device}", "sms": min(blocks, gpus.get(device, ("", 0))[1])} if is_kernel else {}
        what |= _demand(operator[name], float(amount))
        activities.append(
            Activity(texts[name], operator[name], lane, waits=tuple(waits.get(index, {}).items()), **what, **said)
        )
    called = sorted({gpus.get(device, ("gpu", 0))[0] for device in devices})
    return {
        "activities": activities, "start": work["start"], "end": work["end"], "device": ", ".join(called),
        "sm_capacity": sum(gpus.get(device, ("", 0))[1] for device in devices), "lost": _lost(calls, work),
    }  # fmt: skip  # in two lines


def _of_threads(recorded: Recorded) -> dict[str, Any]:
    """The parts of a timeline of what ran on the host."""
    columns, texts, threads = recorded.operators.columns(), recorded.texts, recorded.threads
    dispatched = np.array([bool(OPERATOR(text)) for text in texts])[columns["name"]]
    chosen = np.sort(np.concatenate([
        members[_outermost(columns["start"][members], columns["end"][members], dispatched[members])]
        for _, members in analysis.grouped(columns["thread"].tolist())
    ]))  # fmt: skip  # one call
    mine = _sorted({name: column[chosen] for name, column in columns.items()} | {"row": chosen})
    about = _about(recorded, texts, mine["thread"], mine["start"], mine["row"])
    activities = [
        Activity(texts[name], texts[name], f"thread {threads[thread]}", **said)
        for name, thread, said in zip(mine["name"].tolist(), mine["thread"].tolist(), about, strict=True)
    ]
    return {"activities": activities, "start": mine["start"], "end": mine["end"], "device": "cpu"}


def _outermost(start: Columns, end: Columns, dispatched: Columns) -> Columns:
    """Which of one thread's operators stand for it: see the module."""
    order = np.lexsort((-end, start))
    began, over, real = start[order], end[order], dispatched[order]
    until = np.maximum.accumulate(np.where(real, over, np.iinfo(np.int64).min))
    covered = np.concatenate(([False], began[1:] < until[:-1]))
    leaf = np.concatenate((began[1:] >= over[:-1], [True]))
    chosen: Columns = order[~covered & (real | leaf)]
    return chosen


def _about(
    recorded: Recorded, texts: list[str], thread: Columns, when: Columns, operator: Columns
) -> Iterator[dict[str, Any]]:
    """Scope, shapes and line of the operators, or -1, that threads were in at some times."""
    columns = recorded.operators.columns()
    shapes, frame = _at(columns["shapes"], operator, -1), _at(columns["frame"], operator, -1)
    found = {}
    for kind, table in recorded.spans.items():
        spans = table.columns()
        inside = np.zeros_like(thread) if kind == "step" else thread
        found[kind] = _at(spans["text"], _innermost(spans, inside, when), -1)
    line = np.where(found["frame"] >= 0, found["frame"], frame)
    labels = [found["step"], found["module"], found["annotation"]]
    labels.append(_at(columns["name"], operator, -1) if len(recorded.work) else np.full_like(line, -1))
    said = ["", *texts]  # -1 is the empty text
    scopes: dict[tuple[int, ...], tuple[tuple[str, Any], ...]] = {}
    for place, *within in zip(line.tolist(), shapes.tolist(), *(label.tolist() for label in labels), strict=True):
        taken, key = within[0], tuple(within[1:])
        if key not in scopes:
            step, *rest = (said[text + 1] for text in key)
            named = zip(("step", "module", "annotation", "op"), [int(step) if step else "", *rest], strict=True)
            scopes[key] = tuple((label, value) for label, value in named if value != "")
        yield {"scope": scopes[key], "shapes": said[taken + 1], "where": said[place + 1]}


def _innermost(spans: dict[str, Columns], thread: Columns, when: Columns) -> Columns:
    """The innermost span of its thread that holds each time, -1 for none."""
    count, found = len(spans["start"]), np.full(len(when), -1)
    if not count:
        return found
    asked = np.repeat((0, 1), (count, len(when)))
    outer = np.concatenate((-spans["end"], np.zeros_like(when)))
    threads, times = np.concatenate((spans["thread"], thread)), np.concatenate((spans["start"], when))
    order = np.lexsort((outer, asked, times, threads))
    end, stack, current = spans["end"].tolist(), list[int](), -1
    for index, lane, time in zip(order.tolist(), threads[order].tolist(), times[order].tolist(), strict=True):
        if lane != current:
            stack.clear()
            current = lane
        while stack and end[stack[-1]] <= time:
            stack.pop()
        if index < count:
            stack.append(index)
        elif stack:
            found[index - count] = stack[-1]
    return found


def _waits(
    work: dict[str, Columns], launched: Columns, calls: dict[str, Columns], waits: dict[str, Columns]
) -> dict[int, dict[int, str]]:
    """What each activity waited for on other streams: the last that those had been given before their event."""
    order = np.lexsort((work["start"], launched))
    lanes = list(zip(work["device"][order].tolist(), work["stream"][order].tolist(), strict=True))
    given = {lane: (order[places], launched[order[places]]) for lane, places in analysis.grouped(lanes)}
    by, record = _where(calls["correlation"], waits["correlation"]), _where(calls["correlation"], waits["record"])
    known = (by >= 0) & (record >= 0) & (waits["stream"] != waits["waited"])
    asked = (
        waits["device"],
        waits["stream"],
        waits["waited"],
        _at(calls["start"], by, 0),
        _at(calls["start"], record, 0),
    )
    found: dict[int, dict[int, str]] = {}
    for device, stream, other, since, until in zip(*(column[known].tolist() for column in asked), strict=True):
        if (device, stream) in given and (device, other) in given:
            (own, mine), (others, theirs) = given[device, stream], given[device, other]
            first, last = int(np.searchsorted(mine, since, "right")), int(np.searchsorted(theirs, until)) - 1
            if first < len(own) and last >= 0 and others[last] < own[first]:
                found.setdefault(int(own[first]), {})[int(others[last])] = "after"
    return found


def _lost(calls: dict[str, Columns], work: dict[str, Columns]) -> int:
    """Launches of which the GPU's part was not recorded, those into a graph that was being captured left out."""
    captured = np.zeros(len(calls["start"]), bool)
    for _, members in analysis.grouped(calls["thread"].tolist()):
        mine = members[np.argsort(calls["start"][members], kind="stable")]
        does = calls["does"][mine]
        captured[mine] = np.cumsum((does == BEGIN).astype(int) - (does == END)) > 0
    numbers = calls["correlation"]
    launched = np.unique(numbers[(calls["does"] == LAUNCH) & ~captured & (numbers > 0)])
    return len(np.setdiff1d(launched, work["correlation"]))


def _demand(operator: str, amount: float) -> dict[str, Any]:
    """What a copy or a fill moves, and what binds it; of a kernel nobody knows, unless it communicates."""
    if operator.startswith(("Memcpy ", "Memset")):
        field, times, bound = COPIES.get(operator.removeprefix("Memcpy "), ("hbm_bytes", 1, "memory"))
        return {field: times * amount, "bound": bound} if operator != "Memcpy PtoP" else {"bound": "network"}
    return {"bound": "network"} if operator.startswith("nccl") else {}


def _devices(head: dict[str, Any]) -> dict[int, tuple[str, int]]:
    """Name and SMs of every GPU that the trace describes, by its number."""
    found, described = {}, head.get("deviceProperties")
    for number, gpu in enumerate(described if isinstance(described, list) else ()):
        if isinstance(gpu, dict):
            device, name, sms = gpu.get("id", number), gpu.get("name"), gpu.get("numSms")
            if type(device) is int:
                counted = sms if type(sms) is int and 0 <= sms < 1 << 16 else 0
                found[device] = (name if isinstance(name, str) and name else "gpu", counted)
    return found


def _sorted(columns: dict[str, Columns]) -> dict[str, Columns]:
    """The rows in order of their start."""
    order = np.lexsort((columns["end"], columns["start"]))
    return {name: column[order] for name, column in columns.items()}


def _where(keys: Columns, wanted: Columns) -> Columns:
    """The last place at which each number stands among the keys; -1 where it does not, or is 0."""
    if not len(keys):
        return np.full(len(wanted), -1)
    order = np.argsort(keys, kind="stable")
    place = np.maximum(np.searchsorted(keys[order], wanted, "right") - 1, 0)
    return np.where((keys[order][place] == wanted) & (wanted > 0), order[place], -1)


def _at(column: Columns, places: Columns, usual: int) -> Columns:
    """The column at those places; ``usual`` where a place is -1."""
    return np.where(places >= 0, column[places], usual) if len(column) else np.full(len(places), usual)
