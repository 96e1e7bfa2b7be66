"""What is likely to be given by mistake: names for objects, numbers of numpy, a graph for its schedule."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nanort as nr
from nanort import ops
from nanort.drafts import draft
from nanort.errors import DemandError, NanortError
from nanort.serving import load_model


def graph(name: str = "g") -> nr.Graph:
    g = nr.Graph(name)
    x, w = g.input("x", (8, 4), torch.float32, batch=0), g.constant("w", (4, 4), torch.float32)
    g.output(y=ops.linear(x, w))
    return g


CPU: Any = nr.device("cpu")
ANY: Any = nr  # as a program sees it whose types nobody checks
MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "device name": (lambda: ANY.co_schedule(graph(), "cpu"), r"give nr.device\('cpu'\)"),
    "profile path": (lambda: ANY.co_schedule(graph(), CPU, profile="p.json"), "nr.Profile.load"),
    "half a count": (lambda: ANY.co_schedule(graph(), CPU, nano_batches=2.0), "nano_batches=2.0"),
    "a text count": (lambda: ANY.nano_batch(graph(), "2"), "count of one or more"),
    "device index": (lambda: ANY.device(0), "nr.Device.current"),
    "graph to run": (lambda: ANY.Executor(graph()), "nr.co_schedule"),
    "dtype name": (lambda: ANY.Graph("h").input("a", (2,), "float32"), "torch.float32"),
    "dtype of weights": (lambda: load_model("tiny", dtype=ANY.Graph), "give torch.float32"),
    "one size": (lambda: ANY.Graph("h").input("a", 5, torch.float32, batch=0), "no tuple"),
    "layout rows": (lambda: ANY.Graph("h", layout=3), "nr.Layout"),
    "namesake": (lambda: ops.linear(graph().roots[0], graph().roots[1]), "another graph of that name"),
    "no demand": (lambda: ANY.op(demand=5)(torch.relu), "nr.Demand"),
    "file to diff": (lambda: ANY.co_schedule(graph(), CPU).timeline().diff("a.json"), "nr.Timeline.load"),
    "schedule to compare": (
        lambda: ANY.co_schedule(graph(), CPU).timeline().compare(ANY.co_schedule(graph(), CPU)),
        "schedule.timeline",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_of_a_wrong_kind_is_refused_with_what_to_do(mistake: str) -> None:
    make, said = MISTAKES[mistake]
    with pytest.raises(NanortError, match=said):
        make()


def test_numbers_of_numpy_are_numbers() -> None:
    assert nr.Demand(flops=np.prod((3, 4)), hbm_bytes=np.float32(2)) == nr.Demand(flops=12, hbm_bytes=2)
    assert type(nr.Demand(flops=np.prod((3, 4))).flops) is float
    with pytest.raises(DemandError, match="finite"):
        nr.Demand(flops=np.float32("nan"))


def test_a_file_that_cannot_be_written_is_named_and_not_its_draft(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"'.*/nowhere/a\.json'$"), draft(tmp_path / "nowhere/a.json") as beside:
        beside.write_text("")
    with pytest.raises(OSError, match=r"\[Errno 28\].*a\.json'$"), draft(tmp_path / "a.json"):
        raise OSError(28, os.strerror(28))  # as a write to a full disk says it, without a name


def test_a_file_that_is_replaced_keeps_its_permissions_and_the_link_to_it(tmp_path: Path) -> None:
    kept, link = tmp_path / "kept.json", tmp_path / "latest.json"
    kept.write_text("old")
    kept.chmod(0o600)
    link.symlink_to(kept)
    with draft(link) as beside:
        beside.write_text("new")
    assert (kept.read_text(), kept.stat().st_mode & 0o777, link.readlink()) == ("new", 0o600, kept)
    assert sorted(tmp_path.iterdir()) == [kept, link]


@pytest.mark.skipif(os.name != "posix", reason="a shell closes stdout so")
def test_a_summary_for_a_closed_stdout_is_no_error(tmp_path: Path) -> None:
    nr.co_schedule(graph(), CPU).timeline().save(tmp_path / "t.json")
    command = f"{sys.executable} -m nanort trace summary {tmp_path}/t.json >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_executor_says_what_it_runs() -> None:
    schedule = nr.co_schedule(graph(), CPU)
    with nr.Executor(schedule, backend="sim") as run:
        assert repr(run) == "<Executor of g on cpu, backend sim>"
    assert repr(run) == "<Executor of g on cpu, backend sim (closed)>"


def test_copies_have_the_same_operators() -> None:
    local = nr.op(demand=nr.Demand(flops=1))(lambda x: x + 1)
    assert copy.deepcopy(local) is local
    assert copy.deepcopy(graph()).nodes[0].op is ops.linear
