from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import nanort
from nanort import cli, demo
from nanort.errors import CostError
from nanort.graphs import CONFIGS, decoder_step
from nanort.scheduling.problem import Problem, Solution
from nanort.scheduling.schedule import Schedule
from nanort.timeline.events import Timeline

TINY = ("plan", "--model=tiny", "--decode=4", "--context=16", "--prefill=0", "--effort=32")
PROBLEM = """  5   2
  5   3
  0   0   0   3   2   3   4
  4   2   1   1   5
  3   5   0   1   5
  2   3   1   1   5
  0   0   0   0
"""
"""Patterson's format: five tasks; of the three in the middle, the second and third cannot run beside another."""


def call(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_version_is_told() -> None:
    assert call("--version") == f"nanort {nanort.__version__}\n"


def test_a_demo_without_a_folder_to_write_to_does_no_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        demo.run_demo(tmp_path / "file" / "out", small=True, console=Console(file=(said := io.StringIO())))
    assert said.getvalue() == ""


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nanort", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "120"})


def test_doctor_says_a_line_each_and_the_same_as_json() -> None:
    facts = json.loads(call("doctor", "--json"))
    assert {"nanort", "python", "torch", "device", "cuda", "cuda-bindings", "triton", "backends"} <= facts.keys()
    lines = call("doctor").strip().splitlines()
    assert [line.split()[0] for line in lines] == list(facts)


def test_plan_prints_table_timeline_and_reasons_and_saves_what_loads(tmp_path: Path) -> None:
    out = tmp_path / "schedule.json"
    step = {"decode": 8, "context": 64, "prefill": 56}
    options = [f"--{name}={size}" for name, size in step.items()]
    text = call("plan", "--model", "tiny", *options, "--out", str(out))
    for part in ("prefill_attention", "GFLOP", "makespan", "serial", "bound", str(out)):
        assert part in text
    import torch

    graph = decoder_step(CONFIGS["tiny"], **step, dtype=torch.bfloat16)
    Schedule.load(out, graph).check()


def test_plan_as_json_has_the_figures() -> None:
    data = json.loads(call("plan", "--model", "tiny", "--decode=4", "--context=16", "--prefill=0", "--json"))
    assert data["seconds"] <= data["serial_seconds"] * (1 + 1e-9)


def test_plan_keeps_to_effort_seed_and_policy() -> None:
    data = json.loads(call(*TINY, "--policy=search", "--seed=7", "--json"))
    assert data["effort"] == 32
    again = json.loads(call(*TINY, "--policy=search", "--seed=7", "--json"))
    assert again == data
    assert json.loads(call(*TINY, "--policy=serial", "--json"))["effort"] == 0


def test_plan_takes_measured_costs(tmp_path: Path) -> None:
    out, options = tmp_path / "profile.json", ("--model=tiny", "--decode=2", "--context=8", "--prefill=6")
    call("profile", *options, "--nano-batches=1", "--budget=20s", "--store", str(tmp_path / "store"), "--out", str(out))
    plan = ("plan", *options, "--device=cpu", "--policy=serial", "--json")
    modelled, measured = (json.loads(call(*plan, *more))["serial_seconds"] for more in ((), ("--profile", str(out))))
    assert measured != modelled
    with pytest.raises(CostError, match="h200"):
        call("plan", *options, "--device=h200", "--profile", str(out))


def test_compare_has_every_policy_beside_the_plan() -> None:
    text = call(*TINY, "--compare")
    assert "makespan" in text
    assert [line.split()[0] for line in text.splitlines()[-8:-1]] == [
        "policy", "serial", "list", "search", "auto", "co-resident", "isolated",
    ]  # fmt: skip
    data = json.loads(call(*TINY, "--compare", "--policy=list", "--json"))
    assert [row["policy"] for row in data["comparison"]][:3] == ["serial", "list", "search"]
    assert data["comparison"][1]["seconds"] == data["seconds"]
    assert "comparison" not in json.loads(call(*TINY, "--json"))


def test_sweep_is_a_table_and_a_plot_of_the_chosen_cut_or_of_the_one_asked_for() -> None:
    text = call(*TINY, "--sweep=sms", "--policy=serial")
    assert "uncut, over splits of 128 SMs of h200" in text
    assert "SMs for memory  " in text
    assert "SMs for memory, the others for compute" in text
    assert "2 nano-batches, over splits" in call(*TINY, "--sweep=sms", "--nano-batches=2")
    sweep = json.loads(call(*TINY, "--sweep=sms", "--json"))["sweep"]
    assert [row["memory_sms"] for row in sweep["splits"]] == list(range(8, 121, 8))
    assert sweep["splits"][0]["seconds"].keys() == sweep["serial_seconds"].keys()


def _interrupting(at: int) -> Callable[..., object]:
    """A progress bar during which Ctrl-C is pressed when ``at`` schedules are done."""

    def told(done: int, *_: float) -> None:
        if done >= at:
            raise KeyboardInterrupt

    @contextmanager
    def bar(*_: object, **__: object) -> Iterator[Callable[..., None]]:
        yield told

    return bar


def test_ctrl_c_while_planning_keeps_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "progress_bar", _interrupting(at=9))
    text = call(*TINY)
    assert "makespan" in text
    assert "interrupted after 9 of 32 schedules" in text


def test_ctrl_c_before_there_is_a_plan_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "step_of", pressed)
    assert CliRunner().invoke(cli.app, TINY).exit_code == 130


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    path = tmp_path / "three.rcp"
    path.write_text(PROBLEM)
    return path


def test_solve_says_makespan_bound_and_starts_that_hold(problem: Path) -> None:
    data = json.loads(call("solve", str(problem), "--schedules=50", "--json"))
    found = Solution(tuple(data["starts"]), tuple(data["modes"]), data["makespan"], data["bound"])
    Problem.read(problem).check(found)
    assert (data["makespan"], data["optimal"], data["gap"] >= 0) == (7, data["bound"] == 7, True)
    assert data["seconds"] > 0
    text = call("solve", str(problem), "--policy=list")
    assert [line.split()[0] for line in text.splitlines()] == ["problem", "makespan", "bound", "schedules", "starts"]
    assert text.splitlines()[1].startswith("makespan   7,")
    assert "1@0" in text


def test_ctrl_c_while_solving_keeps_the_best_so_far(problem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "progress_bar", _interrupting(at=2))
    assert "interrupted after" in call("solve", str(problem), "--schedules=1000")


@pytest.mark.parametrize(("terminal", "shows"), [(True, True), (False, False)])
def test_bar_shows_after_a_second_of_work_and_says_best_and_bound(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, shows: bool
) -> None:
    now = 0.0
    monkeypatch.setattr(demo, "monotonic", lambda: now)
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=120, color_system=None, _environ={"TERM": "xterm"})
    with demo.progress_bar(console, "scheduling") as bar:
        bar(1, 100, 0.06, 0.0484)
        now = 0.9
        bar(2, 100, 0.06, 0.0484)
        assert not written.getvalue()
        now = 1.1
        bar(3, 100, 0.0523, 0.0484)
    assert ("scheduling" in written.getvalue(), "best 52.3 ms, bound 48.4 ms" in written.getvalue()) == (shows, shows)


def test_bar_of_quick_work_writes_nothing() -> None:
    written = io.StringIO()
    with demo.progress_bar(Console(file=written, force_terminal=True), "loading") as bar:
        bar(1, 1)
    assert not written.getvalue()


@pytest.mark.parametrize("backend", ["cpu", "sim"])
def test_run_compares_plan_and_run_and_saves_both(tmp_path: Path, backend: str) -> None:
    out = tmp_path / "timeline.json"
    step = ["--decode=2", "--context=8", "--prefill=30", "--repeat=1"]
    text = call("run", "--backend", backend, *step, "--out", str(out))
    assert "planned" in text
    assert len(Timeline.load(out)) > 0
    assert {event["pid"] for event in json.loads(out.read_text())["traceEvents"]} >= {1, 2}


@pytest.mark.parametrize(
    "command",
    ["demo", "doctor", "plan", "run", "profile", "kernels", "solve", "generate", "chat", "serve", "bench serve"],
)
def test_every_command_has_help_with_an_example(command: str) -> None:
    assert f"nanort {command}" in call(*command.split(), "--help").split("Example:")[1]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["plan", "--model", "gpt-9"], 1, "no model is called 'gpt-9'"),
        (["plan", "--model", "tiny", "--device", "h900"], 1, "no device is called 'h900'"),
        (["plan", "--model", "tiny", "--decode", "0", "--prefill", "0"], 1, "no rows"),
        (["plan", "--model", "tiny", "--nano-batches", "two"], 1, "not a list of counts"),
        (
            ["plan", "--model", "tiny", "--policy", "best"],
            1,
            "there is no policy 'best': give one of serial, list, search",
        ),
        (["plan", "--model", "tiny", "--effort", "0"], 1, "effort=0 is no budget"),
        (["plan", "--model", "tiny", "--sweep", "streams"], 2, "'streams' is not"),
        (["solve", "nowhere.sm"], 2, "nowhere.sm"),
        (["solve", __file__], 1, "TruncatedFileError"),
        (["run", "--backend", "tpu"], 1, "no backend 'tpu'"),
        (["generate", "x", "--model", "nowhere.gguf"], 1, "no checkpoint at nowhere.gguf"),
        (["generate", "", "--model", "tiny"], 1, "prompt 0 is empty"),
        (["generate", "x", "--model", "tiny", "--memory", "2"], 1, "--memory '2' is no amount above zero"),
        (["serve", "--model", "tiny", "--slo-tpot", "0ms"], 1, "such as 30ms or 0.03s"),
        (["serve", "--model", "tiny", "--port", "65536"], 2, "--port"),
        (["plan", "--decode", "many"], 2, "--decode"),
        (["plam"], 2, "plam"),
        (["plan", "--profile", "nowhere.json"], 2, "nowhere.json"),
    ],
)
def test_refusals_are_a_message_and_an_exit_code(
    arguments: list[str], code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["nanort", *arguments])
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as stopped:
        cli.run_guarded(cli.app)  # main would end the process of this test
    assert stopped.value.code == code
    assert says in capsys.readouterr().err


def test_a_refused_command_prints_one_line() -> None:
    done = process("plan", "--model", "gpt-9")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("RequestError: no model is called 'gpt-9'")


def test_demo_small_writes_what_it_says(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    text = call("demo", "--small", "--out", str(out))
    assert {path.name for path in out.iterdir()} == {"schedule.json", "timeline.json", "h200.json"}
    assert "random weights" in text
    assert "H200" in text
    assert json.loads((out / "schedule.json").read_text())
    processes = {event["pid"] for event in json.loads((out / "timeline.json").read_text())["traceEvents"]}
    assert processes == {1, 2, 3}, "what happened, what was planned, and the calls of the host"
