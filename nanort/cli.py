"""The command line: demo, doctor, plan, run, profile, kernels, solve, and those that serve models or read traces."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from nanort import __version__
from nanort.commands import serving
from nanort.compare import Row, compare, sweep_sms
from nanort.costs.profile import Profile
from nanort.costs.table import demand_table
from nanort.demo import progress_bar, run_demo
from nanort.devices import Device
from nanort.doctor import diagnose
from nanort.errors import CapacityError, NanortError, RequestError
from nanort.graphs import random_weights, step_inputs
from nanort.nanobatch import nano_batch
from nanort.occupancy import occupancy
from nanort.options import (
    Context,
    Decode,
    Json,
    Model,
    Pieces,
    Policy,
    Prefill,
    Seconds,
    Seed,
    Sweep,
    config_of,
    counts_of,
    device_of,
    dtype_of,
    in_a_folder,
    step_of,
)
from nanort.runtime.executor import Executor, resolve
from nanort.runtime.report import default_store, measure
from nanort.runtime.sweeps import seconds_of
from nanort.scheduling.coschedule import co_schedule
from nanort.scheduling.problem import Problem
from nanort.scheduling.schedule import Split
from nanort.scheduling.solving.solve import solve as solved
from nanort.timeline.units import duration, plain
from nanort.trace_commands import trace

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Schedules the inside of one GPU. Exit codes: 0 done, 1 refused (the message says what to do), 2 wrong usage, "
    "130 interrupted.",
)
app.add_typer(serving)
app.add_typer(trace, name="trace")

WARM_UP = 16
"""Schedules that call every compiled function of the search once."""


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"nanort {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None: ...


@app.command(epilog="Example: nanort demo --out nanort-demo")
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for schedule.json, timeline.json and h200.json.", file_okay=False)
    ] = Path("nanort-demo"),
    small: Annotated[bool, typer.Option(help="The small random model, even where real weights are installed.")] = False,
) -> None:
    """Loads an LLM, builds its operator DAG, co-schedules it, generates text, and predicts an H200."""
    run_demo(out, small=small)


@app.command(epilog="Example: nanort doctor --json")
def doctor(as_json: Json = False) -> None:
    """What is installed, which device is there, and what falls back to what."""
    facts = diagnose()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        width = max(map(len, facts))
        for name, fact in facts.items():
            typer.echo(f"{name:{width}}  {fact}")


@app.command(epilog="Example: nanort plan --model llama-3-8b --device h200 --decode 384 --context 1024 --prefill 640")
def plan(
    model: Model = "llama-3-8b",
    on: Annotated[str, typer.Option("--device", help="A name of the database, or current.")] = "h200",
    decode: Decode = 384,
    context: Context = 1024,
    prefill: Prefill = 640,
    nano_batches: Pieces = None,
    policy: Policy = "auto",
    effort: Annotated[int | None, typer.Option(help="Schedules to judge; by default what takes some seconds.")] = None,
    seconds: Seconds = None,
    seed: Seed = 0,
    comparing: Annotated[bool, typer.Option("--compare", help="Every policy and mechanism side by side.")] = False,
    sweep: Annotated[Sweep | None, typer.Option(help="The makespan over all SM splits, as a table and a plot.")] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Measured costs, of nanort profile --out.", exists=True, dir_okay=False)
    ] = None,
    stale: Annotated[bool, typer.Option("--stale", help="Take one of another machine or other versions too.")] = False,
    out: Annotated[Path | None, typer.Option(help="Save the schedule here.", callback=in_a_folder)] = None,
    as_json: Json = False,
) -> None:
    """Schedules one step of a model and prints its timeline, gain and bounds; Ctrl-C keeps the best so far."""
    console, counts, target = Console(stderr=True), counts_of(nano_batches), device_of(on)
    graph = step_of(config_of(model), decode, context, prefill, dtype_of(target))
    costs = Profile.load(profile, stale=stale) if profile else None
    target = costs.fitted(target) if costs else target
    options = {"nano_batches": counts, "effort": effort, "seconds": seconds, "seed": seed, "profile": costs}
    with progress_bar(console, "scheduling") as bar:
        chosen = Row.of(graph, target, policy, progress=bar, **options)
    schedule, explanation = chosen.schedule, chosen.schedule.explain()
    data, report = {**explanation.data}, [demand_table(graph, target), schedule, explanation]
    if out is not None:
        schedule.save(out)
        report.append(f"saved {out}")
    _show(as_json, *report)
    if comparing:
        with progress_bar(console, "comparing") as bar:
            comparison = compare(graph, target, known=[chosen], progress=bar, **options)
        _show(as_json, "", comparison)
        data["comparison"] = comparison.data
    if sweep is not None:
        split = Split.of(counts[0]) if counts and len(counts) == 1 else schedule.split
        with progress_bar(console, "sweeping") as bar:
            swept = sweep_sms(graph, target, split, profile=costs, progress=bar)
        _show(as_json, "", swept, "", swept.plot(max(60, min(Console().width, 140))))
        data["sweep"] = swept.data
    if as_json:
        typer.echo(json.dumps(data, indent=2))


@app.command(epilog="Example: nanort run --model tiny --decode 4 --context 64 --prefill 128 --out timeline.json")
def run(
    model: Model = "tiny",
    on: Annotated[str, typer.Option("--device", help="The device to plan for.")] = "cpu",
    backend: Annotated[
        str,
        typer.Option(help="cuda runs on the GPU, cpu on threads, sim predicts; auto is cuda for a plan for the GPU."),
    ] = "auto",
    decode: Decode = 8,
    context: Context = 128,
    prefill: Prefill = 120,
    nano_batches: Pieces = None,
    policy: Policy = "auto",
    repeat: Annotated[int, typer.Option(help="Runs; the last is shown.", min=1)] = 3,
    out: Annotated[
        Path | None, typer.Option(help="Save the timeline here, plan beside actual.", callback=in_a_folder)
    ] = None,
    as_json: Json = False,
) -> None:
    """Schedules one step of a model, runs it with random weights, and compares plan and run."""
    config, target = config_of(model), device_of(on)
    kind, where = resolve(backend, target)
    dtype = torch.bfloat16 if kind == "cuda" else torch.float32
    graph = step_of(config, decode, context, prefill, dtype)
    with progress_bar(Console(stderr=True), "scheduling") as bar:
        schedule = co_schedule(graph, target, nano_batches=counts_of(nano_batches), policy=policy, progress=bar)
    layout = schedule.graph.layout
    assert layout is not None
    tensors: dict[str, Any] = {}
    inputs: dict[str, torch.Tensor] = {}
    if kind != "sim":
        states = {root.name: root for root in schedule.graph.roots if root.kind == "state"}
        tensors = {
            "constants": {name: tensor.to(where) for name, tensor in random_weights(config, dtype).items()},
            "states": {name: torch.zeros(root.shape, dtype=root.dtype, device=where) for name, root in states.items()},
        }
        inputs = step_inputs(config, layout, decode=decode, context=context, prefill=prefill)
        inputs = {name: tensor.to(where) for name, tensor in inputs.items()}
    with Executor(schedule, backend=kind, **tensors) as executor:
        for _ in range(repeat):
            executor(**inputs)
        actual, planned = executor.timeline, schedule.timeline()
    if out is not None:
        actual.save(out, plan=planned)
    if as_json:
        figures = {"makespan_seconds": actual.makespan, "planned_seconds": planned.makespan, **actual.utilization()}
        typer.echo(json.dumps(figures, indent=2))
        return
    typer.echo(actual)
    typer.echo(actual.compare(planned))
    if out is not None:
        typer.echo(f"saved {out}: open it in ui.perfetto.dev")


@app.command(epilog="Example: nanort profile --model tiny --decode 8 --context 128 --prefill 120 --budget 30s")
def profile(
    model: Model = "llama-3-8b",
    decode: Decode = 384,
    context: Context = 1024,
    prefill: Prefill = 640,
    nano_batches: Pieces = "1,2",
    budget: Annotated[str, typer.Option(help="When to stop: 90s, 5m, 1h. The same again goes on from there.")] = "5m",
    store: Annotated[Path | None, typer.Option(help="Keep measurements here.", callback=in_a_folder)] = None,
    out: Annotated[Path | None, typer.Option(help="Save the profile here.", callback=in_a_folder)] = None,
    by: Annotated[str, typer.Option(help="Who measures, as the profile will say.")] = "",
    as_json: Json = False,
) -> None:
    """Measures the calls of one step of a model on this machine's GPU, else its CPU, and fits the cost model."""
    seconds, config, target = seconds_of(budget), config_of(model), Device.current()
    path = store or default_store()
    if out is not None and out.resolve() == path.resolve():
        raise RequestError(f"--out {out} is the store itself, which it would overwrite: name another file")
    few = replace(config, layers=min(2, config.layers))  # the others make the same calls
    graph = step_of(few, decode, context, prefill, dtype_of(target))
    step = {"decode": decode, "context": context, "prefill": prefill}
    cuts = [nano_batch(graph, count) for count in counts_of(nano_batches) or (1,)]
    asked = [(cut, step_inputs(few, cut.layout, **step)) for cut in cuts if cut.layout]
    with progress_bar(Console(stderr=True), "measuring") as bar:
        report = measure(asked, target, path, seconds, progress=bar, by=by)
    if out is not None:
        report.profile.save(out)
    typer.echo(json.dumps(report.data, indent=2) if as_json else report)


@app.command(epilog="Example: nanort kernels linear decode_attention --arch sm_90")
def kernels(
    names: Annotated[list[str] | None, typer.Argument(help="Operators, or kernels as listed; all by default.")] = None,
    arch: Annotated[str, typer.Option(help="sm_80, sm_89, sm_90 or sm_100; none of them need be there.")] = "sm_90",
    as_json: Json = False,
) -> None:
    """Compiles kernels at the sizes of a model and prints what each takes of an SM; refuses one that is too large."""
    found = occupancy(arch, names or ())
    typer.echo(json.dumps(found.data, indent=2) if as_json else found)
    if found.flaws:
        raise CapacityError(f"{'; '.join(found.flaws)}: give smaller tiles, more warps or fewer stages")


@app.command(epilog="Example: nanort solve j301_1.sm --schedules 5000")
def solve(
    file: Annotated[Path, typer.Argument(help="A problem: PSPLIB's .sm or .mm, or .rcp.", exists=True, dir_okay=False)],
    schedules: Annotated[int, typer.Option(help="How many may be generated.")] = 1000,
    seconds: Seconds = None,
    policy: Annotated[str, typer.Option(help="list, search, exact or auto.")] = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Solves a project scheduling problem and prints makespan, bound and starts; Ctrl-C keeps the best so far."""
    problem = Problem.read(file)
    if solved(problem, schedules=WARM_UP).stopped:  # loads the machine code, which would count as the search's time
        raise KeyboardInterrupt
    with progress_bar(Console(stderr=True), "solving", shown=lambda figure: f"{figure:.9g}") as bar:
        began = perf_counter()
        found = solved(problem, policy=policy, schedules=schedules, seconds=seconds, seed=seed, progress=bar)
        took = perf_counter() - began
    gap = found.makespan / found.bound - 1 if found.bound else 0.0
    if as_json:
        rest = {"optimal": found.optimal, "gap": gap, "seconds": took}
        typer.echo(json.dumps({**asdict(found), **rest}, indent=2))
        return
    several = any(len(task.modes) > 1 for task in problem.tasks)
    starts = (
        f"{plain(task.name)}@{start:.9g}{f'/{mode}' * several}"
        for task, start, mode in zip(problem.tasks, found.starts, found.modes, strict=True)
    )
    typer.echo(f"problem    {problem!r}")
    typer.echo(
        f"makespan   {found.makespan:.9g}, {'optimal' if found.optimal else f'at most {gap:.1%} above the optimum'}"
    )
    typer.echo(f"bound      {found.bound:.9g}")
    typer.echo(f"schedules  {found.schedules:,} in {duration(took)}{f'; {found.stopped}' * bool(found.stopped)}")
    typer.echo(textwrap.fill(" ".join(starts), 79, initial_indent="starts     ", subsequent_indent=" " * 11))


def _show(as_json: bool, *lines: object) -> None:
    """Prints lines as soon as they are known, or nothing where JSON comes in the end."""
    if not as_json:
        for line in lines:
            typer.echo(line)


def main() -> None:
    """The entry point: errors become one line and an exit code.

    The process ends there and then: to take apart what a demo leaves costs Python a second, in which Ctrl-C would
    end it with a traceback.
    """
    status: Any = 0
    try:
        run_guarded(app)
    except SystemExit as end:
        status = end.code
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    for file in filter(None, (sys.stdout, sys.stderr)):  # a shell may have closed them
        with suppress(BrokenPipeError):  # who read has left
            file.flush()
    os._exit(status or 0)


def run_guarded(command: Callable[[], Any]) -> None:
    """Runs ``command``; a refusal of nanort's is printed without a traceback, exit code 1."""
    try:
        command()
    except (NanortError, OSError) as error:  # of a file or a folder that cannot be read or written
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
