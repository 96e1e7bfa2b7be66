"""Demands held against the bytes that kernels load and store in the interpreter."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

import nanort as nr
from nanort import ops
from nanort.kernels.kernel import Kernel
from nanort.operators import meta
from touched import touched

SMS = 3
KERNELS = [
    (name, kernel)
    for name in ops.__all__
    for kernel, path in getattr(ops, name).kernels.items()
    if not path.startswith("nanort.kernels.library:")  # those are torch's, which no interpreter watches
]


def values(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def some(count: int, of: int) -> torch.Tensor:
    """So many different numbers below ``of``, shuffled."""
    return torch.randperm(of, generator=torch.Generator().manual_seed(of))[:count]


def cache(pages: int, dim: int = 32) -> torch.Tensor:
    return values(pages, 2, 16, 2, dim)


def decode() -> tuple[tuple[Any, ...], dict[str, Any]]:
    lengths = torch.tensor([1, 33, 64, 100, 17])
    layout = nr.Layout(decode=5, kv_tokens=int(lengths.sum()))
    return (values(5, 4, 32), cache(36), some(35, 36).reshape(5, 7).int(), lengths - 1), {"layout": layout}


def prefill() -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Twenty rows of a request after thirty cached tokens, and thirteen of another from its start."""
    layout = nr.Layout(prefill=(nr.Segment(20, past=30), nr.Segment(13)))
    positions = torch.cat((torch.arange(30, 50), torch.arange(13)))
    pages, requests = some(10, 20).reshape(2, 5).int(), (torch.arange(33) >= 20).long()
    return (values(33, 4, 64), cache(20, 64), pages, positions, requests), {"layout": layout}


def chosen() -> torch.Tensor:
    """Two of eight experts for each of 64 rows, all of them used."""
    first = torch.arange(64) % 8
    return torch.stack((first, (first + 3) % 8), dim=1)


CASES: dict[str, Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "add": lambda: ((values(9, 300), values(9, 300)), {}),
    "add_rms_norm": lambda: ((values(9, 300), values(9, 300), values(300)), {}),
    "argmax": lambda: ((values(5, 3000),), {}),
    "decode_attention": decode,
    "embedding": lambda: ((some(9, 50), values(50, 300)), {}),
    "expert_combine": lambda: ((values(64, 2 * 48), chosen(), values(64, 2), values(8, 40, 48)), {}),
    "expert_linear": lambda: ((values(64, 40), chosen(), values(8, 48, 40)), {}),
    "gated_add": lambda: ((values(9, 300), values(9, 1), values(9, 300)), {}),
    "gather": lambda: ((values(40, 300), some(7, 40)), {}),
    "kv_append": lambda: ((cache(3), values(9, 2, 32), values(9, 2, 32), some(9, 48)), {}),
    "linear": lambda: ((values(70, 96), values(130, 96), values(130), values(70, 130)), {}),
    "page_gather": lambda: ((cache(9), some(5, 9)), {}),
    "page_scatter": lambda: ((cache(9), some(5, 9), cache(5)), {}),
    "prefill_attention": prefill,
    "recall": lambda: ((-1 - some(900, 1000), some(1000, 5000)), {}),
    "rms_norm": lambda: ((values(9, 300), values(300)), {}),
    "rope": lambda: ((values(9, 4, 32), some(9, 1000), values(16)), {}),
    "rope_kv_append": lambda: (
        (cache(3), values(9, 4, 32), values(9, 2, 32), values(9, 2, 32), some(9, 1000), some(9, 48)), {},
    ),
    "route": lambda: ((values(33, 64), values(8, 64)), {}),
    "sample": lambda: (
        (values(5, 3000), *(torch.full((5,), each) for each in (0.6, 0.8, 40, 0.9))), {},
    ),
    "scatter": lambda: ((values(40, 300), some(7, 40), values(7, 300)), {}),
    "silu_mul": lambda: ((values(9, 300), values(9, 300)), {}),
    "store": lambda: ((values(9, 300), values(9, 300)), {}),
}  # fmt: skip  # a case a line
"""Arguments of every operator that has a kernel; what is looked up is named once, and every expert is used."""


def test_every_operator_with_a_kernel_has_a_case() -> None:
    assert set(CASES) == {name for name, _ in KERNELS}


@pytest.mark.parametrize(("name", "kernel"), KERNELS)
def test_declared_bytes_are_those_touched(name: str, kernel: str) -> None:
    op: nr.Op = getattr(ops, name)
    args, static = CASES[name]()
    shapes = tuple(meta(tuple(arg.shape), arg.dtype) for arg in args)
    declared = op.work(shapes, op.outputs(shapes, static), static).hbm_bytes
    module, _, function = op.kernels[kernel].partition(":")
    run: Kernel = getattr(importlib.import_module(module), function)
    out = run.result(*args, **static)
    results = out if isinstance(out, tuple) else () if out is None else (out,)
    scratch = torch.empty(run.scratch_bytes(*args, sms=SMS, **static), dtype=torch.uint8)
    with touched(*args, *results, scratch) as found:
        run(*args, out=out, scratch=scratch, sms=SMS, **static)
    print("arguments, results and scratch:", *found, sep="\n")
    assert sum(each.hbm_bytes for each in found[:-1]) == pytest.approx(declared, rel=0.01)


# The judge itself.


@triton.jit
def _first_half_twice(x, out, size, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    for _ in range(2):
        half = tl.load(x + at, mask=2 * at < size)
        tl.store(out + at, half, mask=2 * at < size)
    tl.atomic_add(out + at, half, mask=at == size - 1)


def test_bytes_are_counted_once_and_those_behind_a_mask_not_at_all() -> None:
    x, out, idle = values(12), torch.zeros(12), torch.zeros(12)
    with touched(x, out, idle) as (read, written, untouched):
        _first_half_twice[(1,)](x, out, 12, BLOCK=16)
    assert (read.hbm_bytes, written.hbm_bytes, untouched.hbm_bytes) == (6 * 4, 6 * 4 + 2 * 4, 0)
    assert read.loaded.nonzero()[0].tolist() == list(range(24))
    assert not read.stored.any()


def test_what_lies_in_no_tensor_is_found() -> None:
    x, out = values(12), torch.zeros(12)
    with touched(x[:5], out), pytest.raises(triton.runtime.errors.InterpreterError, match="1 of 6 elements loaded lie"):
        _first_half_twice[(1,)](x, out, 12, BLOCK=16)
