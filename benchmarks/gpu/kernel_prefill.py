"""prefill_attention beside torch's flash attention, which has keys and values without pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

import nanort as nr
from benchmarks.gpu.calls import Calls, Maker
from benchmarks.gpu.contests import arena, until
from benchmarks.gpu.kernel_decode import SHARP
from benchmarks.gpu.paged import PAGE, Cache, Heads, dense
from benchmarks.gpu.timing import sized
from benchmarks.measure import Row
from nanort import ops
from nanort.driver import Driver

SECONDS = 12
LEAST_OF_FLASH = 0.75
FLASH, VARLEN = "SDPA, flash, without pages", "varlen_attn, without pages"


class Sizes(NamedTuple):
    """Requests, the rows of each in this step, and the tokens of each that are in the cache already."""

    requests: int
    rows: int
    past: int = 0
    page: int = PAGE

    def __str__(self) -> str:
        past = f" after {self.past}" if self.past else ""
        return f"{self.requests} requests of {self.rows} rows{past} in pages of {self.page}"

    def shrunk(self, scale: float) -> Sizes:
        """At a small scale."""
        past = sized(self.past, scale, self.page) if self.past else 0
        return Sizes(sized(self.requests, scale), sized(self.rows, scale, self.page), past, self.page)

    @property
    def tokens(self) -> int:
        """Of a request, in the end."""
        return self.past + self.rows


CASES = [
    Sizes(4, 2048),
    Sizes(4, 512, past=3584),
    Sizes(1, 8192),
    Sizes(16, 512),
    Sizes(1, 2048, past=30720),
    Sizes(4, 2048, page=64),
]


def calls_of(driver: Driver, scale: float, sizes: Sizes) -> Calls:
    """The rows of one request after those of another; its past and they themselves are in the cache."""
    heads, each, count = Heads.llama(scale), sizes.rows, sizes.requests
    cache = Cache(driver, heads, -(-sizes.tokens // 64) * 64 * count)
    kv = cache.pages_of(sizes.page)
    (table,) = cache.tables([sizes.tokens] * count, sizes.page, 1)
    q = SHARP * torch.randn(count * each, heads.queries, heads.dim, dtype=kv.dtype, device=driver.device)
    positions = (torch.arange(each, device=driver.device) + sizes.past).repeat(count)
    requests = torch.arange(count, device=driver.device).repeat_interleave(each)
    layout = nr.Layout(prefill=(nr.Segment(each, sizes.past),) * count)
    return Calls(ops.prefill_attention, [(q, kv, table, positions, requests)], {"layout": layout})


def measure(driver: Driver, scale: float) -> Iterator[Row]:
    """Prompts whole and in chunks after what is cached of them."""
    cases = [sizes.shrunk(scale) for sizes in CASES]
    with arena(driver, scale) as here:

        def rows(sizes: Sizes) -> Iterator[Row]:
            calls = calls_of(driver, scale, sizes)
            found = here.contest(str(sizes), calls, peers_of(calls, sizes))
            yield from found.against_peers(found.kernels, here.sms, LEAST_OF_FLASH)
            yield from found.rows()

        yield from here.roofs()
        yield from here.errors(calls_of(driver, scale, cases[1]))
        yield from until(SECONDS, scale, cases, rows)


def peers_of(calls: Calls, sizes: Sizes) -> dict[str, Maker]:
    """Both of torch's ways to its flash attention; the one for requests of any length needs a GPU."""
    ((q, kv, pages, _, _),) = calls.sets
    k, v = dense(kv, pages, sizes.tokens)
    peers = {FLASH: _flash(q.view(sizes.requests, sizes.rows, *q.shape[1:]).transpose(1, 2), k, v, sizes)}
    if q.is_cuda and find_spec("torch.nn.attention.varlen") is not None:
        peers[VARLEN] = _varlen(q, *(part.transpose(1, 2).flatten(0, 1).contiguous() for part in (k, v)), sizes)
    return peers


def _flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sizes: Sizes) -> Maker:
    mask = causal_lower_right(sizes.rows, sizes.tokens) if sizes.past else None

    def attend() -> torch.Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION if q.is_cuda else SDPBackend.MATH):
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)

    return lambda sms: [attend]


def _varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sizes: Sizes) -> Maker:
    def maker(sms: int) -> list[Callable[[], object]]:
        from torch.nn.attention.varlen import varlen_attn

        at = torch.arange(sizes.requests + 1, dtype=torch.int32, device=q.device)
        starts = at * sizes.rows, at * sizes.tokens
        causal = {"window_size": (-1, 0), "enable_gqa": True}  # the last row sees the last token
        return [partial(varlen_attn, q, k, v, *starts, sizes.rows, sizes.tokens, **causal)]

    return maker
