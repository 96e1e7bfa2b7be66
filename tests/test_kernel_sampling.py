from __future__ import annotations

import pytest
import torch

from nanort import ops
from nanort.kernels import sampling
from nanort.kernels.kernel import meta
from nanort.kernels.sampling import argmax, sample

DTYPES = [torch.float32, torch.float16]
BELOW_ONE = 1 - 2**-24
SAFE = 2e-6  # of a row's probability: so near to the edge of a token, sums in float32 may take a draw for another's


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and a short list so small that few logits take every way that many take."""
    for name, size in (("ARGMAX_BLOCK", 64), ("SAMPLE_BLOCK", 256), ("SHORT", 64)):
        monkeypatch.setattr(sampling, name, size)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def uniforms(seed: int, rows: int) -> torch.Tensor:
    return torch.rand(rows, generator=torch.Generator().manual_seed(seed))


def numbers(rows: int, *values: float) -> list[torch.Tensor]:
    """Temperature, top_k and top_p, the same for all rows."""
    temperature, top_k, top_p = values
    return [torch.full((rows,), temperature), torch.full((rows,), int(top_k)), torch.full((rows,), top_p)]


# argmax.


@pytest.mark.parametrize("sms", [1, 3, 7])
@pytest.mark.parametrize("shape", [(1, 1), (1, 1000), (5, 65), (40, 130), (3, 64), (0, 9)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("small")
def test_argmax_takes_the_first_of_the_largest(dtype: torch.dtype, shape: tuple[int, int], sms: int) -> None:
    logits = normal(1, *shape).mul(2).round().to(dtype)  # many equals
    assert torch.equal(argmax(logits, sms=sms), ops.argmax(logits))


def test_argmax_of_what_is_no_number_is_that_of_torch() -> None:
    n, i = torch.nan, torch.inf
    rows = [[1, n, 2, n], [i, 1, i, 2], [-i, -i, -i, -i], [n, n, i, 0], [-0.0, 0.0, 0.0, 1e-9], [-1, -0.0, 0.0, -i]]
    logits = torch.tensor(rows)
    logits[0, 1] = -logits[0, 1]  # a NaN with its sign bit set
    assert torch.equal(argmax(logits), ops.argmax(logits))
    assert torch.equal(argmax(logits.half()), ops.argmax(logits.half()))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("rows", [1, 100])  # in parts and whole
def test_argmax_of_rows_in_a_larger_tensor(rows: int) -> None:
    around = torch.full((rows + 3, 300), torch.nan)
    logits = around[2:-1, 7:207]
    logits.copy_(normal(2, rows, 200))
    tokens = torch.full((rows + 2,), -7)
    needed = argmax.scratch_bytes(logits, sms=1)
    scratch = torch.full((needed,), 0xFF, dtype=torch.uint8)
    assert argmax(logits, out=tokens[1:-1], scratch=scratch, sms=1) is not None
    assert tokens.tolist() == [-7, *logits.argmax(dim=1).tolist(), -7]
    assert (needed > 0) == (rows == 1)


def test_a_declared_part_of_a_row_is_what_argmax_compares_at_once() -> None:
    logits = meta(3, 128256)
    asked = ops.argmax.work((logits,), ops.argmax.outputs((logits,), {}), {})
    launched = argmax.launches(logits, out=None, scratch=meta(1 << 20, dtype=torch.uint8), sms=10_000)
    assert asked.tiles == launched[0].programs == 3 * 63


# sample.


def wanted(
    logits: torch.Tensor, uniform: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference's tokens, and which of them would be others were the draw or top_p a little less or more."""

    def at(u: float, p: float) -> torch.Tensor:
        draw = (uniform.double() + u).clamp(0, BELOW_ONE)
        return ops.sample(logits.double(), draw, temperature.double(), top_k, top_p.double() + p)

    tokens = at(0, 0)
    moved = [at(u, p) != tokens for u, p in ((-SAFE, 0), (SAFE, 0), (0, -SAFE), (0, SAFE))]
    return tokens, torch.stack(moved).any(dim=0)


def check(logits: torch.Tensor, uniform: torch.Tensor, *params: torch.Tensor, sms: int = 3) -> None:
    """Fails unless the kernel takes the reference's tokens, but for one draw in a hundred that falls on an edge."""
    tokens, doubtful = wanted(logits, uniform, *params)
    assert doubtful.sum() <= len(logits) / 100
    assert torch.equal(sample(logits, uniform, *params, sms=sms)[~doubtful], tokens[~doubtful])


@pytest.mark.parametrize("vocabulary", [2, 600])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("small")
def test_sample_takes_the_tokens_of_the_reference(dtype: torch.dtype, vocabulary: int) -> None:
    cases = [(t, k, p) for t in (0.3, 1.0, 4.0) for k in (0, 40, 100) for p in (1.0, 0.7)]
    temperature, top_k, top_p = (torch.tensor(column) for column in zip(*cases, strict=True))
    logits = (normal(3, len(cases), vocabulary) * 3).to(dtype)
    check(logits, uniforms(4, len(cases)), temperature, top_k, top_p)


@pytest.mark.usefixtures("small")
def test_sample_where_all_are_likely_and_the_row_is_read_to_the_end() -> None:
    logits, rows = normal(5, 4, 600) / 4, 4
    for params in (numbers(rows, 1, 0, 1), numbers(rows, 1, 500, 1), numbers(rows, 1, 0, 0.9)):
        check(logits, torch.linspace(0.01, 0.99, rows), *params)


@pytest.mark.usefixtures("small")
def test_sample_takes_equals_in_their_order() -> None:
    logits = torch.zeros(6, 320, dtype=torch.float16)
    logits[:, ::5] = 1.0  # 64 of equal probability, those of a short list; before 256 more
    draws = torch.tensor([0, 1, 31, 32, 63, 63.5]) / 64
    kept = numbers(6, 1, 64, 1)
    assert torch.equal(sample(logits, draws, *kept), (draws * 64).long() * 5)
    half = numbers(6, 1, 64, 0.5)
    assert torch.equal(sample(logits, draws, *half), (draws * 32).long() * 5)
    more = numbers(6, 1e9, 96, 1)  # all are as likely, and the larger still come first
    first = [5 * k for k in range(64)] + [k for k in range(320) if k % 5][:32]
    assert sample(logits, (draws * 64 + 0.25) / 65, *more).tolist() == [
        first[int(96 * u)] for u in ((draws * 64 + 0.25) / 65).tolist()
    ]


@pytest.mark.usefixtures("small")
def test_sample_at_the_very_edge_of_a_token() -> None:
    """Where top_k ends within 40 equals, next to which many are smaller by the least that can be, all as likely."""
    logits = torch.full((300,), 1 - 2**-11, dtype=torch.float16)
    logits[50:90], logits[200:205] = 1.0, 2.0
    ranked = [*range(200, 205), *range(50, 90)]
    draws = torch.tensor([0, 4, 5, 6, 31]) / 32
    found = sample(logits.expand(5, -1).contiguous(), draws, *numbers(5, 1e9, 32, 1))
    assert found.tolist() == [ranked[k] for k in (0, 4, 5, 6, 31)]


@pytest.mark.parametrize("u", [0.0, 0.5, BELOW_ONE, 1.0])
@pytest.mark.usefixtures("small")
def test_sample_at_the_ends_of_its_parameters(u: float) -> None:
    cases = [(t, k, p) for t in (0.0, 1e-6, 1.0, 1e6) for k in (0, 1, 999) for p in (0.0, 1.0)]
    temperature, top_k, top_p = (torch.tensor(column) for column in zip(*cases, strict=True))
    logits = normal(6, 1, 200)
    logits[:, 50:60] = -torch.inf
    logits[:, 7] = logits[:, 9] = logits.amax() + 1
    ranked = logits[0].argsort(descending=True, stable=True)
    found = sample(logits.expand(len(cases), -1), torch.full((len(cases),), u), temperature, top_k, top_p)
    for token, (t, k, p) in zip(found.tolist(), cases, strict=True):
        kept = 1 if t == 0 or k == 1 or p < 0.01 else 2 if t == 1e-6 else 190
        rank = ranked.tolist().index(token)
        assert rank < kept, (t, k, p)  # what is impossible is never taken
        assert u != 0 or rank == 0
        assert u < 1 or t == 1 or rank == kept - 1


@pytest.mark.usefixtures("small")
def test_sample_at_temperature_zero_is_argmax() -> None:
    logits = normal(7, 9, 200).round()
    params = numbers(9, 0, 3, 0.5)
    assert torch.equal(sample(logits, uniforms(8, 9), *params), ops.argmax(logits))


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # so says numpy, of which the interpreter is made
@pytest.mark.usefixtures("small")
def test_sample_of_what_is_no_number_is_some_token() -> None:
    logits = normal(9, 6, 200, dtype=torch.float16)
    logits[0, 3] = logits[1] = torch.nan
    logits[2, 5] = torch.inf
    logits[3] = -torch.inf
    logits[4:, ::2] = torch.nan
    for params in (
        numbers(6, 1, 0, 1),
        numbers(6, 1, 5, 0.5),
        numbers(6, torch.nan, 0, 1),
        numbers(6, 1, 5, torch.nan),
    ):
        for u in (0.0, 0.7, torch.nan):
            tokens = sample(logits, torch.full((6,), u), *params)
            assert ((tokens >= 0) & (tokens < 200)).all()


@pytest.mark.parametrize("sms", [1, 3, 7])
@pytest.mark.usefixtures("small")
def test_sample_of_rows_in_a_larger_tensor(sms: int) -> None:
    rows = 8
    around = torch.full((rows + 3, 400), torch.nan)
    logits = around[2:-1, 7:307]
    logits.copy_(normal(10, rows, 300) * 2)
    params = [torch.cat((torch.zeros(1), p, torch.zeros(1))).to(p.dtype)[1:-1] for p in numbers(rows, 0.8, 30, 0.9)]
    tokens = torch.full((rows + 2,), -7)
    scratch = torch.full((sample.scratch_bytes(logits, sms=sms),), 0xFF, dtype=torch.uint8)
    sample(logits, uniforms(11, rows), *params, out=tokens[1:-1], scratch=scratch, sms=sms)
    wanted_tokens, doubtful = wanted(logits, uniforms(11, rows), *params)
    assert not doubtful.any()
    assert tokens.tolist() == [-7, *wanted_tokens.tolist(), -7]


def test_sample_takes_parameters_of_other_types() -> None:
    logits, u = normal(12, 4, 50), uniforms(13, 4)
    t, k, p = numbers(4, 0.7, 9, 0.9)
    wide = sample(logits, u.double(), t.double(), k.int(), p.double())
    assert torch.equal(wide, ops.sample(logits, u, t, k, p))


@pytest.mark.parametrize("vocabulary", [2500, 4096, 10_001])
def test_sample_of_a_large_row(vocabulary: int) -> None:
    logits = normal(14, 3, vocabulary) * 3
    check(logits, uniforms(15, 3), *numbers(3, 0.9, 50, 0.95), sms=1)


def test_no_rows_are_fine() -> None:
    logits, u = torch.empty(0, 9), torch.empty(0)
    assert sample(logits, u, *numbers(0, 1, 0, 1)).shape == argmax(logits).shape == (0,)


def test_what_the_kernels_do_not_take_is_said() -> None:
    row, params = torch.zeros(4), numbers(4, 1, 0, 1)
    for kernel, more in ((argmax, ()), (sample, (row, *params))):
        assert kernel.refuses(torch.zeros(4, 9), *more) == ""
        assert "float64" in kernel.refuses(torch.zeros(4, 9).double(), *more)
        assert "contiguous" in kernel.refuses(torch.zeros(9, 4).T, *more)
        assert "at least one logit" in kernel.refuses(torch.zeros(4, 0), *more)
    assert "contiguous" in sample.refuses(torch.zeros(4, 9), torch.zeros(8)[::2], *params)
