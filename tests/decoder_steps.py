"""Steps of a decoder run in order, and what Hugging Face transformers says to the same texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

import nanort as nr
from nanort.graphs import CONFIGS, DecoderConfig, decoder

TINY = CONFIGS["tiny"]
PAGES, PAGE_SIZE, WIDTH = 48, 4, 12
Rows = dict[int, tuple[int, int]]  # request: first and last token of it that a step processes
Cache = dict[str, torch.Tensor]


def empty_cache(config: DecoderConfig, dtype: torch.dtype = torch.float32) -> Cache:
    """A cache full of NaN: who reads what was not written shows it."""
    shape = (PAGES, 2, PAGE_SIZE, config.kv_heads, config.head_dim)
    return {f"kv.{i}": torch.full(shape, torch.nan, dtype=dtype) for i in range(config.layers)}


def layout_of(decode: Rows, prefill: Rows) -> nr.Layout:
    segments = tuple(nr.Segment(last - first, first) for first, last in prefill.values())
    return nr.Layout(len(decode), segments, sum(last for _, last in decode.values()))


def inputs(texts: list[list[int]], decode: Rows, prefill: Rows, layout: nr.Layout) -> dict[str, torch.Tensor]:
    """What the host gives a step: rows packed as ``layout`` says, and rows that pad a bucket on page 0."""
    table = 1 + torch.randperm(PAGES - 1, generator=torch.Generator().manual_seed(0))[: 3 * WIDTH].view(3, WIDTH)
    requests, last = [*decode, *prefill], []
    canonical: list[tuple[int, int, int, int]] = []  # token, position, slot, row of the page table
    for part, end in ((decode, layout.decode), (prefill, layout.rows)):
        for request, (first, stop) in part.items():
            for at in range(first, stop):
                slot = int(table[request, at // PAGE_SIZE]) * PAGE_SIZE + at % PAGE_SIZE
                canonical.append((texts[request][at], at, slot, requests.index(request)))
            last.append(len(canonical) - 1)
        canonical += [(0, 0, 0, len(requests))] * (end - len(canonical))
    names = ("tokens", "positions", "slots", "requests")
    rows = {name: layout.pack(column) for name, column in zip(names, torch.tensor(canonical).T, strict=True)}
    packed = torch.argsort(torch.tensor(layout.order))  # where each canonical row stands
    pages = torch.cat([table[requests], torch.zeros(1, WIDTH, dtype=torch.long)]).int()
    return {**rows, "pages": pages, "last": packed[torch.tensor([*last, 0])]}


def step(
    config: DecoderConfig,
    weights: Mapping[str, torch.Tensor],
    cache: Cache,
    texts: list[list[int]],
    decode: Rows,
    prefill: Rows,
    *,
    cut: Callable[[nr.Graph], nr.Graph] = lambda graph: graph,
    layout: nr.Layout | None = None,
    drawn: torch.Tensor | None = None,
    **more: Any,
) -> dict[str, torch.Tensor]:
    """Tokens and logits of each request after one step; the page table has one more row, for those that pad."""
    count = len(decode) + len(prefill)
    graph = decoder(
        config,
        layout or layout_of(decode, prefill),
        pages=PAGES,
        page_size=PAGE_SIZE,
        requests=count + 1,
        table_width=WIDTH,
        dtype=next(iter(weights.values())).dtype,
        sampling="uniform" in more,
        seats=0 if drawn is None else len(drawn) - 1,
    )
    graph = cut(graph)
    assert graph.layout is not None
    cache = cache if drawn is None else cache | {"drawn": drawn}
    out = graph.eager(**inputs(texts, decode, prefill, graph.layout), **weights, **cache, **more)
    return {name: tensor[:count] for name, tensor in out.items()}


def prompts(*lengths: int, vocab: int = TINY.vocab) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(vocab, (length,), generator=generator).tolist() for length in lengths]


def serve(config: DecoderConfig, weights: Mapping[str, torch.Tensor], **how: Any) -> list[torch.Tensor]:
    """Logits of five steps: prompts whole and in chunks, alone and beside decoding."""
    texts, cache, logits = prompts(7, 5, 13), empty_cache(config, next(iter(weights.values())).dtype), []
    plan: list[tuple[list[int], Rows]] = [
        ([], {0: (0, 7)}),
        ([0], {1: (0, 5), 2: (0, 4)}),
        ([0, 1], {2: (4, 9)}),
        ([0, 1], {2: (9, 13)}),
        ([0, 1, 2], {}),
    ]
    for decoding, prefill in plan:
        decode = {request: (len(texts[request]) - 1, len(texts[request])) for request in decoding}
        out = step(config, weights, cache, texts, decode, prefill, **how)
        logits.append(out["logits"])
        assert torch.equal(out["tokens"], out["logits"].argmax(dim=-1))
        for request, token in zip([*decode, *prefill], out["tokens"].tolist(), strict=True):
            if request in decode or prefill[request][1] == len(texts[request]):
                texts[request].append(token)
    return logits


@torch.no_grad()
def served_by(model: Any) -> list[torch.Tensor]:
    """The same logits by transformers, which computes every text whole."""
    texts, ends = prompts(7, 5, 13), []
    for _ in range(5):
        ends.append([model(torch.tensor([text])).logits[0] for text in texts])
        texts = [[*text, int(rows[-1].argmax())] for text, rows in zip(texts, ends[-1], strict=True)]
    first, second, third = zip(*ends, strict=True)  # by request: logits of every row, after so many tokens more
    steps = [
        [first[0][-1]],
        [first[1][-1], second[0][-1], third[0][3]],
        [first[2][-1], second[1][-1], third[0][8]],
        [first[3][-1], second[2][-1], third[0][12]],
        [first[4][-1], second[3][-1], third[1][-1]],
    ]
    return [torch.stack(rows) for rows in steps]
