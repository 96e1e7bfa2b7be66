"""Reads damaged files until there were enough of them, or one that a reader does not stand."""

from __future__ import annotations

import argparse
import faulthandler
import os
import re
import resource
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from time import monotonic
from typing import Any

from tree import ROOT

ADDRESS_SPACE = 24 << 30
"""Bytes that a reader may reserve at all: one that wants more gets a MemoryError, and this machine lives on."""
SHARE = 50_000
"""Files that one process reads at most: the next one begins with little memory."""
GUIDED = (
    *("nanort.checkpoints", "nanort.costs.files", "nanort.costs.profile", "nanort.costs.store", "nanort.graphs.config"),
    *("nanort.http.bodies", "nanort.http.openai_api", "nanort.scheduling.files", "nanort.scheduling.problem"),
    "nanort.timeline",
)
"""What reads files: the branches taken there, and in gguf, guide the search."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("format", help="its name, or `all`")
    parser.add_argument("--runs", type=int, default=10_000, help="files of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first file: of a failure, to repeat it")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of each process, at most")
    parser.add_argument("--coverage", action="store_true", help="guided by atheris to branches not taken so far")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that read at once, where it is `all`")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    atheris: Any = None
    if options.coverage and options.format != "all":
        import atheris  # type: ignore[no-redef]  # it has no wheels for some Pythons
    with atheris.instrument_imports(include=["nanort", "gguf"], exclude=_others()) if atheris else nullcontext():
        from fuzz.targets import MEMORY, targets
    known = targets()
    if options.format == "all":
        return _all(list(known), options)
    if options.format not in known:
        parser.error(f"there is no format {options.format!r}: give one of {', '.join(known)}, or all")
    folder = Path(mkdtemp(prefix="nanort-fuzz-", dir=MEMORY))
    faulthandler.enable()
    if atheris:
        return _guided(atheris, known[options.format], options, folder)
    status = _seeded(known[options.format], options, folder)
    shutil.rmtree(folder)  # after a crash it stays, with the file that did it
    return status


def _others() -> list[str]:
    """The modules of nanort that read nothing: their branches would only hide those of the readers."""
    files = [path.relative_to(ROOT).with_suffix("").parts for path in (ROOT / "nanort").glob("**/*.py")]
    names = [".".join(part for part in parts if part != "__init__") for parts in files]
    return [name for name in names if not name.startswith(GUIDED)]


def _all(formats: list[str], options: argparse.Namespace) -> int:
    """Every format in processes of its own; a line each when one has been read."""
    shares = [(name, first) for first in range(0, options.runs, SHARE) for name in formats]

    def read(share: tuple[str, int]) -> tuple[str, int, str]:
        name, first = share
        runs = min(SHARE, options.runs - first)
        command = [sys.executable, "-m", "fuzz", name, "--runs", str(runs), "--first", str(options.first + first)]
        command += ["--seed", str(options.seed), *(["--coverage"] if options.coverage else [])]
        command += ["--seconds", str(options.seconds)] if options.seconds < float("inf") else []
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace")
        said = ended.stdout if not ended.returncode else f"{ended.stdout}{ended.stderr[-4000:]}"
        print(f"{said.rstrip()}{f' [exit code {ended.returncode}]' * bool(ended.returncode)}", flush=True)
        return name, ended.returncode, said

    read_of, failed = Counter[str](), Counter[str]()
    with ThreadPoolExecutor(options.processes) as pool:
        for name, code, said in pool.map(read, shares):
            read_of[name] += sum(int(number) for number in re.findall(rf"^{name}: (\d+) files", said, re.MULTILINE))
            failed[name] += bool(code)
    for name in formats:
        print(f"{name:18}{read_of[name]:>12,} files{'  FAILED' * bool(failed[name])}")
    return int(any(failed.values()))


def _seeded(target: Any, options: argparse.Namespace, folder: Path) -> int:
    from fuzz.judge import BreachError, accept, judge

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
    _tell(target.name, outcomes, monotonic() - began)
    return int(bool(breaches))


def _tell(name: str, outcomes: Counter[str], seconds: float, more: str = "") -> None:
    said = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    print(f"{name}: {outcomes.total()} files in {seconds:.0f} s: {said}{more}", flush=True)


def _guided(atheris: Any, target: Any, options: argparse.Namespace, folder: Path) -> int:
    """Like that, but mutations that take new branches are mutated again; what breaks a reader ends the process."""
    from fuzz.judge import accept, judge

    corpus, place = folder / "corpus", folder / "case"
    corpus.mkdir()
    place.mkdir()
    for number, data in enumerate(target.seeds):
        (corpus / f"seed{number}").write_bytes(data)
    accept(target, place)
    outcomes, began = Counter[str](), monotonic()

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        worse = target.mutate(random, data) if random.random() < 0.5 else atheris.Mutate(data, most)
        return bytes(worse[:most])

    def one(data: bytes) -> None:
        outcomes[judge(target, data, place)] += 1
        if outcomes.total() >= options.runs or monotonic() - began > options.seconds:
            kept = len(list(corpus.iterdir())) - len(target.seeds)
            _tell(target.name, outcomes, monotonic() - began, f"; {kept} took new branches")
            shutil.rmtree(folder)
            os._exit(0)  # atheris has no other way to stop

    limits = [f"-seed={options.seed + options.first + 1}", "-timeout=60", "-rss_limit_mb=8192", "-max_len=65536"]
    limits += ["-verbosity=0", "-print_final_stats=0", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *limits, str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()
    return 1


if __name__ == "__main__":
    sys.exit(main())
