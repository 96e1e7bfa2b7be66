from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from hostile import HOSTILE
from kineto_profiles import ADD, GEMM, H200, CudaProfile, small
from nanort.errors import FileError, NewerVersionError, TruncatedFileError
from nanort.timeline import torch_rows
from nanort.timeline.events import Timeline
from nanort.timeline.kernel_names import operator_of


def imported(made: CudaProfile, folder: Path) -> Timeline:
    return Timeline.from_torch_profile(made.write(folder / "profile.json"))


def busy(timeline: Timeline) -> dict[str, int]:
    """Nanoseconds of each stream's activities."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for event in timeline:
        seconds[event.activity.stream] += event.seconds
    return {stream: round(total * 1e9) for stream, total in seconds.items()}


@pytest.mark.parametrize("name", ["profile.json", "profile.json.gz"])
def test_kernels_and_copies_take_as_long_as_the_profile_says(name: str, tmp_path: Path) -> None:
    made = small()
    timeline = Timeline.from_torch_profile(made.write(tmp_path / name))
    assert busy(timeline) == {f"stream {stream}": total for stream, total in made.busy.items()}
    assert (timeline.kind, timeline.device, timeline.sm_capacity, timeline.lost) == ("measured", "NVIDIA H200", H200, 0)
    assert timeline.start[0] == 0.0
    first = min(row["ts"] for row in made.rows if row.get("cat") == "gpu_memcpy")
    exact = [
        round((row["ts"] - first) * 1e3)
        for row in made.rows
        if row.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
    ]
    assert sorted(np.rint(timeline.start * 1e9).astype(int).tolist()) == sorted(exact)


def test_what_is_known_of_each_kernel_and_copy(tmp_path: Path) -> None:
    timeline = imported(small(), tmp_path)
    about = {activity.operator: activity for activity in reversed(timeline.activities)}
    gemm = about["cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_128x128_32x5_tn_align8"]
    assert (gemm.name, gemm.stream, gemm.group, gemm.sms) == (GEMM, "stream 7", "gpu 0", H200)
    assert gemm.shapes == "(16,), (32, 64), (64, 16)"
    assert gemm.scope == (("step", 3), ("module", "Linear_0"), ("annotation", "forward"), ("op", "aten::addmm"))
    assert (gemm.where, gemm.needs, gemm.bound) == ("models/llama.py:84", None, "")
    assert about["at::native::vectorized_elementwise_kernel"].sms == 8, "no more SMs than blocks"
    moved = {"h2d_bytes": "Memcpy HtoD", "d2h_bytes": "Memcpy DtoH", "hbm_bytes": "Memcpy DtoD"}
    assert [getattr(about[name], field) for field, name in moved.items()] == [1 << 20, 2048, 2 * 4096]
    assert [about[name].bound for name in moved.values()] == ["pcie", "pcie", "memory"]
    assert (about["Memset"].hbm_bytes, about["Memset"].sms, about["Memset"].group) == (512, 0, "")
    assert [dict(activity.scope)["step"] for activity in timeline.activities] == [3] * 6 + [4] * 6


def test_streams_wait_for_what_the_other_had_been_given_before_its_event(tmp_path: Path) -> None:
    timeline = imported(small(), tmp_path)
    made = timeline.activities
    waits = [(a.operator.split("_")[0], [(made[w].operator, why) for w, why in a.waits]) for a in made if a.waits]
    assert waits == 2 * [("cutlass", [("Memcpy HtoD", "after")]), ("Memcpy DtoH", [("Memset", "after")])]
    assert all(waited < index for index, a in enumerate(timeline.activities) for waited, _ in a.waits)


def test_waits_for_nothing_and_of_nothing_are_left_out(tmp_path: Path) -> None:
    made = CudaProfile()
    made.wait(7, 13)  # nothing ran there
    made.kernel(ADD, 7, took=1000)
    made.wait(7, 7)
    made.kernel(ADD, 13, took=1000)
    made.wait(13, 7)  # nothing follows
    timeline = imported(made, tmp_path)
    assert [activity.waits for activity in timeline.activities] == [(), ()]


def test_launches_without_a_kernel_are_counted_unless_they_made_a_graph(tmp_path: Path) -> None:
    made = CudaProfile()
    made.call("cudaStreamBeginCapture")
    made.call("cudaLaunchKernel")
    made.call("cudaStreamEndCapture")
    made.kernel(ADD, took=1000)
    made.call("cudaLaunchKernel")
    made.call("cudaMemcpyAsync")
    made.call("cudaDeviceSynchronize")
    assert imported(made, tmp_path).lost == 2


def test_two_gpus_keep_their_streams_apart(tmp_path: Path) -> None:
    made = CudaProfile()
    made.kernel(ADD, took=1000)
    made.kernel(ADD, took=1000)
    made.rows[-3]["args"]["device"] = 1
    timeline = imported(made, tmp_path)
    assert [activity.stream for activity in timeline.activities] == ["gpu 0 stream 7", "gpu 1 stream 7"]
    assert timeline.activities[1].sms == 0, "the file does not say how many it has"


def test_a_lean_trace_is_read_without_what_it_does_not_say(tmp_path: Path) -> None:
    row = {"ph": "X", "cat": "kernel", "name": "k", "ts": 5, "dur": 2.5}
    path = tmp_path / "lean.json"
    path.write_text(json.dumps({"traceEvents": [row, {"ph": "M"}, 3, {"ph": "X", "cat": ["kernel"]}]}))
    timeline = Timeline.from_torch_profile(path)
    (only,) = timeline.activities
    assert (only.operator, only.stream, only.sms, only.scope, only.where) == ("k", "stream 0", 0, (), "")
    assert (timeline.device, timeline.makespan) == ("gpu", 2.5e-6)


def test_an_import_can_be_saved_and_analysed(tmp_path: Path) -> None:
    timeline = imported(small(), tmp_path)
    timeline.save(tmp_path / "timeline.json")
    again = Timeline.load(tmp_path / "timeline.json")
    assert again.activities == timeline.activities
    assert np.array_equal(np.rint(again.start * 1e9), np.rint(timeline.start * 1e9))
    assert not timeline.diff(again)
    assert timeline.critical_path().makespan_ns == round(timeline.makespan * 1e9)
    assert "stream 7" in str(timeline)


class Scaled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) * 2.0


def recorded(path: Path, *, stacks: bool) -> Any:
    """What torch.profiler records of a model's step on the CPU, whose trace it writes to ``path``."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), Scaled(), torch.nn.LayerNorm(64))
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, with_stack=stacks) as record:
        with record_function("forward"):
            loss = model(torch.ones(16, 64)).sum()
        loss.backward()
    record.export_chrome_trace(str(path))
    return record


def outermost(record: Any) -> list[Any]:
    """The operators of torch's own tree of events that stand for what is in them."""
    operators = [event for event in record.events() if event.name.startswith("aten::")]

    def enclosed(event: Any) -> bool:
        parent = event.cpu_parent
        return parent is not None and (parent.name.startswith("aten::") or enclosed(parent))

    return [event for event in operators if not enclosed(event)]


def test_a_trace_of_the_cpu_has_the_outermost_operators_of_torchs_own_tree(tmp_path: Path) -> None:
    expected = outermost(recorded(tmp_path / "cpu.json", stacks=False))
    timeline = Timeline.from_torch_profile(tmp_path / "cpu.json")
    operators = [event for event in timeline if event.activity.operator.startswith("aten::")]
    assert sorted(event.activity.operator for event in operators) == sorted(event.name for event in expected)
    took = sum(event.time_range.elapsed_us() for event in expected)
    assert sum(event.seconds for event in operators) * 1e6 == pytest.approx(took, abs=0.002 * len(expected))
    assert {event.activity.operator for event in timeline} >= {"aten::linear", "aten::relu", "aten::layer_norm"}
    assert timeline.device == "cpu"


def test_operators_of_the_cpu_know_shapes_module_block_and_line(tmp_path: Path) -> None:
    recorded(tmp_path / "cpu.json", stacks=True)
    timeline = Timeline.from_torch_profile(tmp_path / "cpu.json")
    linear = next(a for a in timeline.activities if a.operator == "aten::linear")
    assert linear.shapes == "(16, 64), (64, 64), (64,)"
    assert dict(linear.scope) == {"module": "Linear_0", "annotation": "forward"}
    assert re.search(r"test_torch_profile\.py:\d+$", linear.where)
    relu = next(a for a in timeline.activities if a.operator == "aten::relu")
    assert dict(relu.scope)["module"] == "Scaled_0"
    backward = next(a for a in timeline.activities if a.operator == "aten::native_layer_norm_backward")
    assert backward.scope == ()


def nested(random_source: random.Random, begin: int, end: int, depth: int) -> list[tuple[str, int, int]]:
    """Random operators and wrappers of one thread, each within the one above it."""
    if depth == 0 or end - begin < 2:
        return []
    name = random_source.choice(("aten::x", "aten::y", "Wrapper", "autograd::engine::z"))
    cuts = sorted(random_source.sample(range(begin, end + 1), min(4, end - begin)))
    return [(name, begin, end)] + [row for a, b in pairwise(cuts) for row in nested(random_source, a, b, depth - 1)]


@pytest.mark.parametrize("seed", range(40))
def test_outermost_operators_cover_what_ran_once(seed: int, tmp_path: Path) -> None:
    source = random.Random(seed)
    ran = [row for a in range(0, 3000, 300) for row in nested(source, a, a + source.randint(100, 290), 5)]
    source.shuffle(ran)
    rows = [
        {"ph": "X", "cat": "cpu_op", "name": name, "tid": 1, "ts": begin, "dur": end - begin}
        for name, begin, end in ran
    ]
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps({"traceEvents": rows}))
    timeline = Timeline.from_torch_profile(path)
    order = np.argsort(timeline.start)
    assert (timeline.start[order][1:] >= timeline.end[order][:-1] - 1e-12).all(), "none lies in another"
    covered = np.zeros(3001, bool)
    for name, begin, end in ran:
        covered[begin:end] |= name.startswith("aten::")
    shown = [event.seconds for event in timeline if event.activity.operator.startswith("aten::")]
    assert round(sum(shown) * 1e6) == covered.sum()


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        (ADD, "at::native::vectorized_elementwise_kernel"),
        (GEMM, "cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_128x128_32x5_tn_align8"),
        ("void (anonymous namespace)::softmax_warp_forward<float, int>(float*, int)", "softmax_warp_forward"),
        ("std::enable_if<true>::type at::native::reduce<512>(x)", "at::native::reduce"),
        ("void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90<int> > >(P)", "flash::enable_sm90"),
        ("triton_poi_fused_add_relu_3", "triton_poi_fused_add_relu_3"),
        ("Memcpy DtoH (Device -> Pageable)", "Memcpy DtoH"),
        ("Memset (Device)", "Memset"),
        ("<<<", "<<<"),
        (")(", ")("),
        ("operator", "operator"),
    ],
)
def test_operators_of_kernels(name: str, operator: str) -> None:
    assert operator_of(name) == operator


def test_hostile_names_are_only_names(tmp_path: Path) -> None:
    made = CudaProfile()
    for name in HOSTILE:
        made.operator(name or "?", [[1]])
        made.kernel(name or "?", took=10)
        made.span("user_annotation", name, made.now - 2000, made.now)
        made.span("python_function", name, made.now - 2000, made.now)
    timeline = imported(made, tmp_path)
    assert [activity.name for activity in timeline.activities] == [name or "?" for name in HOSTILE]
    assert str(timeline).replace("\n", "").replace("µ", "u").translate(dict.fromkeys(map(ord, "│█▒░·└┘┴─"))).isascii()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"ts": None}, "ts is None"),
        ({"ts": "soon"}, "ts is 'soon'"),
        ({"ts": 1e300}, "ts is '1e[+]300'"),
        ({"dur": -1}, "dur is -1"),
        ({"dur": [1]}, "dur is"),
        ({"name": 3}, "name is 3"),
        ({"ts": 10**15}, "its times are wrong"),
    ],
)
def test_rows_that_cannot_be_are_refused(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.json"
    good = {"ph": "X", "cat": "kernel", "name": "k", "ts": 5, "dur": 2}
    path.write_text(json.dumps({"traceEvents": [good, good | row]}))
    with pytest.raises(FileError, match=said) as refusal:
        Timeline.from_torch_profile(path)
    assert "wrong.json" in str(refusal.value)


@pytest.mark.parametrize("text", ["{}", '{"traceEvents": []}', '{"traceEvents": [{"ph": "X", "cat": "ac2g"}]}'])
def test_a_trace_that_records_nothing_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "nothing.json"
    path.write_text(text)
    with pytest.raises(FileError, match="records neither kernels nor operators: give"):
        Timeline.from_torch_profile(path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NewerVersionError, match="version 2 of PyTorch's format: update"):
        Timeline.from_torch_profile(small().write(tmp_path / "profile.json", schemaVersion=2))


def test_a_profile_cut_short_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = small().write(tmp_path / "profile.json").read_bytes()
    path = tmp_path / "cut.json"
    for end in range(0, len(whole) - 1, 97):
        path.write_bytes(whole[:end])
        with pytest.raises(TruncatedFileError, match=r"cut\.json"):
            Timeline.from_torch_profile(path)


def test_a_profile_beyond_all_measure_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_rows, "MOST_ROWS", 10)
    with pytest.raises(FileError, match="more than 10 operators and kernels"):
        imported(small(), tmp_path)
    monkeypatch.setattr(torch_rows, "MOST_ROWS", 10**6)
    monkeypatch.setattr(torch_rows, "MOST_TEXT", 50)
    with pytest.raises(FileError, match="50 characters of their names"):
        imported(small(), tmp_path)


def test_epochs_of_old_profiles_keep_their_nanoseconds(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    rows = [
        f'{{"ph": "X", "cat": "kernel", "name": "k", "ts": 1716459339123456.{n}, "dur": 0.001}}' for n in (789, 791)
    ]
    path.write_text(f'{{"traceEvents": [{", ".join(rows)}]}}')
    assert (Timeline.from_torch_profile(path).start * 1e9).tolist() == [0.0, pytest.approx(2.0)]
