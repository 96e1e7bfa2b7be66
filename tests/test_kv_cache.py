from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanort.errors import CacheFullError, RequestError
from nanort.serving.kv_cache import PagedKVCache


def test_reserve_gives_what_is_lacking_and_no_more() -> None:
    cache = PagedKVCache(pages=8, page_size=4)
    cache.reserve("a", 4)
    assert (cache.used, cache.free) == (1, 6)
    cache.reserve("a", 5)
    cache.reserve("a", 3)
    assert (cache.used, cache.free) == (2, 5)


def test_reserve_is_all_or_nothing() -> None:
    cache = PagedKVCache(pages=4, page_size=4)
    cache.reserve("a", 4)
    with pytest.raises(
        CacheFullError, match=r"request 'b' asks for 3 more pages \(9 tokens\), 2 of 3 are free: release"
    ):
        cache.reserve("b", 9)
    with pytest.raises(CacheFullError, match=r"'a' asks for 3 more pages"):
        cache.reserve("a", 16)
    assert (cache.used, cache.free) == (1, 2)
    with pytest.raises(RequestError, match="never reserved"):
        cache.slots("b", 0, 0)


def test_table_is_padded_with_the_scratch_page() -> None:
    cache = PagedKVCache(pages=8, page_size=4)
    cache.reserve("a", 1)
    cache.reserve("b", 12)
    cache.reserve("a", 8)
    table = cache.table(["b", "a"], width=4)
    assert table.dtype == torch.int32
    assert table.tolist() == [[2, 3, 4, 0], [1, 5, 0, 0]]


def test_table_of_nobody_is_empty() -> None:
    assert PagedKVCache(pages=2, page_size=4).table([], width=3).shape == (0, 3)


def test_slots_follow_the_pages() -> None:
    cache = PagedKVCache(pages=8, page_size=4)
    cache.reserve("a", 4)
    cache.reserve("b", 4)
    cache.reserve("a", 6)
    assert cache.slots("a", 2, 6) == [1 * 4 + 2, 1 * 4 + 3, 3 * 4 + 0, 3 * 4 + 1]
    assert cache.slots("a", 5, 5) == []


def test_released_pages_serve_again() -> None:
    cache = PagedKVCache(pages=3, page_size=2)
    cache.reserve("a", 4)
    cache.release("a")
    cache.reserve("b", 4)
    assert sorted(cache.slots("b", 0, 4)) == [2, 3, 4, 5]


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (-1, 2), (3, 2)])
def test_slots_outside_the_pages_are_refused(start: int, stop: int) -> None:
    cache = PagedKVCache(pages=3, page_size=4)
    cache.reserve("a", 3)
    with pytest.raises(RequestError, match="its 1 pages hold 4 tokens"):
        cache.slots("a", start, stop)


def test_unknown_requests_are_refused() -> None:
    cache = PagedKVCache(pages=3, page_size=4)
    cache.reserve("a", 1)
    cache.release("a")
    with pytest.raises(RequestError, match="'a' is not in the KV cache: never reserved, or already released"):
        cache.release("a")
    with pytest.raises(RequestError, match="'b' is not in the KV cache"):
        cache.table(["b"], width=1)
    assert cache.free == 2


def test_table_that_is_too_narrow_is_refused() -> None:
    cache = PagedKVCache(pages=4, page_size=4)
    cache.reserve("a", 9)
    with pytest.raises(RequestError, match="holds 3 pages, a table row 2"):
        cache.table(["a"], width=2)


def test_negative_tokens_are_refused() -> None:
    with pytest.raises(RequestError, match="asks for -1 tokens"):
        PagedKVCache(pages=4, page_size=4).reserve("a", -1)


@pytest.mark.parametrize(("pages", "page_size"), [(1, 4), (4, 0)])
def test_a_cache_that_holds_nothing_is_refused(pages: int, page_size: int) -> None:
    with pytest.raises(CacheFullError, match="holds nothing"):
        PagedKVCache(pages, page_size)


@given(
    pages=st.integers(2, 12),
    page_size=st.integers(1, 5),
    steps=st.lists(st.tuples(st.sampled_from("abcd"), st.none() | st.integers(0, 30)), max_size=40),
)
def test_every_slot_has_one_owner(pages: int, page_size: int, steps: list[tuple[str, int | None]]) -> None:
    cache = PagedKVCache(pages, page_size)
    tokens: dict[str, int] = {}
    for request, asked in steps:
        if asked is None:
            if request in tokens:
                cache.release(request)
                del tokens[request]
            continue
        needed = {**tokens, request: max(asked, tokens.get(request, 0))}
        if sum(-(-count // page_size) for count in needed.values()) < pages:
            before = cache.slots(request, 0, tokens[request]) if request in tokens else []
            cache.reserve(request, asked)
            assert cache.slots(request, 0, len(before)) == before, "what was written must stay where it is"
            tokens = needed
        else:
            with pytest.raises(CacheFullError):
                cache.reserve(request, asked)
        slots = [slot for owner, count in tokens.items() for slot in cache.slots(owner, 0, count)]
        assert len(slots) == len(set(slots))
        assert all(page_size <= slot < pages * page_size for slot in slots), "page 0 is scratch"
        assert cache.used == sum(-(-count // page_size) for count in tokens.values())
        assert cache.used + cache.free == pages - 1
