"""EngineLoop: an engine in a thread of its own, and what comes of its requests as asyncio streams."""

from __future__ import annotations

import asyncio
import logging
import math
import queue
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

from nanort.errors import ClosedError, NanortError
from nanort.serving.requests import Output, Request
from nanort.serving.sampling import SamplingParams

if TYPE_CHECKING:
    from nanort.serving.engine import Engine

LOG = logging.getLogger(__name__)

REMEMBERED = 64
"""Ended requests by which it is told when a full queue will have room."""
LONGEST_RETRY, POLL = 60, 0.02
"""Seconds after which a client is told to come again at most, and between two looks at whether streams have ended."""


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine holds: requests that wait and that run, and pages in use."""

    waiting: int = 0
    running: int = 0
    used: int = 0


class Stream:
    """What comes of requests that were submitted together: ``async for outputs in stream`` has all that is new.

    It ends with the last of them, or when somebody leaves it.
    """

    def __init__(self) -> None:
        self.requests: tuple[Request, ...] = ()
        self._going: set[Request] = set()
        self._outputs: list[Output] = []
        self._news = asyncio.Event()
        self._error: NanortError | None = None
        self.left = False

    def leave(self) -> None:
        """Ends the iteration: whoever it was for has gone."""
        self.left = True
        self._news.set()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> list[Output]:
        while not self._outputs and self._going and not self.left:
            await self._wait()
        if self.left or not self._outputs:
            raise StopAsyncIteration
        outputs, self._outputs = self._outputs, []
        return outputs

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        await self._news.wait()
        self._news.clear()

    async def _admitted(self) -> None:
        """Returns once the engine has taken the requests."""
        while not self.requests:
            await self._wait()

    def _begin(self, requests: Sequence[Request]) -> None:
        self.requests, self._going = tuple(requests), set(requests)
        self._news.set()

    def _push(self, output: Output) -> None:
        self._outputs.append(output)
        if output.finish is not None:
            self._going.discard(output.request)
        self._news.set()

    def _fail(self, error: NanortError) -> None:
        self._error = error
        self._news.set()


class EngineLoop:
    """Steps an engine in a thread of its own while there is anything to do; all else happens in the event loop.

    ``async with EngineLoop(engine) as loop`` starts it and, in the end, cancels what still runs. Nobody else may use
    the engine meanwhile. ``ended`` is told of every request that ends, or is about to be cancelled as its client left.
    """

    def __init__(self, engine: Engine, *, ended: Callable[[Request], None] = lambda request: None) -> None:
        self.load = Load()
        self.failure: BaseException | None = None
        self.failed: Callable[[], None] = lambda: None  # called once there is one
        self.closing = True  # until it is started
        self._engine = engine
        self._tell_ended = ended
        self._streams: set[Stream] = set()
        self._stream_of: dict[Request, Stream] = {}
        self._ends: deque[float] = deque(maxlen=REMEMBERED)

    async def __aenter__(self) -> EngineLoop:
        self.closing = False
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="nanort-engine")
        self._stepping = self._loop.run_in_executor(self._threads, self._run)
        self._stepping.add_done_callback(self._stopped)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing = True
        self._orders.put(None)
        await asyncio.wait({self._stepping})
        self._threads.shutdown()

    @asynccontextmanager
    async def open(self, asked: Sequence[tuple[Sequence[int], SamplingParams]], name: str) -> AsyncIterator[Stream]:
        """The stream of these prompts, all submitted or none; leaving the block cancels what has not ended.

        ``name`` is what traces and errors call the request; where there are several, with a number behind it.

        Raises:
            RequestError, CacheFullError: one of them can never be served.
            OverloadedError: the engine's queue is full.
            ClosedError: nothing is taken any more.
        """
        if self.closing or self.failure is not None:
            raise ClosedError("the engine takes no requests, it is starting, closing or has failed: ask again later")
        stream = Stream()
        self._streams.add(stream)
        self._orders.put(partial(self._submit, stream, tuple(asked), name))
        try:
            await stream._admitted()
            yield stream
        finally:
            stream.leave()
            self._streams.discard(stream)
            self._forget(stream.requests)

    async def drain(self, seconds: float) -> None:
        """Takes no more requests; returns when those that run have ended, or cuts them off after ``seconds``."""
        self.closing = True
        until = self._loop.time() + seconds
        while self._streams and self._loop.time() < until:
            await asyncio.sleep(POLL)
        self._cut("the server closed")

    @property
    def retry_seconds(self) -> int:
        """When a queue that is full now will have moved on, by the pace of the requests that ended of late."""
        if len(self._ends) < 2:
            return 1
        pace = (self._loop.time() - self._ends[0]) / len(self._ends)
        return max(1, min(LONGEST_RETRY, math.ceil(pace * self.load.waiting)))

    # In the event loop.

    def _admit(self, stream: Stream, requests: list[Request]) -> None:
        if stream not in self._streams:  # its client went away while it was submitted
            self._orders.put(partial(self._cancel, tuple(requests)))
            return
        self._stream_of.update(dict.fromkeys(requests, stream))
        stream._begin(requests)

    def _deliver(self, outputs: list[Output]) -> None:
        for output in outputs:
            stream = self._stream_of.get(output.request)
            if stream is None:
                continue  # cancelled in the meantime
            if output.finish is not None:
                del self._stream_of[output.request]
                self._ends.append(self._loop.time())
                self._tell_ended(output.request)
            stream._push(output)

    def _forget(self, requests: Sequence[Request]) -> None:
        going = tuple(request for request in requests if self._stream_of.pop(request, None))
        for request in going:
            self._tell_ended(request)
        if going:
            self._orders.put(partial(self._cancel, going))

    def _stopped(self, stepping: asyncio.Future[None]) -> None:
        self.failure = stepping.exception()
        self._cut("the engine failed" if self.failure else "the server closed")
        if self.failure is not None:
            LOG.critical("the engine failed, nothing is served any more", exc_info=self.failure)
            self.failed()

    def _cut(self, why: str) -> None:
        for stream in self._streams:
            stream._fail(ClosedError(f"{why} before the reply ended: ask again"))

    # In the engine's thread.

    def _run(self) -> None:
        while self._obey():
            if outputs := self._engine.step():
                self._loop.call_soon_threadsafe(self._deliver, outputs)
        self._cancel((*self._engine.waiting, *self._engine.running))
        while self._engine.busy:  # what is in flight still writes to the cache
            self._engine.step()

    def _obey(self) -> bool:
        """Does all that was asked for, and waits where there is nothing else to do; false when it is to end."""
        while True:
            self.load = Load(len(self._engine.waiting), len(self._engine.running), self._engine.cache.used)
            try:
                order = self._orders.get(block=not self._engine.busy)
            except queue.Empty:
                return True
            if order is None:
                return False
            order()

    def _submit(self, stream: Stream, asked: Sequence[tuple[Sequence[int], SamplingParams]], name: str) -> None:
        requests: list[Request] = []
        try:
            for number, (prompt, params) in enumerate(asked):
                called = name if len(asked) == 1 else f"{name}-{number}"
                requests.append(self._engine.submit(prompt, params, id=called))
        except NanortError as error:
            self._cancel(requests)
            self._loop.call_soon_threadsafe(stream._fail, error)
        else:
            self._loop.call_soon_threadsafe(self._admit, stream, requests)

    def _cancel(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._engine.cancel(request)
