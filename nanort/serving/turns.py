"""Turns: one engine for callers who stream from it side by side, in one thread or in several."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from threading import Lock

from nanort.errors import ClosedError, NanortError
from nanort.serving.engine import Engine
from nanort.serving.requests import Output, Request
from nanort.serving.sampling import SamplingParams


class Turns:
    """Who waits for outputs takes a turn and steps the engine; what comes out for others is put into their inboxes."""

    def __init__(self, engine: Engine) -> None:
        self.closed = False
        self._engine = engine
        self._turn = Lock()
        self._inboxes: dict[Request, deque[Output]] = {}
        self._dropped = deque[Request]()

    @property
    def expected(self) -> int:
        """Requests whose outputs somebody still waits for."""
        return len(self._inboxes)

    def submit(self, asked: Sequence[tuple[Sequence[int], SamplingParams]]) -> list[Request]:
        """Requests in the queue: all that are asked for, or none where one is refused.

        Raises:
            ClosedError: it is closed; and what :meth:`Engine.submit` raises.
        """
        requests = list[Request]()
        try:
            with self._turn:
                if self.closed:
                    raise ClosedError("this LLM is closed: load it again")
                for index, (prompt, params) in enumerate(asked):
                    requests.append(self._engine.submit(prompt, params, id=f"prompt {index}"))
                self._inboxes.update({request: deque() for request in requests})
        except NanortError:
            self.cancel(requests)
            raise
        return requests

    def outputs(self, requests: Sequence[Request]) -> Iterator[tuple[int, Output]]:
        """What comes out for these requests, each with its place among them, until they have ended.

        Raises:
            ClosedError: it was closed before that; and what a request failed of.
        """
        numbers = {request: index for index, request in enumerate(requests)}
        going = set(requests)
        try:
            while going:
                for request in requests:
                    inbox = self._inboxes[request]
                    while inbox:
                        output = inbox.popleft()
                        if request.error is not None:
                            raise request.error
                        if output.finish is not None:
                            going.discard(request)
                        yield numbers[request], output
                with self._turn:
                    if going and not any(self._inboxes[request] for request in requests):  # another's turn may do
                        if self.closed:
                            raise ClosedError("this LLM was closed before all tokens were read: read them before")
                        for output in self._engine.step():
                            self._inboxes[output.request].append(output)
                self.cancel(())  # what was given up meanwhile
        finally:
            self.cancel(requests)

    def cancel(self, requests: Sequence[Request]) -> None:
        """Gives requests up, or leaves that to whose turn it is: a finalizer may come in the middle of a step."""
        self._dropped.extend(requests)
        while self._dropped and self._turn.acquire(blocking=False):
            try:
                while self._dropped:
                    request = self._dropped.popleft()
                    self._engine.cancel(request)
                    self._inboxes.pop(request, None)
            finally:
                self._turn.release()

    def close(self) -> None:
        """Closes the engine, after the step that runs."""
        with self._turn:
            if not self.closed:
                self.closed = True
                self._engine.close()
