"""PagePool: pages counted by their uses, and found by the blocks of tokens that they hold; host bookkeeping only."""

from __future__ import annotations

from collections import Counter, OrderedDict

from nanort.errors import InternalError


class PagePool:
    """Pages 1 to ``pages`` - 1, each used so many times; page 0 is scratch and belongs to nobody.

    A page whose content has a name, its *block*, keeps it when its last use ends, and is found by it until it is taken
    for something else. Pages without one are taken first, then those that were used least lately.

    >>> pool = PagePool(pages=3)
    >>> page = pool.take()
    >>> pool.share(page, b"block")
    >>> pool.give_up(page)
    >>> pool.free, pool.find(b"block") == page
    (2, True)
    """

    def __init__(self, pages: int) -> None:
        self._uses = [0] * pages
        self._blank = list(range(pages - 1, 0, -1))  # without uses, without a block
        self._idle: OrderedDict[int, None] = OrderedDict()  # without uses, with a block; the one used last comes last
        self._page: dict[bytes, int] = {}
        self._block: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        """Pages without uses."""
        return len(self._blank) + len(self._idle)

    def uses(self, page: int) -> int:
        """How many uses the page has."""
        return self._uses[page]

    def idle(self, page: int) -> bool:
        """Whether the page has a block and no use."""
        return page in self._idle

    def find(self, block: bytes) -> int | None:
        """The page that holds the block; None where none does."""
        return self._page.get(block)

    def share(self, page: int, block: bytes) -> None:
        """Lets a page in use be found by its block, unless another page has the same: then this one stays private."""
        if block not in self._page:
            self._page[block], self._block[page] = page, block

    def take(self) -> int:
        """A free page, with one use and without its block."""
        if self._blank:
            page = self._blank.pop()
        else:
            page, _ = self._idle.popitem(last=False)
            del self._page[self._block.pop(page)]
        self._uses[page] = 1
        return page

    def use(self, page: int) -> None:
        """One use more, of a page that is in use or has a block."""
        self._idle.pop(page, None)
        self._uses[page] += 1

    def give_up(self, page: int) -> None:
        """One use less; without any the page is free."""
        self._uses[page] -= 1
        if self._uses[page]:
            return
        if page in self._block:
            self._idle[page] = None
        else:
            self._blank.append(page)

    def check(self, uses: Counter[int]) -> None:
        """Refuses accounts that do not balance, or that know of other uses.

        Raises:
            InternalError: a page is lost, in two places, or used without a user.
        """
        unused = [page for page in range(1, len(self._uses)) if not uses[page]]
        sound = (
            self._uses == [uses[page] for page in range(len(self._uses))]
            and sorted([*self._blank, *self._idle]) == unused
            and set(self._idle) == self._block.keys() & set(unused)
            and self._page == {block: page for page, block in self._block.items()}
            and not self._uses[0]
        )
        if not sound:
            raise InternalError(f"the pages of {self!r} do not balance: a mistake of nanort, please report it")

    def __repr__(self) -> str:
        return f"PagePool({self.free} of {len(self._uses) - 1} pages free)"
