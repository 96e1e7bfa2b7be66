"""Engine: requests in, outputs out, a step at a time: the host's side of serving, which touches no tensor."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

from nanort.checkpoints.tokenizer import ByteTokenizer, Tokenizer
from nanort.clock import Clock
from nanort.errors import (
    CacheFullError,
    DriverError,
    InternalError,
    NanortError,
    OverloadedError,
    PoisonedError,
    RequestError,
)
from nanort.serving.admission import Admission
from nanort.serving.batching import Batch
from nanort.serving.beside import Besides
from nanort.serving.kv_cache import PagedKVCache
from nanort.serving.reply import Reply
from nanort.serving.requests import CANCELLED, ERROR, LENGTH, STOP, Output, Request, TokenLogprobs
from nanort.serving.runner import Result, Runner
from nanort.serving.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step that has been collected, for traces, metrics and reports.

    Attributes:
        index: its number, from 0.
        began, ended: of the device's work, in the engine's clock.
        batch, result: what was asked, and what came of it; no result where it failed.
        waiting: requests in the queue when it was collected.
        used: pages of the cache that were in use then.
    """

    index: int
    began: float
    ended: float
    batch: Batch
    result: Result | None
    waiting: int
    used: int


class Engine:
    """Continuous batching over a runner: submit requests, call ``step`` while ``busy``.

    A step launches the next batch before it collects the one before, so that the host admits, builds and detokenises
    while the device runs. The end of a reply is therefore seen one step late: the row launched in between is dropped.
    Use it from one thread. ``queue_limit`` may be set later, and callables added to ``observers``, which are told a
    StepRecord for every step that was collected.

    Args:
        runner: carries out the steps.
        cache: the bookkeeping of the runner's pages.
        max_tokens: tokens that a request may have, prompt and reply: the model's context.
        clock: the time that requests are stamped with.
        vocab: tokens that the model knows; None for any.
        tokenizer: makes text of tokens; without one outputs have none, and stop strings are refused.
        eos_ids: tokens that end a reply unless its params ignore them.
        max_rows: rows of one step.
        seats: requests that run at once, at most ``max_rows``.
        preempt: what becomes of the pages of a request that has to make room: computed anew, or swapped to the host.
        queue_limit: requests that may wait; None for any number.
        slo_tpot: seconds a token that decoding requests are to hold while prompts are processed beside them.
        observe: the first of the observers.
    """

    def __init__(
        self,
        runner: Runner,
        cache: PagedKVCache,
        *,
        max_tokens: int,
        clock: Clock,
        vocab: int | None = None,
        tokenizer: Tokenizer | ByteTokenizer | None = None,
        eos_ids: frozenset[int] = frozenset(),
        max_rows: int = 512,
        seats: int = 256,
        preempt: Literal["recompute", "swap"] = "recompute",
        queue_limit: int | None = None,
        slo_tpot: float | None = None,
        observe: Callable[[StepRecord], None] | None = None,
    ) -> None:
        if preempt not in ("recompute", "swap"):
            raise RequestError(f"preempt={preempt!r}: give 'recompute' or 'swap'")
        if preempt == "swap" and not cache.host_pages:
            raise RequestError("preempt='swap' needs pages on the host to swap to: give host_cache= bytes")
        if min(max_rows, seats) < 1:
            raise RequestError(f"{max_rows=}, {seats=}: give at least 1 of each")
        self.runner, self.cache, self.clock, self.tokenizer = runner, cache, clock, tokenizer
        self.max_tokens, self.vocab, self.eos_ids = max_tokens, vocab, eos_ids
        self.queue_limit = queue_limit
        self.observers: list[Callable[[StepRecord], None]] = [] if observe is None else [observe]
        self._besides = None if slo_tpot is None else Besides(runner.predict, runner.layers, slo_tpot)
        self._admission = Admission(
            cache, max_rows=max_rows, seats=seats, swap=preempt == "swap", besides=self._besides
        )
        self._launched: deque[Batch] = deque()
        self._replies: dict[Request, Reply] = {}
        self._submitted, self._collected = count(), 0
        self._outputs: list[Output] = []  # of this turn
        self._fatal: NanortError | None = None  # what ended serving

    @property
    def waiting(self) -> tuple[Request, ...]:
        """Requests in the queue, the one that is next first."""
        return tuple(self._admission.waiting)

    @property
    def running(self) -> tuple[Request, ...]:
        """Requests that hold pages, by arrival."""
        return tuple(self._admission.running)

    @property
    def busy(self) -> bool:
        """Whether anything waits, runs, is in flight, or has to be saved."""
        return bool(self._admission.waiting or self._admission.running or self._launched or self.cache.leaving)

    def submit(self, prompt: Sequence[int], params: SamplingParams, *, id: str | None = None) -> Request:
        """Puts a request into the queue.

        Raises:
            RequestError: the prompt is empty, has unknown tokens, or is too long with what is to be generated.
            CacheFullError: it is larger than the whole cache.
            OverloadedError: the queue is full.
        """
        number = next(self._submitted)
        name = id or f"request {number}"
        try:
            request = Request(name, tuple(map(operator.index, prompt)), params, self.clock.now())
        except TypeError as error:
            raise RequestError(f"{name} is no sequence of token ids ({error}): give whole numbers") from error
        self.check(request)
        if self.queue_limit is not None and len(self._admission.waiting) >= self.queue_limit:
            raise OverloadedError(f"{self.queue_limit} requests wait already, which is the limit: ask again later")
        if self.tokenizer is not None:
            self._replies[request] = Reply(
                self.tokenizer.stream(request.prompt[-4:]), params.stop, include_stop=params.include_stop
            )
        self._admission.add(request)
        return request

    def check(self, request: Request) -> None:
        """Refuses a request that could not be served whatever else runs; raises as ``submit`` does."""
        prompt, params = request.prompt, request.params
        if not prompt:
            raise RequestError(f"{request.id} is empty: give at least one token")
        if self.vocab is not None and (unknown := [token for token in prompt if not 0 <= token < self.vocab]):
            raise RequestError(f"{request.id} has the token {unknown[0]}, the vocabulary has {self.vocab}")
        if params.stop and self.tokenizer is None:
            raise RequestError(f"{request.id} asks for stop={params.stop}, and without a tokenizer there is no text")
        need, room = len(prompt) + params.max_new_tokens, (self.cache.pages - 1) * self.cache.page_size
        if need > self.max_tokens:
            raise RequestError(
                f"{request.id} has {len(prompt)} tokens and asks for {params.max_new_tokens} more, the model's context "
                f"is {self.max_tokens}: shorten it, or ask for fewer"
            )
        if need > room:
            raise CacheFullError(
                f"{request.id} needs {need} tokens of KV cache, there are {room}: raise cache_tokens= or memory="
            )

    def cancel(self, request: Request) -> None:
        """Ends a request now, its pages given back; one that has ended already stays as it is."""
        if request.finish is None:
            self._end(request, CANCELLED)

    def step(self) -> list[Output]:
        """One turn: launches the next batch, then collects the one before it; what came out of that.

        Raises:
            PoisonedError: the device has failed, and nothing can run any more; outputs from before are given out first.
        """
        if self._fatal is not None:
            raise self._fatal
        try:
            self._turn()
        except (PoisonedError, DriverError) as error:
            self._fatal = error
            if not self._outputs:  # else they are given out first
                raise
        outputs, self._outputs = self._outputs, []
        return outputs

    def _turn(self) -> None:
        # Two are in flight only where an interrupt kept the last turn from collecting one.
        batch = self._admission.next_batch() if len(self._launched) < 2 else None
        if batch is not None:
            self.runner.launch(batch)
            self._admission.launched(batch)
            self._launched.append(batch)
        elif not self._launched and self.busy:
            raise InternalError(f"nothing can run: {self.running} hold {self.cache}, {len(self.waiting)} wait")
        if len(self._launched) > (batch is not None):
            self._collect()

    def close(self) -> None:
        """Cancels everything and closes the runner."""
        for request in (*self.running, *self.waiting):
            self.cancel(request)
        self._launched.clear()
        self.runner.close()

    def _collect(self, void: frozenset[Request] = frozenset()) -> None:
        """Gathers the outputs of the batch launched first, but for requests whose rows in it are void."""
        batch = self._launched[0]  # it stays there where the wait is interrupted
        try:
            result = self.runner.collect()
        except NanortError as error:
            self._launched.popleft()
            if isinstance(error, PoisonedError) or (isinstance(error, DriverError) and error.sticky):
                raise
            self._failed(batch, error)
            return
        self._launched.popleft()
        self.cache.collected(batch.loads, batch.saves)
        self._publish(batch)
        now = self.clock.now()
        logprobs = result.logprobs or (None,) * len(result.tokens)
        for share, token, logprob in zip(batch.shares, result.tokens, logprobs, strict=True):
            if token is None or share.request.finish is not None:
                continue
            share.request.pending -= 1
            if share.request not in void:
                self._outputs.append(self._drawn(share.request, token, now, logprob))
        if self._besides is not None:
            self._besides.observe(batch, result.seconds)
        self._record(batch, result)

    def _publish(self, batch: Batch) -> None:
        """Lets others share the pages that a batch has filled, of requests that still hold them."""
        size = self.cache.page_size
        for share in batch.filled:
            if share.request.seat is not None and share.stop // size > share.start // size:
                self.cache.publish(share.request, share.request.span(0, share.stop))

    def _drawn(self, request: Request, token: int, now: float, logprob: TokenLogprobs | None) -> Output:
        """What one more token means for a request."""
        request.generated.append(token)
        if request.first_token is None:
            request.first_token = now
        try:
            text, finish = self._told(request, token)
        except RequestError as error:  # of the tokenizer: the others go on
            return self._ended_by(request, error)
        if finish is not None:
            self._end(request, finish)
        return Output(request, (token,), text, finish, None if logprob is None else (logprob,))

    def _told(self, request: Request, token: int) -> tuple[str, str | None]:
        """The text that one more token completes, and why the reply ends with it."""
        params, reply = request.params, self._replies.get(request)
        ends = token in params.stop_token_ids or (token in self.eos_ids and not params.ignore_eos)
        text = ""
        if reply is not None and (not ends or params.include_stop):
            text = reply.push(token)
        finish = STOP if ends or (reply is not None and reply.stopped) else None
        if finish is None and len(request.generated) >= params.max_new_tokens:
            finish = LENGTH
        if finish is not None and reply is not None:
            text += reply.rest()
            finish = STOP if reply.stopped else finish
        return text, finish

    def _ended_by(self, request: Request, error: NanortError) -> Output:
        request.error = error
        self._end(request, ERROR)
        return Output(request, (), "", ERROR)

    def _end(self, request: Request, finish: str) -> None:
        request.finish, request.finished = finish, self.clock.now()
        request.pending = 0
        self._replies.pop(request, None)
        self._admission.drop(request, save=self.cache.host_pages > 0)

    def _failed(self, batch: Batch, error: NanortError) -> None:
        """Fails the requests of a batch by name; the others go on.

        Those that waited for pages which it was to load start again. What the batch behind it makes of such pages does
        not count, so that one is collected right away, before any of them is let in again.
        """
        lost = set(self.cache.lost(batch.loads, batch.saves))
        for request in batch.requests:
            if request.finish is None:
                self._outputs.append(self._ended_by(request, error))
        hollow = [request for request in reversed(self.running) if request in lost]
        for request in hollow:
            self._admission.preempt(request, save=False)
        self._record(batch, None)
        while self._launched:
            self._collect(frozenset(hollow))

    def _record(self, batch: Batch, result: Result | None) -> None:
        if self.observers:
            ended = self.clock.now()
            began = ended - (result.seconds if result is not None else 0.0)
            record = StepRecord(
                self._collected, began, ended, batch, result, len(self._admission.waiting), self.cache.used
            )
            for observe in self.observers:
                observe(record)
        self._collected += 1
