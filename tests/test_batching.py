from __future__ import annotations

import torch

from nanort.layout import Layout, Segment
from nanort.serving.batching import Batch, Rows, Share, scratch_inputs
from nanort.serving.beside import Beside
from nanort.serving.kv_cache import PagedKVCache
from nanort.serving.requests import Request
from nanort.serving.sampling import SamplingParams

GREEDY, WARM = SamplingParams(), SamplingParams(temperature=1, top_k=5, seed=3)


def decoding(cache: PagedKVCache) -> Share:
    """A request that has drawn a token the host does not know yet, at seat 2."""
    request = Request("a", (5, 6, 7), GREEDY, generated=[8], cached=4, pending=1, seat=2)
    cache.reserve(request, 8)
    return Share(request, 4, 5, draws=True)


def prefilling(cache: PagedKVCache, stop: int) -> Share:
    request = Request("b", (1, 2, 3, 4, 9), WARM, cached=2, seat=0)
    cache.reserve(request, 8)
    return Share(request, 2, stop, draws=stop == 5)


def test_a_batch_knows_its_rows_and_who_draws() -> None:
    cache = PagedKVCache(pages=9, page_size=4)
    batch = Batch((decoding(cache),), (prefilling(cache, 4),))
    assert batch.layout == Layout(1, (Segment(2, past=2),), kv_tokens=5)
    assert batch.draws == (True, False)
    assert batch.filled == batch.shares
    assert not batch.greedy


def test_a_chunk_is_cached_and_draws_only_with_its_last_layers() -> None:
    cache = PagedKVCache(pages=9, page_size=4)
    decode, prefill = (decoding(cache),), (prefilling(cache, 5),)
    first, last = (Batch(decode, prefill, beside=Beside(at, 2, 4)) for at in (0, 2))
    assert first.draws == (True, False)
    assert first.filled == decode
    assert last.draws == (True, True)
    assert last.filled == (*decode, *prefill)


def test_rows_are_packed_padded_and_named_as_the_device_reads_them() -> None:
    cache = PagedKVCache(pages=9, page_size=4)
    batch = Batch((decoding(cache),), (prefilling(cache, 4),))
    rows = Rows.of(batch, cache, width=2)
    batch.decode[0].request.generated.append(99)  # known after the launch, which is no longer asked
    bucket = Layout(2, (Segment(4),), kv_tokens=8)
    inputs = rows.inputs(bucket, (4, 3), seats=7, sampling=True)
    assert inputs["tokens"].tolist() == [-3, 0, 3, 4, 0, 0]
    assert inputs["positions"].tolist() == [4, 0, 2, 3, 0, 0]
    assert inputs["requests"].tolist() == [0, 3, 1, 1, 3, 3]
    a, b = (share.request for share in batch.shares)
    assert inputs["slots"].tolist() == [*cache.slots(a, 4, 5), 0, *cache.slots(b, 2, 4), 0, 0]
    assert inputs["last"].tolist() == [0, 0, 0, 0], "the chunk draws nothing"
    assert inputs["seats"].tolist() == [2, 7, 7, 7]
    assert inputs["pages"][:2, :2].equal(cache.table([a, b], 2))
    assert inputs["pages"][2:].sum() == inputs["pages"][:, 2].sum() == 0
    assert inputs["temperature"].tolist() == [0, 0, 0, 0]
    assert {inputs[name].dtype for name in ("uniform", "temperature", "top_p")} == {torch.float32}


def test_the_last_row_of_a_prompt_is_found_behind_the_padding_and_in_pieces() -> None:
    cache = PagedKVCache(pages=9, page_size=4)
    rows = Rows.of(Batch((decoding(cache),), (prefilling(cache, 5),)), cache, width=2)
    bucket = Layout(2, (Segment(4),), kv_tokens=8)
    assert rows.inputs(bucket, (3, 2), seats=7)["last"].tolist() == [0, 4, 0]
    packed = bucket.packed(bucket.cut([3, 3]))
    inputs = rows.inputs(packed, (3, 2), seats=7, sampling=True)
    assert [inputs["tokens"][row] for row in inputs["last"][:2]] == [-3, 9]
    assert inputs["seats"].tolist() == [2, 0, 7]
    assert inputs["temperature"].tolist() == [0, 1, 0]
    assert inputs["uniform"][1] == WARM.uniform(5)


def test_a_trial_touches_scratch_only() -> None:
    inputs = scratch_inputs(Layout(2, (Segment(3, past=6),), kv_tokens=9), requests=3, width=2, page_size=4, seats=5)
    assert inputs["slots"].max() < 4
    assert inputs["pages"].sum() == 0
    assert inputs["positions"].tolist() == [4, 4, 6, 7, 7]
    assert inputs["seats"].tolist() == [5, 5, 5]
