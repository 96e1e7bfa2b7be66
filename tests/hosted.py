"""A server in a thread of this process, on a free port of the loopback interface."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai
import uvicorn

from nanort.http.loop import EngineLoop
from nanort.http.server import make_app
from nanort.serving.generate import LLM

PATIENCE = 60.0
"""Seconds after which what should have happened has not."""


@dataclass(frozen=True)
class Hosted:
    """Where a server listens, and the loop behind it."""

    port: int
    loop: EngineLoop
    llm: LLM

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)

    def raw(self, data: bytes) -> bytes:
        """All that comes back for these bytes, until the server closes the connection."""
        with self.connected() as connection:
            connection.sendall(data)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            yield connection

    def ask(self, method: str, path: str, **body: Any) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON (or text) of the answer."""
        got = self.raw(http(method, path, json.dumps(body).encode() if body else b""))
        head, _, content = got.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        told = json.loads(content) if "json" in headers.get("content-type", "") else content.decode()
        return int(status.split()[1]), headers, told

    def drain(self, seconds: float) -> Future[None]:
        """The loop's, begun in its thread."""
        return asyncio.run_coroutine_threadsafe(self.loop.drain(seconds), self.loop._loop)

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs, and every page is free again."""
        engine = self.llm.engine
        return not engine.busy and self.loop.load.waiting + self.loop.load.running + engine.cache.used == 0


def http(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    """A request after which the connection is closed."""
    given = headers or ("Content-Type: application/json",)
    lines = (f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(body)}", *given)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def until(true: Callable[[], bool]) -> None:
    """Returns once ``true()`` is."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() < began + PATIENCE, "it never happened"
        time.sleep(0.01)


@contextmanager
def hosted(llm: LLM, **options: Any) -> Iterator[Hosted]:
    app = make_app(llm, name="tiny", **options)
    server = uvicorn.Server(uvicorn.Config(app, http="h11", ws="none", lifespan="on", log_level="critical"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        until(lambda: server.started)
        yield Hosted(listener.getsockname()[1], app.state.loop, llm)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()
