"""Profile: seconds that were measured on one device, which replace the cost model where there are any."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from functools import cached_property

from nanort.costs import files
from nanort.costs.exchange import Exchange
from nanort.costs.provenance import Versions, here, versions
from nanort.devices import Device, device
from nanort.errors import CostError, DeviceError, FileError
from nanort.nodes import Node, identity
from nanort.timeline.units import counted
from nanort.values import Value

SCHEMA, VERSION = "nanort.profile", 3


@dataclass(frozen=True, slots=True)
class Measurement:
    """Seconds that one call took alone on ``sms`` SMs.

    The work is part of what identifies a call, since shapes do not tell the lengths that a ragged operator reads.
    """

    operator: str
    kernel: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    flops: float
    hbm_bytes: float
    sms: int
    seconds: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds > 0 and self.sms >= 0):
            raise CostError(f"{self}: a measurement takes more than zero seconds, on zero SMs (a copy engine) or more")
        for name in ("flops", "hbm_bytes", "seconds"):  # as files have them: 64 and 64.0 would name two profiles
            object.__setattr__(self, name, float(getattr(self, name)))

    @staticmethod
    def of(node: Node, kernel: str, sms: int, seconds: float) -> Measurement:
        """The measurement of a node of some graph; it holds for every equal call."""
        operator, shapes, dtype, flops, hbm_bytes = call(node)
        return Measurement(operator, kernel, shapes, dtype, flops, hbm_bytes, sms, seconds)


@dataclass(frozen=True, slots=True)
class Pair:
    """How much longer two operators took side by side on the same SMs than each of them alone."""

    first: str
    second: str
    first_slowdown: float
    second_slowdown: float

    def __post_init__(self) -> None:
        if not all(
            math.isfinite(slowdown) and slowdown >= 1 for slowdown in (self.first_slowdown, self.second_slowdown)
        ):
            raise CostError(f"{self}: side by side, nothing is faster than alone: slowdowns are 1 or more")


FIGURES = ("launch_seconds", "hbm_bandwidth", "hbm_saturation_sms")
RATE = "flops."


class Profile:
    """What was measured on one device.

    Between two measured SM counts, seconds follow t(n) = a + b / n through both: a part that SMs do not help, and one
    that they share. Outside of them they follow the cost model, scaled to meet the nearest one.

    Args:
        device, sms: name and SMs of the device.
        machine: what else tells it from others of its name: its processor, or the GPU and its driver.
        versions: packages that it was measured with; without any, nothing tells that it is stale.
        measurements: seconds of calls alone.
        pairs: slowdowns of co-resident operators.
        figures: the cost model's, fitted to the measurements, for :meth:`fitted`: "launch_seconds", "hbm_bandwidth",
            "hbm_saturation_sms", and FLOP/s such as "flops.bfloat16".
        exchange: by operator, (share, performance) points: what it performs on a share (0 to 1) of the SMs while others
            hold the rest, of what it performs alone on all of them. See :class:`Exchange`. Such an operator takes its
            seconds on the whole device, measured, modelled or rigid, divided by its performance.
        about: what a reader wants to know besides: who measured, when, how far off the fitted figures are.

    Raises:
        CostError: something was measured twice, or an exchange cannot have been measured.
    """

    def __init__(
        self,
        device: str,
        sms: int,
        machine: str,
        measurements: Iterable[Measurement],
        pairs: Iterable[Pair] = (),
        exchange: Mapping[str, Iterable[tuple[float, float]]] | None = None,
        versions: Versions = (),
        figures: Mapping[str, float] | None = None,
        about: Mapping[str, str] | None = None,
    ) -> None:
        self.about = dict(about or {})
        self.device = device
        self.sms = sms
        self.machine = machine
        self.versions = versions
        self.figures = dict(figures or {})
        if unknown := [name for name in self.figures if name not in FIGURES and not name.startswith(RATE)]:
            raise CostError(f"there are no figures {unknown}: give {', '.join(FIGURES)}, {RATE}bfloat16 and its like")
        self.measurements = tuple(sorted(measurements, key=astuple))
        self.pairs = tuple(sorted(pairs, key=astuple))
        self.exchange = {name: Exchange.of(name, points) for name, points in sorted((exchange or {}).items())}
        self.slowdowns = {(pair.first, pair.second): (pair.first_slowdown, pair.second_slowdown) for pair in self.pairs}
        self._points: dict[_Call, dict[str, dict[int, float]]] = {}
        for m in self.measurements:
            call = (m.operator, m.shapes, m.dtype, m.flops, m.hbm_bytes)
            points = self._points.setdefault(call, {}).setdefault(m.kernel, {})
            if points.setdefault(m.sms, m.seconds) != m.seconds:
                raise CostError(
                    f"{m.operator} ({m.kernel}) on {m.sms} SMs was measured twice: keep one of "
                    f"{points[m.sms]} s and {m.seconds} s"
                )
        if len({frozenset(pair) for pair in self.slowdowns}) < len(self.pairs):
            raise CostError("a pair of operators was measured twice: keep one measurement of each")

    def __str__(self) -> str:
        """In a line, for those who read a plan that rests on it."""
        what = counted(len(self.measurements), "measurement") + (
            f", {counted(len(self.pairs), 'pair')}" if self.pairs else ""
        )
        return "; ".join([f"{self.machine}, {what}", *(f"{key} {told}" for key, told in self.about.items())])

    def __repr__(self) -> str:
        counts = f"{len(self.measurements)} measurements, {len(self.pairs)} pairs, {len(self.exchange)} exchanges"
        return f"Profile({self.device}, {self.machine!r}: {counts})"

    def fastest(self, node: Node, sms: int, model: Callable[[int], float]) -> tuple[float, str] | None:
        """Seconds and kernel of the fastest way to run ``node`` on ``sms`` SMs; None if it was never measured.

        ``model`` tells the seconds on so many SMs that the cost model has for it.
        """
        kernels = self._points.get(call(node), {})
        return min(((_seconds(points, sms, model), kernel) for kernel, points in kernels.items()), default=None)

    def performance(self, node: Node, sms: int) -> float | None:
        """What ``node`` performs on ``sms`` SMs, of what it does on the whole device; None if it has no exchange."""
        exchange = self.exchange.get(node.op.name)
        return exchange.performance(sms / self.sms) if exchange else None

    def measured_sms(self, node: Node) -> set[int]:
        """The SM counts on which ``node`` was measured; with the whole device, those between which one law holds."""
        if (exchange := self.exchange.get(node.op.name)) is not None:
            return exchange.knots(self.sms)
        return {sms for points in self._points.get(call(node), {}).values() for sms in points}

    @cached_property
    def identity(self) -> str:
        """A digest of all that was measured, by which plans name the profile they were made with."""
        measured: tuple[object, ...] = (self.device, self.sms, self.machine, self.measurements, self.pairs)
        if self.exchange:  # plans of profiles without keep their names
            measured += (tuple(self.exchange.values()),)
        if self.versions:
            measured += (self.versions,)
        if self.figures:
            measured += (tuple(self.figures.items()),)
        return hashlib.sha256(repr(measured).encode()).hexdigest()

    def fitted(self, device: Device) -> Device:
        """``device`` with the figures that were fitted to the measurements, for calls that were not measured.

        Raises:
            DeviceError: they cannot be such a device's.
        """
        rates = {name.removeprefix(RATE): rate for name, rate in self.figures.items() if name.startswith(RATE)}
        changes: dict[str, object] = {name: self.figures[name] for name in FIGURES if name in self.figures}
        if "hbm_saturation_sms" in changes:
            changes["hbm_saturation_sms"] = (round(self.figures["hbm_saturation_sms"]),) * 2
        return device.with_(**changes, flops={**device.flops, **rates}) if self.figures else device

    def with_pairs(self, pairs: Iterable[Pair], **about: str) -> Profile:
        """The same with other slowdowns of co-resident operators, and what is to be said of them."""
        return Profile(
            self.device, self.sms, self.machine, self.measurements, pairs,
            {name: curve.points for name, curve in self.exchange.items()}, self.versions, self.figures,
            self.about | about,
        )  # fmt: skip  # its arguments in order

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a JSON file, a measurement a line."""
        files.write(
            path,
            SCHEMA,
            VERSION,
            {
                "device": self.device,
                "sms": self.sms,
                "machine": self.machine,
                "versions": dict(self.versions),
                "about": self.about,
                "figures": self.figures,
                "columns": [field.name for field in fields(Measurement)],
                "measurements": [astuple(measurement) for measurement in self.measurements],
                "pairs": [astuple(pair) for pair in self.pairs],
                "exchange": [astuple(exchange) for exchange in self.exchange.values()],
            },
        )

    @property
    def stale(self) -> str:
        """Why it does not tell what operators take here and now; "" if nothing says so."""
        running = dict(versions())
        for package, version in self.versions:
            if (now := running.get(package, version)) != version:
                return f"it was measured with {package} {version}, and {now} is running"
        if self.versions and _is_here(self.device, self.sms) and (now := here(self.device)) != self.machine:
            return f"it was measured on {self.machine}, and this is {now}"
        return ""

    @staticmethod
    def load(path: str | os.PathLike[str], *, stale: bool = False) -> Profile:
        """The profile that :meth:`save` wrote; ``stale`` takes one of another machine or of other versions too.

        Raises:
            TruncatedFileError, NewerVersionError, FileError: the file cannot be read.
            CostError: it states figures that cannot have been measured, or is stale.
        """
        try:
            profile = _read(path)
        except CostError as error:
            raise CostError(f"{path}: {error}") from error
        if not stale and profile.stale:
            raise CostError(f"{path} is stale: {profile.stale}: measure again, or take it as it is with stale=True")
        return profile


def _read(path: str | os.PathLike[str]) -> Profile:
    kinds = {"device": str, "sms": int, "machine": str, "versions": dict}
    kinds |= {"columns": list, "measurements": list, "pairs": list, "exchange": list, "figures": dict}
    kinds |= {"about": dict}
    lacking: dict[str, object] = {"exchange": [], "versions": {}, "figures": {}, "about": {}}  # in older files
    data = files.record(lacking | files.read(path, SCHEMA, VERSION), str(path), kinds)
    if data["columns"] != [field.name for field in fields(Measurement)]:
        raise FileError(f"{path}: columns are {data['columns']}, not {[field.name for field in fields(Measurement)]}")
    measurements = []
    for number, line in enumerate(data["measurements"]):
        where = f"{path}: measurement {number}"
        operator, kernel, shapes, *rest = files.row(line, where, (str, str, list, str, float, float, int, float))
        sizes = tuple(
            tuple(files.row(shape, where, (int,) * len(shape))) for shape in shapes if isinstance(shape, list)
        )
        if len(sizes) < len(shapes):
            raise FileError(f"{where}: {shapes} is not a list of shapes")
        measurements.append(Measurement(operator, kernel, sizes, *rest))
    pairs = [
        Pair(*files.row(line, f"{path}: pair {number}", (str, str, float, float)))
        for number, line in enumerate(data["pairs"])
    ]
    exchange: dict[str, list[tuple[float, float]]] = {}
    for number, line in enumerate(data["exchange"]):
        where = f"{path}: exchange {number}"
        operator, points = files.row(line, where, (str, list))
        if operator in exchange:
            raise FileError(f"{where}: {operator!r} has one already: keep one of the two")
        exchange[operator] = [tuple(files.row(point, where, (float, float))) for point in points]
    made_with = files.record(data["versions"], f"{path}: versions", dict.fromkeys(data["versions"], str))
    about = files.record(data["about"], f"{path}: about", dict.fromkeys(data["about"], str))
    figures = files.record(data["figures"], f"{path}: figures", dict.fromkeys(data["figures"], float))
    if not all(figure > 0 for figure in figures.values()):
        raise FileError(f"{path}: figures are {figures}: each must be more than zero")
    return Profile(
        data["device"], data["sms"], data["machine"], measurements, pairs, exchange, tuple(made_with.items()),
        figures, about,
    )  # fmt: skip  # its arguments in order


def _is_here(name: str, sms: int) -> bool:
    """Whether this machine has a device of that name and size."""
    try:
        own = device("cpu") if name == "cpu" else Device.current()
    except DeviceError:  # a GPU that the database does not know
        return False
    return (own.name, own.sms) == (name, sms)


_Call = tuple[str, tuple[tuple[int, ...], ...], str, float, float]


def call(node: Node) -> _Call:
    """What makes two calls take the same time."""
    shapes = tuple(value.shape for value in node.inputs)
    dtype = str(node.dtype).removeprefix("torch.")
    return _named(node), shapes, dtype, float(node.demand.flops), float(node.demand.hbm_bytes)


def _named(node: Node) -> str:
    """The operator's name; with the function and the literals of the call, where these are not told by the name."""
    literals = [
        identity(argument) for argument in node.args if not isinstance(argument, Value) and argument is not None
    ]
    literals += [f"{key}={identity(argument)}" for key, argument in node.static.items() if key != "layout"]
    lambdas = "<" in identity(node.op.reference)
    line = (
        [str(node.op.reference.__code__.co_firstlineno)] if lambdas and hasattr(node.op.reference, "__code__") else []
    )
    return f"{node.op.name}({', '.join(literals + line)})" if literals or line else node.op.name


def _seconds(points: dict[int, float], sms: int, model: Callable[[int], float]) -> float:
    """Seconds on ``sms`` SMs by the measured ones."""
    below, above = max((n for n in points if n <= sms), default=0), min((n for n in points if n >= sms), default=0)
    if not below or not above:
        near = below or above
        return points[near] * model(sms) / model(near) if sms != near else points[near]
    if below == above:
        return points[sms]
    weight = (1 / sms - 1 / above) / (1 / below - 1 / above)
    return points[below] * weight + points[above] * (1 - weight)
