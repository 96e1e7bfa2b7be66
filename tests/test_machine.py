"""What machine code plays is, bit for bit, what the simulator and the policies' own interface play."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

import dags
import nanort as nr
from nanort import graphs
from nanort.compiled import COMPILES
from nanort.costs.profile import Pair, Profile
from nanort.scheduling import players, structures
from nanort.scheduling.flat import Flat
from nanort.scheduling.list_schedule import ORDERS, ROLES, ListPolicy
from nanort.scheduling.players import Player, replayed
from nanort.scheduling.policy import plan
from nanort.scheduling.structures import Structure
from nanort.scheduling.waits import waits
from nanort.scheduling.workload import Workload

DEVICES = {"h200": nr.device("h200"), "a100-80g": nr.device("a100-80g")}
PAIRS = [Pair("_touch", "_touch", 1.1, 1.3), Pair("matmul", "affine", 1.2, 1.0)]

pytestmark = pytest.mark.skipif(not COMPILES, reason="numba is not installed: there is no machine code to compare")


def frames(device: nr.Device, engines: tuple[str, ...]) -> list[Structure]:
    """Every structure that is enumerated, and some that are not."""
    third = structures.least_group(device) * 2
    found = list(structures.overlapping(device, engines))
    found.append(structures.isolated(device, (third, third, third), engines, ("memory", "compute", "compute")))
    found.append(structures.isolated(device, (third, 2 * third), engines, ("memory", "compute+memory")))
    found.append(structures.coresident(device, engines, ("compute", "memory", "compute")))
    return found


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("seed", range(20))
def test_a_plan_is_the_same_in_machine_code(seed: int, name: str) -> None:
    rng, device = random.Random(seed), DEVICES[name]
    profile = Profile(name, device.sms, "a test", [], PAIRS) if seed % 3 == 0 else None
    for graph in (dags.dag(seed), graphs.synthetic.random_dag(seed)):
        whole = Flat(graph.seal(), device, profile)
        for flat in (whole, whole.prefix(max(1, len(whole) // 2))):
            work, classes = Workload(flat, rng.choice(device.hbm_saturation_sms)), len(flat.class_names)
            for structure in rng.sample(frames(device, work.engines), 5):
                policy = ListPolicy(
                    rng.choice(ORDERS),
                    rng.random() < 0.5,
                    tuple(rng.gauss(0, 1e-4) for _ in range(classes)),
                    tuple(rng.choice(("", *ROLES)) for _ in range(classes)),
                )
                for tried in (policy, ListPolicy(policy.order, policy.borrow)):
                    assert Player(work, structure).trace(tried) == plan(tried, work, structure)


@pytest.mark.parametrize("seed", range(20))
def test_a_replay_is_the_same_in_machine_code(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, device = random.Random(seed), DEVICES["h200"]
    profile = Profile("h200", 132, "a test", [], PAIRS) if seed % 2 else None
    flat = Flat(graphs.synthetic.random_dag(seed).seal(), device, profile)
    work = Workload(flat, 64)
    for structure in rng.sample(frames(device, work.engines), 6):
        trace = Player(work, structure).trace(ListPolicy())
        awaited: list[list[int]] = [[] for _ in range(len(flat))]
        for wait in waits(flat.graph, structure.streams, trace.order, trace.lane):
            awaited[wait.node].append(wait.on)
        for point in (43, 64, 85):
            compiled = replayed(flat, structure, trace.order, trace.lane, awaited, point)
            with monkeypatch.context() as patched:
                patched.setattr(players, "COMPILES", False)
                assert replayed(flat, structure, trace.order, trace.lane, awaited, point) == compiled


def test_a_schedule_is_the_same_without_a_compiler() -> None:
    """The whole search, in a process in which numba cannot be found."""
    code = """
import importlib.util, sys
if "absent" in sys.argv:
    found = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name == "numba" else found(name, *rest)
import nanort as nr
from nanort import graphs
from nanort.compiled import COMPILES
assert COMPILES == ("absent" not in sys.argv)
for seed in (1, 7):
    schedule = nr.co_schedule(graphs.synthetic.random_dag(seed, 40), nr.device("h200"), effort=150, nano_batches=(1, 2))
    print(schedule.mechanism, schedule.assignments, schedule.waits, schedule.outlooks)
"""
    said = [
        subprocess.run([sys.executable, "-c", code, *how], capture_output=True, text=True, check=True).stdout
        for how in ([], ["absent"])
    ]
    assert said[0] == said[1]
    assert "Assignment" in said[0]
