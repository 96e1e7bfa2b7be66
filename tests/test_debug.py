"""debug=True: every lie is found and named on every backend, and nothing that is sound is accused."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fake_runs
import lies
import nanort as nr
import racing
import random_dags
from fake_driver import FakeDriver
from nanort import graphs, ops
from nanort.checkpoints.tokenizer import ByteTokenizer
from nanort.errors import BackendError, ExecutionError, RecordError, ShapeError
from nanort.programs.program import Launch, Program, Wait
from nanort.runtime import cpu, cuda, queues
from nanort.serving.generate import LLM
from nanort.serving.sampling import SamplingParams

WAYS = ("cpu", "eager", "captured")


@contextmanager
def running(
    program: Program, tensors: lies.Tensors, way: str, seed: int = 1, *, trace: bool = True
) -> Iterator[nr.Executor]:
    """An executor that is watched, on the cpu or on a GPU that is none."""
    if way == "cpu":
        _, constants, states = random_dags.by_kind(program.graph, tensors)
        with nr.Executor(program, constants=constants, states=states, backend="cpu", debug=True) as run:
            yield run
    else:
        with (
            fake_runs.gpu(FakeDriver(seed=seed)),
            fake_runs.executor(program, tensors, debug=True, capture=way == "captured", trace=trace) as run,
        ):
            yield run


def told(lie: lies.Lie, way: str) -> RecordError:
    """What is raised of a lie."""
    inputs, *_ = random_dags.by_kind(lie.program.graph, lie.tensors)
    with running(lie.program, lie.tensors, way) as run, pytest.raises(RecordError) as found:
        run(**inputs)
    assert any(str(hazard) in str(found.value) for hazard in run.record.hazards())
    return found.value


def lines(error: RecordError) -> int:
    """The users' lines that an error names."""
    return len(re.findall(r"lies\.py:\d+", str(error)))


@pytest.mark.parametrize("make", lies.TOLD_BY_CPU)
def test_every_lie_is_told_on_the_cpu(make: Callable[[], lies.Lie]) -> None:
    lie = make()
    error = told(lie, "cpu")
    assert all(said in str(error) for said in lie.said), str(error)
    assert lines(error) >= 1
    assert re.fullmatch(r"tests/lies\.py:\d+", error.where)
    assert error.node in [step.name for step in lie.program.instructions if isinstance(step, Launch)]


@pytest.mark.parametrize("make", lies.TOLD)
@pytest.mark.parametrize("way", WAYS[1:])
def test_and_on_a_gpu(make: Callable[[], lies.Lie], way: str) -> None:
    lie = make()
    error = told(lie, way)
    assert all(said in str(error) for said in lie.said), str(error)


def test_both_nodes_and_lines_and_the_missing_wait_are_named() -> None:
    error = told(lies.lost_wait(), "cpu")
    wait = r": g1 has to wait for first on g0 \(tests/lies\.py:\d+ and tests/lies\.py:\d+\)"
    assert re.search(wait, str(error)), str(error)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_no_lie_is_not_told(way: str) -> None:
    chain = lies.chain()
    inputs, *_ = random_dags.by_kind(chain.program.graph, chain.tensors)
    with running(chain.program, chain.tensors, way) as run:
        for _ in range(4):
            run(**inputs)
            assert run.record.hazards() == ()
        printed = str(run.record)
    assert "launch first; reads x[0:32]; writes first[0:32]" in printed
    assert re.search(r"wait +e0", printed)


# A backend that does not do what the program says.


def _forgetful(program: Program, compiler: Any) -> dict[str, list[Any]]:
    found = QUEUES(program, compiler)
    return {name: [item for item in items if not isinstance(item, Wait)] for name, items in found.items()}


QUEUES = cpu._queues


def test_a_wait_that_the_cpu_backend_forgets_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_queues", _forgetful)
    assert "may read bytes 0:32 of 'first' before first has written it: g1 has to wait" in str(
        told(lies.chain(), "cpu")
    )


def test_a_step_before_its_wait_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(program: Program, compiler: Any) -> dict[str, list[Any]]:
        return {name: items[::-1] if name == "g1" else items for name, items in QUEUES(program, compiler).items()}

    monkeypatch.setattr(cpu, "_queues", hasty)
    chain = lies.chain()
    with running(chain.program, chain.tensors, "cpu") as run, pytest.raises((RecordError, ExecutionError)):
        run(**random_dags.by_kind(chain.program.graph, chain.tensors)[0])
    assert any("before first has written it" in str(hazard) for hazard in run.record.hazards())


Gone = Callable[[queues.Handles, Any], bool]

LOST: dict[str, tuple[Gone, str]] = {
    "wait": (
        lambda handles, call: call.func.__name__ == "wait" and call.args[1] == handles.events[0],
        "second may read bytes 0:32 of 'first' before first has written it: g1 has to wait for first on g0",
    ),
    "fork": (
        lambda handles, call: call.func.__name__ == "wait" and call.args[1] == handles.fork,
        "before whatever came before has written it: g1 has to wait for whatever came before on caller",
    ),
    "join": (
        lambda handles, call: call.func.__name__ == "wait" and call.args[1] == handles.ends[0],
        "before second has read it: caller has to wait for second on g1",
    ),
}
"""By name: the call that is not made, and what has to be said."""


@pytest.mark.parametrize(
    ("way", "lost"), [("eager", "wait"), ("eager", "fork"), ("eager", "join"), ("captured", "wait")]
)
def test_a_call_that_the_cuda_backend_forgets_is_told(way: str, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captures that do not fork and join are refused by the driver."""
    gone, said = LOST[lost]

    def forgetful(program: Program, driver: Any, handles: queues.Handles, *given: Any) -> queues.Queue:
        made = QUEUE(program, driver, handles, *given)
        kept = [at for at, call in enumerate(made.calls) if not gone(handles, call)]
        assert len(kept) == len(made.calls) - 1
        return replace(made, calls=tuple(made.calls[at] for at in kept), owners=tuple(made.owners[at] for at in kept))

    chain = lies.apart() if lost == "fork" else lies.chain()
    inputs, *_ = random_dags.by_kind(chain.program.graph, chain.tensors)
    with running(chain.program, chain.tensors, way, trace=False) as run:
        if way == "captured":
            run(**inputs)
        monkeypatch.setattr(cuda, "queue", forgetful)
        with pytest.raises(RecordError, match=re.escape(said)):
            run(**inputs)


QUEUE = queues.queue


@pytest.mark.parametrize("way", WAYS[1:])
def test_a_copy_to_another_place_is_told(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = nr.Graph("copies")
    x = graph.input("x", (4, 2), torch.float32, device="host")
    y = ops.to_device(x, name="up")
    z = graph.call(torch.neg, y, demand=lies.WORK, name="neg")
    graph.output(z=z, w=graph.call(torch.add, y, z, demand=lies.WORK, name="add"))
    program = nr.lower(random_dags.placed(graph, random.Random(0)))
    real = queues.kernels.pieces

    def astray(step: Any, tensors: Any) -> Iterator[Any]:
        neg = next(buffer.index for buffer in program.buffers if buffer.name == "neg")
        yield from ((tensors[neg].view(-1), source) for _, source in real(step, tensors))

    monkeypatch.setattr(queues.kernels, "pieces", astray)
    inputs, *_ = random_dags.by_kind(graph, tensors := lies.given(graph))
    with running(program, tensors, way) as run, pytest.raises(RecordError, match="undeclared write: up writes bytes"):
        run(**inputs)


@pytest.mark.parametrize("way", WAYS)
def test_indices_are_checked_at_every_run(way: str) -> None:
    """A graph that was captured long ago too."""
    lie = lies.same_slot()
    inputs, *_ = random_dags.by_kind(lie.program.graph, lie.tensors)
    sound = inputs | {"slots": torch.tensor([5, 8, 6])}
    with running(lie.program, lie.tensors, way) as run:
        for _ in range(5):
            run(**sound)
        with pytest.raises(RecordError, match="two rows of append"):
            run(**inputs)
        run(**sound)


def append(kv: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor, **given: Any) -> None:
    """A kernel: what it does is not seen, only what it was given."""


@pytest.mark.parametrize("way", WAYS[1:])
def test_kernels_are_judged_by_what_they_were_given(way: str) -> None:
    lie = lies.same_slot()
    step = next(s for s in lie.program.instructions if isinstance(s, Launch) and s.name == "append")
    kernel = replace(step, kernel="mine", op=replace(step.op, kernels={"mine": "test_debug:append"}))
    steps = tuple(kernel if s is step else s for s in lie.program.instructions)
    error = told(replace(lie, program=replace(lie.program, instructions=steps)), way)
    assert "its rows 0 and 2 name one place" in str(error)


@pytest.mark.parametrize("way", WAYS)
def test_padding_may_share_scratch(way: str) -> None:
    lie = lies.same_slot()
    inputs, *_ = random_dags.by_kind(lie.program.graph, lie.tensors)
    with running(lie.program, lie.tensors, way) as run:
        run(**inputs | {"slots": torch.tensor([0, 8, 0])})


@nr.op(demand=lies.WORK, writes=("mean", "variance"), axes="whole")
def normed(
    mean: torch.Tensor, variance: torch.Tensor, x: torch.Tensor, index: torch.Tensor, *, training: bool
) -> torch.Tensor:
    mean.index_copy_(0, index, x[0])
    return torch.nn.functional.batch_norm(x, mean, variance, training=training)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("training", [False, True])
def test_statistics_that_are_declared_may_be_trained(way: str, training: bool) -> None:
    graph = nr.Graph("norm")
    mean, variance = (graph.state(name, (2,), torch.float32) for name in ("mean", "variance"))
    x, index = graph.input("x", (4, 2), torch.float32), graph.input("index", (2,), torch.int64)
    graph.output(y=normed(mean, variance, x, index, training=training))
    tensors = lies.given(graph)
    expected = {name: tensor.clone() for name, tensor in tensors.items()}
    answer = graph.eager(**expected)["y"]
    with running(lies.lower(graph, [0]), tensors, way) as run:
        assert torch.equal(run(x=tensors["x"], index=tensors["index"])["y"].cpu(), answer)
        assert run.record.hazards() == ()
    assert torch.equal(tensors["mean"], expected["mean"])


@pytest.mark.parametrize("way", WAYS)
def test_what_a_reference_counts_is_counted_once(way: str) -> None:
    calls = torch.zeros(())

    def counted(s: torch.Tensor, index: torch.Tensor, x: torch.Tensor) -> None:
        if x.device.type != "meta":
            calls.add_(1)
        s.index_copy_(0, index, x)

    graph = nr.Graph("counted")
    s, x = graph.state("s", (4, 2), torch.float32), graph.input("x", (2, 2), torch.float32)
    nr.op(demand=lies.WORK, writes=("s",), axes="whole")(counted)(s, graph.input("index", (2,), torch.int64), x)
    tensors = lies.given(graph)
    with running(lies.lower(graph, [0]), tensors, way) as run:
        for _ in range(3):
            run(x=tensors["x"], index=tensors["index"])
            assert run.record.hazards() == ()
    assert calls == 3


@pytest.mark.parametrize("way", WAYS)
def test_room_of_its_own_that_torch_did_not_make_is_not_shared(way: str) -> None:
    def aside(x: torch.Tensor) -> torch.Tensor:
        rooms = torch.frombuffer(bytearray(64), dtype=torch.float32), torch.empty(1).resize_(16)
        return x + 1 if x.device.type == "meta" else x + sum(room.fill_(1).sum() for room in rooms)

    graph = nr.Graph("rooms")
    x = graph.input("x", (4, 2), torch.float32)
    graph.output(**{f"y{k}": graph.call(aside, x, demand=lies.WORK) for k in range(12)})
    tensors = lies.given(graph)
    with running(lies.lower(graph, [0] * 12), tensors, way) as run:
        run(x=tensors["x"])
        assert run.record.hazards() == ()


@nr.op(demand=lies.WORK, writes=("s",), axes="whole")
def summed(s: torch.Tensor, index: torch.Tensor, x: torch.Tensor) -> None:
    s.scatter_reduce_(0, index[:, None].expand(x.shape), x, "sum")
    s.index_add_(0, index, x)
    s.index_put_((index,), x, accumulate=True)
    s[index] = 0.0
    s.T.unsqueeze(2).index_copy_(1, index[:0], x.T[:, :0].unsqueeze(2))


@pytest.mark.parametrize("way", WAYS)
def test_rows_that_add_up_may_name_one_place_and_there_may_be_none(way: str) -> None:
    graph = nr.Graph("sums")
    s, x = graph.state("s", (4, 2), torch.float32), graph.input("x", (3, 2), torch.float32)
    summed(s, graph.input("index", (3,), torch.int64), x, name="sum")
    graph.output(y=graph.call(torch.neg, s, demand=lies.WORK, name="neg"))
    tensors = lies.given(graph, index=torch.tensor([1, 1, 2]))
    with running(lies.lower(graph, [0, 0]), tensors, way) as run:
        run(x=tensors["x"], index=tensors["index"])


@nr.op(demand=lies.WORK, writes=("kv",), cells={"kv": lambda layout, **_: layout.own_cells}, axes="rows")
def sum_in(kv: torch.Tensor, k: torch.Tensor, slots: torch.Tensor, *, layout: Any = None) -> None:
    kv.view(-1, 2).index_add_(0, slots, k)


@pytest.mark.parametrize("way", WAYS)
def test_pieces_that_add_to_rows_of_their_own_do_not_cross(way: str) -> None:
    graph = nr.Graph("sums", layout=nr.Layout(decode=4, kv_tokens=4))
    kv, k = graph.state("kv", (4, 4, 2), torch.float32), graph.input("k", (4, 2), torch.float32, batch=0)
    sum_in(kv, k, graph.input("slots", (4,), torch.int64, batch=0), name="add")
    graph.output(k=graph.call(torch.neg, k, demand=lies.WORK, name="neg", axes="rows"))
    cut = nr.nano_batch(graph, 2)
    tensors = lies.given(cut, slots=torch.tensor([5, 8, 9, 6]))
    with running(lies.lower(cut, [int(node.name == "add/1") for node in cut.nodes]), tensors, way) as run:
        run(k=tensors["k"], slots=tensors["slots"])


@pytest.mark.parametrize("way", WAYS[1:])
def test_an_output_of_the_run_before_the_last_may_be_an_input(way: str) -> None:
    chain = lies.chain()
    with running(chain.program, chain.tensors, way) as run:
        outputs = [run(x=chain.tensors["x"])["z"] for _ in range(2)]
        for _ in range(4):
            outputs.append(run(x=outputs[-2])["z"])


@pytest.mark.parametrize("lanes", [[0, 0], [0, 1]])
def test_a_run_that_was_interrupted_leaves_a_record(lanes: list[int]) -> None:
    def pressed(x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "meta":
            raise KeyboardInterrupt
        return x + 1

    graph = nr.Graph("interrupted")
    y = graph.call(torch.neg, graph.input("x", (4, 2), torch.float32), demand=lies.WORK, name="first")
    graph.output(z=graph.call(pressed, y, demand=lies.WORK, name="second"))
    with running(lies.lower(graph, lanes), lies.given(graph), "cpu") as run:
        with pytest.raises(KeyboardInterrupt):
            run(x=torch.ones(4, 2))
        assert not run.record.ended
        assert "launch first;" in str(run.record)


def test_cells_are_told_as_cells() -> None:
    """Where two nodes touch all of a state that others index."""
    graph = nr.Graph("cells", layout=nr.Layout(decode=4, kv_tokens=4))
    kv, k = graph.state("kv", (4, 4, 2), torch.float32), graph.input("k", (4, 2), torch.float32, batch=0)
    sum_in(kv, k, graph.input("slots", (4,), torch.int64, batch=0), name="add")
    for name in ("one", "other"):
        lies.add_to(kv, kv, name=name)
    program = lies.lower(graph, [0, 0, 1])
    racy = replace(program, instructions=tuple(s for s in program.instructions if not isinstance(s, Wait)))
    found = [hazard for hazard in racy.hazards() if (hazard.first, hazard.second) == ("one", "other")]
    assert found
    assert {(hazard.unit, hazard.span) for hazard in found} == {("cells", (0, 4))}


def test_scratch_has_to_be_rows_of_the_state() -> None:
    with pytest.raises(ShapeError, match=r"has no rows scratch=\(3, 5\)"):
        nr.Graph("none").state("s", (4, 2), torch.float32, scratch=(3, 5))


def test_a_run_that_failed_leaves_a_record_and_the_next_one_is_judged() -> None:
    from failing import failing

    graph, lanes = failing()
    schedule = random_dags.schedule(graph, random_dags.streams(nr.device("h200"), random.Random(3)), [0] * len(lanes))
    with nr.Executor(schedule, backend="cpu", debug=True) as run:
        with pytest.raises(ExecutionError, match="it is negative"):
            run(x=-torch.ones(2, 2))
        assert "launch a;" in str(run.record)
        assert "launch c" not in str(run.record)
        run(x=torch.ones(2, 2))
        assert run.record.hazards() == ()


def test_without_debug_there_is_no_record_and_the_simulator_has_none() -> None:
    chain = lies.chain()
    with nr.Executor(chain.program, backend="cpu") as run:
        run(**chain.tensors)
        with pytest.raises(BackendError, match="make the executor with debug=True"):
            _ = run.record
    with pytest.raises(BackendError, match="backend='sim' runs nothing"):
        nr.Executor(chain.program, backend="sim", debug=True)


# Nothing else is told.


@pytest.mark.parametrize("family", racing.FAMILIES)
@pytest.mark.parametrize("way", WAYS)
def test_sound_programs_are_not_accused(way: str, family: random_dags.Family) -> None:
    for seed in range(6):
        watched(seed, family, way)


def watched(seed: int, family: random_dags.Family, way: str) -> None:
    """A random program run twice on the cpu, and as often as it takes to replay both graphs on a GPU."""
    rng = random.Random(seed)
    graph, tensors = family(seed)
    cut = graph if family is racing.tangled else random_dags.cut(graph, rng)
    tensors = lies.given(graph) if family is racing.tangled else random_dags.packed(cut, tensors)
    program = nr.lower(random_dags.placed(cut, rng))
    with running(program, tensors, way, seed) as run:
        for number in range(2 if way == "cpu" else 4):
            run(**fake_runs.inputs(cut, tensors, number))


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_a_decoder_that_generates_is_not_accused(architecture: str, tmp_path: Path) -> None:
    from serving_models import TinyModel, drawn_prompts

    model = TinyModel.make(architecture, tmp_path)
    prompts, params = drawn_prompts(3, longest=30, shared=17), SamplingParams(max_new_tokens=4, ignore_eos=True)
    replies = []
    for debug in (False, True):
        with LLM(model.config, model.weights, ByteTokenizer(), cache_tokens=256, seats=2, debug=debug) as llm:
            replies.append([reply.tokens for reply in llm.generate(prompts, params)])
    assert replies[0] == replies[1]


@pytest.mark.parametrize("way", WAYS)
def test_pages_that_move_over_pcie_are_not_accused(way: str) -> None:
    config = graphs.CONFIGS["tiny"]
    sizes = {"decode": 3, "context": 20, "prefill": 5}
    graph = graphs.decoder_step(config, **sizes, swap=0.5, dtype=torch.float32)
    program = nr.lower(random_dags.placed(graph, random.Random(2)))
    assert graph.layout is not None
    tensors = lies.given(graph) | graphs.step_inputs(config, graph.layout, **sizes)
    pages = next(root for root in graph.roots if root.name == "kv.0").shape[0]
    for name in ("swap_out", "swap_in"):
        count = tensors[name].shape[0]
        tensors[name] = torch.arange(pages - count, pages).to(tensors[name].dtype)
    inputs, *_ = random_dags.by_kind(graph, tensors)
    with running(program, tensors, way) as run:
        for _ in range(4):
            run(**inputs)
