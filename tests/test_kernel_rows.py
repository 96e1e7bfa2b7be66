from __future__ import annotations

from typing import Any

import pytest
import torch
from triton import knobs
from triton.runtime.errors import InterpreterError

import nanort as nr
from frames import Frame
from nanort import ops
from nanort.kernels.embedding import embedding, recall
from nanort.kernels.embedding import typical as typical_embedding
from nanort.kernels.kernel import Kernel, Typical, meta
from nanort.kernels.pages import page_gather, page_scatter
from nanort.kernels.pages import typical as typical_pages
from nanort.kernels.rows import gather, scatter, store
from nanort.kernels.rows import typical as typical_rows
from nanort.ops.examples import shuffled

SHAPES = [(9,), (9, 1), (9, 5), (9, 48), (40, 300), (9, 3, 7), (5, 2, 4, 3, 6), (6, 2, 16, 3, 64), (4, 20_001)]
DTYPES = [
    torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex128
]  # fmt: skip
TAKES: list[tuple[Kernel, nr.Op]] = [(gather, ops.gather), (page_gather, ops.page_gather)]
PUTS: list[tuple[Kernel, nr.Op]] = [(scatter, ops.scatter), (page_scatter, ops.page_scatter)]
NAMES = ["rows", "pages"]


def numbers(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Every bit pattern may occur, NaN among them."""
    generator = torch.Generator().manual_seed(len(shape))
    high = 2 if dtype is torch.bool else 256
    size = torch.Size(shape).numel() * dtype.itemsize
    return torch.randint(high, (size,), dtype=torch.uint8, generator=generator).view(dtype).view(shape)


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().flatten().view(torch.uint8)


@pytest.mark.parametrize(("kernel", "op"), TAKES, ids=NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_are_taken_bit_by_bit(kernel: Kernel, op: nr.Op, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, index = numbers(shape, dtype), torch.tensor([3, 0, 3, 2, 1], dtype=torch.int32)
    assert torch.equal(bits(kernel(x, index, sms=3)), bits(op(x, index)))


@pytest.mark.parametrize(("kernel", "op"), PUTS, ids=NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_are_put_bit_by_bit(kernel: Kernel, op: nr.Op, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    index, rows = torch.tensor([3, 0, 2]), numbers((3, *shape[1:]), dtype)
    found, wanted = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    kernel(found, index, rows, sms=3)
    op(wanted, index, rows)
    assert torch.equal(bits(found), bits(wanted))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_rows_are_stored_bit_by_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, rows = torch.zeros((shape[0] + 2, *shape[1:]), dtype=dtype), numbers(shape, dtype)
    store(x[1:-1], rows, sms=3)
    assert torch.equal(bits(x[1:-1]), bits(rows))
    assert not bits(x[0]).any()
    assert not bits(x[-1]).any()
    store(x[:0], rows[:0])


@pytest.mark.parametrize("sms", [1, 3, 7])
@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
@pytest.mark.parametrize("width", [1, 30, 2048, 9000])
def test_nothing_beside_the_rows_is_touched(width: int, integer: torch.dtype, sms: int) -> None:
    x, index = torch.full((20, width), torch.nan), shuffled(1, 20)[:9].to(integer)
    x[index.long()] = torch.arange(9.0)[:, None].expand(9, width)
    out, back = Frame((9, width), torch.float32), Frame((20, width), torch.float32)
    gather(x, index, out=out.tensor, sms=sms)
    assert torch.equal(out.tensor, x[index.long()])
    scatter(back.tensor, index, out.tensor, sms=sms)
    torch.testing.assert_close(back.tensor, x, rtol=0, atol=0, equal_nan=True)
    out.check()
    back.check()


@pytest.mark.parametrize("columns", [slice(0, 8), slice(1, 8), slice(1, 9), slice(3, 10)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64])
def test_columns_at_any_offset_are_taken_as_they_are(columns: slice, dtype: torch.dtype) -> None:
    x, index = numbers((7, 20), dtype), torch.tensor([5, 2])
    part = x[1:, columns]
    assert torch.equal(bits(gather(part, index)), bits(part[index]))
    fresh = torch.zeros(7, 20, dtype=dtype)
    scatter(fresh[1:, columns], index, part[index])
    wanted = torch.zeros(7, 20, dtype=dtype)
    wanted[1:, columns][index] = part[index]
    assert torch.equal(bits(fresh), bits(wanted))


@pytest.mark.parametrize("sms", [1, 3, 7])
@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_embedding(dtype: torch.dtype, integer: torch.dtype, sms: int) -> None:
    table, tokens = numbers((50, 130), dtype), torch.tensor([49, 0, 7, 7, 7, 31], dtype=integer)
    out = Frame((6, 130), dtype)
    assert embedding(tokens, table, out=out.tensor, sms=sms) is out.tensor
    assert torch.equal(bits(out.tensor), bits(ops.embedding(tokens, table)))
    out.check()


@pytest.mark.parametrize("sms", [1, 3, 7])
@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
@pytest.mark.parametrize("rows", [1, 9, 5000])
def test_recall(rows: int, integer: torch.dtype, sms: int) -> None:
    drawn = shuffled(3, 4 * rows)[: rows + 3].to(integer)
    tokens = torch.where(shuffled(1, rows) % 3 > 0, shuffled(2, rows), -1 - shuffled(4, rows)).to(integer)
    buffer = torch.full((rows + 2,), -7, dtype=integer)
    recall(tokens, drawn[1:-1], out=buffer[1:-1], sms=sms)
    assert torch.equal(buffer[1:-1], ops.recall(tokens, drawn[1:-1]))
    assert buffer[[0, -1]].tolist() == [-7, -7]


def test_rows_that_pad_a_step_are_put_to_one_place() -> None:
    drawn = torch.arange(5)
    scatter(drawn, torch.tensor([4, 2, 4, 4]), torch.tensor([10, 11, 12, 13]), sms=3)
    assert drawn[:4].tolist() == [0, 1, 11, 3]
    assert drawn[4] in (10, 12, 13)


def test_nothing_is_nothing() -> None:
    none, x = torch.zeros(0, dtype=torch.int64), torch.ones(5, 4)
    assert gather(x, none).shape == embedding(none, x).shape == (0, 4)
    assert recall(none, torch.arange(3)).shape == (0,)
    assert page_gather(x[:, None], none).shape == (0, 1, 4)
    scatter(x, none, x[:0])
    assert x.eq(1).all()
    assert gather(torch.ones(5, 0), torch.tensor([3])).shape == (1, 0)


OUTSIDE: list[tuple[Kernel, tuple[Any, ...]]] = [
    (embedding, (torch.tensor([1, 9]), torch.ones(9, 4))),
    (gather, (torch.ones(9, 4), torch.tensor([1, -1]))),
    (scatter, (torch.ones(9, 4), torch.tensor([9, 1]), torch.ones(2, 4))),
    (page_gather, (torch.ones(9, 2, 4), torch.tensor([1, 9]))),
    (page_scatter, (torch.ones(9, 2, 4), torch.tensor([-1, 1]), torch.ones(2, 2, 4))),
]


@pytest.mark.parametrize(("kernel", "args"), OUTSIDE)
def test_indices_are_checked_for_debugging(
    kernel: Kernel, args: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knobs.runtime, "debug", True)
    with pytest.raises(InterpreterError, match="an index names no row"):
        kernel(*args)
    kernel(*(arg.clamp(0, 8) for arg in args))


def test_seats_are_checked_for_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knobs.runtime, "debug", True)
    drawn = torch.arange(9)
    with pytest.raises(InterpreterError, match="a token names no seat"):
        recall(torch.tensor([3, -5]), drawn[:4])
    assert recall(torch.tensor([30, -4]), drawn[:4]).tolist() == [30, 3]


def test_without_debugging_nothing_is_checked() -> None:
    assert recall(torch.tensor([-5]), torch.arange(9)[:4]).tolist() == [4]
    x = torch.arange(12.0).view(3, 4)
    assert torch.equal(gather(x[1:], torch.tensor([-1])), x[:1]), "indices are the caller's promise"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.ones(4, 4).T, torch.tensor([0])), "takes rows that are contiguous"),
        ((torch.ones(8, 4), torch.arange(6)[::2]), "takes a contiguous index"),
    ],
)
def test_what_they_do_not_take_is_refused(args: tuple[torch.Tensor, ...], message: str) -> None:
    for kernel in (gather, page_gather):
        with pytest.raises(ValueError, match=message):
            kernel(*args)
    for kernel in (scatter, page_scatter):
        with pytest.raises(ValueError, match=message):
            kernel(*args, torch.ones(len(args[1]), 4))
    with pytest.raises(ValueError, match="takes rows that are contiguous"):
        scatter(torch.ones(8, 4), torch.tensor([0, 1, 2, 3]), torch.ones(4, 4).T)
    with pytest.raises(ValueError, match=message):
        embedding(args[1], args[0])
    with pytest.raises(ValueError, match="takes rows that are contiguous"):
        store(torch.ones(4, 8), torch.ones(8, 4).T)
    with pytest.raises(ValueError, match="takes contiguous tokens"):
        recall(torch.arange(6)[::2], torch.arange(6))


@pytest.mark.parametrize("shape", [(1024, 2, 16, 8, 128), (2048, 4096), (777, 5), (256,), (3, 20_000)], ids=str)
def test_the_demand_counts_the_tiles_that_are_shared_out(shape: tuple[int, ...]) -> None:
    x, rows, index = meta(9, *shape[1:]), meta(*shape), meta(shape[0], dtype=torch.int64)
    for kernel, op in TAKES:
        launches = kernel.launches(x, index, out=rows, scratch=None, sms=10**6)
        assert op.work((x, index), (rows,), {}).tiles == launches[0].programs
    for kernel, op in PUTS:
        launches = kernel.launches(x, index, rows, out=None, scratch=None, sms=10**6)
        assert op.work((x, index, rows), (), {}).tiles == launches[0].programs


@pytest.mark.parametrize("call", [*typical_rows(), *typical_embedding(), *typical_pages()], ids=lambda call: call.name)
def test_typical_calls_occupy_no_more_than_the_sms_they_are_given(call: Typical) -> None:
    assert all(launch.programs <= 8 * sms for sms in (1, 5) for launch in call.launches(sms))
