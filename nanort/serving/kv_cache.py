"""PagedKVCache: which request holds which pages, what of them is shared, and what moves to and from host memory."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import torch

from nanort.errors import CacheFullError, RequestError
from nanort.serving.host_tier import Copies, HostTier
from nanort.serving.page_pool import PagePool

Loads = tuple[tuple[int, int], ...]
"""Copies from the host: (slot, page)."""

Saves = tuple[tuple[int, int], ...]
"""Copies to the host: (page, slot)."""


@dataclass(slots=True)
class _Held:
    """What one request holds: its pages in order, the names of its first blocks, and the last page it waits for."""

    pages: array[int] = field(default_factory=lambda: array("i"))
    blocks: list[bytes] = field(default_factory=list)
    awaited: int = 0


class PagedKVCache:
    """Pages of a KV cache by request, counted exactly; host bookkeeping only.

    A page that is whole is a *block*, named by a hash of its tokens and of the block before it. Requests that begin
    with the same blocks hold the same pages. A page that nobody holds any more keeps its block, and is found by it,
    until the page is needed for something else; those used least lately go first. Page 0 is scratch, where padded rows
    write, and belongs to nobody.

    With ``host_pages`` a request can leave its blocks in host memory when it goes (:meth:`release`), and whoever
    begins with them later gets them back (:meth:`admit`). Pages move with the batches that are launched: each takes
    what :meth:`next_loads` and :meth:`next_saves` say, and tells :meth:`collected` when it has run, or :meth:`lost`
    when it failed. Batches run in the order of their launches, each after the last has ended. Inside one nothing is
    ordered, so no row of it touches a page that it loads, and none writes one that it saves.

    Args:
        pages: how many there are, the scratch page included.
        page_size: tokens a page.
        host_pages: pages that fit in host memory besides; 0 for none.
        sharing: whether blocks are found by their tokens; without it no page is shared, kept, or saved.

    >>> cache = PagedKVCache(pages=6, page_size=2)
    >>> cache.admit("a", tokens=[7, 8, 9], room=4)
    0
    >>> cache.publish("a", [7, 8, 9])  # when they stand in its pages
    >>> cache.admit("b", tokens=[7, 8, 5], room=4)
    2
    >>> cache.slots("a", 0, 4), cache.slots("b", 0, 4)
    ([2, 3, 4, 5], [2, 3, 6, 7])
    >>> cache
    PagedKVCache(3 of 5 pages of 2 tokens used by 2 requests)

    Raises:
        CacheFullError: it would hold nothing.
        RequestError: host memory without sharing.
    """

    def __init__(self, pages: int, page_size: int, *, host_pages: int = 0, sharing: bool = True) -> None:
        if pages < 2 or page_size < 1:
            raise CacheFullError(
                f"a KV cache of {pages} pages of {page_size} tokens holds nothing: "
                "page 0 is scratch, so give at least 2 pages of at least 1 token"
            )
        if host_pages and not sharing:
            raise RequestError(f"{host_pages=} with sharing=False: pages on the host are found by what they share")
        self.pages = pages
        self.page_size = page_size
        self.host_pages = host_pages
        self.sharing = sharing
        self.tier = HostTier(host_pages)
        self._pool = PagePool(pages)  # a page is used by the requests that hold it and by the copies that need it
        self._held: dict[Hashable, _Held] = {}
        self._loads, self._saves = Copies(), Copies()

    @property
    def free(self) -> int:
        """Pages that can be had now; they may still hold blocks that nobody uses."""
        return self._pool.free

    @property
    def used(self) -> int:
        """Pages that requests hold, or that wait to be saved."""
        return self.pages - 1 - self.free

    @property
    def leaving(self) -> int:
        """Pages that are used only until they are saved."""
        return sum(self._pool.uses(page) == 1 for page, _ in self._saves.all)

    @property
    def host_used(self) -> int:
        """Pages of host memory that hold a block, or are about to."""
        return self.tier.used

    # Requests.

    def admit(self, request: Hashable, tokens: Sequence[int], room: int) -> int:
        """How many of a new request's ``tokens`` need not be computed, and pages for ``room`` tokens in all.

        These are its first blocks, up to the last but one token, as far as the device or the host has them. Those of
        the host come with the next loads; see :meth:`ready`.

        Raises:
            CacheFullError: there are not so many pages; nothing has changed.
            RequestError: the request has pages already.
        """
        if request in self._held:
            raise RequestError(f"request {request!r} has pages already: reserve more, or release it first")
        blocks = self._shared(tokens, min(len(tokens) - 1, room))
        pages = [self._pool.find(block) or 0 for block in blocks]
        revived = sum(map(self._pool.idle, pages))
        self._require(request, room, held=sum(page > 0 for page in pages), free=self.free - revived)
        for page in filter(None, pages):
            self._pool.use(page)
        held = self._held[request] = _Held(blocks=blocks)
        for block, page in zip(blocks, pages, strict=True):
            held.pages.append(page or self._load(block))
            held.awaited = held.awaited if page else held.pages[-1]
        self._grow(held, room)
        self.tier.touch(reversed(blocks))
        return len(blocks) * self.page_size

    def ready(self, request: Hashable) -> bool:
        """Whether all that it waits for has gone with batches before the next one, where it may then be computed."""
        return self._of(request).awaited not in self._loads

    def reserve(self, request: Hashable, tokens: int) -> None:
        """Gives ``request`` what it lacks for ``tokens`` tokens in all; all or nothing.

        Raises:
            CacheFullError: there are not so many pages; nothing has changed.
        """
        held = self._held.get(request) or _Held()
        self._require(request, tokens, held=len(held.pages), free=self.free)
        self._held[request] = held
        self._grow(held, tokens)

    def publish(self, request: Hashable, tokens: Sequence[int]) -> None:
        """Lets others share the blocks of ``tokens``, which a batch that was *collected* has put in its pages.

        Only blocks that are new are read of ``tokens``.
        """
        held, size = self._of(request), self.page_size
        if len(tokens) > len(held.pages) * size:
            raise RequestError(
                f"request {request!r} has {len(held.pages)} pages, which do not hold {len(tokens)} tokens"
            )
        if not self.sharing:
            return
        for i in range(len(held.blocks), len(tokens) // size):
            held.blocks.append(_name(held.blocks[-1] if i else b"", tokens[i * size : (i + 1) * size]))
            self._pool.share(held.pages[i], held.blocks[i])

    def release(self, request: Hashable, *, save: bool = False) -> None:
        """Takes all pages of ``request`` back and forgets it.

        With ``save`` its published blocks go to host memory with the next saves, as far as it holds them; those pages
        stay used until then.
        """
        held = self._of(request)
        del self._held[request]
        if held.awaited in self._loads:
            for page in filter(self._loads.__contains__, held.pages):
                self.tier.done(self._loads.drop(page))
                self._pool.give_up(page)
        if save:
            self._save(held.blocks[: self.tier.slots])
        self.tier.touch(reversed(held.blocks))
        for page in reversed(held.pages):  # so that the end of a text is forgotten before its beginning
            self._pool.give_up(page)

    # What batches carry.

    def next_loads(self, most: int) -> Loads:
        """Up to ``most`` copies from the host, for the batch that is launched next."""
        return tuple((slot, page) for page, slot in self._loads.next(most))

    def next_saves(self, most: int) -> Saves:
        """Up to ``most`` copies to the host, for the batch that is launched next."""
        return tuple(self._saves.next(most))

    def collected(self, loads: Loads, saves: Saves) -> None:
        """The batch that carried these has run: what it moved is there for all."""
        self._end(loads, saves)
        for slot, page in loads:
            self._pool.share(page, self.tier.block(slot))
            self._pool.give_up(page)
        for page, slot in saves:
            self.tier.filled(slot)
            self._pool.give_up(page)

    def lost(self, loads: Loads, saves: Saves) -> tuple[Hashable, ...]:
        """The batch that carried these failed: the requests that hold pages which were to be loaded.

        Their blocks are not there: release them, and admit them anew.
        """
        self._end(loads, saves)
        lacking = {page for _, page in loads}
        for page in lacking:
            self._pool.give_up(page)
        for page, slot in saves:
            self.tier.spoiled(slot)
            self._pool.give_up(page)
        return tuple(request for request, held in self._held.items() if not lacking.isdisjoint(held.pages))

    def _end(self, loads: Loads, saves: Saves) -> None:
        self._loads.end((page, slot) for slot, page in loads)
        self._saves.end(saves)
        for slot, _ in loads:
            self.tier.done(slot)

    # Where tokens lie.

    def table(self, requests: Sequence[Hashable], width: int) -> torch.Tensor:
        """The page table of ``requests``: int32, (len(requests), width), padded with the scratch page."""
        table = array("i")
        for request in requests:
            row = self._of(request).pages
            if len(row) > width:
                raise RequestError(f"request {request!r} holds {len(row)} pages, a table row {width}: widen it")
            table.extend(row)
            table.frombytes(bytes((width - len(row)) * table.itemsize))
        if not table:
            return torch.zeros(len(requests), width, dtype=torch.int32)
        return torch.frombuffer(table, dtype=torch.int32).view(len(requests), width)

    def slots(self, request: Hashable, start: int, stop: int) -> list[int]:
        """The flat slots, page * page_size + offset, of the tokens from ``start`` up to ``stop``."""
        pages, size = self._of(request).pages, self.page_size
        if not 0 <= start <= stop <= len(pages) * size:
            raise RequestError(
                f"request {request!r} has no slots for tokens {start} to {stop}: its {len(pages)} pages hold "
                f"{len(pages) * size} tokens; reserve them first"
            )
        return [pages[token // size] * size + token % size for token in range(start, stop)]

    # Pages.

    def _of(self, request: Hashable) -> _Held:
        held = self._held.get(request)
        if held is None:
            raise RequestError(f"request {request!r} is not in the KV cache: never reserved, or already released")
        return held

    def _require(self, request: Hashable, tokens: int, *, held: int, free: int) -> None:
        if tokens < 0:
            raise RequestError(f"request {request!r} asks for {tokens} tokens: ask for 0 or more")
        if (lacking := -(-tokens // self.page_size) - held) > free:
            raise CacheFullError(
                f"request {request!r} asks for {lacking} more pages ({tokens} tokens), {free} of {self.pages - 1} "
                "are free: release a request, wait for one to end, or make the cache larger"
            )

    def _grow(self, held: _Held, tokens: int) -> None:
        while len(held.pages) * self.page_size < tokens:
            held.pages.append(self._pool.take())

    # Blocks.

    def _shared(self, tokens: Sequence[int], most: int) -> list[bytes]:
        """The first blocks of ``tokens``, of at most so many tokens, that the device or the host has."""
        blocks: list[bytes] = []
        size, parent = self.page_size, b""
        for i in range(most // size if self.sharing else 0):
            parent = _name(parent, tokens[i * size : (i + 1) * size])
            if self._pool.find(parent) is None and self.tier.find(parent) is None:
                break
            blocks.append(parent)
        return blocks

    def _load(self, block: bytes) -> int:
        """A new page, to which the block will be loaded."""
        slot, page = self.tier.find(block), self._pool.take()
        assert slot is not None  # it was found a moment ago, and nothing has been taken from the tier since
        self._pool.use(page)
        self.tier.read(slot)
        self._loads.add(page, slot)
        return page

    def _save(self, blocks: list[bytes]) -> None:
        """Takes slots for those of the blocks that the host does not have, from the first to the last."""
        self.tier.touch(reversed(blocks))  # none of them makes room for another
        for block in blocks:
            if block in self.tier:
                continue
            page = self._pool.find(block)
            slot = None if page is None else self.tier.take(block)
            if page is None or slot is None:
                return  # what follows could not be found without it
            self._pool.use(page)
            self._saves.add(page, slot)

    def check(self) -> None:
        """Refuses accounts that do not balance; tests call it after every step.

        Raises:
            InternalError: pages or slots are lost, in two places, or used without a user.
        """
        uses = Counter(page for held in self._held.values() for page in held.pages)
        uses.update(page for copies in (self._loads, self._saves) for page, _ in copies.all)
        self._pool.check(uses)
        self.tier.check(written=(slot for _, slot in self._saves.all), read=(slot for _, slot in self._loads.all))

    def __repr__(self) -> str:
        requests = f"{len(self._held)} request{'' if len(self._held) == 1 else 's'}"
        return f"PagedKVCache({self.used} of {self.pages - 1} pages of {self.page_size} tokens used by {requests})"


def _name(parent: bytes, tokens: Iterable[int]) -> bytes:
    """The name of a block; prompts are hostile, and whoever could make two of one name would read the other's text."""
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=32).digest()
