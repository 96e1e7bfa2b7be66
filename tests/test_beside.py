"""Layers of a chunk beside decode steps: the graph, and how many layers a step takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import nanort as nr
from nanort.errors import LayoutError
from nanort.graphs import CONFIGS, DecoderConfig, decoder, random_weights
from nanort.graphs.beside import beside

TINY = replace(CONFIGS["tiny"], layers=5)
MIXTURE = replace(TINY, model="mixtral", experts=4, experts_per_token=2)
PAGE_SIZE, WIDTH, SEATS, CHUNK = 4, 6, 4, 16
LENGTHS = (7, 3)
"""Tokens of the requests that decode."""
PROMPT = 11
"""Tokens of the one that is a chunk: the third request, at seat 2."""


class Served:
    """Three requests on one cache, of which the first two decode; steps are run by ``run``."""

    def __init__(self, config: DecoderConfig, seed: int = 0) -> None:
        self.config, self.weights = config, random_weights(config, torch.float32, seed=seed)
        shape = (1 + 3 * WIDTH, 2, PAGE_SIZE, config.kv_heads, config.head_dim)
        self.states = {f"kv.{i}": torch.zeros(shape) for i in range(config.layers)}
        self.states |= {"drawn": torch.zeros(SEATS + 1, dtype=torch.int64)}
        self.states |= {"chunk": torch.full((CHUNK, config.hidden), torch.nan)}
        noise = torch.Generator().manual_seed(seed)
        self.prompts = [torch.randint(config.vocab, (n,), generator=noise).tolist() for n in (*LENGTHS, PROMPT)]
        self.lengths = [0, 0, 0]
        self.table = 1 + torch.arange(3 * WIDTH, dtype=torch.int32).view(3, WIDTH)
        for request in (0, 1):
            self.step(decode=(), prefill=(request,))

    def step(
        self, decode: tuple[int, ...], prefill: tuple[int, ...], stretch: tuple[int, int] | None = None
    ) -> list[int]:
        """The tokens that requests drew: all layers of decode rows and whole prompts, or a stretch of theirs."""
        spans = {request: (self.lengths[request], self.lengths[request] + 1) for request in decode}
        spans |= {request: (0, len(self.prompts[request])) for request in prefill}
        segments = tuple(nr.Segment(spans[request][1]) for request in prefill)
        layout = nr.Layout(len(decode), segments, sum(spans[request][1] for request in decode))
        options = {"pages": 1 + 3 * WIDTH, "page_size": PAGE_SIZE, "requests": len(spans), "table_width": WIDTH}
        if stretch is None:
            graph = decoder(self.config, layout, seats=SEATS, **options)
        else:
            first, layers = stretch
            graph = beside(self.config, layout, first=first, layers=layers, chunk_rows=CHUNK, seats=SEATS, **options)
        ends = stretch is None or sum(stretch) == self.config.layers
        names = {root.name for root in graph.roots}
        bound = {name: tensor for name, tensor in (self.weights | self.states).items() if name in names}
        tokens = self.run(graph, self.inputs(spans, len(decode), ends), bound)
        for request, (_, stop) in spans.items():
            self.lengths[request] = stop if request in decode or ends else 0
        return tokens[: len(spans) if ends else len(decode)]

    def inputs(self, spans: dict[int, tuple[int, int]], decode: int, ends: bool) -> dict[str, torch.Tensor]:
        """What the host knows: of those that decode the seat of their last token, not the token."""
        rows: list[tuple[int, int, int, int]] = []
        last, seats = [], []
        for number, (request, (start, stop)) in enumerate(spans.items()):
            for at in range(start, stop):
                token = -1 - request if number < decode else self.prompts[request][at]
                slot = int(self.table[request, at // PAGE_SIZE]) * PAGE_SIZE + at % PAGE_SIZE
                rows.append((token, at, slot, number))
            draws = ends or number < decode
            last.append(len(rows) - 1 if draws else 0)
            seats.append(request if draws else SEATS)
        columns = dict(zip(("tokens", "positions", "slots", "requests"), torch.tensor(rows).T, strict=True))
        return {**columns, "pages": self.table[list(spans)], "last": torch.tensor(last), "seats": torch.tensor(seats)}

    def run(self, graph: nr.Graph, inputs: dict[str, torch.Tensor], bound: dict[str, torch.Tensor]) -> list[int]:
        return graph.eager(**inputs, **bound)["tokens"].tolist()


class Planned(Served):
    """The same by schedules for an H200, which the cpu backend carries out."""

    def run(self, graph: nr.Graph, inputs: dict[str, torch.Tensor], bound: dict[str, torch.Tensor]) -> list[int]:
        schedule = nr.co_schedule(graph, nr.device("h200"), policy=nr.Apart(), nano_batches=1, guard=False)
        schedule.check()
        assert nr.lower(schedule).hazards() == ()
        constants = {name: tensor for name, tensor in bound.items() if name not in self.states}
        states = {name: tensor for name, tensor in bound.items() if name in self.states}
        with nr.Executor(schedule, constants=constants, states=states, backend="cpu") as run:
            return run(**inputs)["tokens"].tolist()


def stretches(counts: list[int]) -> list[tuple[int, int]]:
    return [(sum(counts[:at]), count) for at, count in enumerate(counts)]


@pytest.mark.parametrize("served", [Served, Planned])
@pytest.mark.parametrize("config", [TINY, MIXTURE], ids=["dense", "mixture"])
@pytest.mark.parametrize("counts", [[5], [2, 1, 2], [1, 1, 1, 1, 1], [4, 1]], ids=str)
def test_a_chunk_in_stretches_of_layers_gives_what_whole_steps_give(
    served: type[Served], config: DecoderConfig, counts: list[int]
) -> None:
    ours, plain = served(config), Served(config)
    expected = [plain.step((0, 1), ()) for _ in counts]
    after = plain.step((), (2,))
    found = [ours.step((0, 1), (2,), stretch) for stretch in stretches(counts)]
    assert found == [*expected[:-1], expected[-1] + after]
    assert ours.lengths == plain.lengths
    assert torch.equal(ours.states["drawn"][:SEATS], plain.states["drawn"][:SEATS])
    for name in ours.states.keys() - {"drawn", "chunk"}:
        torch.testing.assert_close(ours.states[name], plain.states[name], rtol=1e-4, atol=1e-4)
    assert ours.step((0, 1, 2), ()) == plain.step((0, 1, 2), ())


def test_those_that_decode_may_end_while_a_chunk_is_open() -> None:
    ours, plain = Served(TINY), Served(TINY)
    ours.step((0, 1), (2,), (0, 2))
    ours.step((1,), (2,), (2, 1))
    assert ours.step((), (2,), (3, 2)) == plain.step((), (2,))


def graph_of(
    first: int, layers: int, *, decode: int = 2, rows: int = 8, chunk_rows: int = CHUNK, swap: int = 0
) -> nr.Graph:
    return beside(
        TINY, nr.Layout(decode, rows, 10 * decode), first=first, layers=layers, chunk_rows=chunk_rows, pages=8,
        page_size=PAGE_SIZE, requests=3, table_width=4, seats=SEATS, swap_out=swap, swap_in=swap,
    )  # fmt: skip  # the sizes of a step, in two lines


@pytest.mark.parametrize("swap", [0, 2])
@pytest.mark.parametrize("stretch", [(0, 2), (2, 2), (3, 2)], ids=str)
def test_the_parts_wait_for_each_other_only_at_the_head(stretch: tuple[int, int], swap: int) -> None:
    graph = graph_of(*stretch, swap=swap)
    parts = [dict(node.scope).get("part") for node in graph.nodes]
    crossing = {
        graph.nodes[node.index].op.name
        for node in graph.nodes
        for pred, _ in node.preds
        if parts[node.index] and parts[pred] and parts[pred] != parts[node.index]
    }
    # The first stretch looks its tokens up, at its start, where the decode step writes its own at the end.
    assert crossing == ({"scatter"} if stretch[0] == 0 else set())
    assert [node.name for node in graph.nodes if dict(node.scope).get("part") is None] == (
        ["gather", "lm_head", "argmax", "scatter"] if sum(stretch) == TINY.layers else []
    )


@pytest.mark.parametrize("decode", [0, 2])
def test_pages_move_beside_both_parts_whatever_layers_the_chunk_passes(decode: int) -> None:
    graph = graph_of(3, 2, decode=decode, swap=2)
    schedule = nr.co_schedule(graph, nr.device("h200"), policy=nr.Apart(), nano_batches=1, guard=False)
    assert {assignment.stream for assignment in schedule.assignments} >= {"h2d", "d2h"}
    assert nr.lower(schedule).hazards() == ()
    tensors = {root.name: root for root in graph.roots if root.kind in ("input", "constant", "state")}
    noise = torch.Generator().manual_seed(0)
    given = {
        name: torch.rand(root.shape, generator=noise)
        if root.dtype.is_floating_point
        else torch.zeros(root.shape).to(root.dtype)
        for name, root in tensors.items()
    }
    given |= {"swap_out": torch.tensor([6, 7]), "swap_in": torch.tensor([7, 5])}
    before = {name: tensor.clone() for name, tensor in given.items()}
    constants, states = ({n: given[n] for n, r in tensors.items() if r.kind == kind} for kind in ("constant", "state"))
    with nr.Executor(schedule, constants=constants, states=states, backend="cpu") as run:
        outputs = run(**{name: given[name] for name, root in tensors.items() if root.kind == "input"})
    for i in range(TINY.layers):
        assert torch.equal(outputs[f"saved.{i}"], before[f"kv.{i}"][[6, 7]])
        assert torch.equal(given[f"kv.{i}"][[7, 5]], before[f"loaded.{i}"])


@pytest.mark.parametrize("split", [(256, 1024, 2048), (64, 4096, 2048)])
def test_on_an_h200_the_parts_overlap_and_gain(split: tuple[int, int, int]) -> None:
    decode, context, rows = split
    config = replace(CONFIGS["llama-3-8b"], layers=8)
    graph = beside(
        config, nr.Layout(decode, rows, decode * context), first=2, layers=2, chunk_rows=rows, pages=20000,
        requests=decode + 1, table_width=512, dtype=torch.bfloat16,
    )  # fmt: skip  # the sizes of a step, in two lines
    schedule = nr.co_schedule(graph, nr.device("h200"), policy=nr.Apart())
    assert schedule.mechanism.startswith("isolated")
    assert schedule.outlooks[0].gain > 1.1
    assert nr.lower(schedule).hazards() == ()


@pytest.mark.parametrize(
    ("stretch", "sizes"),
    [((0, 6), {}), ((5, 1), {}), ((-1, 2), {}), ((2, 0), {}), ((0, 2), {"rows": 0}), ((0, 2), {"chunk_rows": 4})],
)
def test_layers_and_chunks_that_cannot_be_are_refused(stretch: tuple[int, int], sizes: dict[str, int]) -> None:
    with pytest.raises(LayoutError, match="give layers that the model has"):
        graph_of(*stretch, **sizes)


def test_a_chunk_alone_has_to_come_to_its_end() -> None:
    with pytest.raises(LayoutError, match="go on to layer 5"):
        graph_of(0, 2, decode=0)
    assert graph_of(3, 2, decode=0).outputs.keys() == {"tokens", "logits"}
