"""Reads damaged files until there were enough of them, or one that a reader does not stand."""

from __future__ import annotations

import argparse
import faulthandler
import resource
import shutil
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from time import monotonic
from typing import Any

ADDRESS_SPACE = 24 << 30
"""Bytes that a reader may reserve at all: one that wants more gets a MemoryError, and this machine lives on."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("format", help="its name, or `all`")
    parser.add_argument("--runs", type=int, default=10_000, help="files of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first file: of a failure, to repeat it")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of each format, at most")
    parser.add_argument("--coverage", action="store_true", help="guided by atheris to branches not taken so far")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    atheris: Any = None
    if options.coverage:
        import atheris  # type: ignore[no-redef]  # an optional package
    include = ["nanort.costs", "nanort.timeline", "nanort.scheduling", "nanort.serving", "gguf"]
    with atheris.instrument_imports(include=include) if atheris else nullcontext():
        from fuzz.targets import MEMORY, targets
    known = targets()
    chosen = list(known) if options.format == "all" else [options.format]
    if unknown := set(chosen) - known.keys():
        parser.error(f"there is no format {unknown}: give one of {', '.join(known)}, or all")
    folder = Path(mkdtemp(prefix="nanort-fuzz-", dir=MEMORY))
    faulthandler.enable()
    if atheris:
        return _guided(atheris, known[chosen[0]], options, folder)
    status = max([_seeded(known[name], options, folder) for name in chosen])
    shutil.rmtree(folder)  # after a crash it stays, with the file that did it
    return status


def _seeded(target: Any, options: argparse.Namespace, folder: Path) -> int:
    from fuzz.judge import BreachError, accept, judge

    folder /= target.name
    folder.mkdir()
    accept(target, folder)
    outcomes: Counter[str] = Counter()
    began, breaches = monotonic(), Counter[str]()
    for number in range(options.first, options.first + options.runs):
        if monotonic() - began > options.seconds:
            break
        data = target.case(options.seed, number)
        try:
            outcomes[judge(target, data, folder)] += 1
        except BreachError as breach:
            outcomes["BREACH"] += 1
            breaches[str(breach)[:60]] += 1
            if breaches[str(breach)[:60]] == 1:
                print(f"{target.name} --seed {options.seed} --first {number} --runs 1: {breach}", flush=True)
    said = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    print(f"{target.name}: {outcomes.total()} files in {monotonic() - began:.0f} s: {said}", flush=True)
    return int(bool(breaches))


def _guided(atheris: Any, target: Any, options: argparse.Namespace, folder: Path) -> int:
    from fuzz.judge import accept, judge

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(target.seeds):
        (corpus / f"seed{number}").write_bytes(data)

    accept(target, folder)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        worse = target.mutate(random, data) if random.random() < 0.5 else atheris.Mutate(data, most)
        return bytes(worse[:most])

    def one(data: bytes) -> None:
        judge(target, data, folder)

    limits = [
        f"-runs={options.runs}",
        f"-seed={options.seed + 1}",
        "-timeout=60",
        "-rss_limit_mb=8192",
        "-max_len=65536",
    ]
    if options.seconds < float("inf"):
        limits.append(f"-max_total_time={options.seconds:.0f}")
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={folder}/", str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
