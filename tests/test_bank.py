from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanort.errors import CapacityError, DeviceMemoryError, DriverError
from nanort.runtime.bank import Bank


class Value:
    """So many bytes, closed once; closing fails if told so."""

    def __init__(self, memory_bytes: int = 1, *, stuck: bool = False) -> None:
        self.memory_bytes, self.stuck = memory_bytes, stuck
        self.closed = False

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        if self.stuck:
            raise DriverError(f"cuGraphExecDestroy of {self.memory_bytes} failed", call="destroy_graph")


def kept(bank: Bank[str, Value]) -> str:
    """The keys, the one used last at the end."""
    return "".join(key for key, _ in bank.items)


def filled(keys: str, *, capacity: int | None = None, budget: int | None = None) -> Bank[str, Value]:
    """A bank that was asked for a value of ten bytes for each key."""
    bank: Bank[str, Value] = Bank(capacity=capacity, budget=budget)
    for key in keys:
        bank.get(key, lambda: Value(10))
    return bank


def test_a_value_is_made_once() -> None:
    bank, value = filled("ab"), Value()
    assert bank.get("c", lambda: value) is value
    assert bank.get("c", Value) is value
    assert bank.memory_bytes == 21


def test_the_one_used_least_lately_is_closed() -> None:
    bank = filled("abcad", capacity=3)
    assert kept(bank) == "cad"
    values = dict(bank.items)
    bank.get("c", Value)
    bank.get("e", Value)
    assert (kept(bank), [values[key].closed for key in "cad"]) == ("dce", [False, True, False])


def test_as_many_are_closed_as_a_large_one_needs() -> None:
    bank = filled("abcd", budget=45)
    values = dict(bank.items)
    bank.get("e", lambda: Value(25))
    assert (kept(bank), [values[key].closed for key in "abcd"]) == ("cde", [True, True, False, False])
    assert bank.memory_bytes == 45
    bank.get("f", lambda: Value(45))
    assert kept(bank) == "f", "it takes all of the budget"


def test_a_value_beyond_the_budget_is_closed_and_the_others_stay() -> None:
    bank, large = filled("abc", budget=30), Value(31)
    before = bank.items
    with pytest.raises(CapacityError, match="d takes 31 bytes, the bank may hold 30: raise its budget to at least 31"):
        bank.get("d", lambda: large)
    assert large.closed
    assert bank.items == before
    assert not any(value.closed for _, value in before)


def test_what_cannot_be_made_changes_nothing() -> None:
    def make() -> Value:
        raise DeviceMemoryError("no memory is left")

    bank = filled("abc", capacity=3)
    before = bank.items
    with pytest.raises(DeviceMemoryError):
        bank.get("d", make)
    assert bank.items == before
    assert not any(value.closed for _, value in before)


def test_one_that_does_not_close_is_gone_and_the_new_one_is_there() -> None:
    bank, new = filled("", capacity=1), Value(2)
    bank.get("a", lambda: Value(stuck=True))
    with pytest.raises(DriverError, match="cuGraphExecDestroy of 1 failed"):
        bank.get("b", lambda: new)
    assert bank.items == (("b", new),)
    assert bank.get("b", Value) is new


def test_all_are_closed_where_some_do_not_close() -> None:
    bank = filled("")
    values = [bank.get(key, lambda k=k: Value(k, stuck=bool(k % 2))) for k, key in enumerate("abcde")]
    with pytest.raises(DriverError, match="of 3 failed"):
        bank.close()
    assert all(value.closed for value in values)
    assert (bank.items, bank.memory_bytes) == ((), 0)
    bank.close()


@pytest.mark.parametrize("bounds", [{"capacity": 0}, {"budget": 0}])
def test_bounds_that_leave_no_room_are_refused(bounds: dict[str, int]) -> None:
    with pytest.raises(CapacityError, match="give at least 1 of each"):
        Bank(**bounds)


@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 12)), max_size=60),
    st.none() | st.integers(1, 5),
    st.none() | st.integers(1, 20),
)
def test_it_is_a_cache_of_the_values_used_last(
    asked: list[tuple[int, int]], capacity: int | None, budget: int | None
) -> None:
    """Against the plainest model there is: a list of what is there, cut from its old end."""
    bank: Bank[int, Value] = Bank(capacity=capacity, budget=budget)
    model, made = OrderedDict[int, int](), list[Value]()

    def make(size: int) -> Value:
        made.append(Value(size))
        return made[-1]

    for key, size in asked:
        if key not in model and budget is not None and size > budget:
            with pytest.raises(CapacityError):
                bank.get(key, lambda size=size: make(size))
            continue
        bank.get(key, lambda size=size: make(size))
        model[key] = model.pop(key, size)
        while len(model) > (capacity or 99) or sum(model.values()) > (budget or 999):
            del model[next(iter(model))]
        assert [(key, value.memory_bytes) for key, value in bank.items] == list(model.items())
    assert {value for value in made if not value.closed} == {value for _, value in bank.items}
