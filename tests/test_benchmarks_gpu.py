from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fake_driver
import nanort as nr
import nanort.driver
from nanort import ops
from nanort.runtime.partitions import partitions
from tolerances import TOLERANCES, assert_near
from tree import ROOT

SCALE = 1 / 128
HELPERS = {
    "__init__", "__main__", "attention", "by_hand", "calls", "child", "contests", "layers", "paged", "places", "races",
    "runner", "serving_steps", "timing",
}  # fmt: skip
PARTS = sorted({path.stem for path in (ROOT / "benchmarks" / "gpu").glob("*.py")} - HELPERS)
GOALS = {
    "hello": {(">=", 0.98)},
    "llm_layer": {(">=", 0.98)},
    "gemm_beside_attention": {("<=", 10.0)},
    "dispatch": {(">=", 1 / 1.3), (">=", 1 / 1.02)},
    "offload": {(">=", 1 / 1.03)},
    "serving": {(">=", 70.0), (">=", 80.0), (">=", 1.15), (">=", 1 / 1.03), ("<=", 10.0)},
    "kernel_linear": {("<=", 1.0), (">=", 0.99), (">=", 0.85), (">=", 0.95)},
    "kernel_decode": {("<=", 1.0), (">=", 85.0), (">=", 0.9)},
    "kernel_prefill": {("<=", 1.0), (">=", 0.75)},
    "kernel_elementwise": {("<=", 1.0), (">=", 85.0)},
    "kernel_pages": {("<=", 1.0), (">=", 0.85)},
    "kernel_experts": {("<=", 1.0)},
    "kernel_sampling": {(">=", 100.0), (">=", 98.0)},
}
PART = """
from benchmarks.measure import Row, Spread

def measure(driver, scale):
    yield Row("a row", "s", Spread.of([1.0]), "the baseline", Spread.of([2.0]), (">=", 3.0))
"""
ENDS = {
    "raises": "    raise RuntimeError('this broke')\n",
    "exits": "    import os; os._exit(0)\n",
    "dies": "    import os; os.abort()\n",
    "hangs": "    import time; time.sleep(600)\n",
    "works": "",
}


@pytest.fixture(autouse=True)
def _root_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)  # benchmarks are run from there and are not installed


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_driver.FakeDriver]:
    made = fake_driver.FakeDriver()
    monkeypatch.setattr(nanort.driver, "current", lambda: made)
    yield made
    partitions(made).close()


@pytest.fixture
def references() -> Iterator[None]:
    """Operators without kernels; afterwards they have them in their order, of which plans take the first."""
    kept = [(op.kernels, dict(op.kernels)) for op in (getattr(ops, name) for name in ops.__all__)]
    for kernels, _ in kept:
        kernels.clear()
    yield
    for kernels, before in kept:
        kernels.update(before)


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those that took part in contests; before, each has given what the operator's reference does."""
    contests = importlib.import_module("benchmarks.gpu.contests")
    contest, checked = contests.Arena.contest, list[str]()

    def checking(arena: Any, name: str, calls: Any, peers: dict[str, Any], *counts: Any) -> Any:
        for peer, maker in peers.items():
            for work, args in zip(maker(arena.sms), calls.sets, strict=True):
                agree(work(), calls.op.reference(*args, **calls.static))
            checked.append(peer)
        return contest(arena, name, calls, peers, *counts)

    monkeypatch.setattr(contests.Arena, "contest", checking)
    return checked


def agree(found: Any, wanted: Any) -> None:
    pairs = zip(*(result if isinstance(result, tuple) else (result,) for result in (found, wanted)), strict=True)
    for ours, theirs in pairs:
        if theirs is None or not theirs.is_floating_point():
            assert ours is theirs or torch.equal(ours, theirs)
        else:
            assert_near(ours, theirs)


@pytest.mark.filterwarnings("ignore:.*is not pinned:RuntimeWarning")  # torch knows nothing of the fake's pinned memory
@pytest.mark.parametrize("name", PARTS)
@pytest.mark.usefixtures("peers")
def test_part_yields_whole_rows_and_leaves_nothing_behind(
    name: str, driver: fake_driver.FakeDriver, request: pytest.FixtureRequest
) -> None:
    torch.manual_seed(0)
    if not name.startswith("kernel_"):  # schedules of references: interpreted kernels would take minutes
        request.getfixturevalue("references")
    measure = importlib.import_module("benchmarks.measure")
    with torch.no_grad():
        rows = list(importlib.import_module(f"benchmarks.gpu.{name}").measure(driver, SCALE))
    table = measure.table(rows)
    assert len({row.name for row in rows} | {row.baseline for row in rows}) > 2
    assert len({(row.name, row.unit, row.baseline) for row in rows}) == len(rows)
    for row in rows:
        assert row.name in table
        assert row.found.count >= 1
        assert row.unit
        for spread in filter(None, (row.found, row.ratio)):
            assert all(map(math.isfinite, (spread.least, spread.p20, spread.p50, spread.p80)))
        assert (row.ratio is None) == (not row.baseline)
        assert "does not run" not in row.name
        assert row.met or not row.goal or " SMs" in row.name or not name.startswith("kernel_")
    assert {row.goal for row in rows if row.goal} == GOALS.get(name, set())
    partitions(driver).close()
    assert {kind: handles for kind, handles in driver.live.items() if handles} == {}


def test_a_kernel_is_beside_what_torch_compiles(driver: fake_driver.FakeDriver, peers: list[str]) -> None:
    contests = importlib.import_module("benchmarks.gpu.contests")
    elementwise = importlib.import_module("benchmarks.gpu.kernel_elementwise")
    with torch.no_grad(), contests.arena(driver, SCALE) as here:
        rows = list(elementwise.rows_of(driver, SCALE, here, elementwise.Sizes(ops.rms_norm, 4096, compiled=True)))
    assert peers == ["torch.compile"]
    assert "torch.compile" in {row.baseline for row in rows}
    assert not [row.name for row in rows if "does not run" in row.name]


def test_every_operator_with_kernels_is_measured() -> None:
    elementwise = {op.name for op in importlib.import_module("benchmarks.gpu.kernel_elementwise").OPERATORS}
    elsewhere = {
        "linear", "decode_attention", "prefill_attention", "page_gather", "page_scatter", "route", "expert_linear",
        "expert_combine", "argmax", "sample",
    }  # fmt: skip
    as_pages, a_launch_and_no_more = {"gather", "scatter", "store"}, {"recall"}
    with_kernels = {name for name in ops.__all__ if getattr(ops, name).kernels}
    assert with_kernels <= elementwise | elsewhere | as_pages | a_launch_and_no_more


@pytest.mark.parametrize(("lengths", "flex"), [((3, 192), True), ((5, 256), False)])
def test_decode_peers_read_the_pages_that_the_tables_name(
    lengths: tuple[int, int], flex: bool, driver: fake_driver.FakeDriver
) -> None:
    decode, paged = (importlib.import_module(f"benchmarks.gpu.{name}") for name in ("kernel_decode", "paged"))
    sizes = decode.Sizes(*lengths, 64, flex=flex)
    cache = paged.Cache(driver, paged.Heads(4, 1, 16), 3 * sum(sizes.lengths))
    calls = decode.calls_of(driver, 1.0, cache, sizes)
    assert len({args[2].sum().item() for args in calls.sets}) == len(calls.sets) == 3
    for maker in decode.peers_of(driver, calls, sizes).values():
        for work, args in zip(maker(132), calls.sets, strict=True):
            assert_near(work().view_as(args[0]), calls.op.reference(*args))


def test_what_does_not_run_is_told_and_the_others_are_measured(driver: fake_driver.FakeDriver) -> None:
    calls, contests = (importlib.import_module(f"benchmarks.gpu.{name}") for name in ("calls", "contests"))

    def broken(*args: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("not on this device\nand more")

    wrong = nr.op(demand=nr.Demand(hbm_bytes=1e3), name="wrong", kernels={"triton": "nanort.kernels.silu_mul:none"})
    x = torch.randn(2, 8)
    with contests.arena(driver, SCALE) as here:
        found = here.contest("x", calls.Calls(wrong(torch.add), [(x, x)]), {"torch": lambda sms: [lambda: x + x]})
        other = here.contest("y", calls.Calls(ops.silu_mul, [(x, x)]), {"broken": lambda sms: [lambda: broken(x)]})
        (absent,) = here.errors(calls.Calls(wrong(torch.add), [(x, x)]))
    names = {row.name: row.met for row in (*found.rows(), *other.rows(), absent) if "does not run" in row.name}
    missed = "wrong.triton{} does not run: AttributeError: module 'nanort.kernels.silu_mul' has no attribute 'none'"
    broken_one = "broken, y, {} SMs does not run: NotImplementedError: not on this device"
    assert names == {
        **{missed.format(where): False for where in (", x, 132 SMs", ", x, 64 SMs", "")},
        **{broken_one.format(sms): None for sms in (132, 64)},
    }
    assert set(found.seconds) == {("torch", 132), ("torch", 64)}
    assert set(other.seconds) == {("silu_mul.triton", 132), ("silu_mul.triton", 64)}


def test_cases_that_find_no_time_are_named() -> None:
    contests = importlib.import_module("benchmarks.gpu.contests")
    measure = importlib.import_module("benchmarks.measure")
    (row,) = contests.until(-1.0, 1.0, ["one", "two"], lambda case: iter([measure.Row(case, "s", None)]))
    assert (row.name, row.found.p50) == ("left out after -1 s: one; two", 2.0)


@pytest.mark.parametrize(("added", "share"), [(0.0, 0.0), (6e-5, 1.0), (1.2e-4, 2.0), (math.nan, math.inf)])
def test_errors_are_shares_of_what_the_tests_allow(
    added: float, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = importlib.import_module("benchmarks.gpu.calls")
    assert all(TOLERANCES[dtype] == allowed for dtype, allowed in calls.TOLERANCES.items())
    body = f"def off(x, *, out, scratch, sms): out.copy_(x + float('{added}'))"
    (tmp_path / "off_by.py").write_text(body, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "off_by", raising=False)
    off = nr.op(demand=nr.Demand(hbm_bytes=1e3), name="off", kernels={"out": "off_by:off"})(torch.clone)
    assert calls.Calls(off, [(torch.full((4,), 2.0),)]).error("out", 1) == pytest.approx(share, rel=0.01)


def test_every_part_is_run() -> None:
    runner = importlib.import_module("benchmarks.gpu.runner")
    assert sorted(part.name for part in runner.PARTS) == PARTS


def test_one_part_that_fails_does_not_lose_the_rest(tmp_path: Path) -> None:
    for name, end in ENDS.items():
        (tmp_path / f"{name}.py").write_text(PART + end, encoding="utf-8")
    parts = ", ".join(f"Part({name!r}, {1.0 if name == 'hangs' else 60.0})" for name in ENDS)
    code = (
        "import sys; from benchmarks.gpu.__main__ import main; from benchmarks.gpu.runner import Part; "
        f"sys.exit(main(sys.argv[1:], [{parts}]))"
    )
    saved = tmp_path / "found.json"
    command = [sys.executable, "-c", code, "--driver", "fake_driver:FakeDriver", "--save", str(saved)]
    paths = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT / 'tests'}"}
    done = subprocess.run(command, cwd=ROOT, env=paths, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    found = {part["name"]: part for part in json.loads(saved.read_text(encoding="utf-8"))["parts"]}
    assert list(found) == list(ENDS)
    for name, part in found.items():
        assert bool(part["failed"]) == (part["gpu"] is None) == (name != "works")
        if name != "hangs":  # which may not have come to its row
            assert [(row["name"], row["met"]) for row in part["rows"]] == [("a row", False)], name
    assert "RuntimeError: this broke" in found["raises"]["failed"]
    assert found["exits"]["failed"].startswith("it ended by itself before it was done")
    assert found["dies"]["failed"].startswith("it ended with -6")
    assert found["hangs"]["failed"].startswith("killed after 1 s")
    assert found["works"]["gpu"]["gpu"] == fake_driver.FakeDriver().facts().gpu
    assert "RuntimeError: this broke" in done.stdout
    assert "a row" in done.stdout
    assert "parts that failed: raises, exits, dies, hangs\n" in done.stdout


def test_parts_that_find_no_time_left_are_named() -> None:
    runner = importlib.import_module("benchmarks.gpu.runner")
    (result,) = runner.run([runner.Part("anything", 60.0)], driver="no:thing", budget=0.0)
    assert "not run: the 0 s for all parts were over" in str(result)


@pytest.mark.parametrize(("arguments", "said"), [(("nothing",), "there is no part nothing"), ((), "torch sees no GPU")])
def test_what_cannot_be_run_is_refused_in_a_line(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module("benchmarks.gpu.__main__").main(arguments)
    assert said in capsys.readouterr().err


def test_attention_without_a_page_table_is_that_of_the_operators() -> None:
    attention = importlib.import_module("benchmarks.gpu.attention")
    requests, tokens, heads, kv_heads, dim, page = 3, 8, 4, 2, 16, 4
    kv, q = torch.randn(requests, 2, kv_heads, tokens, dim), torch.randn(requests, heads, dim)
    paged = (
        kv.view(requests, 2, kv_heads, tokens // page, page, dim).permute(0, 3, 1, 4, 2, 5).flatten(0, 1).contiguous()
    )
    pages = torch.arange(len(paged), dtype=torch.int32).view(requests, -1)
    decode = nr.Layout(decode=requests, kv_tokens=requests * tokens)
    expected = ops.decode_attention(q, paged, pages, torch.full((requests,), tokens - 1), layout=decode)
    assert_near(attention.decode_attention(q, kv, layout=decode), expected)
    q, positions = torch.randn(tokens, heads, dim), torch.arange(tokens)
    owner, prompt = torch.zeros(tokens, dtype=torch.int64), nr.Layout(prefill=tokens)
    expected = ops.prefill_attention(q, paged, pages[:1], positions, owner, layout=prompt)
    assert_near(attention.prefill_attention(q, kv[0], layout=prompt), expected)


@pytest.mark.parametrize("sizes", [2, 3, (4, 11)])
def test_layers_cut_in_pieces_compute_what_whole_ones_do(sizes: int | tuple[int, ...]) -> None:
    layers = importlib.import_module("benchmarks.gpu.layers")
    races = importlib.import_module("benchmarks.gpu.races")
    graph = layers.layers(layers.Sizes.llama(SCALE, layers=2, decode=670, context=1280, prefill=1340))
    assert graph.layout is not None
    given = layers.tensors(fake_driver.FakeDriver(), graph)
    found = []
    for made in (graph, nr.nano_batch(graph, sizes)):
        inputs, constants, states = races.by_kind(made, {name: tensor.clone() for name, tensor in given.items()})
        outputs = made.eager(**inputs, **constants, **states)
        found.append({name: made.layout.unpack(rows) for name, rows in outputs.items()} | states)
    whole, cut = found
    assert not torch.equal(whole["kv.0"], given["kv.0"])
    for name, tensor in whole.items():
        assert_near(cut[name], tensor)


def test_race_refuses_a_plan_that_computes_something_else(driver: fake_driver.FakeDriver) -> None:
    races = importlib.import_module("benchmarks.gpu.races")
    graph = nr.Graph("one")
    graph.output(y=graph.call(torch.neg, graph.constant("x", (8,), torch.float32), demand=nr.Demand(flops=1)))
    plan = nr.co_schedule(graph, nr.device("h200"), policy="serial")
    runs = {"right": lambda: {"y": torch.ones(8)}, "wrong": lambda: {"y": torch.full((8,), math.nan)}}
    with pytest.raises(AssertionError, match="wrong computes another y than right"):
        races.refuse_unlike(driver, dict.fromkeys(runs, plan), runs)


@pytest.mark.parametrize(
    ("arguments", "said"), [(("--fake", "--graphs", "3"), " passed"), (("--graphs", "1"), "torch sees no GPU")]
)
def test_gpu_tests_pass_on_the_fake_driver_and_are_skipped_without_a_gpu(arguments: tuple[str, ...], said: str) -> None:
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-rs", *arguments]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=hidden, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    assert said in done.stdout
    assert (" passed" in done.stdout) == ("--fake" in arguments)


def test_benchmarks_of_kernels_are_run_by_themselves(tmp_path: Path) -> None:
    saved = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.bench_kernels", "kernel_linear", "--scale", str(SCALE)]
    command += ["--driver", "fake_driver:FakeDriver", "--save", str(saved)]
    paths = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(command, cwd=ROOT, env=paths, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    found = json.loads(saved.read_text(encoding="utf-8"))
    assert found["command"] == "python -m benchmarks.bench_kernels"
    assert [(part["name"], part["failed"]) for part in found["parts"]] == [("kernel_linear", "")]
    known = importlib.import_module("benchmarks.bench_kernels").KERNELS
    assert sorted(part.name for part in known) == [name for name in PARTS if name.startswith("kernel_")]


def test_parts_run_where_numba_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('another numpy')", encoding="utf-8")
    saved = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "dispatch", "--scale", str(SCALE)]
    command += ["--driver", "fake_driver:FakeDriver", "--save", str(saved)]
    paths = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT / 'tests'}"}
    done = subprocess.run(command, cwd=ROOT, env=paths, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    assert saved.exists()
