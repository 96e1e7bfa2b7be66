"""Turns: an executor that takes a thread's turns in the thread of its caller, as late as chance has it."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

T = TypeVar("T")


class Turns(Executor):
    """Carries calls out in the order in which they are submitted: some at once, some when they are waited for.

    >>> with Turns(random.Random(0)) as turns:
    ...     turns.submit(pow, 2, 5).result()
    32
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._left = deque[tuple[_Turn, Callable[[], Any]]]()

    def submit(self, fn: Callable[..., T], /, *args: Any, **given: Any) -> Future[T]:
        """Queues a call; it may be carried out right away, with those before it."""
        turn = _Turn(self)
        self._left.append((turn, lambda: fn(*args, **given)))
        while self._left and self._chance.random() < 0.5:
            self.take()
        return turn

    def take(self) -> None:
        """Carries out the first of the calls that are left."""
        turn, call = self._left.popleft()
        if turn.set_running_or_notify_cancel():
            try:
                turn.set_result(call())
            except Exception as error:  # noqa: BLE001  # as a thread would, it tells whoever asks for the result
                turn.set_exception(error)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Carries out what is left, or drops it."""
        for turn, _ in tuple(self._left) if cancel_futures else ():
            turn.cancel()
        while self._left:
            self.take()


class _Turn(Future[Any]):
    """A call, which asking for its result carries out."""

    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self._turns = turns

    def result(self, timeout: float | None = None) -> Any:
        while not self.done():
            self._turns.take()
        return super().result(timeout)
