"""Minutes of random plans, and of a server whose clients hang up: ``cd tests && python -m soaking --minutes 20``.

Real threads, real sockets, no GPU: random graphs are cut, placed, compared with eager and closed, others are planned
and run, while clients ask a small model over HTTP and often leave in the middle. Memory is read every second. Every few
seconds everything rests: the threads and the open files are then as many as at any other rest, and all pages are free.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nanort as nr
import random_dags
from hosted import Hosted, hosted, http, until
from nanort.checkpoints.tokenizer import ByteTokenizer
from nanort.graphs import CONFIGS, random_weights
from nanort.serving.generate import LLM
from soak_plot import plot

ROUND = 10.0
"""Seconds between two rests."""
CLIENTS = 6
WARM = 0.25
"""The part of the time after which nothing grows: by then every shape of a step has its plan."""
LIMIT = 1.0
"""MB a minute."""
CORE = nr.device("cpu").with_(sms=1, hbm_saturation_sms=(1, 1))
STARTS = ("The sea", "Once upon a time there was", "The sea is wide, and whoever")


@dataclass(frozen=True, slots=True)
class Sample:
    """What the process held at one time; ``rest`` is whether nothing went on."""

    seconds: float
    rss_bytes: int
    threads: int
    descriptors: int
    rest: bool

    @staticmethod
    def now(seconds: float, *, rest: bool) -> Sample:
        """What it holds now, by the kernel's account."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        threads, descriptors = (len(list(Path("/proc/self", name).iterdir())) for name in ("task", "fd"))
        return Sample(seconds, pages * 4096, threads, descriptors, rest)


@dataclass(slots=True)
class Soak:
    """The samples, and what was done meanwhile."""

    samples: list[Sample] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)

    @property
    def warm(self) -> list[Sample]:
        """The samples after the warm-up."""
        return [sample for sample in self.samples if sample.seconds >= WARM * self.samples[-1].seconds]

    @property
    def held(self) -> list[tuple[int, int]]:
        """Threads and open files at rests after the warm-up: one pair, where nothing leaks."""
        return sorted({(sample.threads, sample.descriptors) for sample in self.warm if sample.rest})

    @property
    def growth(self) -> float:
        """MB a minute by which memory grew after the warm-up: the median of the slopes between any two samples."""
        minutes = np.array([sample.seconds for sample in self.warm]) / 60
        megabytes = np.array([sample.rss_bytes for sample in self.warm]) / 1e6
        first, second = np.triu_indices(len(minutes), 1)
        return float(np.median((megabytes[second] - megabytes[first]) / (minutes[second] - minutes[first])))

    def __str__(self) -> str:
        did = ", ".join(f"{number:,} {what}" for what, number in sorted(self.done.items()))
        most = max(sample.rss_bytes for sample in self.samples) / 1e6
        held = " or ".join(f"{threads} threads and {files} open files" for threads, files in self.held)
        rests = sum(sample.rest for sample in self.warm)
        return (
            f"{self.samples[-1].seconds / 60:.1f} minutes: {did}\n"
            f"memory: {self.growth:+.2f} MB a minute after the warm-up, {most:,.0f} MB at most\n"
            f"at each of {rests} rests: {held}"
        )


def soak(seconds: float) -> Soak:
    """Works, with a rest every few seconds, for so long; raises what fails."""
    torch.set_num_threads(1)
    found, began, seeds = Soak(), time.monotonic(), count()

    def sample(rest: bool = False) -> Sample:
        return Sample.now(time.monotonic() - began, rest=rest)

    config = CONFIGS["tiny"]
    weights = random_weights(config, torch.float32, seed=1)
    with (
        LLM(config, weights, ByteTokenizer(), device=CORE, max_rows=32, cache_tokens=600) as llm,
        hosted(llm, queue_limit=4) as there,
    ):
        _filled(there)
        while time.monotonic() - began < seconds:
            ends = time.monotonic() + min(ROUND, seconds / 6)
            with ThreadPoolExecutor(1 + CLIENTS) as threads:
                tasks = [threads.submit(_plan, found.done, seeds, ends)]
                tasks += [threads.submit(_ask, found.done, there, next(seeds), ends) for _ in range(CLIENTS)]
                while wait(tasks, timeout=1.0).not_done:
                    found.samples.append(sample())
            for task in tasks:
                task.result()
            until(lambda: there.idle)
            gc.collect()
            found.samples.append(_settled(lambda: sample(rest=True)))
    return found


def _filled(there: Hosted) -> None:
    """Starts every thread of the pool that asyncio fills only as it is used."""
    size = min(32, (os.cpu_count() or 1) + 4)
    barrier = threading.Barrier(size)

    async def meet() -> None:
        await asyncio.gather(*(asyncio.to_thread(barrier.wait) for _ in range(size)))

    asyncio.run_coroutine_threadsafe(meet(), there.loop._loop).result(60)


def _settled(sample: Callable[[], Sample]) -> Sample:
    """What is held once that is the same for half a second: sockets and threads take a moment to go."""
    last = sample()
    while True:
        time.sleep(0.5)
        if (found := sample()).threads == last.threads and found.descriptors == last.descriptors:
            return found
        last = found


def _plan(done: Counter[str], seeds: Iterator[int], ends: float) -> None:
    """Random graphs: each is placed at random and compared with eager, or planned and run."""
    h200 = nr.device("h200")
    while time.monotonic() < ends:
        seed = next(seeds)
        rng = random.Random(seed)
        graph, tensors = rng.choice(random_dags.FAMILIES)(seed)
        cut = random_dags.cut(graph, rng)
        if rng.random() < 0.5:
            random_dags.compare_with_eager(random_dags.placed(cut, rng), random_dags.packed(cut, tensors), rng)
            done["random placements"] += 1
            continue
        schedule = nr.co_schedule(graph, h200, policy="list", effort=8, guard=False)
        given = random_dags.packed(schedule.graph, tensors)
        inputs, constants, states = random_dags.by_kind(schedule.graph, given)
        with nr.Executor(schedule, constants=constants, states=states, backend="cpu") as run:
            run(**inputs)
        done["plans"] += 1


def _ask(done: Counter[str], there: Hosted, seed: int, ends: float) -> None:
    """Completions, one after the other, some of them streams; every second client leaves before it has all."""
    rng = random.Random(seed)
    while time.monotonic() < ends:
        body: dict[str, Any] = {"model": "tiny", "prompt": rng.choice(STARTS) + " " * rng.randrange(9), "seed": seed}
        body |= {"max_tokens": rng.randint(1, 40), "stream": rng.random() < 0.7, "ignore_eos": rng.random() < 0.5}
        stays = rng.choice((0, 300, 2000, math.inf, math.inf, math.inf))
        with there.connected() as connection:
            connection.sendall(http("POST", "/v1/completions", json.dumps(body).encode()))
            got = b""
            while len(got) < stays and (part := connection.recv(4096)):
                got += part
        status = got.split(b" ", 2)[1].decode() if got else "unread"
        assert status in ("200", "429", "unread"), got
        done["requests left" if len(got) >= stays else f"requests answered {status}"] += 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m soaking", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--plot", type=Path, help="an SVG of what was held")
    options = parser.parse_args()
    found = soak(60 * options.minutes)
    print(found)
    if options.plot:
        options.plot.write_text(plot(found.samples), encoding="utf-8")
    return int(found.growth > LIMIT or len(found.held) > 1)


if __name__ == "__main__":
    sys.exit(main())
