"""to_device, to_host: copies over PCIe, which copy engines carry."""

from __future__ import annotations

import torch

import nanort as nr
from nanort.ops.examples import normal


@nr.op(
    demand=lambda x, *, out: nr.Demand(h2d_bytes=x.nbytes, hbm_bytes=out.nbytes, sms=(0, 0)),
    example=lambda: (normal(1, 7, 5),),
    to="device",
)
def to_device(x: torch.Tensor) -> torch.Tensor:
    """A copy in device memory of a tensor in host memory.

    Demand: the bytes that cross PCIe, which are written to device memory; no SMs.
    """
    return x.clone()


@nr.op(
    demand=lambda x, *, out: nr.Demand(d2h_bytes=out.nbytes, hbm_bytes=x.nbytes, sms=(0, 0)),
    example=lambda: (normal(1, 7, 5),),
    to="host",
)
def to_host(x: torch.Tensor) -> torch.Tensor:
    """A copy in host memory of a tensor in device memory.

    Demand: the bytes that cross PCIe, which are read from device memory; no SMs.
    """
    return x.clone()
