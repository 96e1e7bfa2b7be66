from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from nanort.errors import FileError, ProblemError, TruncatedFileError
from nanort.scheduling.problem import Mode, Problem, Task
from tree import ROOT

RULE = "*" * 72
PATTERSON = """  4   2
  5   3
  0   0   0   2   2   3
  4   2   1   1   4
  3   5   0   1   4
  0   0   0   0
"""
PSPLIB = f"""{RULE}
file with basedata            : mm9_.bas
initial value random generator: 28123
{RULE}
projects                      :  1
jobs (incl. supersource/sink ):  4
horizon                       :  9
RESOURCES
  - renewable                 :  2   R
  - nonrenewable              :  1   N
  - doubly constrained        :  0   D
{RULE}
PROJECT INFORMATION:
pronr.  #jobs rel.date duedate tardcost  MPM-Time
    1      2      0        5       26        5
{RULE}
PRECEDENCE RELATIONS:
jobnr.    #modes  #successors   successors
   1        1          2           2   3
   2        2          1           4
   3        1          1           4
   4        1          0
{RULE}
REQUESTS/DURATIONS:
jobnr. mode duration  R 1  R 2  N 1
{"-" * 72}
  1      1     0       0    0    0
  2      1     4       2    1    3
         2     5       1    0    2
  3      1     3       5    0    4
  4      1     0       0    0    0
{RULE}
RESOURCEAVAILABILITIES:
  R 1  R 2  N 1
    5    3    7
{RULE}
"""
ARCS = [("1", "2"), ("1", "3"), ("2", "4"), ("3", "4")]


def stated(*second: Mode) -> Problem:
    modes = [[Mode(0)], second, [Mode(3, {"R1": 5})], [Mode(0)]]
    return Problem([Task(str(at), of) for at, of in enumerate(modes, 1)], {"R1": 5, "R2": 3}, ARCS, "given")


def read(folder: Path, text: str | bytes) -> Problem:
    path = folder / "given.txt"  # what it is, its content says
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Problem.read(path)


@pytest.fixture
def progen(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.progen")


def test_patterson_file_says_what_it_holds(tmp_path: Path) -> None:
    assert read(tmp_path, PATTERSON) == stated(Mode(4, {"R1": 2, "R2": 1}))


def test_psplib_file_says_what_it_holds(tmp_path: Path) -> None:
    assert read(tmp_path, PSPLIB) == stated(Mode(4, {"R1": 2, "R2": 1}), Mode(5, {"R1": 1}))


@pytest.mark.parametrize("text", [PATTERSON, PSPLIB])
@pytest.mark.parametrize(
    ("old", "new"), [("\n", "\r\n"), ("\n", "\n\n"), ("\n", " \t\n"), ("  ", "\t"), ("   4\n", "\n   4\n")]
)
def test_white_space_says_nothing(tmp_path: Path, text: str, old: str, new: str) -> None:
    changed, expected = text.replace(old, new), read(tmp_path, text)
    assert read(tmp_path, changed) == read(tmp_path, changed.rstrip()) == read(tmp_path, f"{changed}\x1a") == expected


@pytest.mark.parametrize("name", ["j30", "j60", "m20"])
def test_what_is_written_is_read(tmp_path: Path, progen: ModuleType, name: str) -> None:
    for _, problem in progen.grid(name, 1):
        for write in [progen.to_sm] if name == "m20" else [progen.to_sm, progen.to_rcp]:
            path = tmp_path / f"{problem.name}.x"
            path.write_text(write(problem))
            assert Problem.read(path) == problem


@pytest.mark.parametrize("text", [PATTERSON, PSPLIB])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, text: str) -> None:
    needed = len(text.rstrip("*\n")) if text is PSPLIB else len(text.rstrip())
    for size in range(needed):
        with pytest.raises((TruncatedFileError, FileError)):
            read(tmp_path, text[:size])


@pytest.mark.parametrize("text", [PATTERSON, PSPLIB])
@pytest.mark.parametrize("word", ["x", "-1", "1.5", "9" * 40, "9" * 5000, "\xff", "٣", ""])
def test_a_number_that_is_garbled_or_lost_is_refused_with_its_line(tmp_path: Path, text: str, word: str) -> None:
    lines = text.split("\n")
    tables = [at for at, line in enumerate(lines) if line.split() and all(w.isdigit() for w in line.split())]
    for at in [at for at in tables if "MPM-Time" not in lines[at - 1]]:
        words = lines[at].split()
        for place in range(len(words)):
            garbled = " ".join([*words[:place], word, *words[place + 1 :]])
            with pytest.raises(FileError, match=r"given\.txt, line \d+: "):
                read(tmp_path, "\n".join([*lines[:at], garbled, *lines[at + 1 :]]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\x7fELF\0\1", "is binary"),
        (b"jobs 3\n", "line 1: neither a Patterson file"),
        (b"\nPK\3\4 1 2\n", "line 2: neither a Patterson file"),
        (PATTERSON.replace("   2   3", "   2   9").encode(), "line 3: of task 1, successor 2 of 2 is 9"),
        (PATTERSON.replace("   2   3", "   0   3").encode(), "line 3: of task 1, successor 1 of 2 is 0"),
        (PATTERSON.replace("  4   2\n", "  0   2\n").encode(), "line 1: the number of tasks is 0"),
        (f"{PATTERSON}7\n".encode(), "line 7: '7' is one too many"),
        (PATTERSON.replace("   1   4\n  0", "   1   2\n  0").replace("1   1   4", "1   1   3").encode(), "in a circle"),
        (PATTERSON.replace("  5   3\n", "  4   3\n").encode(), "task '3' fits in none"),
        (PSPLIB.replace("  4        1          0", "  5        1          0").encode(), "line 22: task 4 is 5"),
        (PSPLIB.replace("         2     5", "         3     5").encode(), "line 29: mode 2 of task 2 is 3"),
        (PSPLIB.replace("jobs (", "tasks (").encode(), "no line begins with 'jobs'"),
    ],
)
def test_what_cannot_be_is_refused_with_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(FileError, match=said):
        read(tmp_path, content)


def test_resources_that_are_used_up_are_refused_where_they_may_run_out(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="resource N1 is used up, and 6 may be too little"):
        read(tmp_path, PSPLIB.replace("    5    3    7", "    5    3    6"))
    with pytest.raises(ProblemError, match="doubly constrained"):
        read(tmp_path, PSPLIB.replace(":  0   D", ":  1   D"))
