"""Demand: what an operator asks of a device, as work rather than shares."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from numbers import Real

import torch

from nanort.devices import Device
from nanort.errors import DemandError

WORK = ("flops", "hbm_bytes", "h2d_bytes", "d2h_bytes", "net_bytes")
SHARES = ("hbm", "h2d", "d2h")


@dataclass(frozen=True, slots=True)
class Demand:
    """The work of one operator call: right on every device and at every nano-batch size.

    Args:
        flops: floating-point operations; a multiply-add counts as two.
        hbm_bytes: bytes read from and written to device memory.
        h2d_bytes: bytes copied from host to device over PCIe.
        d2h_bytes: bytes copied from device to host over PCIe.
        net_bytes: bytes sent over the network.
        sms: ``(least, most)`` SMs the operator can run on; ``most=None`` is every SM there is.
            ``(0, 0)`` is a transfer that a copy engine carries.
        tiles: equal parts of the work, each of which one SM does, such as the tiles of a matrix product; so no more SMs
            are used, and a last round of a few tiles takes as long as a full one. 0 if it can be shared out at will.
        seconds: alone, on its SMs; only set by :meth:`rigid`.
        hbm, h2d, d2h: only set by :meth:`rigid`, shares between 0 and 1.

    Raises:
        DemandError: a figure is negative, NaN or infinite, or ``sms`` is not a range.

    >>> Demand(flops=2e9, hbm_bytes=4e6, sms=(8, 64))
    Demand(flops=2e+09, hbm_bytes=4e+06, sms=(8, 64))
    """

    flops: float = 0.0
    hbm_bytes: float = 0.0
    h2d_bytes: float = 0.0
    d2h_bytes: float = 0.0
    net_bytes: float = 0.0
    sms: tuple[int, int | None] = (1, None)
    tiles: int = 0
    seconds: float | None = None
    hbm: float = 0.0
    h2d: float = 0.0
    d2h: float = 0.0

    def __post_init__(self) -> None:
        for name in WORK:
            figure = getattr(self, name)
            if isinstance(figure, Real) and not isinstance(figure, (int, float)):
                object.__setattr__(self, name, float(figure))  # numpy's own integers, as np.prod(shape) gives them
            _finite(name, getattr(self, name))
        for name in SHARES:
            if _finite(name, getattr(self, name)) > 1:
                raise DemandError(f"{name}={getattr(self, name)!r} is a share of the device's bandwidth: give 0 to 1")
        if self.seconds is not None:
            _finite("seconds", self.seconds)
        if not isinstance(self.tiles, int) or isinstance(self.tiles, bool) or self.tiles < 0:
            raise DemandError(f"tiles={self.tiles!r} is no number of tiles: give 1 or more, or 0 for no limit")
        if not (isinstance(self.sms, tuple) and len(self.sms) == 2 and isinstance(self.sms[0], int)):
            raise DemandError(f"sms={self.sms!r} is not a range: give (least, most), or (least, None) for no upper end")
        least, most = self.sms
        top = least + 1 if most is None else most  # no upper end is no end to compare with
        if not isinstance(top, int) or not (0 < least <= top or (least, most) == (0, 0)):
            raise DemandError(
                f"sms={self.sms!r} is not a range of SMs: give 1 <= least <= most, or (0, 0) for a copy engine"
            )

    def __repr__(self) -> str:
        shown = (f for f in fields(self) if getattr(self, f.name) != f.default)
        return f"Demand({', '.join(f'{f.name}={_short(getattr(self, f.name))}' for f in shown)})"

    @classmethod
    def rigid(
        cls, *, seconds: float, sms: int | tuple[int, int], hbm: float = 0.0, h2d: float = 0.0, d2h: float = 0.0
    ) -> Demand:
        """A demand whose duration and bandwidth shares (0 to 1) the user has measured; it cannot be cut."""
        span = (sms, sms) if isinstance(sms, int) else sms
        return cls(seconds=seconds, sms=span, hbm=hbm, h2d=h2d, d2h=d2h)

    @property
    def is_rigid(self) -> bool:
        """Whether duration and shares are fixed rather than derived from work."""
        return self.seconds is not None

    @property
    def span(self) -> tuple[int, int | None]:
        """The fewest and most SMs that it can use: no more than it has tiles."""
        least, most = self.sms
        return (least, max(least, min(self.tiles, most or self.tiles))) if self.tiles and least else self.sms

    @property
    def engine(self) -> str:
        """``"h2d"`` or ``"d2h"`` if a copy engine carries it, otherwise ``""``."""
        if self.sms != (0, 0):
            return ""
        return "d2h" if self.d2h_bytes > self.h2d_bytes or self.d2h > self.h2d else "h2d"

    def link_seconds(self, device: Device) -> tuple[float, float, float]:
        """Seconds to move its bytes down, up, and over the network at full bandwidth; infinite where there is none."""
        network = self.net_bytes / device.net_bandwidth if device.net_bandwidth else math.inf
        down, up = self.h2d_bytes / device.h2d_bandwidth, self.d2h_bytes / device.d2h_bandwidth
        return down, up, network if self.net_bytes else 0.0

    def bound_by(self, device: Device, dtype: torch.dtype | None) -> str:
        """What limits it alone on the whole device: "compute", "memory", "pcie", "network" or "launch"."""
        if self.is_rigid:
            shares = {"memory": self.hbm, "pcie": max(self.h2d, self.d2h)}
            name, share = max(shares.items(), key=lambda pair: pair[1])
            return name if share > 0.5 else "compute"
        h2d, d2h, net = self.link_seconds(device)
        limits = {
            "compute": self.flops / device.rate(dtype),
            "memory": self.hbm_bytes / device.hbm_bandwidth,
            "pcie": max(h2d, d2h),
            "network": net,
            "launch": device.launch_seconds,
        }
        return max(limits, key=lambda name: limits[name])

    def scaled(self, fraction: float) -> Demand:
        """The demand of ``fraction`` of the rows."""
        if self.is_rigid:
            raise DemandError(
                "a rigid demand cannot be cut: give the work (flops, hbm_bytes, ...) or a demand function"
            )
        work = {name: getattr(self, name) * fraction for name in WORK}
        return replace(self, tiles=math.ceil(self.tiles * fraction * (1 - 1e-12)), **work)  # 100 * 0.07 is 7


def _finite(name: str, figure: object) -> float:
    if isinstance(figure, bool) or not isinstance(figure, (int, float)):
        raise DemandError(f"{name}={figure!r} is not a number")
    if not math.isfinite(figure) or figure < 0:
        raise DemandError(f"{name}={figure!r}: a demand is a finite number, zero or more")
    return figure


def _short(figure: object) -> str:
    return f"{figure:.6g}" if isinstance(figure, (int, float)) else repr(figure)
