"""Whether the world finds mistakes: each of these, made in serving or below it, shows within some seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nanort.chaos.run import chaos
from nanort.runtime import bank, cuda, queues
from nanort.serving.admission import Admission
from nanort.serving.batching import Batch, Rows
from nanort.serving.beside import Besides
from nanort.serving.engine import Engine
from nanort.serving.ferry import Ferry
from nanort.serving.host_store import HostStore
from nanort.serving.kv_cache import PagedKVCache
from nanort.serving.page_pool import PagePool
from nanort.serving.requests import Request

SEEDS = 60


def nothing(*_: object, **__: object) -> None:
    """In place of something that matters."""


def shrunk(here: bank.Bank[Any, Any]) -> None:
    while here.capacity is not None and len(here._values) > here.capacity:
        here._values.popitem(last=False)


def used(pool: PagePool, page: int) -> None:
    """Forgets that a page in use has one use more."""
    pool._idle.pop(page, None)
    pool._uses[page] = max(pool._uses[page], 1)


def unheld(ferry: Ferry, nbytes: int) -> object:
    return ferry._room(nbytes, host=True)


def reached(ferry: Ferry, event: int) -> None:
    assert ferry._driver is not None
    ferry._driver.synchronize(event)


def recovered(backend: cuda.CudaBackend, error: BaseException) -> None:
    """Lets the next run begin while what was queued still runs."""
    backend._loose = False


def joining(*_: object) -> Iterator[Callable[[], object]]:
    return iter(())


def ended(engine: Engine, request: Request, finish: str, honest: Any = Engine._end) -> None:
    """Tells of every end by length that it was one by a stop token."""
    honest(engine, request, "stop" if finish == "cancelled" else finish)


def rows(batch: Batch, cache: PagedKVCache, width: int, honest: Any = Rows.of) -> Rows:
    """Puts the last row of a step where the one before it belongs."""
    found = honest(batch, cache, width)
    slots = found.columns["slots"]
    slots[-1:] = slots[-2:-1] if len(slots) > 1 else slots[-1:]
    return found  # type: ignore[no-any-return]  # honest is anything


MISTAKES: dict[str, tuple[object, str, object]] = {
    "pages are read before they are loaded": (PagedKVCache, "ready", lambda *_: True),
    "a use of a page is forgotten": (PagePool, "use", used),
    "a chunk goes on without its requests": (Besides, "drop", nothing),
    "two rows write to one slot": (Rows, "of", staticmethod(rows)),
    "a client that left is told that its reply is complete": (Engine, "_end", ended),
    "seats are not given back": (Admission, "drop", nothing),
    "inputs are freed while they are copied": (Ferry, "_pinned", unheld),
    "events are not destroyed": (Ferry, "_reach", reached),
    "pages are not stored": (HostStore, "keep", nothing),
    "the caller goes on before a run has ended": (cuda.CudaBackend, "_hand_over", nothing),
    "the next run begins while a failed one goes on": (cuda.CudaBackend, "_recover", recovered),
    "streams are not joined": (queues, "joining", joining),
    "executors are dropped, not closed": (bank.Bank, "_shrink", shrunk),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*MISTAKES[mistake])
    found = next((report for report in chaos(range(SEEDS), requests=8) if report.breach), None)
    assert found is not None, f"{SEEDS} worlds held"
    print(found.seed, found.breach)
