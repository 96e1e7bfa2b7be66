"""A graph one of whose nodes fails for inputs that are negative, for every backend."""

from __future__ import annotations

import torch

import nanort as nr
from random_dags import WORK

double = nr.op(demand=WORK, name="double", axes="rows")(lambda x: 2 * x)


class Broken(Exception):  # noqa: N818  # what a user may call one
    pass


def fail(x: torch.Tensor) -> torch.Tensor:
    if x.device.type != "meta" and x[0, 0] < 0:
        raise Broken("it is negative")
    return x.clone()


def failing() -> tuple[nr.Graph, list[int]]:
    """a -> bad -> c on streams 0, 1 and 2; d beside them and e after all."""
    graph = nr.Graph("failing")
    x = graph.input("x", (2, 2), torch.float32)
    a = graph.call(double, x, name="a")
    bad = graph.call(fail, a, demand=WORK, name="bad")  # the line that errors name
    c = graph.call(double, bad, name="c")
    d = graph.call(double, x, name="d")
    graph.output(e=graph.call(torch.add, c, d, demand=WORK, name="e"))
    return graph, [0, 1, 2, 3, 0]


WHERE = f"tests/failing.py:{failing.__code__.co_firstlineno + 5}"


# Kernels whose rules fail: what they refuse, the scratch they need, their call that is made once.


def _broken(*args: object, **static: object) -> int:
    raise Broken("it is broken")


def refusing(*args: object, **given: object) -> None:
    pass


def scratching(*args: object, **given: object) -> None:
    pass


def preparing(*args: object, **given: object) -> None:
    pass


refusing.refuses = scratching.scratch_bytes = preparing.prepared = _broken  # type: ignore[attr-defined]
