from __future__ import annotations

import math
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import runs
import torch
from kernel_cases import CASES, Draw

import nanort as nr
from nanort import ops
from nanort.driver import Driver
from nanort.partition import Stream, split, whole
from nanort.runtime.partitions import partitions
from tolerances import assert_near

KERNELS = [(op.name, kernel) for op in (getattr(ops, name) for name in ops.__all__) for kernel in op.kernels]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""First what models are in."""
SMS = (8, 64, 132)


def wide(argument: Any) -> Any:
    floats = isinstance(argument, torch.Tensor) and argument.is_floating_point()
    return argument.double() if floats else argument.clone() if isinstance(argument, torch.Tensor) else argument


def several(result: Any) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else () if result is None else (result,)


def spoilt(spec: torch.Tensor, device: str) -> torch.Tensor:
    """Memory for a result, in which everything is wrong before."""
    return torch.full(spec.shape, math.nan if spec.is_floating_point() else -1, dtype=spec.dtype, device=device)


def agree(found: torch.Tensor, exact: torch.Tensor) -> None:
    if found.is_floating_point():
        assert_near(found, exact)
    else:
        assert torch.equal(found, exact.to(found.dtype))


@pytest.mark.usefixtures("driver")  # without a GPU nothing here is said to pass
def test_every_operator_with_kernels_has_cases() -> None:
    assert {op for op, _ in KERNELS} == set(CASES)


@pytest.mark.parametrize(("dtype", "op", "kernel"), [(dtype, *names) for dtype in DTYPES for names in KERNELS], ids=str)
def test_a_kernel_is_its_reference_on_any_number_of_sms(
    driver: Driver, device: nr.Device, dtype: torch.dtype, op: str, kernel: str
) -> None:
    if driver.device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter gets bfloat16 wrong")
    operator: nr.Op = getattr(ops, op)
    module, _, name = operator.kernels[kernel].partition(":")
    function, pool = getattr(import_module(module), name), partitions(driver, device)
    ran = 0
    for made in CASES[op] if dtype == DTYPES[0] or driver.device == "cpu" else CASES[op][:1]:  # each is compiled anew
        args = made(Draw(dtype))
        if getattr(function, "refuses", lambda *_: "")(*args):
            continue
        exact = [wide(argument) for argument in args]
        wanted = several(operator.reference(*exact))
        specs = operator.outputs(tuple(a.to("meta") if isinstance(a, torch.Tensor) else a for a in args), {})
        # An interpreted program knows nothing of SMs, and takes a while.
        for sms in SMS[:1] if driver.device == "cpu" else SMS:
            there = [a.to(driver.device, copy=True) if isinstance(a, torch.Tensor) else a for a in args]
            out = tuple(spoilt(spec, driver.device) for spec in specs)
            needed = function.scratch_bytes(*there, sms=sms) if hasattr(function, "scratch_bytes") else 0
            scratch = torch.full((needed,), 0xFF, dtype=torch.uint8, device=driver.device) if needed else None
            group = whole(device) if sms == device.sms else split(device, (sms,))[0]
            handle = pool.stream(Stream(f"{sms} SMs", group))
            runs.settle(driver)  # what was filled is filled
            where = out[0] if len(out) == 1 else out or None
            driver.launch(handle, partial(function, *there, out=where, scratch=scratch, sms=sms))
            end = driver.create_event()
            driver.record(end, handle)
            driver.synchronize(end)
            driver.destroy_event(end)
            pool.release((handle,))
            for found, right in zip(out, wanted, strict=True):
                agree(found.cpu(), right)
            for at in operator.writes:
                assert_near(there[at].cpu(), exact[at])
        ran += 1
    if not ran:
        assert dtype == torch.float32, f"no case is taken in {dtype}"
        pytest.skip(f"{op}.{kernel} does not take {dtype}")
