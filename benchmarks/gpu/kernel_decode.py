"""decode_attention over contexts of 1k to 32k, beside the bandwidth of memory and beside libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F

import nanort as nr
from benchmarks.gpu.calls import Calls, Maker, turns
from benchmarks.gpu.contests import arena, until
from benchmarks.gpu.paged import PAGE, Cache, Heads, dense
from benchmarks.gpu.timing import sized
from benchmarks.measure import Row
from nanort import ops
from nanort.driver import Driver

SECONDS = 20
LEAST_OF_ROOF, LEAST_ON_64 = 0.85, 0.9
LARGE_PAGE = 64
FLEX_BLOCK = 64
SHARP = 3
"""How large queries are: a row looks at few tokens, so that its result is not almost the same whatever they are."""
WORKSPACE_BYTES = 256 << 20


class Sizes(NamedTuple):
    """Requests, the tokens that the longest has, tokens of a page, whether lengths are very different."""

    requests: int
    context: int
    page: int = PAGE
    uneven: bool = False
    flex: bool = False

    def __str__(self) -> str:
        spread = "1/32 to all of " if self.uneven else ""
        return f"{self.requests} requests of {spread}{self.context} tokens in pages of {self.page}"

    def shrunk(self, scale: float) -> Sizes:
        """At a small scale."""
        requests, context = max(2, sized(self.requests, scale)), sized(self.context, scale, LARGE_PAGE)
        return self._replace(requests=requests, context=context)

    @property
    def lengths(self) -> list[int]:
        """Of every request; uneven ones double from one to the next, five times over."""
        if not self.uneven:
            return [self.context] * self.requests
        return [max(1, self.context >> request % 6) for request in range(self.requests)]


CASES = [
    Sizes(64, 4096),
    Sizes(64, 32768, uneven=True),
    Sizes(256, 1024, LARGE_PAGE),
    Sizes(256, 1024),
    Sizes(64, 1024),
    Sizes(64, 32768),
    Sizes(256, 32768),
    Sizes(256, 4096),
    Sizes(64, 4096, LARGE_PAGE, flex=True),
]


def calls_of(driver: Driver, scale: float, cache: Cache, sizes: Sizes) -> Calls:
    """Rows that are the last tokens of their requests."""
    lengths, kv = sizes.lengths, cache.pages_of(sizes.page)
    layout = nr.Layout(decode=len(lengths), kv_tokens=sum(lengths))
    last = torch.tensor(lengths, device=driver.device) - 1
    shape = (len(lengths), cache.heads.queries, cache.heads.dim)
    nbytes = sum(lengths) * kv[0].nbytes // sizes.page
    sets = [
        (SHARP * torch.randn(shape, dtype=kv.dtype, device=driver.device), kv, table, last)
        for table in cache.tables(lengths, sizes.page, len(turns(nbytes, scale)))
    ]
    return Calls(ops.decode_attention, sets, {"layout": layout})


def measure(driver: Driver, scale: float) -> Iterator[Row]:
    """Every case beside torch's attention over a dense copy of the cache, and FlashInfer's where it is installed."""
    cases = [sizes.shrunk(scale) for sizes in CASES]
    with arena(driver, scale) as here:
        cache = Cache(driver, Heads.llama(scale), max(sum(sizes.lengths) for sizes in cases))

        def rows(sizes: Sizes) -> Iterator[Row]:
            calls = calls_of(driver, scale, cache, sizes)
            found = here.contest(str(sizes), calls, peers_of(driver, calls, sizes))
            yield from found.against_roof(found.kernels, LEAST_OF_ROOF)
            if not sizes.uneven:
                yield from found.against_itself(found.kernels, 64, LEAST_ON_64)
            yield from found.rows()

        yield from here.roofs()
        small = Sizes(16, 1024).shrunk(scale)
        yield from here.errors(calls_of(driver, scale, Cache(driver, cache.heads, sum(small.lengths)), small))
        yield from until(SECONDS, scale, cases, rows)


def peers_of(driver: Driver, calls: Calls, sizes: Sizes) -> dict[str, Maker]:
    """Those that take such requests, of those that are installed."""
    peers: dict[str, Maker] = {}
    if not sizes.uneven:
        peers["SDPA over a dense cache"] = _sdpa(calls, sizes.context)
    if sizes.flex:
        peers["FlexAttention over the pages"] = _flex(driver, calls, sizes.context)
    if find_spec("flashinfer") is not None:
        peers["FlashInfer"] = _flashinfer(calls, sizes.lengths)
    return peers


def _sdpa(calls: Calls, context: int) -> Maker:
    """The heads that share keys are the rows of one small product, so that keys and values are read once."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q.view(len(q), k.shape[1], -1, q.shape[2]), k, v).reshape(q.shape)

    return _once(calls, lambda q, kv, pages, _: partial(attend, q, *dense(kv, pages, context)))


def _flex(driver: Driver, calls: Calls, context: int) -> Maker:
    """A mask of blocks is what names the pages; keys and values are one long row of tokens for all requests."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    attend = torch.compile(flex_attention, dynamic=False) if driver.device != "cpu" else flex_attention

    def bound(q: torch.Tensor, kv: torch.Tensor, pages: torch.Tensor, _: torch.Tensor) -> Callable[[], object]:
        width = context // FLEX_BLOCK
        order = torch.randperm(pages.numel(), device=q.device)
        own = kv[pages.flatten().long()[order]]  # its own copy: keys and values stand apart
        k, v = (own[:, at].flatten(0, 1).transpose(0, 1)[None].contiguous() for at in (0, 1))
        table = order.argsort().view(pages.shape).int()
        owner = order // width

        def mine(b: torch.Tensor, h: torch.Tensor, row: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
            return owner[token // FLEX_BLOCK] == b

        whole = torch.full((len(q), 1, 1), width, dtype=torch.int32, device=q.device)
        named = F.pad(table, (0, len(own) - width))[:, None, None]
        mask = BlockMask.from_kv_blocks(
            torch.zeros_like(whole), torch.zeros_like(named), whole, named, (128, FLEX_BLOCK), mine,
            seq_lengths=(1, len(own) * FLEX_BLOCK),
        )  # fmt: skip  # no block is masked in part, all that are named are seen whole
        return partial(attend, q[:, :, None], k, v, block_mask=mask, enable_gqa=True)

    return _once(calls, bound)


def _flashinfer(calls: Calls, lengths: Sequence[int]) -> Maker:
    import flashinfer  # type: ignore[import-not-found]  # optional

    def bound(q: torch.Tensor, kv: torch.Tensor, pages: torch.Tensor, _: torch.Tensor) -> Callable[[], object]:
        page, heads = kv.shape[2], kv.shape[3]
        length = torch.tensor(lengths, dtype=torch.int32)
        widths = -(-length // page)
        starts = F.pad(widths.cumsum(0), (1, 0)).int()
        indices = torch.cat([row[:width] for row, width in zip(pages, widths.tolist(), strict=True)])
        room = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=q.device)
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(room, "NHD", use_tensor_cores=True)
        wrapper.plan(
            starts, indices, (length - 1) % page + 1, q.shape[1], heads, q.shape[2], page,
            q_data_type=q.dtype, kv_data_type=kv.dtype,
        )  # fmt: skip  # what it plans for, and in which dtypes
        return partial(wrapper.run, q, kv)

    return _once(calls, bound)


def _once(calls: Calls, bound: Callable[..., Callable[[], object]]) -> Maker:
    """Prepares the calls when the first of the SM counts asks for them."""
    made: list[Callable[[], object]] = []

    def maker(sms: int) -> list[Callable[[], object]]:
        if not made:
            made.extend(bound(*args) for args in calls.sets)
        return made

    return maker
