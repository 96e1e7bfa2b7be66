"""Answering: one Ask answered over HTTP, whole or event by event, while its client is there."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from nanort.errors import CacheFullError, ClosedError, NanortError, OverloadedError, RequestError
from nanort.http.answers import DONE, Answer, event
from nanort.http.bodies import ApiError, error_body
from nanort.http.loop import EngineLoop, Stream
from nanort.http.openai_api import Ask
from nanort.serving.requests import Output
from nanort.serving.sampling import SamplingParams

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

LOG = logging.getLogger(__name__)


def refusal(error: NanortError) -> tuple[int, dict[str, Any]]:
    """The status and the body that tell a client of an error."""
    if isinstance(error, ApiError):
        return error.status, error_body(str(error), param=error.param, code=error.code)
    if isinstance(error, OverloadedError):
        return 429, error_body(str(error), kind="requests", code="rate_limit_exceeded")
    if isinstance(error, ClosedError):
        return 503, error_body(str(error), kind="server_error", code="service_unavailable")
    if isinstance(error, (RequestError, CacheFullError)):
        return 400, error_body(str(error))
    LOG.error("a request failed", exc_info=error)
    return 500, error_body("the step that computed this reply failed: the server's log says where", kind="server_error")


class Answering:
    """The response to one Ask, an ASGI application: its requests are in the engine while it is sent.

    Args:
        loop: whose engine answers.
        ask: what a client asked for.
        asked: its prompts as tokens, and how each is continued.
        decode: makes text of one token.
        refused: told the status of what goes wrong after the reply has begun.
    """

    def __init__(
        self,
        loop: EngineLoop,
        ask: Ask,
        asked: Sequence[tuple[Sequence[int], SamplingParams]],
        decode: Callable[[Sequence[int]], str],
        refused: Callable[[int], None],
    ) -> None:
        self._loop, self._ask, self._asked, self._decode, self._refused = loop, ask, asked, decode, refused
        self._name = f"{'chatcmpl' if ask.chat else 'cmpl'}-{secrets.token_hex(12)}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._loop.open(self._asked, self._name) as stream, _watched(receive, stream):
            answer = Answer(self._name, self._ask, stream.requests, self._decode)
            if self._ask.stream:
                await self._send_events(answer, stream, send)
            else:
                await self._send_whole(answer, stream, send)

    async def _send_whole(self, answer: Answer, stream: Stream, send: Send) -> None:
        async for outputs in stream:
            _check(outputs)
            answer.keep(outputs)
        if stream.left:
            return
        body = json.dumps(answer.whole()).encode()
        await send(_start("application/json", (b"content-length", str(len(body)).encode())))
        await send({"type": "http.response.body", "body": body})

    async def _send_events(self, answer: Answer, stream: Stream, send: Send) -> None:
        """Server-sent events; an error comes as the last of them, since the status has been sent."""
        await send(_start("text/event-stream; charset=utf-8"))

        async def tell(chunks: list[dict[str, Any]], end: bytes = b"", more: bool = True) -> None:
            body = b"".join(map(event, chunks)) + end
            await send({"type": "http.response.body", "body": body, "more_body": more})

        await tell(answer.opening())
        try:
            async for outputs in stream:
                _check(outputs)
                await tell(answer.chunks(outputs))
        except NanortError as error:
            status, body = refusal(error)
            self._refused(status)
            await tell([body], more=False)
        else:
            await tell(answer.closing(), DONE, more=False)


def _start(kind: str, *more: tuple[bytes, bytes]) -> dict[str, Any]:
    headers = [(b"content-type", kind.encode()), (b"cache-control", b"no-store"), *more]
    return {"type": "http.response.start", "status": 200, "headers": headers}


def _check(outputs: list[Output]) -> None:
    for output in outputs:
        if output.request.error is not None:
            raise output.request.error


@asynccontextmanager
async def _watched(receive: Receive, stream: Stream) -> AsyncIterator[None]:
    """Leaves ``stream`` when its client goes away."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        stream.leave()

    watching = asyncio.ensure_future(watch())
    try:
        yield
    finally:
        watching.cancel()
