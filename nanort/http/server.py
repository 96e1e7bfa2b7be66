"""OpenAI's API over HTTP: ``make_app`` for a server of one's own, ``serve`` for one by uvicorn."""

from __future__ import annotations

import asyncio
import importlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from nanort.errors import BackendError, NanortError, RequestError
from nanort.http.answering import Answering, refusal
from nanort.http.bodies import ApiError, error_body
from nanort.http.loop import EngineLoop
from nanort.http.metrics import Metrics
from nanort.http.openai_api import Ask, parse

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from nanort.serving.generate import LLM

BODY_SECONDS = 30.0
"""How long the body of a request may take to arrive."""
READ_BYTES = 64 << 20
"""Of a body that is too large are read, and forgotten: a client that still sends would not see the answer."""
CLOSING_SECONDS = 5
"""How long a reply that was cut off may take to tell its client."""
CONNECTIONS = 4096
"""Open at once; beyond them uvicorn answers 503 by itself."""


def serve_package(name: str) -> Any:
    """A module of the extra ``serve``, imported now; where it is absent, an error that says how to get it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        raise BackendError(f"the package {error.name} is not installed: pip install nanort[serve]") from error


def make_app(llm: LLM, *, name: str = "nanort", queue_limit: int = 256, body_bytes: int = 4 << 20) -> Starlette:
    """OpenAI's API as an ASGI application, for any server that runs its lifespan.

    /v1/completions, /v1/chat/completions, /v1/models, /health and /metrics (Prometheus). While it runs, nobody else may
    use ``llm``, which stays open when it ends::

        with LLM.from_pretrained("SmolLM2-135M-Instruct") as llm:
            uvicorn.run(make_app(llm, name="smollm2"), timeout_graceful_shutdown=5)

    Args:
        llm: what answers.
        name: the model's name, which requests have to give.
        queue_limit: requests that may wait for their turn; more are told to come again (429, Retry-After).
        body_bytes: a larger body is refused.
    """
    applications, routing = serve_package("starlette.applications"), serve_package("starlette.routing")
    exceptions, requests = serve_package("starlette.exceptions"), serve_package("starlette.requests")
    service = _Service(llm, name, queue_limit, body_bytes)
    app: Starlette = applications.Starlette(
        routes=[
            routing.Route("/v1/completions", service.completions, methods=["POST"]),
            routing.Route("/v1/chat/completions", service.chat, methods=["POST"]),
            routing.Route("/v1/models", service.models),
            routing.Route("/v1/models/{name:path}", service.model),
            routing.Route("/health", service.health),
            routing.Route("/metrics", service.counts),
        ],
        exception_handlers={
            NanortError: service.refuse,
            exceptions.HTTPException: service.no_route,
            requests.ClientDisconnect: service.gone,
            Exception: service.fail,
        },
        lifespan=service.lifespan,
    )
    app.router.redirect_slashes = False
    app.state.loop = service.loop
    return app


def serve(
    llm: LLM,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    grace_seconds: float = 30.0,
    ready: Callable[[str], None] = lambda url: None,
    **options: Any,
) -> None:
    """Serves until SIGINT or SIGTERM, with ``make_app``'s ``options``; ``ready`` is told the address.

    After the signal new requests are refused (503), those that run have ``grace_seconds`` to end; a second signal ends
    them at once. Port 0 is any that is free. Where the engine fails, the server ends and raises what it failed of.
    """
    serve_package("uvicorn")
    app = make_app(llm, **options)

    import uvicorn

    class Server(uvicorn.Server):
        """Uvicorn's, but it goes on answering until all replies have ended."""

        draining: asyncio.Task[None] | None = None

        async def serve(self, sockets: list[socket.socket] | None = None) -> None:
            self.events, app.state.loop.failed = asyncio.get_running_loop(), self.stop
            await super().serve(sockets)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            self.events.call_soon_threadsafe(self.stop)

        def stop(self) -> None:
            seconds = 0.0 if self.draining else grace_seconds
            self.draining = asyncio.ensure_future(self.drain(seconds))

        async def drain(self, seconds: float) -> None:
            await app.state.loop.drain(seconds)
            self.should_exit = True

    config = uvicorn.Config(
        app, http="h11", ws="none", lifespan="on", log_level="warning", access_log=False, server_header=False,
        limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=CLOSING_SECONDS,
    )  # fmt: skip  # in two lines
    with _listening(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{listener.getsockname()[1]}")
        asyncio.run(Server(config).serve([listener]))
    if app.state.loop.failure is not None:
        raise app.state.loop.failure


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise RequestError(f"cannot listen on {host} port {port} ({error}): give another --host or --port") from error


class _Service:
    """The endpoints, and what they share."""

    def __init__(self, llm: LLM, name: str, queue_limit: int, body_bytes: int) -> None:
        self.metrics = Metrics(
            serve_package("prometheus_client"), lambda: self.loop.load, llm.engine.cache.pages - 1
        )  # fmt: skip  # one call
        self.loop = EngineLoop(llm.engine, ended=self.metrics.ended)
        self.llm, self._name, self._queue_limit, self._body_bytes = llm, name, queue_limit, body_bytes
        self._response = serve_package("starlette.responses").Response

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Runs the engine while the application runs."""
        engine = self.llm.engine
        before, engine.queue_limit = engine.queue_limit, self._queue_limit
        engine.observers.append(self.metrics.stepped)
        try:
            async with self.loop:
                yield
        finally:
            engine.queue_limit = before
            engine.observers.remove(self.metrics.stepped)

    async def completions(self, request: Request) -> Any:
        """/v1/completions."""
        return await self._reply(request, chat=False)

    async def chat(self, request: Request) -> Any:
        """/v1/chat/completions."""
        return await self._reply(request, chat=True)

    async def models(self, request: Request) -> Response:
        """/v1/models: the one that there is."""
        return self.json({"object": "list", "data": [self._described()]})

    async def model(self, request: Request) -> Response:
        """/v1/models/{name}."""
        self._check_model(request.path_params["name"])
        return self.json(self._described())

    async def health(self, request: Request) -> Response:
        """/health: whether requests are taken."""
        state = "failed" if self.loop.failure else "closing" if self.loop.closing else "ok"
        return self.json({"status": state}, status=200 if state == "ok" else 503)

    async def counts(self, request: Request) -> Response:
        """/metrics."""
        text, kind = self.metrics.text()
        return self.respond(text, kind)

    async def refuse(self, request: Request, error: Exception) -> Response:
        """What an error of nanort's is over HTTP."""
        assert isinstance(error, NanortError)
        status, body = refusal(error)
        headers = {"retry-after": str(self.loop.retry_seconds)} if status in (429, 503) else {}
        if status in (408, 413):  # more may come of the body, which nobody reads
            headers["connection"] = "close"
        return self._refused(body, status, headers)

    async def no_route(self, request: Request, error: Any) -> Response:
        """A path or a method that there is not."""
        message = f"there is no {request.method} {request.url.path!r:.200}: see /v1/models"
        return self._refused(error_body(message, code="unknown_url"), error.status_code, error.headers or {})

    async def gone(self, request: Request, error: Exception) -> Response:
        """A client that went away while it sent its body: nobody reads this."""
        return self._refused(error_body("the client went away"), 400, {})

    async def fail(self, request: Request, error: Exception) -> Response:
        """A fault of the server's own, whose trace uvicorn logs."""
        return self._refused(error_body("the server failed: its log says where", kind="server_error"), 500, {})

    def json(self, data: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
        """A response of JSON, in ASCII whatever the texts are."""
        return self.respond(json.dumps(data).encode(), "application/json", status, headers)

    def respond(self, content: bytes, kind: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
        """A response in one piece."""
        response: Response = self._response(content, status, headers, kind)
        return response

    def _refused(self, body: dict[str, Any], status: int, headers: dict[str, str]) -> Response:
        self.metrics.refused(status)
        return self.json(body, status, headers)

    def _described(self) -> dict[str, Any]:
        return {"id": self._name, "object": "model", "created": 0, "owned_by": "nanort"}

    def _check_model(self, name: str) -> None:
        if name != self._name:
            raise ApiError(
                f"there is no model {name!r:.80}: this server has {self._name!r}",
                param="model", status=404, code="model_not_found",
            )  # fmt: skip  # what it is about, in one line

    async def _reply(self, request: Request, *, chat: bool) -> Answering:
        try:
            body = await asyncio.wait_for(self._body(request), BODY_SECONDS)
        except asyncio.TimeoutError:
            raise ApiError(f"the body took more than {BODY_SECONDS:g} s: send it at once", status=408) from None
        # Tokenising a long prompt takes a while, in which other streams go on.
        return await asyncio.to_thread(self._understood, body, chat)

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which a web page of another origin cannot send without asking
            raise ApiError(f"the body is {kind!r:.80}: send Content-Type: application/json", status=415)
        declared = int(request.headers.get("content-length", "0"))
        body, size = bytearray(), 0
        if declared <= READ_BYTES:
            async for chunk in request.stream():
                size += len(chunk)
                if size > READ_BYTES:
                    break
                if size <= self._body_bytes:
                    body += chunk
        if max(declared, size) > self._body_bytes:
            raise ApiError(f"the body has more than {self._body_bytes} bytes: shorten the prompt", status=413)
        return bytes(body)

    def _understood(self, body: bytes, chat: bool) -> Answering:
        ask = parse(body, chat=chat)
        self._check_model(ask.model)
        tokenizer, field = self.llm.tokenizer, "messages" if ask.chat else "prompt"
        try:
            if ask.chat:
                prompts = [tokenizer.encode(tokenizer.chat(list(ask.messages)), special=True)]
            else:
                prompts = [tokenizer.encode(text) if isinstance(text, str) else list(text) for text in ask.prompts]
        except RequestError as error:
            raise ApiError(str(error), param=field) from error
        if len(prompts) > self._queue_limit:  # it would be told to come again for ever
            raise ApiError(f"{field} has {len(prompts)} prompts, {self._queue_limit} may wait: give fewer", param=field)
        asked = [(prompt, ask.params(self._room(prompt, ask, field))) for prompt in prompts]
        return Answering(self.loop, ask, asked, tokenizer.inside, self.metrics.refused)

    def _room(self, prompt: list[int], ask: Ask, field: str) -> int:
        """How many tokens can follow a prompt."""
        if not prompt:
            raise ApiError(f"{field} is empty: give at least one token", param=field)
        if (highest := max(prompt)) >= self.llm.config.vocab:
            raise ApiError(f"{field} has token {highest}, the vocabulary has {self.llm.config.vocab}", param=field)
        engine = self.llm.engine
        most = min(engine.max_tokens, (engine.cache.pages - 1) * engine.cache.page_size)
        wanted = ask.max_tokens or 1
        if len(prompt) + wanted > most:
            raise ApiError(
                f"{field} has {len(prompt)} tokens and {wanted} shall follow, {most} fit: shorten it, or ask for fewer",
                param=field, code="context_length_exceeded",
            )  # fmt: skip  # what it is about, in one line
        return most - len(prompt)
