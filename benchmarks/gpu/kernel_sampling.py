"""The next tokens of many requests: argmax, and draws that are filtered by top-k and top-p, beside torch's sort."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import torch

from benchmarks.gpu.calls import Calls, Maker, turns
from benchmarks.gpu.contests import Arena, arena, until
from benchmarks.gpu.timing import DTYPE, sized
from benchmarks.measure import Row
from nanort import ops
from nanort.driver import Driver

SECONDS = 8
VOCABULARY = 128_256
TOP_K, TOP_P, TEMPERATURE = 50, 0.9, 0.7
SAME = 0.98
"""Draws that are to give the token of the exact reference: at a boundary between two, rounding decides."""


class Sizes(NamedTuple):
    """An operator on so many rows."""

    name: str
    rows: int

    def __str__(self) -> str:
        return f"{self.name} of {self.rows} rows"


CASES = [Sizes(name, rows) for rows in (256, 16) for name in ("sample", "argmax")]


def calls_of(driver: Driver, scale: float, sizes: Sizes) -> Calls:
    """Logits of LLaMA-3's vocabulary as a product leaves them, and what each request asks for."""
    rows, vocabulary = max(2, sized(sizes.rows, scale)), sized(VOCABULARY, scale, 8)
    device, dtype = driver.device, DTYPE
    asked = (
        torch.rand(rows, dtype=torch.float64, device=device),
        torch.full((rows,), TEMPERATURE, dtype=torch.float64, device=device),
        torch.full((rows,), TOP_K, device=device),
        torch.full((rows,), TOP_P, dtype=torch.float64, device=device),
    )
    logits = [
        3 * torch.randn(rows, vocabulary, dtype=dtype, device=device)
        for _ in turns(rows * vocabulary * dtype.itemsize, scale)
    ]
    if sizes.name == "argmax":
        return Calls(ops.argmax, [(one,) for one in logits])
    return Calls(ops.sample, [(one, *asked) for one in logits])


def measure(driver: Driver, scale: float) -> Iterator[Row]:
    """Tokens are looked at first, then time is taken."""
    with arena(driver, scale) as here:
        yield from here.roofs()
        for sizes in CASES[:2]:
            yield from _right(here, calls_of(driver, scale, sizes))
        yield from until(SECONDS, scale, CASES, partial(_rows, driver, scale, here))


def _right(here: Arena, calls: Calls) -> Iterator[Row]:
    """How many tokens are as likely as the reference's, which are others where two are equally likely."""
    wanted, least = calls.op.reference(*calls.sets[0]), 1.0 if calls.op is ops.argmax else SAME

    def share(kernel: str) -> float:
        given = calls.bound(kernel, calls.sets[0], here.sms)
        given.call()
        ours, theirs = (calls.sets[0][0].gather(1, tokens[:, None]) for tokens in (given.out[0], wanted))
        return 100 * float((ours == theirs).double().mean())

    yield from here.judged(calls, "tokens as likely as the reference's", "%", share, (">=", 100 * least))


def _rows(driver: Driver, scale: float, here: Arena, sizes: Sizes) -> Iterator[Row]:
    calls = calls_of(driver, scale, sizes)
    peers: dict[str, Maker] = {"torch": calls.of(calls.op.reference if calls.op is ops.argmax else by_sorting)}
    if calls.op is ops.sample and find_spec("flashinfer") is not None:
        peers["FlashInfer"] = calls.of(_flashinfer)
    found = here.contest(str(sizes._replace(rows=len(calls.sets[0][0]))), calls, peers)
    yield from found.rows()


def by_sorting(
    logits: torch.Tensor, uniform: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """As samplers in torch do it: sorted, filtered, drawn by the inverse of the cumulative distribution."""
    ranked, order = logits.sort(dim=-1, descending=True, stable=True)
    shares = (ranked.float() / temperature[:, None].float()).softmax(dim=-1)
    shares *= torch.arange(shares.shape[1], device=shares.device) < top_k[:, None]
    sums = shares.cumsum(dim=-1)
    kept = sums - shares < top_p[:, None].float() * sums[:, -1:]
    sums = (shares * kept).cumsum(dim=-1)
    target = uniform[:, None].float() * sums[:, -1:]
    return order.gather(1, torch.searchsorted(sums, target, right=True).clamp_(max=shares.shape[1] - 1)).squeeze(1)


def _flashinfer(
    logits: torch.Tensor, uniform: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """Its sampler draws its own random numbers."""
    import flashinfer  # type: ignore[import-not-found]  # optional

    scaled = logits.float() / temperature[:, None].float()
    drawn: torch.Tensor = flashinfer.sampling.top_k_top_p_sampling_from_logits(scaled, top_k.int(), top_p.float())
    return drawn
