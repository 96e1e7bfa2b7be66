from __future__ import annotations

import numpy as np
import pytest
import torch

import nanort as nr
from frames import Frame
from nanort import ops
from nanort.kernels.kernel import Kernel, meta
from nanort.kernels.silu_mul import add, gated_add, silu_mul, typical
from nanort.ops.examples import normal
from tolerances import assert_near

BOTH = pytest.mark.parametrize(("kernel", "op"), [(silu_mul, ops.silu_mul), (add, ops.add)], ids=["silu_mul", "add"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16])


@BOTH
@DTYPES
@pytest.mark.parametrize("sms", [1, 3, 7])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (3, 4097), (2, 3, 129), (40, 1024)], ids=str)
def test_it_is_the_reference(kernel: Kernel, op: nr.Op, shape: tuple[int, ...], sms: int, dtype: torch.dtype) -> None:
    x, y = 9 * normal(1, *shape).to(dtype), normal(2, *shape).to(dtype)
    out = Frame(shape, dtype)
    assert kernel(x, y, out=out.tensor, sms=sms) is out.tensor
    assert_near(out.tensor, op(x.double(), y.double()))
    out.check()
    assert torch.equal(kernel(x, y, sms=sms), out.tensor)


@BOTH
@DTYPES
def test_halves_of_one_product_and_rows_at_an_offset_are_taken_as_they_are(
    kernel: Kernel, op: nr.Op, dtype: torch.dtype
) -> None:
    x, y = normal(3, 9, 6000).to(dtype)[2:7].chunk(2, dim=-1)
    assert not x.is_contiguous()
    assert_near(kernel(x, y, sms=3), op(x.double(), y.double()))
    assert_near(kernel(x, y.contiguous()), op(x.double(), y.double()))


@BOTH
@pytest.mark.parametrize("shape", [(0,), (0, 8), (8, 0)], ids=str)
def test_nothing_is_nothing(kernel: Kernel, op: nr.Op, shape: tuple[int, ...]) -> None:
    assert kernel(torch.ones(shape), torch.ones(shape)).shape == shape


@DTYPES
@pytest.mark.parametrize("sms", [1, 3, 7])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (3, 4097), (40, 1024)], ids=str)
def test_gated_add_is_the_reference(shape: tuple[int, int], sms: int, dtype: torch.dtype) -> None:
    x, gate, y = (normal(seed, *size).to(dtype) / 4 for seed, size in ((1, shape), (2, (shape[0], 1)), (3, shape)))
    out = Frame(shape, dtype)
    assert gated_add(x, gate, y, out=out.tensor, sms=sms) is out.tensor
    assert_near(out.tensor, ops.gated_add(x.double(), gate.double(), y.double()))
    out.check()
    columns = torch.cat((y, gate, x), dim=1)  # side by side in one product
    assert torch.equal(
        gated_add(columns[:, -shape[1] :], columns[:, shape[1], None], columns[:, : shape[1]]), out.tensor
    )


def test_gated_add_rounds_where_the_reference_does() -> None:
    """As the other operators do whose results greedy tokens hang on."""
    x, gate, y = normal(1, 30, 500).half(), normal(2, 30, 1).half(), normal(3, 30, 500).half()
    assert (gated_add(x, gate, y) == ops.gated_add(x, gate, y)).double().mean() > 0.999


@pytest.mark.parametrize("shape", [(0, 8), (8, 0)], ids=str)
def test_gated_add_of_nothing_is_nothing(shape: tuple[int, int]) -> None:
    assert gated_add(torch.ones(shape), torch.ones(shape[0], 1), torch.ones(shape)).shape == shape


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gate": torch.ones(4, 1, dtype=torch.float16)}, r"not torch\.float32 and torch\.float16"),
        ({"y": torch.ones(8, 4).T}, "takes rows that are contiguous"),
    ],
)
def test_what_gated_add_does_not_take_is_refused(changed: dict[str, torch.Tensor], message: str) -> None:
    given = {"x": torch.ones(4, 8), "gate": torch.ones(4, 1), "y": torch.ones(4, 8), **changed}
    with pytest.raises(ValueError, match=message):
        gated_add(*given.values())


@pytest.mark.parametrize("shape", [(1, 5), (100, 2048), (2048, 5000)], ids=str)
def test_the_demand_of_gated_add_counts_its_tiles(shape: tuple[int, int]) -> None:
    x, gate = meta(*shape), meta(shape[0], 1)
    launches = gated_add.launches(x, gate, x, out=x, scratch=None, sms=10**6)
    assert ops.gated_add.work((x, gate, x), (x,), {}).tiles == launches[0].programs


def test_silu_of_large_numbers_and_of_what_is_no_number() -> None:
    gate = torch.tensor([torch.nan, torch.inf, -200.0, 200.0, 0.0, -0.0])
    with np.errstate(over="ignore"):
        found = silu_mul(gate, torch.ones(6))
    torch.testing.assert_close(found, ops.silu_mul(gate, torch.ones(6)), equal_nan=True)


@BOTH
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(4, 4, dtype=torch.float64), "takes two of .*, not torch.float64"),
        (torch.ones(4, 4).T, "takes rows that are contiguous"),
        (torch.ones(4, 4, 8)[:, :2], "takes rows that are contiguous"),
    ],
)
def test_what_it_does_not_take_is_refused(kernel: Kernel, op: nr.Op, x: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel(x, x)
    with pytest.raises(ValueError, match=r"not torch\.float16 and torch\.float32"):
        kernel(torch.ones(2, dtype=torch.float16), torch.ones(2))


@BOTH
@pytest.mark.parametrize("rows", [1, 100, 2048])
def test_the_demand_counts_the_tiles_that_are_shared_out(kernel: Kernel, op: nr.Op, rows: int) -> None:
    x = meta(rows, 14336)
    launches = kernel.launches(x, x, out=x, scratch=None, sms=10**6)
    assert op.work((x, x), (x,), {}).tiles == launches[0].programs


def test_typical_calls_occupy_no_more_than_the_sms_they_are_given() -> None:
    for call in typical():
        assert [launch.programs for launch in call.launches(3)] == [3 * launch.programs for launch in call.launches(1)]
