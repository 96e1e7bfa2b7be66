"""A mixture of experts beside a loop of cuBLAS's products and torch's grouped one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

import nanort as nr
from benchmarks.gpu.calls import TOLERANCES, Calls, Maker
from benchmarks.gpu.contests import Arena, arena, until
from benchmarks.gpu.timing import DTYPE, random_tensor, sized
from benchmarks.measure import Row
from nanort import ops
from nanort.driver import Driver

SECONDS = 10
EXPERTS, CHOSEN = 8, 2


class Sizes(NamedTuple):
    """An operator on so many rows."""

    op: nr.Op
    rows: int

    def __str__(self) -> str:
        return f"{self.op.name} of {self.rows} rows"


CASES = [Sizes(op, rows) for rows in (1024, 64) for op in (ops.expert_linear, ops.expert_combine, ops.route)]


def calls_of(driver: Driver, scale: float, sizes: Sizes) -> Calls:
    """Mixtral-8x7B's widths; every row's experts are drawn evenly, as its demand assumes."""
    rows, hidden, ffn = sized(sizes.rows, scale, 8), sized(4096, scale, 64), sized(14336, scale, 64)
    noise = partial(torch.randn, dtype=DTYPE, device=driver.device)
    chosen = torch.rand(rows, EXPERTS, device=driver.device).topk(CHOSEN).indices
    shares = torch.rand(rows, CHOSEN, device=driver.device)
    weights = partial(random_tensor, driver, EXPERTS, dtype=DTYPE)
    if sizes.op is ops.route:
        return Calls(sizes.op, [(noise(rows, hidden), random_tensor(driver, EXPERTS, hidden, dtype=DTYPE))])
    if sizes.op is ops.expert_linear:
        return Calls(sizes.op, [(noise(rows, hidden), chosen, weights(ffn, hidden))])
    return Calls(sizes.op, [(noise(rows, CHOSEN * ffn), chosen, shares, weights(hidden, ffn))])


def measure(driver: Driver, scale: float) -> Iterator[Row]:
    """Peers are told how many rows each expert has, which a host that may not wait for the GPU does not know."""
    with arena(driver, scale) as here:
        yield from here.roofs()
        for sizes in CASES[:2]:
            yield from here.errors(calls_of(driver, scale / 8, sizes))
        routed = calls_of(driver, scale / 8, Sizes(ops.route, 1024))
        told = f"its error over the tolerance of {DTYPE}"
        yield from here.judged(routed, told, "times", partial(_route_error, routed, here.sms), ("<=", 1.0))
        yield from until(SECONDS, scale, CASES, partial(_rows, driver, scale, here))


def _route_error(calls: Calls, sms: int, kernel: str) -> float:
    """Of the logits of the experts that were chosen, since which they are is rounding's choice, and of the weights."""
    x, weight = calls.sets[0]
    bound = calls.bound(kernel, calls.sets[0], sms)
    bound.call()
    experts, weights = bound.out
    logits = x.double() @ weight.double().T
    ours, best = logits.gather(1, experts), logits.topk(CHOSEN).values
    allowed = TOLERANCES[x.dtype]
    pairs = (ours, best), (weights.double(), ours.softmax(dim=1))
    return max(float(((found - exact).abs() / (allowed + allowed * exact.abs())).max()) for found, exact in pairs)


def _rows(driver: Driver, scale: float, here: Arena, sizes: Sizes) -> Iterator[Row]:
    calls = calls_of(driver, scale, sizes)
    found = here.contest(str(sizes._replace(rows=len(calls.sets[0][0]))), calls, peers_of(calls))
    yield from found.rows()


def peers_of(calls: Calls) -> dict[str, Maker]:
    """Rows sorted by their experts, multiplied, put back and, where that is asked for, summed."""
    if calls.op is ops.route:
        return {"torch": calls.of(calls.op.reference)}
    x, experts, *shares, weight = calls.sets[0]
    order = experts.flatten().argsort(stable=True)
    counts = torch.bincount(experts.flatten(), minlength=len(weight))
    ends, sizes = counts.cumsum(0).int(), counts.tolist()
    rows = order // CHOSEN if calls.op is ops.expert_linear else order

    def loop(sorted_rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([F.linear(part, own) for part, own in zip(sorted_rows.split(sizes), weight, strict=True)])

    def grouped(sorted_rows: torch.Tensor) -> torch.Tensor:
        return torch._grouped_mm(sorted_rows, weight.transpose(1, 2), offs=ends)

    def whole(product: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        products = product(x.view(-1, weight.shape[2])[rows])
        out = torch.empty_like(products).index_copy_(0, order, products).view(*experts.shape, -1)
        return (out * shares[0][..., None]).sum(dim=1).to(x.dtype) if shares else out.flatten(1)

    peers: dict[str, Maker] = {"a loop of cuBLAS products": lambda sms: [partial(whole, loop)]}
    if x.is_cuda and hasattr(torch, "_grouped_mm"):
        peers["torch._grouped_mm"] = lambda sms: [partial(whole, grouped)]
    return peers
