"""The pages of a KV cache: which request holds which, counted exactly; host bookkeeping only."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from nanort.errors import CacheFullError, RequestError


class PagedKVCache:
    """Pages handed to requests and taken back; page 0 is scratch, where padded rows write, and belongs to nobody.

    >>> cache = PagedKVCache(pages=4, page_size=16)
    >>> cache.reserve("a", tokens=17)
    >>> cache.slots("a", 15, 18)
    [31, 32, 33]
    >>> cache
    PagedKVCache(2 of 3 pages of 16 tokens used by 1 request)
    """

    def __init__(self, pages: int, page_size: int) -> None:
        if pages < 2 or page_size < 1:
            raise CacheFullError(
                f"a KV cache of {pages} pages of {page_size} tokens holds nothing: "
                "page 0 is scratch, so give at least 2 pages of at least 1 token"
            )
        self.pages = pages
        self.page_size = page_size
        self._free = list(range(pages - 1, 0, -1))
        self._held: dict[Hashable, list[int]] = {}

    @property
    def free(self) -> int:
        """Pages that nobody holds, the scratch page not counted."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Pages that requests hold."""
        return self.pages - 1 - self.free

    def reserve(self, request: Hashable, tokens: int) -> None:
        """Give ``request`` what it lacks for ``tokens`` tokens in all; all or nothing."""
        if tokens < 0:
            raise RequestError(f"request {request!r} asks for {tokens} tokens: ask for 0 or more")
        held = self._held.get(request, [])
        lacking = max(0, -(-tokens // self.page_size) - len(held))
        if lacking > self.free:
            raise CacheFullError(
                f"request {request!r} asks for {lacking} more pages ({tokens} tokens), {self.free} of {self.pages - 1} "
                "are free: release a request, wait for one to end, or make the cache larger"
            )
        self._held[request] = held + [self._free.pop() for _ in range(lacking)]

    def table(self, requests: Sequence[Hashable], width: int) -> torch.Tensor:
        """The page table of ``requests``: int32, (len(requests), width), padded with the scratch page."""
        rows = [self._pages_of(request) for request in requests]
        for request, row in zip(requests, rows, strict=True):
            if len(row) > width:
                raise RequestError(f"request {request!r} holds {len(row)} pages, a table row {width}: widen it")
        padded = [row + [0] * (width - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.int32).view(len(rows), width)

    def slots(self, request: Hashable, start: int, stop: int) -> list[int]:
        """The flat slots, page * page_size + offset, of the tokens from ``start`` up to ``stop``."""
        pages = self._pages_of(request)
        if not 0 <= start <= stop <= len(pages) * self.page_size:
            raise RequestError(
                f"request {request!r} has no slots for tokens {start} to {stop}: its {len(pages)} pages hold "
                f"{len(pages) * self.page_size} tokens; reserve them first"
            )
        size = self.page_size
        return [pages[token // size] * size + token % size for token in range(start, stop)]

    def release(self, request: Hashable) -> None:
        """Take all pages of ``request`` back and forget it."""
        self._free.extend(reversed(self._pages_of(request)))
        del self._held[request]

    def _pages_of(self, request: Hashable) -> list[int]:
        pages = self._held.get(request)
        if pages is None:
            raise RequestError(f"request {request!r} is not in the KV cache: never reserved, or already released")
        return pages

    def __repr__(self) -> str:
        requests = f"{len(self._held)} request{'' if len(self._held) == 1 else 's'}"
        return f"PagedKVCache({self.used} of {self.pages - 1} pages of {self.page_size} tokens used by {requests})"
