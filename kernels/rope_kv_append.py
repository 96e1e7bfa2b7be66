"""rope, kv_append, and both in one pass over what a row adds to its request: rotary embedding, and the paged append."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl

from nanort.kernels.kernel import Typical, kernel, meta
from nanort.kernels.launch import Launch
from nanort.kernels.rows import row_stride

UNIT_BYTES = 2048
"""Heads of a row that a program takes at a time: 64 bytes a thread, in loads of 16 that are under way at once."""
PER_SM = 32
REGISTERS = 64
"""Of each thread, so that as many programs, which are of one warp, do fit on an SM."""


@triton.jit
def _powers(root, COUNT: tl.constexpr):
    """Powers 0 to ``COUNT`` - 1 of a number, and the power ``COUNT``."""
    power = tl.full((COUNT,), 1.0, tl.float64)
    for bit in tl.static_range(COUNT.bit_length() - 1):
        power *= tl.where(((tl.arange(0, COUNT) >> bit) & 1) != 0, root, 1.0)
        root = root * root
    return power, root


@triton.jit
def _frequencies(root, root_rest, log_theta, DIM: tl.constexpr, HALF: tl.constexpr):
    """``1 / theta ** (2 i / DIM)`` in float32, rounded where torch rounds it: at ``2 i / DIM``, the power, the inverse.

    The power is a product, in float64, of squares of squares of ``root + root_rest``, which is ``theta ** (2 / DIM)``.
    """
    LOW: tl.constexpr = min(8, HALF)
    low, factor = _powers(tl.full((), 0.0, tl.float64) + root + root_rest, LOW)
    high, _ = _powers(factor, HALF // LOW)
    power = tl.reshape(high[:, None] * low[None, :], (HALF,))
    if DIM & (DIM - 1) != 0:
        exponent = (2 * tl.arange(0, HALF)).to(tl.float64) / DIM
        power += power * (exponent.to(tl.float32).to(tl.float64) - exponent) * log_theta
    return tl.div_rn(tl.full((HALF,), 1.0, tl.float32), power.to(tl.float32))


@triton.jit
def _cos_sin(angle):
    """Of angles up to 100,000, both within 2e-7; that of the library takes a stack for what lies beyond."""
    turns = tl.floor(angle * 0.6366197723675814 + 0.5)
    # A quarter turn in three parts, of which the products with the first two are exact.
    rest = angle - turns * 1.5703125 - turns * 4.825592041015625e-04 - turns * 1.2675907351903426e-06
    square = rest * rest
    sin = ((-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1) * square * rest + rest
    cos = ((2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2) * square * square
    cos = cos - 0.5 * square + 1.0
    quarter = turns.to(tl.int32)
    swaps = (quarter & 1) != 0
    turned_cos, turned_sin = tl.where(swaps, sin, cos), tl.where(swaps, cos, sin)
    return (
        tl.where(((quarter + 1) & 2) != 0, -turned_cos, turned_cos),
        tl.where((quarter & 2) != 0, -turned_sin, turned_sin),
    )


@triton.jit
def _move(
    source, target, unit, cos, sin,
    HEADS: tl.constexpr, DIM: tl.constexpr, GROUP: tl.constexpr, HALF: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    """Copies a group of heads, and turns their halves against each other, every product rounded as torch's."""
    MIDDLE: tl.constexpr = (DIM + 1) // 2
    head, column = unit * GROUP + tl.arange(0, GROUP)[:, None], tl.arange(0, HALF)[None, :]
    at = head * DIM + column
    first_mask, second_mask = (head < HEADS) & (column < MIDDLE), (head < HEADS) & (column < DIM - MIDDLE)
    first = tl.load(source + at, mask=first_mask, other=0.0)
    second = tl.load(source + at + MIDDLE, mask=second_mask, other=0.0)
    if TURNS:
        dtype: tl.constexpr = first.dtype
        a, b = first.to(tl.float32), second.to(tl.float32)
        cos, sin = cos.to(tl.float32), sin.to(tl.float32)
        first = ((a * cos).to(dtype).to(tl.float32) - (b * sin).to(dtype).to(tl.float32)).to(dtype)
        second = ((b * cos).to(dtype).to(tl.float32) + (a * sin).to(dtype).to(tl.float32)).to(dtype)
    tl.store(target + at, first, mask=first_mask)
    tl.store(target + at + MIDDLE, second, mask=second_mask)


@triton.jit
def _rope_kv_append(
    kv, q, k, v, positions, slots, frequencies, out, rows, tokens, q_stride, k_stride, v_stride, splits,
    root, root_rest, log_theta, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, PAGE_SIZE: tl.constexpr, GIVEN: tl.constexpr,
    GROUP: tl.constexpr, HALF: tl.constexpr, Q_UNITS: tl.constexpr, KV_UNITS: tl.constexpr,
):  # fmt: skip
    """Of every row, units of q, k and v, dealt to ``splits`` programs; where there is no q, k is not turned."""
    if Q_UNITS == 0:
        cos, sin = 0.0, 0.0
    elif GIVEN:
        at = tl.arange(0, HALF)
        turn = tl.load(frequencies + at, mask=at < DIM // 2, other=0.0).to(tl.float64)
    else:
        turn = _frequencies(root, root_rest, log_theta, DIM, HALF).to(tl.float64)
    for piece in range(tl.program_id(0), rows * splits, tl.num_programs(0)):
        row = tl.full((), 1, tl.int64) * (piece // splits)
        if Q_UNITS > 0:
            # By way of float64, which is exact, so that nothing is fused with the product: it is rounded as torch's.
            angles = (tl.load(positions + row).to(tl.float32).to(tl.float64) * turn).to(tl.float32)
            cos, sin = _cos_sin(angles)
            dtype: tl.constexpr = out.dtype.element_ty
            cos, sin = (cos * scale).to(dtype)[None, :], (sin * scale).to(dtype)[None, :]
        if KV_UNITS > 0:
            slot = tl.load(slots + row).to(tl.int64)
            tl.device_assert((slot >= 0) & (slot < tokens), "a slot lies outside the cache")
            keys = kv + (slot // PAGE_SIZE * 2 * PAGE_SIZE + slot % PAGE_SIZE) * (KV_HEADS * DIM)
            values = keys + PAGE_SIZE * KV_HEADS * DIM
        for unit in range(piece % splits, Q_UNITS + 2 * KV_UNITS, splits):
            if Q_UNITS > 0 and unit < Q_UNITS:
                rotated = out + row * (HEADS * DIM)
                _move(q + row * q_stride, rotated, unit, cos, sin, HEADS, DIM, GROUP, HALF, True)
            elif KV_UNITS > 0:
                pair = unit - Q_UNITS
                if pair < KV_UNITS:
                    _move(k + row * k_stride, keys, pair, cos, sin, KV_HEADS, DIM, GROUP, HALF, Q_UNITS > 0)
                else:
                    _move(v + row * v_stride, values, pair - KV_UNITS, cos, sin, KV_HEADS, DIM, GROUP, HALF, False)


def _plan(
    kv: torch.Tensor | None,
    q: torch.Tensor | None,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    positions: torch.Tensor | None,
    slots: torch.Tensor | None,
    frequencies: torch.Tensor | None,
    theta: float,
    scale: float,
    out: torch.Tensor | None,
    sms: int,
) -> Sequence[Launch]:
    x = k if q is None else q
    assert x is not None
    rows, _, dim = x.shape
    heads, kv_heads = (0 if x is None else x.shape[1] for x in (q, k))
    half = triton.next_power_of_2((dim + 1) // 2)
    group = max(1, UNIT_BYTES // (2 * half * x.itemsize))
    q_units, kv_units = triton.cdiv(heads, group), triton.cdiv(kv_heads, group)
    units = q_units + 2 * kv_units
    if not rows or not units:
        return []
    splits = min(units, triton.cdiv(sms * PER_SM, rows))  # few rows are shared out more finely
    root = _float32(theta) ** (2 / dim)
    arguments = {
        "kv": kv, "q": q, "k": k, "v": v, "positions": positions, "slots": slots,
        "frequencies": frequencies, "out": out, "rows": rows,
        "tokens": 0 if kv is None else kv.shape[0] * kv.shape[2],
        **{f"{name}_stride": 0 if x is None else row_stride(x, 2) for name, x in (("q", q), ("k", k), ("v", v))},
        "splits": splits,
        "root": _float32(root), "root_rest": root - _float32(root), "log_theta": math.log(_float32(theta)),
        "scale": _float32(scale),
        "HEADS": heads, "KV_HEADS": kv_heads, "DIM": dim, "PAGE_SIZE": 1 if kv is None else kv.shape[2],
        "GIVEN": frequencies is not None,
        "GROUP": group, "HALF": half, "Q_UNITS": q_units, "KV_UNITS": kv_units,
    }  # fmt: skip
    return [Launch(_rope_kv_append, min(rows * splits, sms * PER_SM), arguments, warps=1, registers=REGISTERS)]


def _float32(number: float) -> float:
    return torch.tensor(number, dtype=torch.float32).item()


def _refuses(*tensors: torch.Tensor, frequencies: torch.Tensor | None = None) -> str:
    """Of rows (rows, heads, dim), and of indices (rows,)."""
    if frequencies is not None and (frequencies.dtype is not torch.float32 or not frequencies.is_contiguous()):
        return "takes contiguous frequencies in float32"
    for x in tensors:
        if x.dim() == 3 and x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return f"takes float16, bfloat16 and float32, not {x.dtype}"
        if row_stride(x, x.dim() - 1) is None or (x.dim() == 1 and not x.is_contiguous()):
            return "takes contiguous positions and slots, and rows that are contiguous, each by itself"
    return ""


def _appends(kv: torch.Tensor, *rows: torch.Tensor, frequencies: torch.Tensor | None = None) -> str:
    return _refuses(*rows, frequencies=frequencies) if kv.is_contiguous() else "takes a contiguous cache"


@kernel(
    result=lambda x, *_, **__: x.new_empty(x.shape),
    refuses=lambda x, positions, frequencies=None, **_: _refuses(x, positions, frequencies=frequencies),
)
def rope(
    x: torch.Tensor,
    positions: torch.Tensor,
    frequencies: torch.Tensor | None = None,
    *,
    theta: float = 10000.0,
    scale: float = 1.0,
    out: torch.Tensor,
    scratch: torch.Tensor | None,
    sms: int,
) -> Sequence[Launch]:
    """``x`` (rows, heads, dim) with every head rotated by its row's position."""
    return _plan(None, x, None, None, positions, None, frequencies, theta, scale, out, sms)


@kernel(refuses=lambda kv, k, v, slots, layout=None: _appends(kv, k, v, slots))
def kv_append(
    kv: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slots: torch.Tensor,
    *,
    layout: object = None,
    out: None,
    scratch: torch.Tensor | None,
    sms: int,
) -> Sequence[Launch]:
    """Writes keys and values (rows, kv_heads, dim) to their slots of the cache."""
    return _plan(kv, None, k, v, None, slots, None, 1.0, 1.0, None, sms)


@kernel(
    result=lambda kv, q, *_, **__: q.new_empty(q.shape),
    refuses=lambda kv, q, k, v, positions, slots, frequencies=None, **_: _appends(
        kv, q, k, v, positions, slots, frequencies=frequencies
    ),
)
def rope_kv_append(
    kv: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    frequencies: torch.Tensor | None = None,
    *,
    theta: float = 10000.0,
    scale: float = 1.0,
    layout: object = None,
    out: torch.Tensor,
    scratch: torch.Tensor | None,
    sms: int,
) -> Sequence[Launch]:
    """Rotated q; rotated keys, and values, are written to their slots of the cache."""
    return _plan(kv, q, k, v, positions, slots, frequencies, theta, scale, out, sms)


def typical() -> Iterator[Typical]:
    """Rows of LLaMA-3-8B, q, k and v side by side in one product, in a prefill step and in a small decode step."""
    for rows in (2048, 64):
        kv, index, sizes = meta(4096, 2, 16, 8, 128), meta(rows, dtype=torch.int64), f"{rows} x (32 + 8 + 8) x 128"
        q, k, v = meta(rows, 48, 128).split([32, 8, 8], dim=1)
        yield Typical("rope_kv_append.triton", sizes, rope_kv_append, (kv, q, k, v, index, index))
        yield Typical("rope.triton", sizes, rope, (q, index))
        yield Typical("kv_append.triton", sizes, kv_append, (kv, k, v, index))
        given, sizes = meta(64, dtype=torch.float32), f"{sizes}, frequencies"
        yield Typical("rope_kv_append.triton", sizes, rope_kv_append, (kv, q, k, v, index, index, given))
        yield Typical("rope.triton", sizes, rope, (q, index, given))
