from __future__ import annotations

from typing import Any

import pytest
import torch
from triton import knobs
from triton.runtime.errors import InterpreterError

from frames import Frame
from nanort import ops
from nanort.kernels.kernel import meta
from nanort.kernels.rope_kv_append import kv_append, rope, rope_kv_append, typical
from nanort.ops.examples import normal, shuffled
from tolerances import assert_near

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
FAR = [0, 131_071, 1, 99_999, 4097, 17, 30_000]


def rows(count: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """q, k and v, side by side in one product with NaN around its rows."""
    product = Frame((count, heads + 2 * kv_heads, dim), dtype, normal(1, count, heads + 2 * kv_heads, dim)).tensor
    return product.split([heads, kv_heads, kv_heads], dim=1)


def cache(pages: int, page_size: int, kv_heads: int, dim: int, dtype: torch.dtype) -> Frame:
    return Frame((pages, 2, page_size, kv_heads, dim), dtype)


SIZES = pytest.mark.parametrize(
    ("count", "heads", "kv_heads", "dim", "page_size"),
    [(1, 1, 1, 2, 16), (7, 4, 2, 6, 4), (5, 9, 3, 64, 64), (3, 32, 8, 128, 16), (17, 3, 1, 20, 16), (2, 5, 5, 256, 24)],
)


@SIZES
@DTYPES
@pytest.mark.parametrize(("sms", "index"), [(1, torch.int32), (3, torch.int64), (7, torch.int64)])
def test_it_is_the_reference(
    count: int, heads: int, kv_heads: int, dim: int, page_size: int, dtype: torch.dtype, sms: int, index: torch.dtype
) -> None:
    q, k, v = rows(count, heads, kv_heads, dim, dtype)
    positions = torch.tensor((FAR * 6)[:count], dtype=index)
    kv, out = cache(4, page_size, kv_heads, dim, dtype), Frame((count, heads, dim), dtype)
    slots = shuffled(2, 4 * page_size)[:count].to(index)
    assert rope_kv_append(kv.tensor, q, k, v, positions, slots, theta=5e5, out=out.tensor, sms=sms) is out.tensor
    # Angles are float32 in the reference too; all else is exact.
    exact = {name: ops.rope(x.float(), positions, theta=5e5) for name, x in (("q", q), ("k", k))}
    assert_near(out.tensor, exact["q"])
    found = kv.tensor.transpose(1, 2).flatten(0, 1)  # (slots, 2, kv_heads, dim)
    assert_near(found[slots.long(), 0], exact["k"])
    assert torch.equal(found[slots.long(), 1], v)
    others = torch.ones(len(found), dtype=torch.bool).index_fill(0, slots.long(), False)
    assert found[others].isnan().all()
    kv.check()
    out.check()


@SIZES
@DTYPES
def test_the_parts_are_their_references(
    count: int, heads: int, kv_heads: int, dim: int, page_size: int, dtype: torch.dtype
) -> None:
    q, k, v = rows(count, heads, kv_heads, dim, dtype)
    positions, slots = torch.tensor((FAR * 6)[:count]), shuffled(2, 4 * page_size)[:count]
    out = Frame((count, heads, dim), dtype)
    rope(q, positions, out=out.tensor, sms=3)
    assert_near(out.tensor, ops.rope(q.float(), positions))
    out.check()
    kv, wanted = cache(4, page_size, kv_heads, dim, dtype), cache(4, page_size, kv_heads, dim, dtype)
    kv_append(kv.tensor, k, v, slots, sms=3)
    ops.kv_append(wanted.tensor, k, v, slots)
    torch.testing.assert_close(kv.tensor, wanted.tensor, rtol=0, atol=0, equal_nan=True)
    kv.check()


@SIZES
@DTYPES
def test_frequencies_that_are_given_turn_as_in_the_reference(
    count: int, heads: int, kv_heads: int, dim: int, page_size: int, dtype: torch.dtype
) -> None:
    q, k, v = rows(count, heads, kv_heads, dim, dtype)
    positions, slots = torch.tensor((FAR * 6)[:count]), shuffled(2, 4 * page_size)[:count]
    around = torch.full((dim // 2 + 2,), torch.nan)
    given = around[1:-1].copy_(1 / torch.arange(1, dim // 2 + 1) ** 2)
    kv, out = cache(4, page_size, kv_heads, dim, dtype), Frame((count, heads, dim), dtype)
    rope_kv_append(kv.tensor, q, k, v, positions, slots, given, theta=3.0, scale=1.25, out=out.tensor, sms=3)
    assert_near(out.tensor, ops.rope(q.float(), positions, given, scale=1.25))
    found = kv.tensor.transpose(1, 2).flatten(0, 1)
    assert_near(found[slots, 0], ops.rope(k.float(), positions, given, scale=1.25))
    assert torch.equal(found[slots, 1], v)
    assert torch.equal(rope(q, positions, given, scale=1.25, sms=3), out.tensor)
    kv.check()
    out.check()


@DTYPES
def test_what_is_rotated_is_stretched_before_it_is_rounded(dtype: torch.dtype) -> None:
    q, positions = normal(1, 30, 4, 64).to(dtype), torch.arange(1000, 1030)
    given = 1 / torch.arange(1, 33) ** 2
    same = rope(q, positions, given, scale=1.1386) == ops.rope(q, positions, given, scale=1.1386)
    assert same.double().mean() > (0.999 if dtype is torch.float16 else 0.3)
    assert_near(rope(q, positions, scale=1.1386), ops.rope(q.float(), positions, scale=1.1386))


def test_appended_numbers_are_copied_whatever_they_are() -> None:
    k = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0, 1e-45]).repeat(2, 3, 1)
    found, wanted = torch.zeros(2, 2, 4, 3, 5), torch.zeros(2, 2, 4, 3, 5)
    kv_append(found, k, k, torch.tensor([6, 1]))
    ops.kv_append(wanted, k, k, torch.tensor([6, 1]))
    assert torch.equal(found.view(torch.int32), wanted.view(torch.int32))


def test_it_rounds_where_the_reference_does() -> None:
    """Greedy tokens flip where the two best logits are close: products are rounded before their sum."""
    q, positions = normal(1, 30, 4, 128).half(), torch.arange(1000, 1030)
    same = (rope(q, positions) == ops.rope(q, positions)).double().mean()
    assert same > 0.999, "rounded once, a fifth of the elements differ"


def test_rows_that_pad_a_bucket_share_a_slot() -> None:
    q, k, v = rows(4, 2, 2, 8, torch.float32)
    kv = torch.full((2, 2, 4, 2, 8), torch.nan)
    rope_kv_append(kv, q, k, v, torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, 5, 0]))
    assert torch.equal(kv[1, 0, 1], k[2])
    assert torch.equal(kv[1, 1, 1], v[2])
    assert kv[0, :, 0].isfinite().all()
    assert kv.isnan().sum() == kv.numel() - 2 * kv[0, :, 0].numel()


def test_nothing_is_nothing() -> None:
    q, k, v = rows(0, 4, 2, 8, torch.float32)
    none, kv = torch.zeros(0, dtype=torch.int64), torch.full((2, 2, 4, 2, 8), torch.nan)
    assert rope_kv_append(kv, q, k, v, none, none).shape == rope(q, none).shape == (0, 4, 8)
    kv_append(kv, k, v, none)
    assert kv.isnan().all()


def given(**changed: torch.Tensor) -> dict[str, Any]:
    q, k, v = rows(3, 4, 2, 8, torch.float32)
    index = torch.arange(3)
    kv = torch.zeros(2, 2, 4, 2, 8)
    return {"kv": kv, "q": q, "k": k, "v": v, "positions": index, "slots": index, **changed}


@pytest.mark.parametrize("slot", [-1, 8])
def test_slots_are_checked_for_debugging(slot: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = given(slots=torch.tensor([0, slot, 1]))
    monkeypatch.setattr(knobs.runtime, "debug", True)
    with pytest.raises(InterpreterError, match="a slot lies outside the cache"):
        rope_kv_append(*found.values())
    with pytest.raises(InterpreterError, match="a slot lies outside the cache"):
        kv_append(found["kv"], found["k"], found["v"], found["slots"])
    rope_kv_append(*given().values())


def test_without_debugging_nothing_is_checked() -> None:
    kv = torch.zeros(3, 2, 4, 2, 8)
    rope_kv_append(*given(kv=kv[1:], slots=torch.tensor([0, -1, 1])).values())
    assert kv[0].any(), "slots are the caller's promise"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q": torch.zeros(3, 4, 8, dtype=torch.float64)}, r"takes float16, bfloat16 and float32, not torch\.float64"),
        ({"q": torch.zeros(3, 8, 4).transpose(1, 2)}, "rows that are contiguous"),
        ({"v": torch.zeros(3, 2, 16)[:, :, ::2]}, "rows that are contiguous"),
        ({"slots": torch.arange(6)[::2]}, "contiguous positions and slots"),
        ({"kv": torch.zeros(2, 2, 8, 2, 8)[:, :, :4]}, "takes a contiguous cache"),
        ({"frequencies": torch.ones(4, dtype=torch.float16)}, "takes contiguous frequencies in float32"),
        ({"frequencies": torch.ones(8)[::2]}, "takes contiguous frequencies in float32"),
    ],
)
def test_what_it_does_not_take_is_refused(changed: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rope_kv_append(*given(**changed).values())


@pytest.mark.parametrize(("count", "heads", "kv_heads", "dim"), [(2048, 32, 8, 128), (3, 9, 3, 64), (5, 4, 2, 6)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_demand_counts_the_tiles_that_are_shared_out(
    count: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype
) -> None:
    q, k = meta(count, heads, dim, dtype=dtype), meta(count, kv_heads, dim, dtype=dtype)
    kv, index = meta(9, 2, 16, kv_heads, dim, dtype=dtype), meta(count, dtype=torch.int64)
    for kernel, op, args, out in (
        (rope_kv_append, ops.rope_kv_append, (kv, q, k, k, index, index), (q,)),
        (rope, ops.rope, (q, index), (q,)),
        (kv_append, ops.kv_append, (kv, k, k, index), ()),
    ):
        launches = kernel.launches(*args, out=out[0] if out else None, scratch=None, sms=10**7)
        assert op.work(args, out, {}).tiles == launches[0].programs


def test_typical_calls_occupy_no_more_than_the_sms_they_are_given() -> None:
    for call in typical():
        assert [launch.programs for launch in call.launches(2)] == [2 * launch.programs for launch in call.launches(1)]
