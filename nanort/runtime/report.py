"""report: the calls of graphs measured for as long as one likes, as a table beside the cost model fitted to them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from nanort.costs.calibrate import Calibration, calibrate
from nanort.costs.neighbours import profile_of
from nanort.costs.profile import Profile
from nanort.costs.roofline import Costs
from nanort.costs.samples import Sample
from nanort.costs.store import Store
from nanort.devices import Device
from nanort.driver import Driver, current
from nanort.errors import CostError, FileError
from nanort.graph import Graph
from nanort.runtime.meter import GpuMeter
from nanort.runtime.operands import Operands
from nanort.runtime.profiler import CpuMeter
from nanort.runtime.sweeps import Meter, Swept, points, sweep
from nanort.timeline.units import counted, duration, plain

SHOWN = 3
"""Refusals that are told in full."""


@dataclass(frozen=True, slots=True)
class Row:
    """A call that was measured alone, and the seconds that the model has for it."""

    sample: Sample
    model: float

    @property
    def error(self) -> float:
        """By how much the model is off, as a share of what was measured."""
        return self.model / self.sample.seconds - 1.0


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured of some graphs, now or before; prints as a table.

    Attributes:
        device: with the figures fitted, where there is a ``calibration``.
        path: of the store.
        swept: what was measured now.
        rows: the graphs' calls.
        profile: all that the store has of this device.
        calibration, why: the fit, or None and why there is none.
    """

    device: Device
    path: str
    swept: Swept
    rows: tuple[Row, ...]
    profile: Profile
    calibration: Calibration | None
    why: str

    @property
    def data(self) -> dict[str, Any]:
        """The figures, for JSON."""
        fit = self.calibration
        return {
            "device": self.device.name,
            "store": self.path,
            "measured": self.swept.measured,
            "known": self.swept.known,
            "left": self.swept.left,
            "refused": self.swept.refused,
            "rows": [
                {
                    **row.sample.call._asdict(),
                    "median_seconds": row.sample.seconds,
                    "spread": row.sample.spread,
                    "model_seconds": row.model,
                    "error": row.error,
                }
                for row in self.rows
            ],
            "calibration": None
            if fit is None
            else {
                "hbm_bandwidth": fit.device.hbm_bandwidth,
                "hbm_saturation_sms": fit.device.hbm_saturation_sms[0],
                "flops": fit.device.flops,
                "launch_seconds": fit.device.launch_seconds,
                "kept": fit.kept,
                "held_out": fit.held_out,
                "error": fit.error,
                "worst": fit.worst,
                "before": fit.before,
            },
        }

    def __str__(self) -> str:
        units = "cores" if self.device.kind == "cpu" else "SMs"
        head = f"{'operator':28} {'shapes':38} {units:>5} {'median':>9} {'spread':>6} {'model':>9} {'error':>7}"
        lines = [
            f"{plain(row.sample.call.operator, 28):28} {plain(_shapes(row.sample), 38):38} {row.sample.call.sms:>5} "
            f"{duration(row.sample.seconds):>9} {row.sample.spread:>6.0%} {duration(row.model):>9} {row.error:>+7.0%}"
            for row in self.rows
        ]
        swept = self.swept
        told = f"measured {counted(swept.measured, 'point')}, {swept.known} were known"
        if swept.left:
            told += f", {swept.left} are left: the same again goes on from here"
        refused = [f"not measured: {reason}" for reason in swept.refused[:SHOWN]]
        if len(swept.refused) > SHOWN:
            refused.append(f"not measured either: {len(swept.refused) - SHOWN} more")
        fit = str(self.calibration) if self.calibration else f"not fitted: {self.why}"
        return "\n".join([head, *lines, "", fit, told, *refused, f"stored in {self.path}"])


def measure(
    graphs: Iterable[tuple[Graph, Mapping[str, torch.Tensor]]],
    device: Device,
    path: str | os.PathLike[str],
    budget: float,
    *,
    driver: Driver | None = None,
    progress: Callable[[int, int], object] | None = None,
    by: str = "",
) -> Report:
    """Measures the calls of ``graphs`` for ``budget`` seconds, keeps them, and fits the cost model to what there is.

    Args:
        graphs: each with its inputs, of which those of integers are needed; the others are random.
        device: the GPU of this machine, or its CPU.
        path: of the store; what it has is not measured again.
        budget: seconds, after which nothing new is begun.
        driver: of the GPU, by default the current one.
        progress: is told how many points are done, of how many.
        by: who measures, for those who will read the profile.

    Raises:
        FileError: the store cannot be used.
        CostError: the budget is not more than zero.
        BackendError: there is no such GPU.
        InputError: an input is missing or of a wrong shape.
    """
    meter: Meter = CpuMeter(device) if device.kind == "cpu" else GpuMeter(driver or current(), device)
    with Store(path, meter.place) as store:
        asked = points([Operands(graph, device, inputs) for graph, inputs in graphs], meter)
        swept = sweep(asked, store, meter, budget=budget, progress=progress)
        samples = store.samples()
    fit, why = None, ""
    try:
        fit = calibrate(device, meter.place, samples)
    except CostError as error:
        why = str(error)
    fitted = fit.device if fit and fit.is_better else device
    costs, alone = Costs(fitted), {sample.call: sample for sample in samples if sample.beside is None}
    nodes = {point[0].call: point[0].node for point in asked if len(point) == 1}
    rows = [Row(alone[call], costs.solo(nodes[call], call.sms).seconds) for call in sorted(nodes) if call in alone]
    profile = fit.profile if fit else profile_of(meter.place, samples)
    profile.about.update(_about(by, fit))
    return Report(fitted, os.fspath(path), swept, tuple(rows), profile, fit, why)


def _about(by: str, fit: Calibration | None) -> dict[str, str]:
    """What is said of a profile besides its figures."""
    told = {"measured on": date.today().isoformat()} | ({"by": by} if by else {})
    if fit is not None and fit.is_better:
        told["model"] = f"{fit.error:.1%} off on the mean of {counted(fit.held_out, 'call')} held out"
    return told


def default_store() -> Path:
    """Where measurements are kept unless another file is named; its folder is made."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanort"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder} cannot be made: {error}: name a file with --store") from error
    return folder / "measurements.sqlite"


def _shapes(sample: Sample) -> str:
    return " ".join("x".join(map(str, shape)) or "1" for shape in sample.call.shapes)
