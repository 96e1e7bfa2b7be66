"""The commands that read traces, nanort trace: summary, view, critical-path, idle, overlap, diff and their like."""

from __future__ import annotations

import json
import sys
import webbrowser
from collections.abc import Callable
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from tempfile import mkdtemp
from typing import Annotated, Any

import typer
from rich.console import Console

from nanort import report
from nanort.errors import RequestError
from nanort.options import Json, in_a_folder
from nanort.timeline.events import Timeline
from nanort.timeline.text import wants_color
from nanort.timeline.units import counted, duration, plain
from nanort.timeline.validate import validate as judged
from nanort.trace_files import files_of, opened

trace = typer.Typer(
    no_args_is_help=True,
    help="Timelines that answer questions. A TRACE is a timeline that nanort saved, a trace that torch.profiler "
    "exported (.json or .json.gz), or the folder of a run.",
)

File = Annotated[Path, typer.Argument(metavar="TRACE", show_default=False, exists=True, readable=True)]
Operator = Annotated[str | None, typer.Option(help="Only what this operator would give, were it faster.")]


class Format(str, Enum):
    """What a timeline can be exported as."""

    KINETO = "kineto"
    PERFETTO = "perfetto"
    CSV = "csv"
    PARQUET = "parquet"
    HTML = "html"


@trace.command(epilog="Example: nanort trace summary nanort-demo")
def summary(
    file: File,
    width: Annotated[int | None, typer.Option(help="Columns; by default those of the terminal.", min=60)] = None,
    as_json: Json = False,
) -> None:
    """Draws what ran where, and says how busy each resource was; NO_COLOR=1 is respected."""
    timeline = opened(file)
    drawn = timeline.text(width or max(60, Console().width), color=wants_color(sys.stdout))
    _show(drawn, _figures(timeline), as_json)


@trace.command(epilog="Example: nanort trace view nanort-demo --out report.html")
def view(
    file: File,
    other: Annotated[
        Path | None, typer.Option("--diff", metavar="TRACE", help="Another run, to compare with.", exists=True)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the page here; by default to a temporary folder.", callback=in_a_folder)
    ] = None,
    show: Annotated[
        bool | None, typer.Option("--open/--no-open", help="In a browser; by default where there is no --out.")
    ] = None,
) -> None:
    """Makes one HTML page of a timeline, which needs no network, and opens it."""
    _apart(out, *files_of(file), *(files_of(other) if other else []))
    timeline, beside = opened(file), opened(other) if other else None
    page = out or Path(mkdtemp(prefix="nanort-")) / "report.html"
    report.write(timeline, page, other=beside)
    seen = (out is None if show is None else show) and webbrowser.open(page.resolve().as_uri())
    typer.echo(f"{'opened' if seen else 'saved'} {page}")


@trace.command("critical-path", epilog="Example: nanort trace critical-path timeline.json --operator linear --factor 2")
def critical_path(
    file: File,
    operator: Operator = None,
    factor: Annotated[float, typer.Option(help="How much faster.", min=1.0)] = 2.0,
    as_json: Json = False,
) -> None:
    """What the makespan consists of, and what it would be were an operator faster."""
    path = opened(file).critical_path()
    if operator is None:
        _show(path, path.data, as_json)
    else:
        answer = path.what_if(operator, factor)
        _show(answer, asdict(answer), as_json)


@trace.command(epilog="Example: nanort trace idle timeline.json")
def idle(file: File, as_json: Json = False) -> None:
    """Why each stream ran nothing, and for how long."""
    found = opened(file).idle()
    _show(found, found.data, as_json)


@trace.command(epilog="Example: nanort trace overlap timeline.json")
def overlap(file: File, as_json: Json = False) -> None:
    """What ran beside what, and what could have and did not."""
    found = opened(file).overlap()
    _show(f"{found}\n\n{found.table()}", found.data, as_json)


@trace.command(epilog="Example: nanort trace diff yesterday.json today.json")
def diff(
    file: File,
    other: Annotated[Path, typer.Argument(metavar="TRACE", show_default=False, exists=True, readable=True)],
    as_json: Json = False,
) -> None:
    """Where two runs differ, node by node, and where the difference of their makespans comes from."""
    found = opened(file).diff(opened(other))
    _show(found, found.data, as_json)


@trace.command(epilog="Example: nanort trace validate timeline.json")
def validate(
    file: Annotated[Path, typer.Argument(show_default=False, exists=True, readable=True, dir_okay=False)],
    as_json: Json = False,
) -> None:
    """What a trace file holds and what is wrong with it; exit code 1 where something is."""
    found = judged(file)
    _show(found, found.data, as_json)
    if not found.ok:
        raise typer.Exit(1)


@trace.command(epilog="Example: nanort trace export timeline.json --to perfetto --out timeline.pftrace")
def export(
    file: File,
    to: Annotated[Format, typer.Option(help="For whom: ui.perfetto.dev, a table, or a browser.")],
    out: Annotated[Path, typer.Option(help="Write it here.", callback=in_a_folder)],
) -> None:
    """Writes a timeline in another format."""
    _apart(out, *files_of(file))
    timeline = opened(file)
    write: dict[Format, Callable[[Path], object]] = {
        Format.KINETO: timeline.save,
        Format.PERFETTO: timeline.to_perfetto,
        Format.CSV: timeline.to_csv,
        Format.PARQUET: timeline.to_parquet,
        Format.HTML: lambda path: report.write(timeline, path),
    }
    write[to](out)
    typer.echo(f"saved {out}")


@trace.command("import", epilog="Example: nanort trace import torch_profile.json.gz --out timeline.json")
def import_profile(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="PROFILE", help="What torch.profiler's export_chrome_trace wrote.", show_default=False, exists=True,
            readable=True, dir_okay=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Save the timeline here.", callback=in_a_folder)] = Path("timeline.json"),
    as_json: Json = False,
) -> None:  # fmt: skip  # one argument in three lines
    """Reads a trace of torch.profiler into a timeline: its kernels, copies and waits, or a CPU's operators."""
    _apart(out, file)
    timeline = Timeline.from_torch_profile(file)
    timeline.save(out)
    what = f"{counted(len(timeline), 'launch')} on {counted(len(timeline.streams), 'stream')}"
    lost = f"; {counted(timeline.lost, 'launch')} left no record on the GPU" if timeline.lost else ""
    said = f"{what} of {plain(timeline.device, 40)} in {duration(timeline.makespan)}{lost}\nsaved {out}"
    _show(said, _figures(timeline), as_json)


def _figures(timeline: Timeline) -> dict[str, Any]:
    about = {"kind": timeline.kind, "device": timeline.device, "launches": len(timeline), "lost": timeline.lost}
    return {**about, "makespan_seconds": timeline.makespan, "limits": dict(timeline.limits), **timeline.utilization()}


def _apart(out: Path | None, *files: Path) -> None:
    """Refuses to overwrite what is about to be read."""
    if out is not None and out.resolve() in {file.resolve() for file in files}:
        raise RequestError(f"--out {out} is the trace itself, which it would overwrite: name another file")


def _show(shown: object, data: dict[str, Any], as_json: bool) -> None:
    typer.echo(json.dumps(data, indent=2) if as_json else shown)
