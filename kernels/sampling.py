"""argmax and sample: the next token of every row of logits, without sorting them.

Tokens are ranked by logit, equals by index. So what top_k and top_p keep, and what a draw finds, is told by the logit
at which it ends and by how many of those that equal it belong to it. Such a logit is searched for among the integers
that order floats: each pass over the row sees how many logits reach three candidates, and with how much probability,
and leaves a quarter of the window. Once few enough tokens are in question they are copied to a short list, in their
order, and the row is not read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl

from nanort.kernels.kernel import Typical, kernel, meta
from nanort.kernels.launch import Launch

ARGMAX_BLOCK = 2048
SAMPLE_BLOCK = 1024
SHORT = 4096
"""Tokens of a short list: what a model holds likely fits, and a pass over it costs next to nothing."""
ARGMAX_PER_SM = 4
"""Programs of argmax that an SM holds at once: two blocks of 4 KiB of half-precision logits are under way to each."""
ARGMAX_WARPS = 8
SAMPLE_WARPS = 16
PIECES = 4
"""Parts of the work that argmax makes for each program, so that few programs idle at its end."""

_SHIFTS = {torch.bfloat16: 16, torch.float16: 13, torch.float32: 0}
"""Low bits of a float32 that are never used by a number of that dtype."""

_LOWEST = tl.constexpr(float("-inf"))
_LOG2E = tl.constexpr(1.4426950408889634)
_NEAR = tl.constexpr(8.0)
_FAR = tl.constexpr(16.0)  # of a model's tokens, few are a factor e^8 less likely than the first and still drawn
_COLDEST = tl.constexpr(1e-30)
_BELOW_ONE = tl.constexpr(1 - 2**-24)
_LAST = tl.constexpr(0x7FFFFFFF)
_STAGES = tl.constexpr(3)


@triton.jit
def order_of(x, SHIFT: tl.constexpr):
    """Integers in the order of these floats; both zeros give 0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> SHIFT


@triton.jit
def value_of(key, SHIFT: tl.constexpr):
    """The float of an integer of ``order_of``."""
    filled = tl.where(key < 0, (1 << SHIFT) - 1, 0)
    bits = ((key << SHIFT) | filled).to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _best(row, start, end, BLOCK: tl.constexpr):
    """The first of the largest of these logits, as a number to compare with others; NaN is largest, as in torch."""
    lane = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), _LOWEST, tl.float32)
    at = start + lane
    for base in tl.range(start, end, BLOCK, num_stages=_STAGES):
        here = base + lane
        x = tl.load(row + here, mask=here < end, other=_LOWEST).to(tl.float32)
        better = (x > best) | ((x != x) & (best == best))
        best = tl.where(better, x, best)
        at = tl.where(better, here, at)
    key = tl.where(best == best, order_of(best, 0), _LAST)
    return tl.max((key.to(tl.int64) << 32) | (at ^ _LAST).to(tl.int64), axis=0)


@triton.jit
def _token(best):
    """Which logit a number of ``_best`` stands for."""
    return (best & _LAST) ^ _LAST


@triton.jit
def _argmax(logits, stride, out, rows, vocabulary, splits, size, WHOLE: tl.constexpr, BLOCK: tl.constexpr):
    for piece in range(tl.program_id(0), rows * splits, tl.num_programs(0)):
        row = logits + tl.full((), stride, tl.int64) * (piece // splits)
        start = (piece % splits) * size
        best = _best(row, start, min(start + size, vocabulary), BLOCK)
        tl.store(out + piece, _token(best) if WHOLE else best)


@triton.jit
def _argmax_of_parts(best, out, rows, splits, SPLITS: tl.constexpr):
    part = tl.arange(0, SPLITS)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        parts = tl.load(best + row * splits + part, mask=part < splits, other=-(2**63))
        tl.store(out + row, _token(tl.max(parts, axis=0)))


@triton.jit
def _reached(source, size, top, scale, a, b, c, BLOCK: tl.constexpr):
    """How many logits reach each of three thresholds, and how likely those are together, the top being 1."""
    lane = tl.arange(0, BLOCK)
    count_a = tl.zeros((BLOCK,), tl.int32)
    count_b = tl.zeros((BLOCK,), tl.int32)
    count_c = tl.zeros((BLOCK,), tl.int32)
    mass_a = tl.zeros((BLOCK,), tl.float32)
    mass_b = tl.zeros((BLOCK,), tl.float32)
    mass_c = tl.zeros((BLOCK,), tl.float32)
    for base in range(0, size, BLOCK):
        at = base + lane
        x = tl.load(source + at, mask=at < size, other=_LOWEST).to(tl.float32)
        mass = tl.exp2((x - top) * scale)
        count_a += (x >= a).to(tl.int32)
        count_b += (x >= b).to(tl.int32)
        count_c += (x >= c).to(tl.int32)
        mass_a += tl.where(x >= a, mass, 0.0)
        mass_b += tl.where(x >= b, mass, 0.0)
        mass_c += tl.where(x >= c, mass, 0.0)
    counts = tl.sum(count_a, axis=0), tl.sum(count_b, axis=0), tl.sum(count_c, axis=0)
    return counts[0], counts[1], counts[2], tl.sum(mass_a, axis=0), tl.sum(mass_b, axis=0), tl.sum(mass_c, axis=0)


@triton.jit
def _narrowed(low, at_low, mass_low, high, at_high, mass_high, key, count, mass, stage, target):
    """The window of keys after one of them was measured: its low end reaches the target, its high end does not."""
    reaches = tl.where(stage == 0, count.to(tl.float32) >= target, tl.where(stage == 1, mass >= target, mass > target))
    inside = (key > low) & (key < high)
    up = inside & reaches
    down = inside & (reaches == 0)
    low = tl.where(up, key, low)
    at_low = tl.where(up, count, at_low)
    mass_low = tl.where(up, mass, mass_low)
    high = tl.where(down, key, high)
    at_high = tl.where(down, count, at_high)
    mass_high = tl.where(down, mass, mass_high)
    return low, at_low, mass_low, high, at_high, mass_high


@triton.jit
def _shorten(source, size, least, values, indices, BLOCK: tl.constexpr):
    """Copies the logits of at least ``least`` and their indices, in their order."""
    lane = tl.arange(0, BLOCK)
    written = 0
    tl.debug_barrier()  # whoever read the list of another row is done
    for base in range(0, size, BLOCK):
        at = base + lane
        x = tl.load(source + at, mask=at < size, other=_LOWEST)
        kept = ((x.to(tl.float32) >= least) & (at < size)).to(tl.int32)
        to = written + tl.cumsum(kept, axis=0) - 1
        tl.store(values + to, x, mask=kept != 0)
        tl.store(indices + to, at, mask=kept != 0)
        written += tl.sum(kept, axis=0)
    tl.debug_barrier()  # what some threads wrote, others read


@triton.jit
def _nth(source, size, least, end, n, BLOCK: tl.constexpr):
    """Where the ``n``-th logit, from 1, of those from ``least`` to before ``end`` is; -1 if there are fewer."""
    lane = tl.arange(0, BLOCK)
    found = -1
    seen = 0
    base = 0
    while (seen < n) & (base < size):
        at = base + lane
        x = tl.load(source + at, mask=at < size, other=_LOWEST).to(tl.float32)
        inside = (x >= least) & (x < end) & (at < size)
        rank = seen + tl.cumsum(inside.to(tl.int32), axis=0)
        found = tl.max(tl.where(inside & (rank == n), at, -1), axis=0)
        seen += tl.sum(inside.to(tl.int32), axis=0)
        base += BLOCK
    return found


@triton.jit
def _drawn(
    row, first, uniform, heat, top_k, top_p, values, indices, vocabulary,
    SHIFT: tl.constexpr, BLOCK: tl.constexpr, SHORT: tl.constexpr,
):  # fmt: skip
    """A token of this row, whose most likely one is ``first``."""
    top = tl.load(row + first).to(tl.float32)
    scale = (1.0 / tl.maximum(heat, _COLDEST)) * _LOG2E
    near = order_of(top - heat * _NEAR, SHIFT).to(tl.int64)
    far = order_of(top - heat * _FAR, SHIFT).to(tl.int64)
    near_count, far_count, _, near_mass, far_mass, mass = _reached(
        row, vocabulary, top, scale, value_of(near, SHIFT), value_of(far, SHIFT), _LOWEST, BLOCK
    )
    mass_low = mass
    end = order_of(top, SHIFT).to(tl.int64) + 1
    low = order_of(tl.full((), _LOWEST, tl.float32), SHIFT).to(tl.int64)  # what is kept ends here,
    ties = vocabulary  # with so many equals;
    at_low = vocabulary  # so many tokens are before their end
    source = row
    size = vocabulary
    for stage in range(3):  # keeps top_k, keeps top_p of those, keeps what leads up to the draw
        wanted = tl.where(stage == 0, (top_k > 0) & (top_k < vocabulary), (stage == 2) | (top_p < 1.0))
        if wanted:
            target = tl.where(stage == 0, top_k.to(tl.float32), tl.where(stage == 1, top_p, uniform) * mass)
            kept = low
            high = order_of(top, SHIFT).to(tl.int64) + 1
            at_high = 0
            mass_high = 0.0
            low, at_low, mass_low, high, at_high, mass_high = _narrowed(
                low, at_low, mass_low, high, at_high, mass_high, near, near_count, near_mass, stage, target
            )
            low, at_low, mass_low, high, at_high, mass_high = _narrowed(
                low, at_low, mass_low, high, at_high, mass_high, far, far_count, far_mass, stage, target
            )
            while (high - low > 1) & (at_low - at_high > 1):
                if (size > SHORT) & (at_low <= SHORT):
                    _shorten(source, size, value_of(low, SHIFT), values, indices, BLOCK)
                    source = values
                    size = at_low
                step = tl.maximum((high - low) // 4, 1)
                a = low + step
                b = a + step
                c = b + step
                count_a, count_b, count_c, mass_a, mass_b, mass_c = _reached(
                    source, size, top, scale, value_of(a, SHIFT), value_of(b, SHIFT), value_of(c, SHIFT), BLOCK
                )
                low, at_low, mass_low, high, at_high, mass_high = _narrowed(
                    low, at_low, mass_low, high, at_high, mass_high, a, count_a, mass_a, stage, target
                )
                low, at_low, mass_low, high, at_high, mass_high = _narrowed(
                    low, at_low, mass_low, high, at_high, mass_high, b, count_b, mass_b, stage, target
                )
                low, at_low, mass_low, high, at_high, mass_high = _narrowed(
                    low, at_low, mass_low, high, at_high, mass_high, c, count_c, mass_c, stage, target
                )
            equals = at_low - at_high
            each = (mass_low - mass_high) / tl.maximum(equals, 1)
            missing = (target - mass_high) / tl.maximum(each, _COLDEST)
            rank = tl.where(stage == 1, tl.ceil(missing), tl.floor(missing) + 1)
            rank = tl.where(stage == 0, target - at_high, rank)
            equals = tl.where(low == kept, ties, equals)
            ties = tl.minimum(tl.maximum(rank, 1.0), equals.to(tl.float32)).to(tl.int32)
            mass = mass_high + ties * each
            end = high
    at = _nth(source, size, value_of(low, SHIFT), value_of(end, SHIFT), ties, BLOCK)
    token = tl.maximum(at, 0).to(tl.int64)
    if size < vocabulary:
        token = tl.load(indices + token).to(tl.int64)
    return tl.where(at < 0, first, token)  # of logits that are no numbers


@triton.jit
def _sample(
    logits, stride, uniform, temperature, top_k, top_p, out, values, indices, rows, vocabulary,
    SHIFT: tl.constexpr, BLOCK: tl.constexpr, SHORT: tl.constexpr,
):  # fmt: skip
    values += tl.program_id(0) * SHORT
    indices += tl.program_id(0) * SHORT
    for at in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = logits + tl.full((), stride, tl.int64) * at
        token = _token(_best(row, 0, vocabulary, BLOCK))
        heat = tl.load(temperature + at).to(tl.float32)
        if heat != 0:
            u = tl.minimum(tl.load(uniform + at).to(tl.float32), _BELOW_ONE)
            k = tl.load(top_k + at)
            p = tl.load(top_p + at).to(tl.float32)
            token = _drawn(row, token, u, heat, k, p, values, indices, vocabulary, SHIFT, BLOCK, SHORT)
        tl.store(out + at, token)


_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _refuses(logits: torch.Tensor, *per_row: torch.Tensor) -> str:
    if logits.dtype not in _DTYPES:
        return f"takes float16, bfloat16 and float32, not {logits.dtype}"
    if not logits.numel():
        return "" if not len(logits) else "takes at least one logit a row"
    if logits.stride(1) != 1 and logits.shape[1] > 1:
        return "takes rows that are contiguous"
    return "" if all(tensor.is_contiguous() for tensor in per_row) else "takes contiguous numbers for the rows"


def _tokens(logits: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return logits.new_empty(len(logits), dtype=torch.int64)


def _parts(logits: torch.Tensor, sms: int) -> tuple[int, int]:
    """In how many parts argmax cuts a row, and logits of each but the last."""
    rows, vocabulary = logits.shape
    wanted = triton.cdiv(PIECES * sms * ARGMAX_PER_SM, max(rows, 1))
    size = ARGMAX_BLOCK * triton.cdiv(triton.cdiv(vocabulary, wanted), ARGMAX_BLOCK)
    return triton.cdiv(vocabulary, size), size


def _argmax_bytes(logits: torch.Tensor, *, sms: int) -> int:
    splits, _ = _parts(logits, sms) if logits.numel() else (1, 0)
    return 8 * len(logits) * splits if splits > 1 else 0


@kernel(result=_tokens, refuses=_refuses, scratch_bytes=_argmax_bytes)
def argmax(logits: torch.Tensor, *, out: torch.Tensor, scratch: torch.Tensor | None, sms: int) -> Sequence[Launch]:
    """The first of the largest logits of each row; of few rows, the largest of parts are found first."""
    rows, vocabulary = logits.shape
    if not rows:
        return []
    splits, size = _parts(logits, sms)
    parts = out if splits == 1 else _view(scratch, 0, rows * splits, torch.int64)
    arguments = {
        "logits": logits, "stride": logits.stride(0), "out": parts, "rows": rows, "vocabulary": vocabulary,
        "splits": splits, "size": size, "WHOLE": splits == 1, "BLOCK": ARGMAX_BLOCK,
    }  # fmt: skip
    programs = min(rows * splits, sms * ARGMAX_PER_SM)
    found = Launch(_argmax, programs, arguments, warps=ARGMAX_WARPS)
    if splits == 1:
        return [found]
    block = triton.next_power_of_2(splits)
    arguments = {"best": parts, "out": out, "rows": rows, "splits": splits, "SPLITS": block}
    return [found, Launch(_argmax_of_parts, min(rows, sms), arguments, warps=1)]


def _sample_bytes(logits: torch.Tensor, *_: torch.Tensor, sms: int) -> int:
    return min(len(logits), sms) * SHORT * (logits.itemsize + 4)


@kernel(result=_tokens, refuses=_refuses, scratch_bytes=_sample_bytes)
def sample(
    logits: torch.Tensor,
    uniform: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    *,
    out: torch.Tensor,
    scratch: torch.Tensor | None,
    sms: int,
) -> Sequence[Launch]:
    """A token drawn from what top_k and top_p leave of each row; a row with NaN gives any of its tokens."""
    rows, vocabulary = logits.shape
    programs = min(rows, sms)
    if not rows:
        return []
    arguments = {
        "logits": logits, "stride": logits.stride(0), "uniform": uniform, "temperature": temperature, "top_k": top_k,
        "top_p": top_p, "out": out, "rows": rows, "vocabulary": vocabulary,
        "indices": _view(scratch, 0, programs * SHORT, torch.int32),
        "values": _view(scratch, 4 * programs * SHORT, programs * SHORT, logits.dtype),
        "SHIFT": _SHIFTS[logits.dtype], "BLOCK": SAMPLE_BLOCK, "SHORT": SHORT,
    }  # fmt: skip
    return [Launch(_sample, programs, arguments, warps=SAMPLE_WARPS)]


def _view(scratch: torch.Tensor | None, start: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    """So many numbers of scratch, from that byte on."""
    assert scratch is not None, "the plan is called with the scratch that it asks for"
    return scratch[start : start + count * dtype.itemsize].view(dtype)


def typical() -> Iterator[Typical]:
    """The last step of LLaMA-3-8B, for many rows and for one."""
    for rows in (256, 1):
        for dtype in (torch.bfloat16, torch.float32):
            logits = meta(rows, 128256, dtype=dtype)
            number, count = meta(rows, dtype=torch.float32), meta(rows, dtype=torch.int64)
            sizes = f"{rows} x 128256 {str(dtype).removeprefix('torch.')}"
            yield Typical("argmax.triton", sizes, argmax, (logits,))
            yield Typical("sample.triton", sizes, sample, (logits, number, number, count, number))
