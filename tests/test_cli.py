from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nanort import cli
from nanort.graphs import CONFIGS, decoder_step
from nanort.scheduling.schedule import Schedule
from nanort.timeline.events import Timeline


def call(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


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


@pytest.mark.parametrize("backend", ["cpu", "sim"])
def test_run_compares_plan_and_run_and_saves_both(tmp_path: Path, backend: str) -> None:
    out = tmp_path / "timeline.json"
    step = ["--decode=2", "--context=8", "--prefill=30", "--repeat=1"]
    text = call("run", "--backend", backend, *step, "--out", str(out))
    assert "planned" in text
    assert len(Timeline.load(out)) > 0
    assert {event["pid"] for event in json.loads(out.read_text())["traceEvents"]} >= {1, 2}


def test_generate_prints_text_or_json() -> None:
    rows = json.loads(call("generate", "ab", "cd", "--model", "tiny", "--max-new-tokens", "3", "--json"))
    assert [row["prompt"] for row in rows] == ["ab", "cd"]
    assert all(1 <= len(row["tokens"]) <= 3 for row in rows)
    assert call("generate", "ab", "cd", "--model", "tiny", "--max-new-tokens", "3").startswith("> ab\n")


@pytest.mark.parametrize("command", ["demo", "doctor", "plan", "run", "generate"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    assert f"nanort {command}" in call(command, "--help").split("Example:")[1]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["plan", "--model", "gpt-9"], 1, "no model is called 'gpt-9'"),
        (["plan", "--model", "tiny", "--device", "h900"], 1, "no device is called 'h900'"),
        (["plan", "--model", "tiny", "--decode", "0", "--prefill", "0"], 1, "no rows"),
        (["plan", "--model", "tiny", "--nano-batches", "two"], 1, "not a list of counts"),
        (["run", "--backend", "tpu"], 1, "no backend 'tpu'"),
        (["generate", "x", "--model", "nowhere.gguf"], 1, "no checkpoint at nowhere.gguf"),
        (["generate", "", "--model", "tiny"], 1, "prompt 0 is empty"),
        (["plan", "--decode", "many"], 2, "--decode"),
        (["plam"], 2, "plam"),
    ],
)
def test_refusals_are_one_line_and_an_exit_code(arguments: list[str], code: int, says: str) -> None:
    done = process(*arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert says in done.stderr


def test_demo_small_writes_what_it_says(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    text = call("demo", "--small", "--out", str(out))
    assert {path.name for path in out.iterdir()} == {"schedule.json", "timeline.json", "h200.json"}
    assert "random weights" in text
    assert "H200" in text
    assert json.loads((out / "schedule.json").read_text())
    processes = {event["pid"] for event in json.loads((out / "timeline.json").read_text())["traceEvents"]}
    assert len(processes) == 2
