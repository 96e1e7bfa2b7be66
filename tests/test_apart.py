"""Two parts of a graph keep to groups of their own, and to the whole device where there is nothing to share it with."""

from __future__ import annotations

import random

import pytest
import torch

import dags
import nanort as nr

H200 = nr.device("h200")


def two_parts(seed: int, kinds: tuple[str, ...] = ("compute", "memory", "both", "narrow", "launch")) -> nr.Graph:
    """Two chains of random nodes, named after their parts, and a node of neither part after both."""
    rng = random.Random(seed)
    graph = nr.Graph(f"parts-{seed}")
    ends = []
    for part in ("one", "other"):
        value = graph.input(f"x.{part}", (1,), torch.bfloat16)
        with graph.scope(part=part):
            for index in range(rng.randint(1, 20)):
                value = dags.node(graph, f"n{index}", dags.demand(rng.choice(kinds), 4 ** rng.uniform(-1, 1)), value)
        ends.append(value)
    dags.node(graph, "end", dags.demand("both", 1.0), *ends)
    return graph


def planned(graph: nr.Graph) -> nr.Schedule:
    schedule = nr.co_schedule(graph, H200, policy=nr.Apart(), nano_batches=1, guard=False)
    schedule.check()
    return schedule


@pytest.mark.parametrize("seed", range(12))
def test_parts_share_no_group(seed: int) -> None:
    schedule = planned(two_parts(seed))
    streams: dict[str, set[str]] = {}
    for assignment in schedule.assignments:
        streams.setdefault(assignment.name.partition(".")[0], set()).add(assignment.stream)
    assert streams["end"] == {"whole"}
    assert streams["partone"] & streams["partother"] <= {"whole"}
    assert nr.lower(schedule).hazards() == ()


@pytest.mark.parametrize("seed", range(12))
def test_what_is_left_of_one_part_has_the_whole_device(seed: int) -> None:
    schedule = planned(two_parts(seed))
    ends = {part: max(a.end for a in schedule.assignments if part in a.name) for part in ("partone", "partother")}
    first = min(ends.values())
    late = [a for a in schedule.assignments if a.start > first * (1 + 1e-9)]
    assert {assignment.stream for assignment in late} <= {"whole"}


def test_a_part_that_memory_binds_beside_one_that_compute_binds_gains() -> None:
    graph = nr.Graph("bound")
    for part in ("compute", "memory"):
        value = graph.input(part, (1,), torch.bfloat16)
        with graph.scope(part=part):
            for index in range(8):
                value = dags.node(graph, f"n{index}", dags.demand(part, 1.0), value)
    schedule = nr.co_schedule(graph, H200, policy=nr.Apart())
    assert schedule.outlooks[0].gain > 1.15
    assert schedule.mechanism.startswith("isolated")


def test_copies_keep_to_their_engine_and_large_nodes_to_the_whole_device() -> None:
    graph = two_parts(3, ("compute", "upload", "download", "wide"))
    schedule = planned(graph)
    for assignment in schedule.assignments:
        node = schedule.graph.nodes[assignment.node]
        if node.demand.engine:
            assert assignment.stream == node.demand.engine
        elif node.span[0] == 100:
            assert assignment.sms >= 100
    assert {assignment.stream for assignment in schedule.assignments} >= {"h2d", "d2h"}


@pytest.mark.parametrize("parts", [(), ("one",), ("one", "two", "three")])
def test_a_graph_without_two_parts_is_left_to_the_serial_schedule(parts: tuple[str, ...]) -> None:
    graph = nr.Graph("parts")
    value = graph.input("x", (1,), torch.bfloat16)
    dags.node(graph, "free", dags.demand("memory", 1.0), value)
    for part in parts:
        with graph.scope(part=part):
            dags.node(graph, "n", dags.demand("compute", 1.0), value)
    assert planned(graph).mechanism == "serial"


def test_another_label_tells_other_parts() -> None:
    graph = nr.Graph("halves")
    for half in (0, 1):
        with graph.scope(half=half):
            dags.node(graph, "n", dags.demand("both", 1.0), graph.input(f"x{half}", (1,), torch.bfloat16))
    policy = nr.Apart("half")
    assert policy.name == "apart by half"
    assert nr.co_schedule(graph, H200, policy=policy, guard=False).mechanism.startswith("isolated")
