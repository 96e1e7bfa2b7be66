"""Programs that do other than they say, one lie each: what debug=True is there to find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

import nanort as nr
import random_dags
from nanort import ops, partition
from nanort.programs.program import Program, Wait

WORK = random_dags.WORK
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Lie:
    """A program with its tensors, and what has to be said of it: the kind, nodes and buffer, and the bytes."""

    program: Program
    tensors: Tensors
    said: tuple[str, ...]


def lower(graph: nr.Graph, lanes: list[int], most: int = 2) -> Program:
    """The nodes as written, each on its lane of so many groups of SMs."""
    device = nr.device("h200")
    streams = partition.streams(partition.split(device, [8] * most), ())
    return nr.lower(random_dags.schedule(graph, streams, lanes))


def given(graph: nr.Graph, **tensors: torch.Tensor) -> Tensors:
    """Small whole numbers for all that a graph asks for and that is not given."""
    made = {
        root.name: torch.arange(float(torch.Size(root.shape).numel())).view(root.shape).to(root.dtype)
        for root in graph.roots
        if root.kind in ("input", "constant", "state")
    }
    return made | tensors


@nr.op(demand=WORK, axes="rows")
def doubled_in_place(x: torch.Tensor) -> torch.Tensor:
    return x.mul_(2).clone()


@nr.op(demand=WORK, axes="rows")
def itself(x: torch.Tensor) -> torch.Tensor:
    return x


@nr.op(demand=WORK, axes="whole")
def upper_half(x: torch.Tensor) -> torch.Tensor:
    return x[x.shape[0] // 2 :]


@nr.op(demand=WORK, writes=("total",), axes="rows")
def add_to(total: torch.Tensor, x: torch.Tensor) -> None:
    total += x


@nr.op(demand=WORK, axes="rows")
def beyond(x: torch.Tensor) -> torch.Tensor:
    """Reads a row more than it is shown."""
    return x + x.as_strided(x.shape, x.stride(), x.storage_offset() + x.stride(0))


@nr.op(demand=WORK, writes=("total",), axes="rows")
def add_beyond(total: torch.Tensor, x: torch.Tensor) -> None:
    """Writes a row more than it is shown."""
    total.as_strided(total.shape, total.stride(), total.storage_offset() + total.stride(0)).add_(x)


def written_argument() -> Lie:
    """An operator changes its argument without writes=, while another stream reads it."""
    graph = nr.Graph("written argument")
    y = graph.call(torch.relu, graph.input("x", (4, 2), torch.float32), demand=WORK, name="made")
    graph.output(a=doubled_in_place(y, name="liar"), b=graph.call(torch.neg, y, demand=WORK, name="reader"))
    said = ("undeclared write: liar writes bytes 0:32 of 'made'", "and made touches it", "writes=")
    return Lie(lower(graph, [0, 0, 1]), given(graph), said)


def written_input() -> Lie:
    """An operator changes what the caller gave."""
    graph = nr.Graph("written input")
    graph.output(a=doubled_in_place(graph.input("x", (4, 2), torch.float32), name="liar"))
    return Lie(lower(graph, [0]), given(graph), ("undeclared write: liar writes bytes 0:32 of 'x'",))


def read_beyond() -> Lie:
    """An operator reads beside the part of a value that it is shown, where another one writes."""
    graph = nr.Graph("read beyond")
    state, x = graph.state("s", (6, 2), torch.float32), graph.input("x", (2, 2), torch.float32)
    add_to(state[3:5], x, name="writer")
    graph.output(a=beyond(state[1:3], name="liar"))
    said = ("undeclared read: liar reads bytes 24:32 of 's'", "and writer writes it", "make it an argument")
    return Lie(lower(graph, [0, 1]), given(graph), said)


def written_beyond() -> Lie:
    """The same, where it writes."""
    graph = nr.Graph("written beyond")
    state, x = graph.state("s", (6, 2), torch.float32), graph.input("x", (2, 2), torch.float32)
    add_beyond(state[1:3], x, name="liar")
    graph.output(a=graph.call(torch.neg, state[3:5], demand=WORK, name="reader"))
    said = ("undeclared write: liar writes bytes 24:32 of 's'", "and reader touches it")
    return Lie(lower(graph, [0, 1]), given(graph), said)


def state_behind_its_back() -> Lie:
    """A reference that holds a state and changes it, which it never takes as an argument."""
    graph = nr.Graph("behind")
    state, x = graph.state("s", (4, 2), torch.float32), graph.input("x", (4, 2), torch.float32)
    held = torch.zeros(4, 2)

    def sly(x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "meta":
            held.add_(x)
        return x + 1

    graph.output(
        a=graph.call(sly, x, demand=WORK, name="liar"), b=graph.call(torch.neg, state, demand=WORK, name="reader")
    )
    said = ("undeclared write: liar writes bytes 0:32 of 's'", "and reader touches it")
    return Lie(lower(graph, [0, 1]), given(graph, s=held), said)


def shared_workspace() -> Lie:
    """Two nodes on two streams use memory that no graph knows of."""
    graph = nr.Graph("workspace")
    x = graph.input("x", (4, 2), torch.float32)
    room = torch.zeros(4, 2)

    def use(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.device.type == "meta" else room.copy_(x) + 1

    graph.output(a=graph.call(use, x, demand=WORK, name="one"), b=graph.call(use, x, demand=WORK, name="other"))
    said = ('shared: other and one touch "memory that is none of the program\'s", and one of them writes it',)
    return Lie(lower(graph, [0, 1]), given(graph), said)


def returned_argument() -> Lie:
    """A reference returns its argument, which then is two values in one place."""
    graph = nr.Graph("returned")
    y = graph.call(torch.relu, graph.input("x", (4, 2), torch.float32), demand=WORK, name="made")
    z = itself(y, name="liar")
    add_to(y, graph.call(torch.neg, z, demand=WORK, name="neg"), name="writer")
    graph.output(z=z)
    said = ("aliased: liar returns bytes 0:32 of 'made', of made, in place of a fresh tensor: return a copy",)
    return Lie(lower(graph, [0, 0, 0, 0]), given(graph), said)


def returned_part() -> Lie:
    """A reference returns a view of an input."""
    graph = nr.Graph("part")
    graph.output(z=upper_half(graph.input("x", (4, 2), torch.float32), name="liar"))
    return Lie(lower(graph, [0]), given(graph), ("aliased: liar returns bytes 16:32 of 'x', of whoever gave it",))


def same_slot() -> Lie:
    """Two rows of one append name the same slot of a cache."""
    graph = nr.Graph("slots", layout=nr.Layout(decode=3, kv_tokens=3))
    kv = graph.state("kv", (4, 2, 4, 1, 2), torch.float32, scratch=(0, 1))
    k, slots = graph.input("k", (3, 1, 2), torch.float32, batch=0), graph.input("slots", (3,), torch.int64, batch=0)
    ops.kv_append(kv, k, k, slots, name="append")
    graph.output(k=graph.call(torch.neg, k, demand=WORK, name="neg"))
    said = ("repeated: two rows of append write bytes 72:80 of 'kv'", "its rows 0 and 2 name one place")
    return Lie(lower(graph, [0, 1]), given(graph, slots=torch.tensor([5, 8, 5])), said)


def same_slot_of_two_pieces() -> Lie:
    """So do rows of two nano-batches, which nothing keeps in order."""
    graph = nr.Graph("pieces", layout=nr.Layout(decode=4, kv_tokens=4))
    kv = graph.state("kv", (4, 2, 4, 1, 2), torch.float32, scratch=(0, 1))
    k, slots = graph.input("k", (4, 1, 2), torch.float32, batch=0), graph.input("slots", (4,), torch.int64, batch=0)
    ops.kv_append(kv, k, k, slots, name="append")
    graph.output(k=graph.call(torch.neg, k, demand=WORK, name="neg", axes="rows"))
    cut = nr.nano_batch(graph, 2)
    lanes = [int(node.name == "append/1") for node in cut.nodes]
    said = ("crossed: append/1 writes bytes 72:80 of 'kv', and so does append/0",)
    return Lie(lower(cut, lanes), given(cut, slots=torch.tensor([5, 8, 9, 5])), said)


def same_row() -> Lie:
    """Two rows scattered to one row of a state without cells."""
    graph = nr.Graph("rows")
    state, x = graph.state("s", (4, 2), torch.float32), graph.input("x", (3, 2), torch.float32)
    ops.scatter(state, graph.input("index", (3,), torch.int64), x, name="scatter")
    graph.output(a=graph.call(torch.neg, state, demand=WORK, name="neg"))
    said = ("repeated: two rows of scatter write bytes 8:16 of 's'", "its rows 0 and 1 name one place")
    return Lie(lower(graph, [0, 0]), given(graph, index=torch.tensor([1, 1, 3])), said)


@nr.op(demand=WORK, writes=("total",), axes="whole")
def put_in(total: torch.Tensor, index: torch.Tensor, x: torch.Tensor) -> None:
    total.put_(index, x)


def same_element() -> Lie:
    """Two numbers put in one element, which is counted from the front and from the end."""
    graph = nr.Graph("elements")
    state, x = graph.state("s", (4, 2), torch.float32), graph.input("x", (3,), torch.float32)
    put_in(state, graph.input("index", (3,), torch.int64), x, name="put")
    graph.output(a=graph.call(torch.neg, state, demand=WORK, name="neg"))
    said = ("repeated: two rows of put write bytes 12:16 of 's'", "its rows 0 and 2 name one place")
    return Lie(lower(graph, [0, 0]), given(graph, index=torch.tensor([3, 4, -5])), said)


@nr.op(demand=WORK, axes="whole")
def trained(x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.batch_norm(x, mean, variance, training=True)


def running_mean() -> Lie:
    """A normalisation that trains changes its statistics, which torch's own schema does not say."""
    graph = nr.Graph("statistics")
    x, mean = graph.input("x", (4, 2), torch.float32), graph.state("mean", (2,), torch.float32)
    graph.output(
        y=trained(x, mean, graph.state("variance", (2,), torch.float32), name="liar"),
        z=graph.call(torch.neg, mean, demand=WORK, name="reader"),
    )
    said = ("undeclared write: liar writes bytes 0:8 of 'mean'", "and reader touches it")
    return Lie(lower(graph, [0, 1]), given(graph), said)


def one_memory_twice() -> Lie:
    """The caller gives the same memory as a state and as an input, which are two in the graph."""
    graph = nr.Graph("twice")
    state, x = graph.state("s", (4, 2), torch.float32), graph.input("x", (4, 2), torch.float32)
    y = graph.call(torch.neg, x, demand=WORK, name="reader")
    add_to(state, graph.constant("c", (4, 2), torch.float32), name="writer")
    graph.output(y=y)
    both = torch.ones(4, 2)
    said = ("write-after-read: writer may write bytes 0:32 of 's' before reader has read it",)
    return Lie(lower(graph, [0, 1]), given(graph, s=both, x=both), said)


def lost_wait() -> Lie:
    """A wait that a program lacks: on the cpu such a program runs, since nobody has judged it."""
    lie = chain()
    kept = tuple(step for step in lie.program.instructions if not isinstance(step, Wait))
    said = ("read-after-write: second may read bytes 0:32 of 'first' before first has written it", "has to wait for")
    return replace(lie, program=replace(lie.program, instructions=kept), said=said)


def lost_wait_for_a_view() -> Lie:
    """A reference that returns a view reads it only when it is copied to its place."""
    graph = nr.Graph("turned")
    y = graph.call(torch.relu, graph.input("x", (4, 2), torch.float32), demand=WORK, name="first")
    graph.output(z=graph.call(torch.t, y, demand=WORK, name="second", axes="whole"))
    program = lower(graph, [0, 1])
    kept = tuple(step for step in program.instructions if not isinstance(step, Wait))
    said = ("read-after-write: second may read bytes 0:32 of 'first' before first has written it",)
    return Lie(replace(program, instructions=kept), given(graph), said)


def apart() -> Lie:
    """No lie: two nodes on two streams, neither of which waits for the other."""
    graph = nr.Graph("apart")
    x = graph.input("x", (4, 2), torch.float32)
    graph.output(
        y=graph.call(torch.relu, x, demand=WORK, name="first"), z=graph.call(torch.neg, x, demand=WORK, name="second")
    )
    return Lie(lower(graph, [0, 1]), given(graph), ())


def chain() -> Lie:
    """No lie: two nodes on two streams, one of which waits."""
    graph = nr.Graph("chain")
    y = graph.call(torch.relu, graph.input("x", (4, 2), torch.float32), demand=WORK, name="first")
    graph.output(z=graph.call(torch.neg, y, demand=WORK, name="second"))
    return Lie(lower(graph, [0, 1]), given(graph), ())


TOLD: tuple[Callable[[], Lie], ...] = (
    written_argument, written_input, read_beyond, written_beyond, state_behind_its_back, shared_workspace, same_slot,
    same_slot_of_two_pieces, same_row, same_element, running_mean,
)  # fmt: skip
"""Lies that tell on every backend."""

TOLD_BY_CPU: tuple[Callable[[], Lie], ...] = (
    *TOLD,
    returned_argument,
    returned_part,
    one_memory_twice,
    lost_wait,
    lost_wait_for_a_view,
)
"""Elsewhere results and inputs are copied to places of their own, and programs are judged before they run."""
