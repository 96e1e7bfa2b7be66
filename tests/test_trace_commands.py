from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import kineto_profiles
import nanort as nr
from hostile import HOSTILE, LONG
from nanort import cli, graphs
from nanort.errors import FileError, RequestError, TimelineError
from nanort.timeline.activities import Activity
from nanort.timeline.events import Timeline
from nanort.timeline.joined import Joined
from nanort.trace_files import STEPS, opened

VIEWS = ("summary", "critical-path", "idle", "overlap", "diff")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: its timeline, and beside it a profile that torch made."""
    found = tmp_path_factory.mktemp("run")
    schedule = nr.co_schedule(graphs.synthetic.random_dag(3, 12), nr.device("h200"), policy="list")
    schedule.timeline().save(found / "timeline.json")
    kineto_profiles.small().write(found / "profile.json.gz")
    return found


def call(*arguments: object, code: int = 0, colors: bool = False) -> str:
    result = CliRunner().invoke(cli.app, ["trace", *map(str, arguments)], catch_exceptions=False, color=colors)
    assert result.exit_code == code, result.output
    return result.output


def asked(view: str, trace: Path) -> tuple[object, ...]:
    return (view, trace, trace) if view == "diff" else (view, trace)


@pytest.mark.parametrize("name", ["timeline.json", "profile.json.gz", ""])
@pytest.mark.parametrize("view", VIEWS)
def test_every_view_takes_a_timeline_a_torch_profile_and_a_folder(view: str, name: str, folder: Path) -> None:
    text, data = call(*asked(view, folder / name)), json.loads(call(*asked(view, folder / name), "--json"))
    assert text.strip()
    assert data or view == "diff"


def test_views_say_what_the_timeline_says(folder: Path) -> None:
    timeline = Timeline.load(folder / "timeline.json")
    assert call("summary", folder, "--width", 90) == f"{timeline.text(90)}\n"
    assert call("critical-path", folder) == f"{timeline.critical_path()}\n"
    assert json.loads(call("idle", folder, "--json")) == timeline.idle().data
    assert timeline.overlap().table() in call("overlap", folder)
    profile = Timeline.from_torch_profile(folder / "profile.json.gz")
    assert call("diff", folder, folder / "profile.json.gz") == f"{timeline.diff(profile)}\n"
    assert call("diff", folder, folder) == "no difference\n"
    operator = timeline.activities[0].operator
    answer = json.loads(call("critical-path", folder, "--operator", operator, "--factor", 4, "--json"))
    assert answer["makespan_ns"] == timeline.critical_path().what_if(operator, 4).makespan_ns


def test_summary_fits_the_terminal_and_is_plain_where_there_is_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "77")
    lines = call("summary", folder).splitlines()
    assert max(map(len, lines)) <= 77
    assert "\x1b" not in "".join(lines)


def test_import_makes_what_the_other_commands_read(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "timeline.json"
    text = call("import", folder / "profile.json.gz", "--out", out)
    assert "12 launches on 2 streams of NVIDIA H200" in text
    assert call("diff", out, folder / "profile.json.gz") == "no difference\n"
    figures = json.loads(call("import", folder / "profile.json.gz", "--out", out, "--json"))
    assert (figures["launches"], figures["lost"], figures["device"]) == (12, 0, "NVIDIA H200")


@pytest.mark.parametrize(
    ("to", "begins"),
    [("kineto", b"{"), ("csv", b"name,"), ("html", b"<!doctype html>"), ("parquet", b"PAR1"), ("perfetto", b"\n")],
)
def test_export_writes_each_format(to: str, begins: bytes, folder: Path, tmp_path: Path) -> None:
    for needed in {"parquet": ["pandas", "pyarrow"], "csv": [], "perfetto": ["perfetto"]}.get(to, []):
        pytest.importorskip(needed)
    out = tmp_path / f"out.{to}"
    assert str(out) in call("export", folder, "--to", to, "--out", out)
    assert out.read_bytes()[: len(begins)].lower() == begins.lower()
    assert [path.name for path in tmp_path.iterdir()] == [out.name], "no draft is left"


def test_view_writes_one_page_and_opens_it_where_it_is_asked_to(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: seen.append(url) or True)
    out = tmp_path / "report.html"
    assert call("view", folder, "--out", out) == f"saved {out}\n"
    assert call("view", folder, "--diff", folder / "profile.json.gz", "--out", out, "--open") == f"opened {out}\n"
    assert seen == [out.as_uri()]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert call("view", folder, "--no-open").startswith(f"saved {tmp_path}")
    assert len(seen) == 1
    assert call("view", folder).startswith("opened")
    assert Path(seen[1].removeprefix("file://")).read_text("utf-8").lower().startswith("<!doctype html>")


def test_validate_ends_with_one_where_something_is_wrong(folder: Path, tmp_path: Path) -> None:
    for name in ("timeline.json", "profile.json.gz"):
        assert call("validate", folder / name)
        assert json.loads(call("validate", folder / name, "--json"))["ok"] is True
    cut = tmp_path / "cut.json"
    cut.write_bytes((folder / "timeline.json").read_bytes()[:-400])
    assert "cut" in call("validate", cut, code=1)


def steps(folder: Path, count: int, first: int = 7) -> list[Timeline]:
    """The folder of a serving trace: so many steps, each a copy and a node that needs it, beside its plan."""
    made = []
    for step in range(first, first + count):
        activities = [
            Activity("in", "copy", "h2d", needs=()),
            Activity("n", "linear", "g0", "g0", 8, needs=(0,), waits=((0, "data"),)),
        ]
        about = {"device": "h200", "sm_capacity": 8, "limits": {"serial": 2.0, f"of {step}": 1.0}}
        plan = Timeline(activities, [0.0, 1e-3], [1e-3, 3e-3], kind="planned", **about)
        actual = plan.with_times([0.0, 1e-3 * step], [1e-3, 2e-3 * step], kind="measured")
        actual.save(folder / f"step-{step:06}.json")
        made.append(actual)
    (folder / "requests.jsonl").touch()
    return made


def test_a_serving_trace_is_its_steps_one_after_the_other(tmp_path: Path) -> None:
    parts = steps(tmp_path, 3)
    timeline = opened(tmp_path)
    assert timeline.makespan == pytest.approx(sum(part.makespan for part in parts))
    assert timeline.plan is not None
    assert timeline.plan.makespan == pytest.approx(3 * 3e-3)
    assert [dict(activity.scope)["step"] for activity in timeline.activities] == [7, 7, 8, 8, 9, 9]
    assert [activity.needs for activity in timeline.activities] == [(), (0,), (1,), (2,), (3,), (4,)]
    assert timeline.activities[5].waits == ((4, "data"),)
    assert timeline.limits == {"serial": 6.0}, "a bound that is known of every step"
    assert timeline.start[2] == pytest.approx(parts[0].makespan)
    assert call("summary", tmp_path)


def test_the_plan_of_a_step_is_shown_where_the_step_ran() -> None:
    """Until a plan takes longer than its step: the next one is shown behind it, and catches up where there is time."""
    ran, planned = [5.0, 1.0, 1.0, 9.0, 4.0], [3.0, 2.0, 2.0, 4.0, 4.0]
    parts = []
    for actual, wanted in zip(ran, planned, strict=True):
        plan = Timeline([Activity("n", "linear", "g0")], [0.0], [wanted], kind="planned", device="h200")
        parts.append(plan.with_times([0.0], [actual], kind="measured"))
    timeline = Joined(parts, "step", range(5))
    assert timeline.start.tolist() == [0, 5, 6, 7, 16]
    assert timeline.beside is not None
    assert timeline.plan is not None
    assert timeline.beside.start.tolist() == [0, 5, 7, 9, 16]
    assert timeline.beside.end.tolist() == [3, 7, 9, 13, 20]
    assert timeline.plan.makespan == 15
    assert timeline.compare().planned_makespan == 15
    assert parts[0].beside is parts[0].plan


def test_of_many_steps_the_last_are_shown(tmp_path: Path) -> None:
    steps(tmp_path, STEPS + 3)
    timeline = opened(tmp_path)
    assert dict(timeline.activities[0].scope) == {"step": 10}
    assert len(timeline) == 2 * STEPS


def test_parts_that_cannot_be_joined_are_refused(tmp_path: Path) -> None:
    (part,) = steps(tmp_path, 1)
    other = Timeline((), (), (), kind="measured", device="cpu")
    with pytest.raises(TimelineError, match="one device"):
        Joined([part, other], "step", [1, 2])
    with pytest.raises(TimelineError, match="one device"):
        Joined([], "step", [])
    alone = Joined([part, Timeline((), (), (), kind="measured", device="h200")], "step", [1, 2])
    assert (alone.plan, len(alone), alone.makespan) == (None, 2, part.makespan)


@pytest.mark.parametrize(
    "arguments", [("view", "{}"), ("export", "{}", "--to", "html"), ("import", "{}/profile.json.gz")]
)
def test_what_is_read_is_never_overwritten(arguments: tuple[str, ...], folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    out = folder / ("profile.json.gz" if arguments[0] == "import" else "timeline.json")
    with pytest.raises(RequestError, match="is the trace itself"):
        call(*(argument.format(folder) for argument in arguments), "--out", out)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_without_a_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="name a trace, or the folder of a run"):
        call("summary", tmp_path)


def test_what_can_be_read_only_once_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(FileError, match="no regular file"):
        call("summary", pipe)


def test_ctrl_c_ends_an_import_with_130_and_leaves_no_file(tmp_path: Path) -> None:
    pipe, out = tmp_path / "pipe", tmp_path / "timeline.json"
    os.mkfifo(pipe)
    with subprocess.Popen(
        [sys.executable, "-m", "nanort", "trace", "import", str(pipe), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background of a shell ignore it
    ) as run:
        writer = opened_by_both(pipe, run)
        os.write(writer, b'{"traceEvents": [')
        run.send_signal(signal.SIGINT)
        printed = run.communicate()
        os.close(writer)
    assert (run.returncode, printed) == (130, (b"", b""))
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def opened_by_both(pipe: Path, reader: subprocess.Popen[bytes]) -> int:
    """The end of a pipe to write to, once a process has opened the other."""
    while reader.poll() is None:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody reads yet
                raise
            time.sleep(0.01)
    pytest.fail(f"it ended before it read: {reader.communicate()}")


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "foreign": lambda data: b'{"a": 1}',
    "zeros": lambda data: bytes(1000),
    "newer": lambda data: data.replace(b'"version": ', b'"version": 9', 1),
    "deep": lambda data: b'{"a": ' + b"[" * 10**6,
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_bad_file_is_one_line_an_exit_code_and_no_output(damage: str, folder: Path, tmp_path: Path) -> None:
    bad, out = tmp_path / "bad.json", tmp_path / "out.html"
    bad.write_bytes(BROKEN[damage]((folder / "timeline.json").read_bytes()))
    command = [sys.executable, "-m", "nanort", "trace", "export", str(bad), "--to", "html", "--out", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    assert (run.returncode, run.stdout) == (1, "")
    assert len(run.stderr.splitlines()) == 1, run.stderr
    assert "bad.json" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.json"]


def test_hostile_names_are_text_in_every_view(tmp_path: Path) -> None:
    names = [*HOSTILE, LONG]
    path = tmp_path / "run" / "timeline.json"
    path.parent.mkdir()
    activities = [
        Activity(name, name, f"g0{name}", f"g0{name}", 8, scope=((name, name),), where=name) for name in names
    ]
    ends = np.arange(1.0, len(names) + 1)
    Timeline(activities, ends - 1.0, ends, kind="measured", device=HOSTILE[0], failure=HOSTILE[1]).save(path)
    for view in (*VIEWS, "validate"):
        text = call(*asked(view, path))
        assert not [c for c in text if c != "\n" and not c.isprintable()], view
        assert max(map(len, text.splitlines())) < 1000, view
    for to in ("csv", "html", "kineto"):
        call("export", path, "--to", to, "--out", tmp_path / "run" / f"out.{to}")
    assert sorted(found.name for found in tmp_path.rglob("*")) == [
        "out.csv",
        "out.html",
        "out.kineto",
        "run",
        "timeline.json",
    ]


def test_what_ours_exports_is_a_torch_profile_too(folder: Path) -> None:
    ours, read = Timeline.load(folder / "timeline.json"), Timeline.from_torch_profile(folder / "timeline.json")
    plain = re.compile(r"Memcpy \w+ \((.*)\)")
    assert told(read, [plain.sub(r"\1", activity.name) for activity in read.activities]) == told(
        ours, [activity.name for activity in ours.activities]
    )


def told(timeline: Timeline, names: list[str]) -> tuple[set[tuple[str, ...]], set[tuple[object, ...]]]:
    """What runs on each stream, in order, whatever that is called; what ran when, and what it waited for."""
    streams: dict[str, list[str]] = {}
    for index in np.argsort(timeline.start, kind="stable").tolist():
        streams.setdefault(timeline.activities[index].stream, []).append(names[index])
    ran = {
        (name, round(event.start * 1e9), round(event.end * 1e9), frozenset(names[w] for w, _ in event.activity.waits))
        for name, event in zip(names, timeline, strict=True)
    }
    return {tuple(stream) for stream in streams.values()}, ran


def test_steps_come_one_after_the_other_in_analyses_too() -> None:
    def step(*rows: tuple[str, str, float, float, tuple[int, ...]]) -> Timeline:
        made = [Activity(name, name, stream, needs=needs) for name, stream, _, _, needs in rows]
        return Timeline(made, [r[2] / 1e9 for r in rows], [r[3] / 1e9 for r in rows], kind="measured", device="x")

    first = step(("a", "g0", 0, 100, ()), ("b", "g1", 100, 200, (0,)))
    then = step(("load", "h2d", 0, 50, ()), ("a", "g0", 50, 150, (0,)), ("b", "g1", 150, 250, (1,)))
    both = Joined([first, then], "step", [0, 1])
    assert both.critical_path().operators == {"a": 200, "b": 200, "load": 50}
    assert both.idle().lanes["h2d"] == {**dict.fromkeys(both.idle().causes, 0), "dependency": 200, "nothing left": 200}
    assert not any(row.could for row in both.overlap().operators)


def test_what_is_no_file_is_not_replaced_by_one(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="no regular file"):
        call("export", folder, "--to", "csv", "--out", tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_the_names_of_all_that_a_failed_run_never_launched_are_read(tmp_path: Path) -> None:
    count, never = 60_000, np.full(60_000, np.nan)
    failed = Timeline(
        [Activity("layer0." + 300 * "x", "linear", "g0")] * count, never, never, kind="measured", device="x"
    )
    failed.save(tmp_path / "failed.json")
    assert (tmp_path / "failed.json").stat().st_size > 1 << 24
    assert len(opened(tmp_path / "failed.json")) == count


def test_a_launch_gap_of_a_profile_may_be_a_wait(folder: Path) -> None:
    for view in ("critical-path", "idle"):
        assert "nothing says what needs what" in call(view, folder / "profile.json.gz")
        assert "nothing says what needs what" not in call(view, folder)
