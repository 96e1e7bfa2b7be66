from __future__ import annotations

import random

from nanort.serving.admission import Admission
from nanort.serving.batching import Batch
from nanort.serving.kv_cache import PagedKVCache
from nanort.serving.requests import Request
from nanort.serving.sampling import SamplingParams


def request(name: str, tokens: int, new: int = 50) -> Request:
    return Request(name, tuple(range(tokens)), SamplingParams(max_new_tokens=new))


def admission(pages: int = 101, max_rows: int = 32, seats: int = 8, **options: object) -> Admission:
    return Admission(PagedKVCache(pages, 4, sharing=False), max_rows=max_rows, seats=seats, **options)


def ran(queue: Admission, batch: Batch | None) -> None:
    """Carries a batch out: what it draws is known at once."""
    assert batch is not None
    queue.launched(batch)
    for share, draws in zip(batch.shares, batch.draws, strict=True):
        if draws:
            share.request.pending -= 1
            share.request.generated.append(7)


def rows(batch: Batch | None) -> dict[str, int]:
    assert batch is not None
    return {share.request.id: share.stop - share.start for share in batch.shares}


def test_a_step_is_full_of_chunks_in_order_of_arrival_and_decodes_come_first() -> None:
    queue = admission()
    for name, tokens in (("a", 10), ("b", 40), ("c", 6)):
        queue.add(request(name, tokens))
    first = queue.next_batch()
    assert rows(first) == {"a": 10, "b": 22}
    ran(queue, first)
    second = queue.next_batch()
    assert second is not None
    assert [share.request.id for share in second.decode] == ["a"]
    assert rows(second) == {"a": 1, "b": 18, "c": 6}
    ran(queue, second)
    third = queue.next_batch()
    assert rows(third) == {"a": 1, "b": 1, "c": 1}
    assert third is not None
    assert not third.prefill


def test_a_step_may_be_launched_before_the_token_it_starts_from_is_known() -> None:
    queue = admission()
    queue.add(request("a", 3, new=2))
    for draws in (0, 1):
        batch = queue.next_batch()
        assert batch is not None
        queue.launched(batch)
        assert batch.shares[0].request.pending == draws + 1
    assert queue.next_batch() is None, "all that it may have is on its way"


def test_no_more_run_than_there_are_seats_and_a_seat_comes_back() -> None:
    queue = admission(seats=2)
    asked = [request(name, 3) for name in "abc"]
    for one in asked:
        queue.add(one)
    ran(queue, queue.next_batch())
    assert [one.seat for one in asked] == [0, 1, None]
    queue.drop(asked[0])
    ran(queue, queue.next_batch())
    assert [one.seat for one in asked] == [None, 1, 0]
    assert [one.id for one in queue.running] == ["b", "c"]


def test_the_one_that_came_last_makes_room_and_is_next_in_the_queue() -> None:
    queue = admission(pages=8)  # seven pages of four tokens
    early, late, waiting = request("early", 11, 10), request("late", 3, 10), request("waiting", 1, 10)
    for one in (early, late, waiting):
        queue.add(one)
    while late.preemptions == 0:
        ran(queue, queue.next_batch())
    assert [one.id for one in queue.running] == ["early"]
    assert [one.id for one in queue.waiting] == ["late", "waiting"]
    assert (late.seat, late.cached) == (None, 0)
    while not early.drawn:
        ran(queue, queue.next_batch())
    queue.drop(early)
    ran(queue, queue.next_batch())
    assert late.cached == late.length - 1, "it computes again what it had drawn"


def test_a_request_is_let_in_only_with_pages_left_for_those_that_run() -> None:
    queue = admission(pages=7)
    for name in ("a", "b"):
        queue.add(request(name, 8))
    assert rows(queue.next_batch()) == {"a": 8}, "b would fit, and be sent back with a's next page"


def test_whoever_waits_for_a_token_of_a_step_in_flight_is_not_let_in() -> None:
    queue = admission()
    one = request("a", 5)
    queue.add(one)
    batch = queue.next_batch()
    assert batch is not None
    queue.launched(batch)
    queue.preempt(one, save=False)
    assert queue.next_batch() is None
    one.pending, one.generated = 0, [7]
    assert rows(queue.next_batch()) == {"a": 6}


def test_every_request_ends_and_every_page_comes_back() -> None:
    draw = random.Random(0)
    queue = admission(pages=12, max_rows=7, seats=4)
    left = [request(str(number), draw.randint(1, 20), draw.randint(1, 20)) for number in range(40)]
    for one in left:
        queue.add(one)
    preempted = 0
    while left:
        earliest = left[0]
        before = earliest.cached
        batch = queue.next_batch()
        assert sum(rows(batch).values()) <= 7
        ran(queue, batch)
        assert earliest.cached > before, "the earliest always goes on"
        for one in [one for one in left if one.drawn]:
            queue.drop(one)
            left.remove(one)
            preempted += one.preemptions
    assert preempted > 0
    assert (queue.running, list(queue.waiting)) == ([], [])
