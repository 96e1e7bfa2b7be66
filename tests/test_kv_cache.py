from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanort.errors import CacheFullError, InternalError, RequestError
from nanort.serving.host_tier import HostTier
from nanort.serving.kv_cache import PagedKVCache
from nanort.serving.page_pool import PagePool


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


# Blocks that are shared.


def filled(cache: PagedKVCache, request: str, tokens: list[int]) -> int:
    """Admits a request and publishes its tokens, as if a step had computed them; those that it found."""
    cached = cache.admit(request, tokens, len(tokens))
    cache.publish(request, tokens)
    return cached


def moved(cache: PagedKVCache) -> tuple[int, int]:
    """Carries out all copies that wait, as one batch: how many pages came and went."""
    loads, saves = cache.next_loads(99), cache.next_saves(99)
    cache.collected(loads, saves)
    return len(loads), len(saves)


def test_requests_that_begin_alike_share_pages() -> None:
    cache = PagedKVCache(pages=9, page_size=2)
    assert filled(cache, "a", [1, 2, 3, 4, 5]) == 0
    assert cache.admit("b", [1, 2, 3, 4, 9, 9], room=8) == 4
    assert cache.admit("c", [1, 2, 9, 4, 5], room=5) == 2
    assert cache.table(["a", "b", "c"], 4).tolist() == [[1, 2, 3, 0], [1, 2, 4, 5], [1, 6, 7, 0]]
    assert cache.used == 7
    cache.release("a")
    assert cache.used == 6, "what others share stays"
    cache.check()


def test_the_last_token_is_always_left_to_compute() -> None:
    cache = PagedKVCache(pages=9, page_size=2)
    filled(cache, "a", [1, 2, 3, 4])
    assert cache.admit("b", [1, 2, 3, 4], room=5) == 2
    assert cache.admit("c", [1, 2], room=2) == 0
    assert cache.admit("d", [1], room=1) == 0


def test_only_whole_published_pages_are_shared() -> None:
    cache = PagedKVCache(pages=12, page_size=2)
    cache.admit("a", [1, 2, 3, 4, 5, 6], room=6)
    assert cache.admit("b", [1, 2, 3, 4, 5, 6], room=6) == 0
    cache.publish("a", [1, 2, 3])
    assert cache.admit("c", [1, 2, 3, 4, 5, 6], room=6) == 2
    with pytest.raises(RequestError, match=r"'a' has 3 pages, which do not hold 7 tokens"):
        cache.publish("a", [0] * 7)


def test_a_page_that_another_has_already_stays_private() -> None:
    cache = PagedKVCache(pages=9, page_size=2)
    for request in "ab":
        cache.admit(request, [1, 2, 3], room=3)
    for request in "ab":
        cache.publish(request, [1, 2, 3])
    cache.release("b")
    assert cache.admit("c", [1, 2, 3], room=3) == 2
    assert cache.slots("c", 0, 2) == cache.slots("a", 0, 2)
    cache.check()


def test_pages_of_the_past_are_found_until_they_are_needed() -> None:
    cache = PagedKVCache(pages=5, page_size=1)
    filled(cache, "old", [1, 2])
    filled(cache, "new", [3, 4])
    cache.release("old")
    cache.release("new")
    assert cache.free == 4
    cache.reserve("other", 1)
    assert cache.admit("new", [3, 4, 5], room=2) == 2, "what was used least lately has made room"
    assert cache.admit("old", [1, 2, 5], room=1) == 1, "and of that its end"
    cache.check()


def test_blocks_are_named_by_all_that_comes_before_them() -> None:
    cache = PagedKVCache(pages=20, page_size=2)
    filled(cache, "a", [1, 2, 3, 4])
    assert cache.admit("b", [9, 2, 3, 4, 0], room=5) == 0
    assert cache.admit("c", [-1, 2, 3, 4, 0], room=5) == 0
    filled(cache, "d", [-2, 2])
    assert cache.admit("e", [-1, 2, 3], room=3) == 0, "although hash(-1) is hash(-2)"


def test_admission_is_all_or_nothing() -> None:
    cache = PagedKVCache(pages=5, page_size=2, host_pages=4)
    filled(cache, "a", [1, 2, 3, 4])
    cache.release("a")
    cache.reserve("b", 2)
    with pytest.raises(CacheFullError, match=r"'c' asks for 2 more pages \(8 tokens\), 1 of 4 are free"):
        cache.admit("c", [1, 2, 3, 4, 5], room=8)
    assert (cache.used, cache.free) == (1, 3)
    assert cache.admit("c", [1, 2, 3, 4, 5], room=6) == 4
    with pytest.raises(RequestError, match="'c' has pages already"):
        cache.admit("c", [1], room=1)
    cache.check()


def test_without_sharing_nothing_is_found() -> None:
    cache = PagedKVCache(pages=9, page_size=2, sharing=False)
    filled(cache, "a", [1, 2, 3])
    assert cache.admit("b", [1, 2, 3], room=3) == 0
    cache.release("a", save=True)
    assert (cache.used, cache.host_used) == (2, 0)
    with pytest.raises(RequestError, match="host_pages=3 with sharing=False"):
        PagedKVCache(pages=9, page_size=2, sharing=False, host_pages=3)


# Pages on the host.


def test_saved_pages_stay_until_they_are_saved_and_come_back() -> None:
    cache = PagedKVCache(pages=5, page_size=2, host_pages=4)
    filled(cache, "a", [1, 2, 3, 4, 5])
    cache.release("a", save=True)
    assert (cache.used, cache.leaving, cache.host_used) == (2, 2, 2), "two are whole"
    first = cache.next_saves(1)
    assert len(cache.next_saves(9)) == 1
    assert cache.next_saves(9) == (), "each goes once"
    assert cache.used == 2
    cache.collected((), first)
    assert (cache.used, cache.leaving) == (1, 1)
    with pytest.raises(InternalError, match="was not under way"):
        cache.collected((), first)


def test_loads_come_before_a_request_is_computed() -> None:
    cache = PagedKVCache(pages=5, page_size=2, host_pages=4)
    filled(cache, "a", [1, 2, 3, 4, 5])
    cache.release("a", save=True)
    assert moved(cache) == (0, 2)
    cache.reserve("b", 8)
    cache.release("b")  # nothing is left on the device
    assert cache.admit("c", [1, 2, 3, 4, 5], room=6) == 4
    assert not cache.ready("c")
    first = cache.next_loads(1)
    assert not cache.ready("c")
    second = cache.next_loads(1)
    assert cache.ready("c"), "the next batch comes after both"
    assert [page for _, page in first + second] == cache.table(["c"], 3)[0].tolist()[:2]
    assert cache.admit("d", [1, 2, 3], room=2) == 2, "what is being loaded is not shared yet"
    assert cache.slots("d", 0, 2) != cache.slots("c", 0, 2)
    cache.collected(first, ())
    cache.collected(second, ())
    cache.release("d")
    assert cache.admit("e", [1, 2, 3], room=2) == 2
    assert cache.slots("e", 0, 2) == cache.slots("c", 0, 2)
    cache.check()


def hosted() -> PagedKVCache:
    """A cache of 3 pages with two blocks on the host, none on the device."""
    cache = PagedKVCache(pages=4, page_size=1, host_pages=2)
    filled(cache, "a", [1, 2])
    cache.release("a", save=True)
    moved(cache)
    cache.reserve("b", 3)
    cache.release("b")
    return cache


def test_loads_that_nobody_waits_for_any_more_are_dropped() -> None:
    cache = hosted()
    cache.admit("c", [1, 2, 3], room=3)
    cache.release("c")
    assert (cache.next_loads(9), cache.used) == ((), 0)
    cache.check()


def test_pages_under_way_are_used_until_they_have_come() -> None:
    cache = hosted()
    cache.admit("c", [1, 2, 3], room=3)
    loads = cache.next_loads(1)
    cache.release("c")
    assert (cache.used, cache.leaving) == (1, 0)
    cache.check()
    cache.collected(loads, ())
    assert cache.used == 0
    assert cache.admit("d", [1, 9], room=2) == 1
    assert cache.next_loads(9) == (), "it has come for others"


def test_what_a_failed_batch_moved_is_not_there() -> None:
    cache = hosted()
    cache.admit("c", [1, 2, 3], room=3)
    loads = cache.next_loads(9)
    assert cache.lost(loads, ()) == ("c",)
    cache.check()
    cache.release("c")
    assert cache.used == 0
    assert cache.admit("d", [1, 2, 3], room=3) == 2
    assert len(cache.next_loads(9)) == 2, "they are still on the host"
    cache = PagedKVCache(pages=4, page_size=1, host_pages=2)
    filled(cache, "a", [1, 2])
    cache.release("a", save=True)
    assert cache.lost((), cache.next_saves(9)) == ()
    assert (cache.used, cache.host_used) == (0, 0)
    cache.check()


def test_the_host_forgets_the_end_of_what_was_used_least_lately() -> None:
    cache = PagedKVCache(pages=9, page_size=1, host_pages=4)
    for tokens in ([1, 2, 3], [4, 5]):
        filled(cache, "a", tokens)
        cache.release("a", save=True)
        moved(cache)
    cache.reserve("b", 8)
    cache.release("b")
    assert cache.admit("c", [1, 2, 3, 0], room=4) == 2
    assert cache.admit("d", [4, 5, 0], room=3) == 2


def test_a_text_longer_than_the_host_leaves_its_beginning_there() -> None:
    cache = PagedKVCache(pages=9, page_size=1, host_pages=2)
    filled(cache, "a", [1, 2, 3, 4])
    cache.release("a", save=True)
    assert moved(cache) == (0, 2)
    cache.reserve("b", 8)
    cache.release("b")
    assert cache.admit("c", [1, 2, 3, 4], room=4) == 2


def test_slots_that_copies_use_are_not_given_away() -> None:
    cache = hosted()
    cache.admit("c", [1, 2, 3], room=2)
    loads = cache.next_loads(9)
    filled(cache, "d", [7])
    cache.release("d", save=True)
    assert cache.next_saves(9) == (), "both slots are being read"
    cache.collected(loads, ())
    filled(cache, "d", [8])
    cache.release("d", save=True)
    assert moved(cache) == (0, 1)
    cache.check()


def test_a_host_tier_of_less_than_nothing_is_refused() -> None:
    with pytest.raises(CacheFullError, match="host tier of -1 pages"):
        PagedKVCache(pages=4, page_size=1, host_pages=-1)


# The accounts.


def test_pages_that_are_used_by_nobody_are_refused() -> None:
    pool = PagePool(pages=4)
    page = pool.take()
    pool.check(Counter({page: 1}))
    for uses in (Counter[int](), Counter({page: 2}), Counter({page: 1, 0: 1}), Counter({page: 1, 3: 1})):
        with pytest.raises(InternalError, match=r"PagePool\(2 of 3 pages free\) do not balance"):
            pool.check(uses)
    pool.give_up(page)
    pool.check(Counter())


def test_slots_that_nobody_copies_are_refused() -> None:
    tier = HostTier(slots=2)
    slot = tier.take(b"block")
    assert slot is not None
    tier.check(written=[slot], read=[])
    for written, read in (([], []), ([slot], [slot]), ([slot, 1], [])):
        with pytest.raises(InternalError, match=r"HostTier\(1 of 2 slots used\) do not balance"):
            tier.check(written, read)
    tier.filled(slot)
    tier.read(slot)
    tier.check(written=[], read=[slot])
    tier.done(slot)
    tier.check(written=[], read=[])
