from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import pytest

from nanort.checkpoints.tokenizer import ByteTokenizer, Stream
from nanort.clock import VirtualClock
from nanort.errors import CacheFullError, DriverError, ExecutionError, OverloadedError, PoisonedError, RequestError
from nanort.serving.batching import Batch
from nanort.serving.engine import Engine, StepRecord
from nanort.serving.kv_cache import PagedKVCache
from nanort.serving.requests import Output, Request
from nanort.serving.runner import Result
from nanort.serving.sampling import SamplingParams

ALPHABET = SamplingParams(max_new_tokens=6, ignore_eos=True)


class Alphabet:
    """A runner that says a, b, c, ... after every prompt, a second a step; it fails where it is told to."""

    layers = 2

    def __init__(self, clock: VirtualClock) -> None:
        self.clock, self.flying, self.most = clock, deque[Batch](), 0
        self.failing: list[Exception | None] = []
        self.closed = False

    @property
    def in_flight(self) -> int:
        return len(self.flying)

    def launch(self, batch: Batch) -> None:
        self.flying.append(batch)
        self.most = max(self.most, len(self.flying))

    def collect(self) -> Result:
        batch = self.flying.popleft()
        self.clock.advance(1.0)
        if self.failing and (error := self.failing.pop(0)) is not None:
            raise error
        drawn = zip(batch.shares, batch.draws, strict=True)
        tokens = tuple(97 + s.stop - len(s.request.prompt) if draws else None for s, draws in drawn)
        return Result(tokens, 1.0)

    def predict(self, batch: Batch) -> float:
        return 1.0

    def close(self) -> None:
        self.closed = True


def engine(**options: object) -> Engine:
    clock = VirtualClock()
    settings = {"max_tokens": 64, "vocab": 257, "tokenizer": ByteTokenizer(), "eos_ids": frozenset({256})} | options
    return Engine(Alphabet(clock), PagedKVCache(40, 4), clock=clock, **settings)


def run(served: Engine) -> dict[str, list[Output]]:
    """The outputs by request until nothing is left to do; the cache's accounts balance all the way."""
    found: dict[str, list[Output]] = {}
    while served.busy:
        for output in served.step():
            found.setdefault(output.request.id, []).append(output)
        served.cache.check()
    assert served.cache.used == 0
    return found


def text(outputs: list[Output]) -> str:
    return "".join(output.text for output in outputs)


def test_a_request_says_what_its_runner_draws_and_when() -> None:
    served = engine()
    request = served.submit([1, 2, 3], ALPHABET)
    outputs = run(served)[request.id]
    assert text(outputs) == "abcdef"
    assert [output.tokens for output in outputs] == [(97 + i,) for i in range(6)]
    assert [output.finish for output in outputs] == [None] * 5 + ["length"]
    assert (request.first_token, request.finished, request.finish) == (1.0, 6.0, "length")
    assert served.runner.most == 2, "the next step is launched before the last one is collected"
    assert served.step() == []


@pytest.mark.parametrize(
    ("params", "said", "tokens"),
    [
        ({"stop_token_ids": (99,)}, "ab", 3),
        ({"stop_token_ids": (99,), "include_stop": True}, "abc", 3),
        ({"stop": ("cd",)}, "ab", 4),
        ({"stop": ("cd", "bcd"), "include_stop": True}, "abcd", 4),
        ({"stop": ("efg",)}, "abcdef", 6),
    ],
)
def test_stops_end_a_reply_one_step_late_and_drop_the_row_behind(
    params: dict[str, object], said: str, tokens: int
) -> None:
    served = engine()
    request = served.submit([1], SamplingParams(max_new_tokens=6, **params))
    outputs = run(served)[request.id]
    assert text(outputs) == said
    assert len(request.generated) == tokens
    assert request.finish == outputs[-1].finish == ("stop" if tokens < 6 else "length")


def test_the_end_of_the_text_ends_a_reply_unless_it_is_ignored() -> None:
    for ignore, said in ((False, "ab"), (True, "abcdef")):
        served = engine(eos_ids=frozenset({99}))
        request = served.submit([1], SamplingParams(max_new_tokens=6, ignore_eos=ignore))
        assert text(run(served)[request.id]) == said


def test_a_cancelled_request_gives_its_pages_back_and_the_others_go_on() -> None:
    served = engine()
    gone, stays = (served.submit([number], ALPHABET) for number in (1, 2))
    served.step()
    served.step()
    served.cancel(gone)
    assert [request.id for request in served.running] == [stays.id]
    assert gone.finish == "cancelled"
    served.cancel(gone)
    found = run(served)
    assert gone.id not in found
    assert text(found[stays.id]) == "bcdef"
    waiting = [served.submit([number], ALPHABET) for number in range(3)][1]
    served.cancel(waiting)
    assert waiting not in served.waiting
    assert len(run(served)) == 2


def test_a_step_that_fails_fails_its_requests_by_name_and_no_others() -> None:
    served = engine(max_rows=3)
    served.runner.failing = [None, ExecutionError("node q_proj failed", node="q_proj")]
    first, second, third = (served.submit([number] * 3, ALPHABET) for number in (1, 2, 3))
    found = run(served)
    ended = {request.id: request.finish for request in (first, second, third)}
    assert ended == {first.id: "error", second.id: "error", third.id: "length"}
    assert isinstance(first.error, ExecutionError)
    assert found[second.id][-1].finish == "error"
    assert text(found[third.id]) == "abcdef"


def test_tokens_that_a_tokenizer_fails_on_end_their_request_and_no_others() -> None:
    class Fussy(ByteTokenizer):
        def stream(self, before: Sequence[int] = ()) -> Stream:
            return Stream(self.fuss if before == (2,) else self.decode)

        def fuss(self, ids: Sequence[int]) -> str:
            if 99 in ids:
                raise RequestError("the tokenizer fails on these tokens")
            return self.decode(ids)

    served = engine(tokenizer=Fussy())
    first, second = (served.submit([number], ALPHABET) for number in (1, 2))
    found = run(served)
    assert (first.finish, text(found[first.id])) == ("length", "abcdef")
    assert (second.finish, text(found[second.id])) == ("error", "ab")
    assert isinstance(second.error, RequestError)


def test_a_device_that_is_lost_ends_serving() -> None:
    served = engine()
    served.runner.failing = [PoisonedError("start the process again")]
    served.submit([1], ALPHABET)
    with pytest.raises(PoisonedError):
        run(served)
    served.close()
    assert served.runner.closed
    assert not served.busy


def test_what_came_before_a_device_was_lost_is_given_out_first() -> None:
    served = engine(max_rows=3)
    lost = DriverError("synchronize: an illegal address", call="synchronize", sticky=True)
    served.runner.failing = [ExecutionError("node q_proj failed"), lost]
    first = served.submit([1] * 3, ALPHABET)
    served.submit([2] * 3, ALPHABET)
    served.step()
    assert [(output.request, output.finish) for output in served.step()] == [(first, "error")]
    for _ in range(2):
        with pytest.raises(DriverError, match="illegal address"):
            served.step()


def test_outputs_of_a_step_whose_observer_fails_come_with_the_next() -> None:
    served = engine()
    served.submit([1], ALPHABET)
    served.step()

    def full(record: StepRecord) -> None:
        served.observers.clear()
        raise OSError("no space left")

    served.observers.append(full)
    with pytest.raises(OSError, match="no space"):
        served.step()
    assert text(served.step()) == "ab"


@pytest.mark.parametrize(
    ("prompt", "params", "error", "says"),
    [
        ([], {}, RequestError, "r is empty"),
        ([257], {}, RequestError, "token 257, the vocabulary has 257"),
        ([1] * 60, {}, RequestError, "context is 64"),
        ([-1], {}, RequestError, "token -1"),
    ],
)
def test_requests_that_cannot_be_served_are_refused(
    prompt: list[int], params: dict[str, object], error: type[Exception], says: str
) -> None:
    served = engine()
    with pytest.raises(error, match=says):
        served.submit(prompt, SamplingParams(max_new_tokens=6, **params), id="r")
    assert not served.busy


def test_a_request_larger_than_the_cache_and_stops_without_a_text_are_refused() -> None:
    served = engine(max_tokens=1000, tokenizer=None)
    with pytest.raises(CacheFullError, match="needs 206 tokens of KV cache, there are 156"):
        served.submit([1] * 200, ALPHABET)
    with pytest.raises(RequestError, match="without a tokenizer"):
        served.submit([1], SamplingParams(stop=("a",)))
    served.submit([1], ALPHABET)
    assert text(run(served)["request 2"]) == ""


def test_a_full_queue_is_told() -> None:
    served = engine(queue_limit=1)
    served.submit([1], ALPHABET)
    with pytest.raises(OverloadedError, match="1 requests wait"):
        served.submit([2], ALPHABET)
    served.step()
    served.submit([3], ALPHABET)
    assert len(run(served)) == 2


def test_observers_are_told_every_step() -> None:
    records: list[StepRecord] = []
    served = engine(observe=records.append, seats=1)
    served.submit([1] * 5, ALPHABET)
    served.submit([2], ALPHABET)
    run(served)
    assert [record.index for record in records] == list(range(len(records)))
    assert all(record.ended - record.began == 1.0 and record.result is not None for record in records)
    assert [record.waiting for record in records[:6]] == [1] * 6
    assert records[0].used > 0


def test_prompts_that_begin_alike_share_what_stands_in_the_cache() -> None:
    served = engine()
    first = served.submit([*range(20)], ALPHABET)
    run(served)
    second = served.submit([*range(20), 5], ALPHABET)
    run(served)
    assert (first.prefix_hits, second.prefix_hits) == (0, 20)


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(RequestError, match="host_cache"):
        engine(preempt="swap")
    with pytest.raises(RequestError, match="'recompute' or 'swap'"):
        engine(preempt="wait")
    with pytest.raises(RequestError, match="at least 1"):
        engine(seats=0)


def test_closing_cancels_everything() -> None:
    served = engine()
    request: Request = served.submit([1], ALPHABET)
    served.step()
    served.close()
    assert request.finish == "cancelled"
    assert (served.busy, served.cache.used) == (False, 0)
