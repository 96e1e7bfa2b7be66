"""HostTier: which blocks of a KV cache lie in which slots of host memory, and Copies, what moves to or from them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from nanort.errors import CacheFullError, InternalError


class HostTier:
    """Slots of host memory, one page each, and the blocks that they hold; the block used least lately makes room.

    A slot that a copy still reads or writes keeps its block.

    >>> tier = HostTier(slots=1)
    >>> slot = tier.take(b"block")
    >>> tier.find(b"block") is None  # it is still being written
    True
    >>> tier.filled(slot)
    >>> tier.find(b"block"), tier.used
    (0, 1)
    """

    def __init__(self, slots: int) -> None:
        if slots < 0:
            raise CacheFullError(f"a host tier of {slots} pages: give 0 for none, or more")
        self.slots = slots
        self._free = list(range(slots - 1, -1, -1))
        self._blocks: OrderedDict[bytes, int] = OrderedDict()  # the one used last comes last
        self._keys: dict[int, bytes] = {}
        self._written: set[int] = set()
        self._readers: Counter[int] = Counter()

    @property
    def used(self) -> int:
        """Slots that hold a block, or are about to."""
        return len(self._blocks)

    def __contains__(self, block: object) -> bool:
        return block in self._blocks

    def find(self, block: bytes) -> int | None:
        """The slot that holds the block; None where none does, or not yet."""
        slot = self._blocks.get(block)
        return None if slot in self._written else slot

    def block(self, slot: int) -> bytes:
        """What the slot holds."""
        return self._keys[slot]

    def touch(self, blocks: Iterable[bytes]) -> None:
        """Remembers that those of the ``blocks`` that it has were used, the last one last."""
        for block in blocks:
            if block in self._blocks:
                self._blocks.move_to_end(block)

    def take(self, block: bytes) -> int | None:
        """A slot to write the block to; None where copies keep all of them busy. It ends with filled or spoiled."""
        slot = self._free.pop() if self._free else self._forget_oldest()
        if slot is not None:
            self._blocks[block], self._keys[slot] = slot, block
            self._written.add(slot)
        return slot

    def filled(self, slot: int) -> None:
        """The block stands in its slot, and is found from now on."""
        self._written.remove(slot)

    def spoiled(self, slot: int) -> None:
        """The block did not come to its slot, which is free again."""
        self._written.remove(slot)
        del self._blocks[self._keys.pop(slot)]
        self._free.append(slot)

    def read(self, slot: int) -> None:
        """A copy from the slot begins, or waits to begin."""
        self._readers[slot] += 1

    def done(self, slot: int) -> None:
        """That copy has ended, or will not be."""
        self._readers[slot] -= 1
        if not self._readers[slot]:
            del self._readers[slot]

    def _forget_oldest(self) -> int | None:
        for block, slot in self._blocks.items():
            if slot not in self._written and slot not in self._readers:
                del self._blocks[block], self._keys[slot]
                return slot
        return None

    def check(self, written: Iterable[int], read: Iterable[int]) -> None:
        """Refuses accounts that do not balance, or do not know of just these copies to and from slots.

        Raises:
            InternalError: they do not.
        """
        held = sorted([*self._free, *self._blocks.values()])
        sound = (
            held == list(range(self.slots))
            and self._keys == {slot: block for block, slot in self._blocks.items()}
            and self._written == set(written) <= set(self._keys)
            and self._readers == Counter(read)
            and self._readers.keys() <= self._keys.keys() - self._written
        )
        if not sound:
            raise InternalError(f"the slots of {self!r} do not balance: a mistake of nanort, please report it")

    def __repr__(self) -> str:
        return f"HostTier({self.used} of {self.slots} slots used)"


class Copies:
    """Copies between pages and slots in one direction: those that wait for a batch, and those under way with one.

    >>> copies = Copies()
    >>> copies.add(page=3, slot=0)
    >>> copies.next(most=2), list(copies.all)
    ([(3, 0)], [(3, 0)])
    >>> copies.end([(3, 0)])
    >>> list(copies.all)
    []
    """

    def __init__(self) -> None:
        self._waiting: dict[int, int] = {}
        self._under_way: dict[int, int] = {}

    @property
    def all(self) -> Iterator[tuple[int, int]]:
        """The (page, slot) of all of them."""
        return chain(self._waiting.items(), self._under_way.items())

    def __contains__(self, page: object) -> bool:
        """Whether a copy of the page waits."""
        return page in self._waiting

    def add(self, page: int, slot: int) -> None:
        """One more, which waits until :meth:`next` gives it to a batch."""
        self._waiting[page] = slot

    def drop(self, page: int) -> int:
        """One that waits is not wanted any more; its slot."""
        return self._waiting.pop(page)

    def next(self, most: int) -> list[tuple[int, int]]:
        """The first ``most`` that wait as (page, slot), which are under way from now on."""
        chosen = list(islice(self._waiting.items(), most))
        for page, slot in chosen:
            del self._waiting[page]
            self._under_way[page] = slot
        return chosen

    def end(self, copies: Iterable[tuple[int, int]]) -> None:
        """These (page, slot) are no longer under way.

        Raises:
            InternalError: one of them was not.
        """
        for page, slot in copies:
            if self._under_way.get(page) != slot:
                raise InternalError(f"a copy of page {page} and slot {slot} has ended that was not under way")
            del self._under_way[page]
