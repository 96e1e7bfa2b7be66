"""Files of the standard scheduling problems: Patterson's .rcp, and PSPLIB's .sm and .mm, told apart by content."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from nanort.bounded import content
from nanort.errors import FileError, ProblemError, TruncatedFileError
from nanort.scheduling.problem import Mode, Problem, Task

WHOLE = re.compile(r"[0-9]{1,15}", re.ASCII)
KINDS = {"renewable": "R", "nonrenewable": "N", "doubly constrained": "D"}


def read(path: str | os.PathLike[str]) -> Problem:
    """The problem in a file; see :meth:`Problem.read`."""
    text = content(path).decode("latin-1")  # any byte is a letter
    text = text.removeprefix("\xef\xbb\xbf").rstrip("\x1a\r\n ")  # Windows begins files so, DOS ends them so
    lines = text.replace("\r\n", "\n").split("\n")
    first = next((line for line in lines if line.strip()), "")
    if not first or "\0" in text:
        raise TruncatedFileError(f"{path} is {'binary' if first else 'empty'}: give a .rcp, .sm or .mm file")
    if first.lstrip().startswith("***") or any(line.startswith("PRECEDENCE RELATIONS") for line in lines):
        return _psplib(path, lines)
    if not WHOLE.fullmatch(first.split()[0]):
        raise TruncatedFileError(
            f"{path}, line {lines.index(first) + 1}: neither a Patterson file, which begins with the number of tasks, "
            f"nor one of PSPLIB, which begins with a line of stars"
        )
    return _patterson(path, lines)


class _Numbers:
    """The whole numbers in some lines of a file, taken one after the other."""

    def __init__(self, path: str | os.PathLike[str], lines: Sequence[str], start: int = 1) -> None:
        """``start`` is the number of the first line in the file."""
        self.path, self.at, self.end = path, 0, start + len(lines) - 1
        split = [(number, line.split()) for number, line in enumerate(lines, start)]
        self.words = [(word, number, not place) for number, words in split for place, word in enumerate(words)]

    def take(self, what: str, *, new_line: bool = False, least: int = 0, most: float = float("inf")) -> int:
        """The next number, which stands for ``what``, at the begin of a line where asked."""
        if self.at == len(self.words):
            raise TruncatedFileError(f"{self.path}, line {self.end}: no more lines where {what} should be: get it anew")
        word, line, begins = self.words[self.at]
        self.at += 1
        if not WHOLE.fullmatch(word):
            raise FileError(
                f"{self.path}, line {line}: {what} is {word!r}: it must be a whole number of 15 digits or fewer"
            )
        if not least <= int(word) <= most:
            span = f"{least} or more" if most == float("inf") else f"from {least} to {most}"
            raise FileError(f"{self.path}, line {line}: {what} is {word}: it must be {span}")
        if new_line and not begins:
            raise FileError(
                f"{self.path}, line {line}: {word} is one number too many: a line ought to begin with {what}"
            )
        return int(word)

    def many(self, count: int, what: str, most: float = float("inf"), least: int = 0) -> list[int]:
        """The next ``count`` numbers."""
        return [self.take(f"{what} {at} of {count}", least=least, most=most) for at in range(1, count + 1)]

    def finish(self) -> None:
        """Refuses what is left."""
        if self.at < len(self.words):
            word, line, _ = self.words[self.at]
            raise FileError(f"{self.path}, line {line}: {word!r} is one too many: all that was announced has been read")


def _patterson(path: str | os.PathLike[str], lines: Sequence[str]) -> Problem:
    """Counts of tasks and resources; capacities; for each task duration, usages, a count of successors and these."""
    numbers = _Numbers(path, lines)
    count, resources = numbers.take("the number of tasks", least=1), numbers.take("the number of resources")
    capacities = numbers.many(resources, "capacity")
    modes, arcs = [], []
    for task in range(1, count + 1):
        duration = numbers.take(f"the duration of task {task}", new_line=True)
        modes.append([(duration, numbers.many(resources, f"of task {task}, usage"))])
        after = numbers.take(f"the number of successors of task {task}")
        arcs += [(task, other) for other in numbers.many(after, f"of task {task}, successor", count, 1)]
    numbers.finish()
    return _problem(path, modes, arcs, capacities)


def _psplib(path: str | os.PathLike[str], lines: Sequence[str]) -> Problem:
    """Counts, then three tables: modes and successors of each task, durations and usages of each mode, capacities."""
    count = _stated(path, lines, "jobs", least=1)
    kinds = {letter: _stated(path, lines, f"- {kind}") for kind, letter in KINDS.items()}
    if kinds["D"]:
        raise ProblemError(f"{path}: doubly constrained resources cannot be stated: leave them out of the file")
    resources = kinds["R"] + kinds["N"]
    table, ways, arcs = _table(path, lines, "PRECEDENCE RELATIONS"), [], []
    for task in range(1, count + 1):
        table.take(f"task {task}", new_line=True, least=task, most=task)
        ways.append(table.take(f"the number of modes of task {task}", least=1))
        after = table.take(f"the number of successors of task {task}")
        arcs += [(task, other) for other in table.many(after, f"of task {task}, successor", count, 1)]
    table.finish()
    table, modes = _table(path, lines, "REQUESTS/DURATIONS"), list[list[tuple[int, list[int]]]]()
    for task in range(1, count + 1):
        table.take(f"task {task}", new_line=True, least=task, most=task)
        modes.append([])
        for mode in range(1, ways[task - 1] + 1):
            table.take(f"mode {mode} of task {task}", new_line=mode > 1, least=mode, most=mode)
            duration = table.take(f"the duration of task {task} in mode {mode}")
            modes[-1].append((duration, table.many(resources, f"of task {task} in mode {mode}, usage")))
    table.finish()
    table = _table(path, lines, "RESOURCEAVAILABILITIES")
    capacities = table.many(resources, "capacity")
    table.finish()
    for column in range(kinds["R"], resources):
        if sum(max(usage[column] for _, usage in of) for of in modes) > capacities[column]:
            raise ProblemError(
                f"{path}: resource N{column - kinds['R'] + 1} is used up, and {capacities[column]} may be too little: "
                f"problems here have renewable resources only, leave it out of the file"
            )
    return _problem(path, modes, arcs, capacities[: kinds["R"]])


def _stated(path: str | os.PathLike[str], lines: Sequence[str], what: str, least: int = 0) -> int:
    """The number in the line that begins with ``what``, behind its colon."""
    at = _line(path, lines, lambda line: line.startswith(what) and ":" in line, f"{what!r} and a colon")
    numbers = _Numbers(path, [lines[at].split(":", 1)[1].rstrip("RND \t")], at + 1)
    found = numbers.take(f"{what!r}", least=least)
    numbers.finish()
    return found


def _table(path: str | os.PathLike[str], lines: Sequence[str], title: str) -> _Numbers:
    """The numbers below ``title`` and the line that heads the columns, down to the next line of stars."""
    begin = _line(path, lines, lambda line: line.startswith(title), f"{title!r}") + 1
    begin += next((at for at, line in enumerate(lines[begin:], 1) if line.strip()), 0)
    inside = list(lines[begin:])
    end = next((at for at, line in enumerate(inside) if line.lstrip().startswith("***")), len(inside))
    ruled = ["" if line.strip().startswith("---") else line for line in inside[:end]]
    return _Numbers(path, ruled, begin + 1)


def _line(path: str | os.PathLike[str], lines: Sequence[str], fits: Callable[[str], bool], what: str) -> int:
    found = next((at for at, line in enumerate(lines) if fits(line.strip())), None)
    if found is None:
        raise TruncatedFileError(f"{path}, line {len(lines)}: no line begins with {what}: get the file anew")
    return found


def _problem(
    path: str | os.PathLike[str],
    modes: Sequence[Sequence[tuple[int, list[int]]]],
    arcs: Sequence[tuple[int, int]],
    capacities: Sequence[int],
) -> Problem:
    names = [f"R{at}" for at in range(1, len(capacities) + 1)]
    tasks = [
        Task(
            str(at), [Mode(duration, {n: u for n, u in zip(names, usage, strict=False) if u}) for duration, usage in of]
        )
        for at, of in enumerate(modes, 1)
    ]
    pairs = [(str(a), str(b)) for a, b in arcs]
    try:
        return Problem(tasks, dict(zip(names, capacities, strict=True)), pairs, Path(path).stem)
    except ProblemError as error:
        raise FileError(f"{path}: {error}") from error
