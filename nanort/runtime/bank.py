"""Bank: the values used last, of those that are dear to make and to hold, such as captured graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from typing import Generic, Protocol, TypeVar

from nanort.errors import CapacityError


class Held(Protocol):
    """What a bank keeps."""

    @property
    def memory_bytes(self) -> int:
        """Bytes that it holds until it is closed, always the same."""
        ...

    def close(self) -> None:
        """Gives them back."""
        ...


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Held)


class Bank(Generic[K, V]):
    """Values by key; to keep within bounds it closes those used least lately, never the one asked for last.

    Args:
        capacity: values that it keeps; None for any number.
        budget: bytes that they may hold together; None for any number. While a value is made, it comes on top.

    Raises:
        CapacityError: these bounds leave room for nothing.
    """

    def __init__(self, *, capacity: int | None = None, budget: int | None = None) -> None:
        if any(bound is not None and not bound >= 1 for bound in (capacity, budget)):
            raise CapacityError(f"a bank of {capacity=} and {budget=} bytes holds nothing: give at least 1 of each")
        self.capacity = capacity
        self.budget = budget
        self._values: OrderedDict[K, V] = OrderedDict()  # the one used last comes last

    @property
    def items(self) -> tuple[tuple[K, V], ...]:
        """Keys and values, the one used last at the end."""
        return tuple(self._values.items())

    @property
    def memory_bytes(self) -> int:
        """Bytes that all values hold together."""
        return sum(value.memory_bytes for value in self._values.values())

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of ``key``, made now if it is not there; nothing is closed before that has succeeded.

        Raises:
            CapacityError: it would not fit if it were alone, so it was closed, and the others are still there.
        """
        if key not in self._values:
            value = make()
            if self.budget is not None and value.memory_bytes > self.budget:
                value.close()
                raise CapacityError(
                    f"{key} takes {value.memory_bytes:,} bytes, the bank may hold {self.budget:,}: raise its budget to "
                    f"at least {value.memory_bytes}"
                )
            self._values[key] = value
            self._shrink()
        self._values.move_to_end(key)
        return self._values[key]

    def close(self) -> None:
        """Closes all values, those after one that fails to close as well."""
        with ExitStack() as closing:
            while self._values:
                closing.callback(self._values.popitem()[1].close)

    def _shrink(self) -> None:
        while (self.capacity is not None and len(self._values) > self.capacity) or (
            self.budget is not None and self.memory_bytes > self.budget
        ):
            self._values.popitem(last=False)[1].close()
