"""What has to be the same bytes on every Python and machine, as digests: ``python tests/same_bytes.py`` prints them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import nanort as nr
from nanort.chaos.run import chaos
from nanort.graphs import CONFIGS, decoder_step
from nanort.scheduling.schedule import Schedule

MODELS = {
    "tiny": (nr.device("h200"), "auto"),
    "llama-3-8b": (nr.device("h200"), "list"),
    "mixtral-8x7b": (nr.device("b200"), "list"),
}
SEEDS = range(8)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def planned(name: str) -> Schedule:
    """A step of four of a model's layers; with no versions, which are what differs."""
    device, policy = MODELS[name]
    config = replace(CONFIGS[name], layers=min(4, CONFIGS[name].layers))
    graph = decoder_step(config, decode=96, context=512, prefill=160)
    return replace(nr.co_schedule(graph, device, policy=policy, effort=64, seed=3), versions=())


def saved(schedule: Schedule) -> bytes:
    with TemporaryDirectory() as folder:
        schedule.save(path := Path(folder) / "schedule.json")
        return path.read_bytes()


def simulated(schedule: Schedule) -> bytes:
    with nr.Executor(schedule, backend="sim") as run:
        run()
        names = "\n".join(f"{each.name} {each.stream}" for each in run.timeline.activities)
        return names.encode() + run.timeline.start.tobytes() + run.timeline.end.tobytes()


def digests() -> Iterator[tuple[str, str]]:
    """By name."""
    torch.set_num_threads(1)
    for name in MODELS:
        schedule = planned(name)
        yield f"schedule {name}", sha(saved(schedule))
        yield f"timeline {name}", sha(simulated(schedule))
    for report in chaos(SEEDS):
        assert not report.breach, str(report)
        yield f"chaos {report.seed}", sha(str(report).encode())


if __name__ == "__main__":
    print(json.dumps(dict(digests()), indent=4))
