"""Compiles kernels for GPUs that need not be there, in processes of their own: in this one they are interpreted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import triton
from typer.testing import CliRunner

from nanort import cli, occupancy
from nanort.costs.footprint import KIB, Footprint, fit_together, load, programs_per_sm
from nanort.devices import device
from nanort.errors import BackendError
from nanort.occupancy import GPUS, SAVED, Occupancy, OccupancyTable, largest

COMPILING = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
WGMMA = {"linear.triton", "prefill_attention.triton", "expert_linear.triton"}
"""What multiplies tiles large enough for groups of four warps."""


def started(stack: ExitStack, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nanort", "kernels", *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return stack.enter_context(subprocess.Popen(command, env=COMPILING, **pipes))


@pytest.fixture(scope="module")
def compiled() -> dict[int, list[dict[str, Any]]]:
    """The rows of every kernel by compute capability."""
    with ExitStack() as stack:
        running = {capability: started(stack, f"--arch=sm_{capability}", "--json") for capability in SAVED}
        told = {capability: process.communicate() for capability, process in running.items()}
    for capability, process in running.items():
        assert process.returncode == 0 or told[capability][0], told[capability][1]
    return {capability: json.loads(out) for capability, (out, _) in told.items()}


def footprint_of(row: dict[str, Any]) -> Footprint:
    return Footprint(row["registers"], row["shared_bytes"], row["threads"])


def rows_of(compiled: dict[int, list[dict[str, Any]]]) -> Iterator[tuple[int, dict[str, Any]]]:
    return ((capability, row) for capability, rows in compiled.items() for row in rows)


def test_no_kernel_spills(compiled: dict[int, list[dict[str, Any]]]) -> None:
    """The compilers of other versions of Triton assign registers a little differently."""
    allowed = 0 if load()[1] == triton.__version__ else 32
    spilling = [(capability, row) for capability, row in rows_of(compiled) if row["spilled_bytes"] > allowed]
    assert spilling == []


def test_every_kernel_fits_on_an_sm(compiled: dict[int, list[dict[str, Any]]]) -> None:
    for capability, row in rows_of(compiled):
        assert row["programs_per_sm"] == programs_per_sm(footprint_of(row), capability) >= 1, row


def test_all_programs_of_a_launch_run_at_once_on_hopper(compiled: dict[int, list[dict[str, Any]]]) -> None:
    """Each does piece after piece of the work: those that had to wait would begin when the others are done."""
    sms = device(GPUS[90]).sms
    assert [row for row in compiled[90] if row["grid"] > sms * row["programs_per_sm"]] == []


def test_every_kernel_that_an_operator_names_is_compiled(compiled: dict[int, list[dict[str, Any]]]) -> None:
    from nanort import ops

    named = {
        f"{name}.{kernel}"
        for name in ops.__all__
        for kernel, path in getattr(ops, name).kernels.items()
        if not path.startswith("nanort.kernels.library:")
    }
    for rows in compiled.values():
        assert {row["kernel"] for row in rows} == named


def test_matrix_products_use_the_tensor_cores_of_hopper(compiled: dict[int, list[dict[str, Any]]]) -> None:
    using = {row["kernel"] for row in compiled[90] if row["wgmma"]}
    assert using >= WGMMA
    assert not any(row["wgmma"] for capability in (80, 100) for row in compiled[capability])


def test_coresident_products_leave_room_for_attention(compiled: dict[int, list[dict[str, Any]]]) -> None:
    found = largest([occupancy_of(row) for row in compiled[90]], 90)
    assert fit_together(found[90, "linear.coresident"], found[90, "decode_attention.coresident"], 90)


def test_shipped_footprints_are_those_of_the_kernels(compiled: dict[int, list[dict[str, Any]]]) -> None:
    shipped, version = load()
    if version != triton.__version__:
        pytest.skip(f"they were compiled by Triton {version}, and this is {triton.__version__}")
    found: dict[tuple[int, str], Footprint] = {}
    for capability, rows in compiled.items():
        found |= largest([occupancy_of(row) for row in rows], capability)
    assert found == shipped, "python -m nanort.occupancy writes them anew"


def occupancy_of(row: dict[str, Any]) -> Occupancy:
    figures = (row["spilled_bytes"], row["programs_per_sm"], row["grid"], row["wgmma"])
    return Occupancy(row["kernel"], row["sizes"], row["function"], footprint_of(row), *figures)


# The table, on figures of our own.

SPILLING = Occupancy("linear.triton", "2048 x 4096", "linear", Footprint(255, 96 * KIB, 128), 16, 2, 264, True)
LARGE = Occupancy("linear.triton", "8 x 4096", "linear", Footprint(128, 300 * KIB, 128), 0, 0, 132, False)
SMALL = Occupancy("add.triton", "2048", "add", Footprint(32, 0, 128), 0, 16, 528, False)


def test_table_is_aligned_and_says_all() -> None:
    head, first, last = str(OccupancyTable((SPILLING, SMALL))).splitlines()
    assert len(head) == len(first) == len(last)
    assert first.split() == [
        "linear.triton",
        "2048",
        "x",
        "4096",
        "linear",
        "255",
        "16",
        "96.0",
        "128",
        "2",
        "264",
        "yes",
    ]
    assert str(OccupancyTable(())).startswith("kernel")


def test_largest_is_the_most_of_each_resource() -> None:
    assert largest([SMALL, SPILLING, LARGE], 90) == {
        (90, "linear.triton"): Footprint(255, 300 * KIB, 128),
        (90, "add.triton"): SMALL.footprint,
    }


def test_spills_and_what_does_not_fit_are_refused_below_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "occupancy", lambda *_: OccupancyTable((SPILLING, LARGE, SMALL)))
    done = CliRunner().invoke(cli.app, ["kernels", "--json"])
    assert [row["kernel"] for row in json.loads(done.stdout)] == ["linear.triton", "linear.triton", "add.triton"]
    assert str(done.exception) == (
        "linear.triton at 2048 x 4096: linear spills 16 bytes a thread; linear.triton at 8 x 4096: linear does not fit "
        "on an SM: give smaller tiles, more warps or fewer stages"
    )


# What it refuses.


def test_kernels_are_chosen_by_operator_or_by_name() -> None:
    with ExitStack() as stack:
        runs = [started(stack, name, "--json") for name in ("silu_mul", "silu_mul.triton", "silu_nul")]
        (operator, _), (kernel, _), (nothing, refusal) = (process.communicate() for process in runs)
    assert json.loads(operator) == json.loads(kernel)
    assert {row["kernel"] for row in json.loads(kernel)} == {"silu_mul.triton"}
    assert nothing == ""
    assert refusal.startswith("RequestError: no kernel is called silu_nul: give an operator, or one of ")
    assert "silu_mul.triton" in refusal


def test_unknown_architectures_are_refused() -> None:
    done = CliRunner().invoke(cli.app, ["kernels", "--arch=sm_70"])
    assert str(done.exception) == "--arch sm_70 is not known: give one of sm_80, sm_89, sm_90, sm_100"
    assert set(GPUS) >= set(SAVED)


def test_a_process_that_interprets_kernels_compiles_none() -> None:
    with pytest.raises(BackendError, match="unset TRITON_INTERPRET"):
        occupancy.occupancy()


def test_without_triton_the_package_that_brings_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(occupancy.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BackendError, match=r"nanort\[cuda\]"):
        occupancy.occupancy()


def test_every_architecture_that_is_shipped_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Any] = []
    monkeypatch.setattr(occupancy, "occupancy", lambda _: OccupancyTable((SMALL,)))
    monkeypatch.setattr(occupancy, "save", lambda *given: saved.append(given))
    occupancy.main()
    assert saved == [({(c, "add.triton"): SMALL.footprint for c in SAVED}, triton.__version__)]


def test_help_has_an_example() -> None:
    assert "nanort kernels" in CliRunner().invoke(cli.app, ["kernels", "--help"]).stdout.split("Example:")[1]
