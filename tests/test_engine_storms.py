"""The engine's bookkeeping judged by a device that tells where its numbers come from; more in tests/verify."""

from __future__ import annotations

from collections import Counter

import pytest

from nanort.serving.batching import Batch
from nanort.serving.beside import Besides
from nanort.serving.kv_cache import PagedKVCache
from nanort.serving.page_pool import PagePool
from storms import Storm, drawn
from symbolic_device import after, reply


@pytest.mark.parametrize("fails", [0.0, 0.05])
def test_every_reply_is_computed_from_every_token_before_it(fails: float) -> None:
    happened = Counter[str]()
    for seed in range(25):
        happened.update(drawn(seed, 150, fails=fails).run())
    print(dict(happened))
    assert min(happened[name] for name in ("preempted", "shared", "loads", "saves", "besides", "cancelled")) > 0
    assert (happened["failures"] > 0) == (happened["error"] > 0) == (fails > 0)


def test_requests_in_a_cache_that_holds_one_of_them() -> None:
    happened = Storm(seed=3, count=60, pages=41, page_size=1, host_pages=90, options={"preempt": "swap"}).run()
    assert happened["preempted"] > 0
    assert happened["loads"] > 0


# The judge itself: what it does not forgive.


def _twice(pool: PagePool, page: int) -> None:
    """Forgets that a page in use has one use more."""
    pool._idle.pop(page, None)
    pool._uses[page] = max(pool._uses[page], 1)


MISTAKES = [
    (PagedKVCache, "ready", lambda *_: True),
    (PagePool, "use", _twice),
    (Batch, "filled", property(lambda batch: batch.shares)),
    (Besides, "drop", lambda *_: None),
]


@pytest.mark.parametrize(("owner", "name", "mistake"), MISTAKES, ids=[name for _, name, _ in MISTAKES])
def test_a_mistake_shows(owner: type, name: str, mistake: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, name, mistake)
    failed = 0
    for seed in range(25):
        try:
            drawn(seed, 120).run()
        except Exception:  # noqa: BLE001  # whatever notices it first
            failed += 1
            break
    assert failed


def test_a_reply_is_that_of_its_prompt_alone() -> None:
    tokens = reply([5, 6], 4)
    assert reply([5, 6, *tokens[:2]], 2) == tokens[2:]
    assert after(after(1, 5), 6) != after(after(1, 6), 5)
