"""Plans of nanort and of its peers, all judged by one simulator on one graph, on a device that none of them knew.

Everyone plans with the same costs, the same range of saturation points and the same effort. Then the truth is drawn:
each call takes up to 20 % more or less than planned, and device memory saturates at up to 20 % more or fewer SMs than
the middle of the range. Plans keep their streams, their orders and their waits, as they would on a GPU.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf, prod, sqrt

import nanort as nr
from benchmarks.measure import Row, Spread, run
from benchmarks.peers import PEERS
from benchmarks.workloads import WORKLOADS, device
from benchmarks.workloads import synthetic as random_graphs
from nanort.costs.roofline import Cost, Costs
from nanort.scheduling.policy import Policy
from nanort.simulation.fluid import Jobs, Modes, replay

EFFORT, TRUTHS, OFF = 512, 5, 0.2
"""Schedules that each may judge, truths for each graph, and how far these may lie from what was planned with."""

TIE = 0.005
"""The fraction of its seconds by which nanort may be behind a peer and count as equal."""

LINKS = ("hbm", "h2d", "d2h", "net")

DEVICE = nr.device("h200").with_(memory_bytes=device(64).memory_bytes)


@dataclass(frozen=True, slots=True)
class Truth:
    """What a graph really takes: where device memory saturates, and the factor on the seconds of each distinct call.

    Pieces of a call are off by the factor of the call, however the graph is cut.
    """

    saturation: int
    factors: Mapping[Hashable, float] = field(default_factory=dict)

    @classmethod
    def draw(cls, graph: nr.Graph, device: nr.Device, rng: random.Random) -> Truth:
        """One that is as likely as any other; it varies around the middle of the device's saturation points."""
        key = Costs(device).key
        calls = dict.fromkeys(key(node) for node in graph.nodes)
        saturation = round(sqrt(prod(device.hbm_saturation_sms)) * rng.uniform(1 - OFF, 1 + OFF))
        return cls(max(1, min(saturation, device.sms)), {call: rng.uniform(1 - OFF, 1 + OFF) for call in calls})


def judge(schedule: nr.Schedule, truth: Truth) -> float:
    """Seconds that a plan takes in truth: every stream in its order, every wait kept."""
    costs, source = Costs(schedule.device, schedule.profile, truth.saturation), schedule.source
    calls = {node.name: costs.key(node) for node in source.nodes}
    nodes = [schedule.graph.nodes[a.node] for a in schedule.assignments]
    factors = [truth.factors.get(calls[node.origin], 1.0) for node in nodes]

    def cost(job: int, sms: int) -> Cost:
        """A call that takes longer moves as many bytes, and draws less bandwidth; on too few SMs it stands still."""
        if sms < nodes[job].span[0]:
            return Cost(inf)
        alone, factor = costs.solo(nodes[job], sms), factors[job]
        shares = {link: min(getattr(alone, link) / factor, 1.0) for link in LINKS}
        return replace(alone, seconds=alone.seconds * factor, **shares)

    alone = [cost(job, a.sms) for job, a in enumerate(schedule.assignments)]
    stream = {stream.name: at for at, stream in enumerate(schedule.streams)}
    place = {a.node: job for job, a in enumerate(schedule.assignments)}
    jobs = Jobs(
        [stream[a.stream] for a in schedule.assignments],
        Modes(
            [one.seconds for one in alone],
            [a.sms for a in schedule.assignments],
            tuple([getattr(one, link) for one in alone] for link in LINKS),
        ),
        [node.op.name for node in nodes],
        lambda job, sms: cost(job, sms).seconds,
    )
    awaited: list[list[int]] = [[] for _ in nodes]
    for wait in schedule.waits:
        awaited[place[wait.node]].append(place[wait.on])
    pairs = schedule.profile.slowdowns if schedule.profile else None
    _, end = replay(jobs, schedule.streams, awaited, pairs, schedule.device.event_seconds)
    return max(end, default=0.0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Seconds of every plan of a graph, by its policy, one for each truth."""

    graph: str
    seconds: Mapping[str, Sequence[float]]

    def ratios(self, peer: str) -> list[float]:
        """The peer's seconds over nanort's, truth by truth."""
        return [theirs / ours for theirs, ours in zip(self.seconds[peer], self.seconds["nanort"], strict=True)]

    def ratio(self, peer: str) -> float:
        """Their geometric mean."""
        return statistics.geometric_mean(self.ratios(peer))


def compare(name: str, graph: nr.Graph, peers: Sequence[Policy] = PEERS, effort: int = EFFORT) -> Verdict:
    """Plans a graph by every policy and judges the plans by the same truths; peers always use what they plan."""
    plans = {"nanort": nr.co_schedule(graph, DEVICE, effort=effort)}
    plans["serial"] = nr.co_schedule(graph, DEVICE, policy="serial", nano_batches=1)
    for peer in peers:
        plans[peer.name] = nr.co_schedule(graph, DEVICE, policy=peer, nano_batches=(1, 2), effort=effort, guard=False)
    truths = [Truth.draw(graph, DEVICE, random.Random(seed)) for seed in range(TRUTHS)]
    return Verdict(name, {who: [judge(plan, truth) for truth in truths] for who, plan in plans.items()})


def rows(title: str, verdicts: Sequence[Verdict]) -> list[Row]:
    """How often nanort is best or equal, and what each peer takes for every second of nanort's."""
    peers = [who for who in verdicts[0].seconds if who != "nanort"]
    best = [all(verdict.ratio(peer) >= 1 - TIE for peer in peers) for verdict in verdicts]
    found = [
        Row(f"{title}: nanort is best or equal", "of graphs", Spread.of([statistics.mean(best)]), goal=(">=", 0.9))
    ]
    for peer in peers:
        ratios = [verdict.ratio(peer) for verdict in verdicts]
        found.append(Row(f"{title}: {peer} / nanort", "of its seconds", Spread.of(ratios)))
        mean = statistics.geometric_mean(ratios)
        found.append(Row(f"{title}: {peer} / nanort, geometric mean", "of its seconds", Spread.of([mean])))
    return found


def measure(quick: bool, workloads: int = len(WORKLOADS), synthetic: int = 200) -> list[Row]:
    """A line for each step and peer, then the sums of the steps, at full depth, and of the random graphs."""
    names = list(WORKLOADS)[: 1 if quick else workloads]
    steps = [compare(name, WORKLOADS[name](1 if quick else None)) for name in names]
    graphs = random_graphs(1 if quick else synthetic)
    found = [
        Row(f"{verdict.graph}: {peer} / nanort", "of its seconds", Spread.of(verdict.ratios(peer)))
        for verdict in steps
        for peer in verdict.seconds
        if peer != "nanort"
    ]
    for title, verdicts in (("steps", steps), ("random", [compare(graph.name, graph) for graph in graphs])):
        found += rows(title, verdicts) if verdicts else []
    return found


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Prints the table; see benchmarks/__init__.py for the other options."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--workloads", type=int, metavar="N", help="the first N of the steps instead of all twelve")
    parser.add_argument("--synthetic", type=int, metavar="N", help="N random graphs instead of 200")
    options, rest = parser.parse_known_args(argv)
    given = {option: count for option, count in vars(options).items() if count is not None}
    name = " ".join(["bench_policies", *(f"--{option} {count}" for option, count in given.items())])
    return run(name, partial(measure, **given), rest)


if __name__ == "__main__":
    main()
