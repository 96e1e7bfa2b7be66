"""NanoFlow's Table 2 as a case: what plans gain with the paper's operator times and its exchange table.

Zhu et al.: NanoFlow: towards optimal large language model serving throughput, OSDI 2025; docs/nanoflow.md derives what
is to be expected. ``python -m benchmarks.nanoflow`` prints what comes out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

import nanort as nr
from nanort.devices import Device
from nanort.partition import Group, streams, whole
from nanort.scheduling.policy import Greedy
from nanort.scheduling.structures import COMPUTE, ISOLATED, MEMORY, Structure
from nanort.scheduling.workload import Workload

LAYERS = 80
MILLISECONDS = {
    "kqv": 16.08,
    "decode_attention": 35.60,
    "prefill_attention": 4.56,
    "o": 16.01,
    "up_gate": 69.92,
    "down": 34.96,
    "network": 47.92,
}
"""Measured for LLaMA-2-70B on 8 x A100 with 2048 tokens a step: all layers, each operator alone on the device."""

EXCHANGE = {
    "decode_attention": ((0.1, 0.2), (0.2, 0.3), (0.4, 0.8), (0.8, 0.85), (0.9, 0.95)),
    "network": ((0.1, 0.3), (0.2, 0.5), (0.8, 0.9), (0.9, 1.0)),
}
"""What the operator performs on the share of the device that a matrix product beside it gives away."""

PIECES = dict.fromkeys(("kqv", "decode_attention", "prefill_attention", "o", "network"), 4)
"""Nano-batches by operator; the feed-forward's products, three quarters of the arithmetic, are cut into two."""

A100 = nr.device("a100-80g").with_(launch_seconds=1e-9)  # the measured times have their launches in them
PROFILE = nr.Profile(A100.name, A100.sms, "NanoFlow", [], exchange=EXCHANGE)


def graph(layers: int = LAYERS) -> nr.Graph:
    """So many layers of one step, in the order of tensor parallelism with two all-gathers and one all-reduce.

    The all-reduce moves twice what an all-gather does and has half of the network's time.
    """
    made = nr.Graph(f"table-2-{layers}")
    x = made.input("x", (2048, 1), torch.bfloat16, batch=0)

    def call(operator: str, *values: nr.Value, part: float = 1.0, name: str | None = None) -> nr.Value:
        value: nr.Value = made.call(OPERATORS[operator], *values, demand=_demand(operator, part), name=name)
        return value

    for layer in range(layers):
        with made.scope(layer=layer):
            qkv = call("kqv", x)
            heads = call("decode_attention", qkv), call("prefill_attention", qkv)
            x = call("network", *heads, part=0.25, name="gather_heads")
            x = call("network", call("o", x), part=0.25, name="gather_o")
            x = call("down", call("up_gate", x))
            x = call("network", x, part=0.5, name="reduce_down")
    made.output(y=x)
    return made


def _pass(value: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    return value.clone()


OPERATORS = {name: nr.op(name=name, demand=nr.Demand(), axes="rows")(_pass) for name in MILLISECONDS}


def _demand(operator: str, part: float) -> nr.Demand:
    """The work of one layer that takes the operator's time alone on the device, or a part of it."""
    seconds = MILLISECONDS[operator] / 1e3 / LAYERS * part
    if operator == "decode_attention":
        return nr.Demand(hbm_bytes=seconds * A100.hbm_bandwidth)
    if operator == "network":
        return nr.Demand(net_bytes=seconds * A100.net_bandwidth)
    return nr.Demand(flops=seconds * A100.rate(torch.bfloat16))


@dataclass(frozen=True, slots=True)
class Nested:
    """Network and decode attention have a group each; a matrix product takes all SMs that are free when it starts.

    Attributes:
        network, attention: SMs of the groups that are tried.
    """

    network: Sequence[int] = (16, 18, 20, 22, 24)
    attention: Sequence[int] = (36, 40, 44, 48)

    @property
    def name(self) -> str:
        return "nested"

    def structures(self, work: Workload) -> Iterable[Structure]:
        """Every size of the one with every size of the other."""
        return [nested(work.device, network, attention) for network in self.network for attention in self.attention]

    def dispatch(self, work: Workload, structure: Structure) -> Greedy:
        """The longest path first; streams are asked in order, so that products come last and try large groups first."""
        own = {"network": (0,), "decode_attention": (1,)}
        products = tuple(range(2, len(structure.streams)))
        homes = {node: own.get(operator, products) for node, operator in enumerate(work.operators)}
        return Greedy(work, structure, [-seconds for seconds in work.path], homes)


def nested(device: Device, network: int, attention: int) -> Structure:
    """Groups at both ends of the device, and one for each of the four ways to leave them free or take them along."""
    grain = device.sm_granularity
    end = device.partitionable_sms // grain
    first, last = network // grain, end - attention // grain
    ranges = {"network": (0, first), "attention": (last, end)}
    ranges |= {"beside_network": (first, end), "beside_attention": (0, last), "between": (first, last)}
    parts = [Group(name, (right - left) * grain, (left, right)) for name, (left, right) in ranges.items()]
    groups = (*parts[:2], whole(device), *parts[2:])
    return Structure(ISOLATED, groups, streams(groups), (MEMORY, MEMORY, *[COMPUTE] * 4))


def plan(
    source: nr.Graph, policy: str | Nested, nano_batches: int = 2, per_op: Mapping[str, int] | None = PIECES
) -> nr.Schedule:
    """The plan of a policy, whether it beats the serial one or not."""
    return nr.co_schedule(
        source, A100, policy=policy, nano_batches=nano_batches, per_op=per_op, profile=PROFILE, guard=False
    )


def main() -> None:
    """Prints the gain of both policies for some ways to cut."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--layers", type=int, default=LAYERS)
    source = graph(parser.parse_args().layers)
    for label, count, per_op in (("2", 2, None), ("3", 3, None), ("4", 4, None), ("2 and 4", 2, PIECES)):
        for policy in ("search", Nested()):
            schedule = plan(source, policy, count, per_op)
            most = schedule.outlooks[0].serial_seconds / schedule.bounds.best
            print(f"{label:>8} nano-batches, at most {most:.3f}x: {schedule!r}")


if __name__ == "__main__":
    main()
