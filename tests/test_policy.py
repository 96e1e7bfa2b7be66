"""A user's own policy is judged like the built-in ones, and its mistakes are told by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pytest

import dags
import nanort as nr
from nanort import graphs
from nanort.errors import CapacityError, PolicyError
from nanort.partition import Group, Stream
from nanort.scheduling.flat import Flat
from nanort.scheduling.policy import Dispatch, Greedy, plan
from nanort.scheduling.structures import Structure
from nanort.scheduling.workload import Workload

H200 = nr.device("h200")


class Halves:
    """Two equal groups, each of which takes the node with the longest path to the end."""

    name = "halves"

    def structures(self, work: Workload) -> Iterable[Structure]:
        yield work.isolated(64, 64)

    def dispatch(self, work: Workload, structure: Structure) -> Dispatch:
        return Greedy(work, structure, [-seconds for seconds in work.path])


class Answers(Halves):
    """Says what it is told to, whatever is ready."""

    name = "answers"

    def __init__(self, answer: Callable[[int, list[int]], object]) -> None:
        self.answer = answer

    def dispatch(self, work: Workload, structure: Structure) -> Dispatch:
        answer, told = self.answer, list[int]()

        class Told:
            def ready(self, node: int) -> None:
                told.append(node)

            def next(self, stream: int, running: Sequence[int], left: Sequence[float]) -> int:
                said: int = answer(stream, told)  # type: ignore[assignment]  # wrong on purpose
                return said

        return Told()


@pytest.mark.parametrize("seed", range(15))
def test_a_policy_of_ones_own_gives_valid_schedules(seed: int) -> None:
    for graph in (dags.dag(seed), graphs.synthetic.random_dag(seed)):
        if any(node.span[0] > 132 for node in graph.nodes):
            continue
        schedule = nr.co_schedule(graph, H200, policy=Halves(), nano_batches=1)
        schedule.check()
        assert schedule.makespan <= schedule.serial_makespan * (1 + 1e-9)
        unguarded = nr.co_schedule(graph, H200, policy=Halves(), nano_batches=1, guard=False)
        unguarded.check()
        assert unguarded.mechanism == "isolated 64+64 SMs"


def test_a_policy_sees_what_nodes_take() -> None:
    graph = dags.beside(dags.demand("compute", 1.0), dags.demand("memory", 1.0), dags.demand("upload", 1.0))
    work = Workload(Flat(graph.seal(), H200), 85)
    assert [work.bound_by(node) for node in range(3)] == ["compute", "memory", "pcie"]
    assert [work.engine(node) for node in range(3)] == ["", "", "h2d"]
    assert work.engines == ("h2d",)
    assert work.seconds(0, 64) == pytest.approx(2 * work.seconds(0, 132), rel=0.1)
    assert work.pieces == [0, 0, 0]
    assert str(work.isolated(40, 88)) == "isolated 40+88 SMs"
    with pytest.raises(CapacityError, match="cannot split h200"):
        work.isolated(100, 40)


def test_nodes_run_on_streams_that_they_are_given_to() -> None:
    graph = dags.beside(*[dags.demand("compute", 1.0)] * 4)
    work = Workload(Flat(graph.seal(), H200), 85)
    structure = work.isolated(64, 64)

    class Homed(Halves):
        def dispatch(self, work: Workload, structure: Structure) -> Dispatch:
            return Greedy(work, structure, [0.0] * 4, homes={0: (1,), 1: (1,), 2: (2,), 3: (2,)})

    assert plan(Homed(), work, structure).lane == [1, 1, 2, 2]


def test_groups_that_overlap_never_run_together() -> None:
    """A nested split: the whole device, and two halves of it; the simulator keeps them apart, and the waits too."""
    graph = dags.beside(*[dags.demand("compute", 1.0)] * 6)
    schedule = nr.co_schedule(graph, H200, policy=Halves(), nano_batches=1, guard=False)
    spans = {
        name: [(a.start, a.end) for a in schedule.assignments if a.stream == name] for name in ("whole", "g0", "g1")
    }
    for start, end in spans["whole"]:
        assert all(stop <= start or begin >= end for name in ("g0", "g1") for begin, stop in spans[name])
    schedule.check()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda stream, ready: None, "answered None for stream 'whole': give the index of a ready node, or -1"),
        (lambda stream, ready: True, "answered True"),
        (lambda stream, ready: 99, "answered 99"),
        (lambda stream, ready: 1, "starts 'n1' on stream 'whole', and what it reads has not ended"),
        (lambda stream, ready: 0, "starts 'n0' on stream 'whole', and it has started already"),
        (lambda stream, ready: -1, "leaves every stream idle while 1 nodes are ready, the first are \\['n0'\\]"),
    ],
)
def test_impossible_answers_are_told(answer: Callable[[int, list[int]], object], message: str) -> None:
    graph = dags.chain(*[dags.demand("compute", 1.0)] * 3)
    with pytest.raises(PolicyError, match=f"policy 'answers', isolated 64\\+64 SMs: it {message}"):
        nr.co_schedule(graph, H200, policy=Answers(answer), nano_batches=1)


def test_a_node_on_a_stream_that_cannot_carry_it_is_told() -> None:
    def crosswise(stream: int, ready: list[int]) -> int:
        return ready.pop() if ready and stream == 1 else -1

    graph = dags.beside(dags.demand("upload", 1.0))
    with pytest.raises(PolicyError, match=r"starts 'n0' on stream 'g1': it may run on \['h2d'\]"):
        nr.co_schedule(graph, H200, policy=Answers(crosswise), nano_batches=1)
    wide = dags.beside(nr.Demand(flops=1e9, sms=(100, None)))
    with pytest.raises(PolicyError, match=r"it may run on \['whole'\]"):
        nr.co_schedule(wide, H200, policy=Answers(crosswise), nano_batches=1)


def test_two_streams_on_a_group_of_one_lane_are_refused() -> None:
    class Crowded(Halves):
        name = "crowded"

        def structures(self, work: Workload) -> Iterable[Structure]:
            group = Group("g0", 64, (0, 8))
            yield Structure("isolated", (group,), (Stream("a", group), Stream("b", group)), ("compute", "memory"))

    with pytest.raises(
        PolicyError, match=r"policy 'crowded': streams \['a', 'b'\] are on group 'g0', which has 1 lanes"
    ):
        nr.co_schedule(dags.dag(1), H200, policy=Crowded(), nano_batches=1)


def test_what_is_no_policy_is_refused() -> None:
    with pytest.raises(PolicyError, match="is no policy: it needs a name, structures"):
        nr.co_schedule(dags.dag(1), H200, policy=object())  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(PolicyError, match="there is no policy 'best': give one of serial, list, search, auto"):
        nr.co_schedule(dags.dag(1), H200, policy="best")
