"""Arrivals: requests to come with their times and lengths, fixed, drawn like two well-known data sets, or of a file."""

from __future__ import annotations

import csv
import gzip
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, TextIO

from nanort.bounded import content, lines
from nanort.errors import FileError, RequestError, TruncatedFileError

LONGEST = 1 << 24
"""Tokens that no prompt has: what is longer in a file is a mistake."""

LARGEST = 2 << 30
"""Bytes of a file of conversations: ShareGPT's has a third of it."""
AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
"""The columns of the Azure traces."""

Count = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request to come: seconds after the first one, tokens of its prompt, tokens to generate."""

    at: float
    prompt: int
    output: int


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and standard deviation of the tokens of prompts, and of outputs."""

    prompt: tuple[float, float]
    output: tuple[float, float]


LIKE = {
    "azure": Moments((1155.0, 1109.0), (211.0, 163.0)),
    "sharegpt": Moments((246.0, 547.0), (322.0, 244.0)),
}
"""The conversations of Azure's 2023 trace and of ShareGPT, as NanoFlow (OSDI 2025) states them."""


def arrivals(
    lengths: str,
    requests: int | None = None,
    *,
    rate: float | None = None,
    replay: bool = False,
    scale: float = 1.0,
    most: int | None = None,
    seed: int = 0,
    count: Count | None = None,
) -> tuple[Arrival, ...]:
    """So many requests, first to last; all at once unless a rate says otherwise.

    Args:
        lengths: ``const:1024/512``, tokens of prompt and output; ``azure`` or ``sharegpt``, log-normal lengths with the
            mean and deviation of these data sets; a .csv or .csv.gz file with the columns of the Azure traces
            (TIMESTAMP, ContextTokens, GeneratedTokens); or a .json file of ShareGPT's conversations.
        requests: how many; None for all of a file.
        rate: requests a second, of a Poisson process.
        replay: whether they come when the csv file says.
        scale: what all lengths are multiplied by.
        most: tokens that prompt and output may have together: longer prompts are cut, then outputs.
        seed: of what is drawn.
        count: tokens of a text, for ShareGPT's.

    Raises:
        RequestError: lengths that nothing is known of, figures out of range, or more requests than the file has.
        FileError: there is no such file, or it holds something else.

    >>> arrivals("const:8/2", 2)
    (Arrival(at=0.0, prompt=8, output=2), Arrival(at=0.0, prompt=8, output=2))
    """
    if requests is not None and requests < 1:
        raise RequestError(f"requests={requests} leaves nothing to do: give 1 or more")
    if not 0 < scale < math.inf or (rate is not None and not 0 < rate < math.inf):
        raise RequestError(f"scale={scale}, rate={rate}: give numbers above 0")
    if most is not None and most < 2:
        raise RequestError(f"most={most} has no room for a prompt and an output: give 2 tokens or more")
    if replay and (rate is not None or not _is_csv(lengths)):
        raise RequestError(
            f"{lengths!r} cannot be replayed at rate={rate}: replay a csv file, whose times are the rate"
        )
    found = list(islice(_source(lengths, requests, seed, count), requests))
    if not found or len(found) < (requests or 0):
        raise RequestError(f"{lengths} holds {len(found)} requests: ask for 1 to as many, not for {requests}")
    draw = random.Random(f"times {seed}")
    steps = [0.0, *(draw.expovariate(rate) if rate else 0.0 for _ in found[1:])]
    times = [one.at - found[0].at for one in found] if replay else accumulate(steps)
    sized = [_resized(replace(one, at=at), scale, most) for one, at in zip(found, times, strict=True)]
    return tuple(sorted(sized, key=lambda one: one.at))


def _resized(one: Arrival, scale: float, most: int | None) -> Arrival:
    """With its lengths scaled, then cut: at least a token of each is left."""
    prompt, output = max(1, round(one.prompt * scale)), max(1, round(one.output * scale))
    if most is not None:
        output = min(output, most - 1)
        prompt = min(prompt, most - output)
    return Arrival(one.at, prompt, output)


def _source(lengths: str, requests: int | None, seed: int, count: Count | None) -> Iterator[Arrival]:
    """The requests that ``lengths`` names; without end where they are made up."""
    kind, _, sizes = lengths.partition(":")
    if _is_csv(lengths):
        return _azure(Path(lengths))
    if lengths.endswith(".json"):
        return _sharegpt(Path(lengths), count)
    if requests is None and (kind == "const" or lengths in LIKE):
        raise RequestError(f"{lengths} has no end: say how many requests")
    if kind == "const":
        prompt, _, output = sizes.partition("/")
        if not (
            prompt.isdecimal() and output.isdecimal() and 0 < int(prompt) <= LONGEST and 0 < int(output) <= LONGEST
        ):
            raise RequestError(f"{lengths!r} is no pair of lengths: give const:1024/512, tokens of prompt and output")
        return iter(lambda: Arrival(0.0, int(prompt), int(output)), None)
    if lengths in LIKE:
        return _drawn(LIKE[lengths], seed)
    raise RequestError(
        f"nothing is known of lengths {lengths!r}: give const:1024/512, {' or '.join(LIKE)}, a .csv file with the "
        f"columns {', '.join(AZURE)}, or a .json file of ShareGPT's conversations"
    )


def _is_csv(lengths: str) -> bool:
    return lengths.endswith((".csv", ".csv.gz"))


def _drawn(like: Moments, seed: int) -> Iterator[Arrival]:
    """Log-normal lengths with these moments."""
    draw = random.Random(f"lengths {seed}")

    def tokens(mean: float, deviation: float) -> int:
        spread = math.log1p((deviation / mean) ** 2)
        return max(1, round(draw.lognormvariate(math.log(mean) - spread / 2, math.sqrt(spread))))

    while True:
        yield Arrival(0.0, tokens(*like.prompt), tokens(*like.output))


def _azure(path: Path) -> Iterator[Arrival]:
    """The rows of a trace of Azure's, at the seconds that it states."""
    with _text(path) as file:
        rows = csv.reader(lines(file, path))
        try:
            head = next(rows, [])
            if missing := [name for name in AZURE if name not in head]:
                raise FileError(f"{path} has no column {', '.join(missing)}: give a csv file with {', '.join(AZURE)}")
            places = [head.index(name) for name in AZURE]
            for row in rows:
                time, *sizes = (row[place] for place in places)
                prompt, output = (int(size) for size in sizes)
                if not (0 <= prompt <= LONGEST and 0 <= output <= LONGEST):
                    raise FileError(f"{path}:{rows.line_num} has {prompt} and {output} tokens: 0 to {LONGEST} can be")
                when = datetime.fromisoformat(time[:26])  # seconds have seven digits there, of which Python reads six
                yield Arrival(when.replace(tzinfo=timezone.utc).timestamp(), prompt, output)
        except (ValueError, IndexError, csv.Error, EOFError, OSError) as error:
            if isinstance(error, FileError):
                raise
            raise TruncatedFileError(
                f"{path}:{rows.line_num} is no row of such a trace ({error}): correct it"
            ) from error


def _text(path: Path) -> TextIO:
    if not path.is_file():
        raise FileError(f"there is no file {path}: give the path of a trace")
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _sharegpt(path: Path, count: Count | None) -> Iterator[Arrival]:
    """The first question and answer of every conversation that has both."""
    if count is None:
        raise RequestError(f"the texts of {path} need a tokenizer to count their tokens: give a model that has one")
    if not path.is_file():
        raise FileError(f"there is no file {path}: give the path of ShareGPT's conversations")
    try:
        data = json.loads(content(path, LARGEST))
    except (ValueError, RecursionError) as error:
        raise TruncatedFileError(f"{path} is not JSON ({error}): download it again") from error
    for turns in _conversations(path, data):
        if len(turns) >= 2:
            prompt, output = (count(turn["value"]) for turn in turns[:2])
            if prompt and output:
                yield Arrival(0.0, prompt, output)


def _conversations(path: Path, data: Any) -> Iterator[list[dict[str, str]]]:
    if not isinstance(data, list):
        raise TruncatedFileError(f"{path} holds a JSON {type(data).__name__}, not the list of ShareGPT's conversations")
    for number, entry in enumerate(data):
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        if not isinstance(turns, list) or not all(
            isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns
        ):
            raise TruncatedFileError(
                f"{path}: entry {number} is no conversation of turns with a value: download it again"
            )
        yield turns
