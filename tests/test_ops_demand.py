from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import nanort as nr
from nanort import ops
from nanort.errors import LayoutError
from nanort.operators import meta


def demand(op: nr.Op, *args: torch.Tensor, **static: Any) -> nr.Demand:
    """What a call on tensors like these asks for."""
    shapes = tuple(meta(tuple(arg.shape), arg.dtype) for arg in args)
    return op.work(shapes, op.outputs(shapes, static), static)


def nbytes(*tensors: torch.Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def example(op: nr.Op, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    found = op.arguments()
    assert found is not None
    return [arg.to(dtype) if arg.is_floating_point() else arg for arg in found]


def counted(function: Any, *args: Any, **options: Any) -> int:
    """The floating-point operations that PyTorch counts."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        function(*args, **options)
    return counter.get_total_flops()


# Operators that read every argument once and write every result once.

STREAMED = [
    ops.linear, ops.rms_norm, ops.add_rms_norm, ops.rope, ops.add, ops.gated_add, ops.silu_mul, ops.argmax, ops.sample
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", STREAMED)
def test_bytes_are_those_of_arguments_and_results(op: nr.Op, dtype: torch.dtype) -> None:
    args = example(op, dtype)
    results = op(*args)
    asked = demand(op, *args)
    assert asked.hbm_bytes == nbytes(*args, *(results if isinstance(results, tuple) else (results,)))
    assert (asked.h2d_bytes, asked.d2h_bytes, asked.sms) == (0, 0, (1, None))


@pytest.mark.parametrize("shape", [(0, 5), (7, 5), (2, 3, 5)])
def test_linear_flops(shape: tuple[int, ...]) -> None:
    x, weight, bias = torch.ones(shape), torch.ones(3, 5), torch.ones(3)
    assert demand(ops.linear, x, weight).flops == counted(F.linear, x, weight)
    additions = x.shape[:-1].numel() * 3  # PyTorch counts none
    assert demand(ops.linear, x, weight, bias).flops == counted(F.linear, x, weight) + additions
    residual = torch.ones(*shape[:-1], 3)
    assert demand(ops.linear, x, weight, bias, residual).flops == counted(F.linear, x, weight) + 2 * additions


def test_linear_tiles() -> None:
    def tiles(m: int, n: int, k: int) -> int:
        return demand(ops.linear, torch.ones(m, k, device="meta"), torch.ones(n, k, device="meta")).tiles

    assert tiles(2048, 2048, 64) == 16 * 16  # of 128 x 128
    assert tiles(2049, 2048, 64) == 17 * 16
    assert tiles(1, 4096, 512) == 128  # of 64 x 32
    assert tiles(65, 4096, 4096) == 2 * 128 * 4  # each in parts of 1024 products
    assert tiles(0, 4096, 4096) == 0


@pytest.mark.parametrize(
    ("op", "flops"),
    [
        (ops.rms_norm, 4),
        (ops.add_rms_norm, 5),
        (ops.rope, 3),
        (ops.add, 1),
        (ops.silu_mul, 5),
        (ops.argmax, 1),
        (ops.sample, 6),
    ],
)
def test_flops_an_element(op: nr.Op, flops: int) -> None:
    args = example(op)
    assert demand(op, *args).flops == flops * args[0].numel()


@pytest.mark.parametrize("op", [op for op in STREAMED if op is not ops.linear])
def test_a_demand_grows_with_the_rows(op: nr.Op) -> None:
    args = example(op)
    rows = len(args[0])
    double = demand(op, *(torch.cat((arg, arg)) if len(arg) == rows else arg for arg in args))
    weights = nbytes(*(arg for arg in args if len(arg) != rows))
    assert double.flops == 2 * demand(op, *args).flops
    assert double.hbm_bytes == 2 * demand(op, *args).hbm_bytes - weights


# Operators that touch some rows of an argument.


def test_lookups_read_the_rows_looked_up() -> None:
    index = torch.tensor([3, 0, 3])
    for size in (10, 1000):
        table = torch.ones(size, 5)
        assert demand(ops.embedding, index, table).hbm_bytes == nbytes(index) + 2 * nbytes(table[index])
        assert demand(ops.gather, table, index).hbm_bytes == nbytes(index) + 2 * nbytes(table[index])
        asked = demand(ops.scatter, table, index, torch.ones(3, 5))
        assert asked.hbm_bytes == nbytes(index) + 2 * nbytes(table[index])


def test_a_state_is_written_where_it_is_kept() -> None:
    rows = torch.ones(3, 5)
    assert demand(ops.store, rows, rows).hbm_bytes == 2 * nbytes(rows)


def test_tokens_are_read_where_they_were_drawn() -> None:
    """As if all of them were: so it is where each row decodes."""
    tokens, drawn = torch.tensor([-1, 5, -3]), torch.zeros(9, dtype=torch.int64)
    assert demand(ops.recall, tokens, drawn).hbm_bytes == 3 * nbytes(tokens)


def test_a_gate_is_a_number_a_row() -> None:
    assert demand(ops.gated_add, torch.ones(7, 5), torch.ones(7, 1), torch.ones(7, 5)).flops == 7 * (2 * 5 + 4)


def test_cache_writes_are_those_of_the_rows_and_pages() -> None:
    kv, k, v, slots = example(ops.kv_append, torch.bfloat16)
    assert demand(ops.kv_append, kv, k, v, slots).hbm_bytes == nbytes(slots) + 2 * nbytes(k, v)
    kv, q, k, v, positions, slots, frequencies = example(ops.rope_kv_append, torch.bfloat16)
    asked = demand(ops.rope_kv_append, kv, q, k, v, positions, slots)
    assert asked.hbm_bytes == nbytes(positions, slots) + 2 * nbytes(q, k, v)
    given = demand(ops.rope_kv_append, kv, q, k, v, positions, slots, frequencies, theta=5e5, scale=1.5)
    assert given == replace(asked, hbm_bytes=asked.hbm_bytes + nbytes(frequencies))
    assert asked.flops == demand(ops.rope, q, positions).flops + demand(ops.rope, k, positions).flops
    kv, pages = example(ops.page_gather, torch.bfloat16)
    moved = nbytes(pages) + 2 * nbytes(kv[pages])
    assert demand(ops.page_gather, kv, pages).hbm_bytes == moved
    assert demand(ops.page_scatter, kv, pages, kv[pages]).hbm_bytes == moved


def test_transfers_cross_the_bus_on_a_copy_engine() -> None:
    x = torch.ones(7, 5, dtype=torch.bfloat16)
    assert demand(ops.to_device, x) == nr.Demand(h2d_bytes=70, hbm_bytes=70, sms=(0, 0))
    assert demand(ops.to_host, x) == nr.Demand(d2h_bytes=70, hbm_bytes=70, sms=(0, 0))
    assert (demand(ops.to_device, x).engine, demand(ops.to_host, x).engine) == ("h2d", "d2h")


# Attention, whose work is told by the layout.

HEADS, KV_HEADS, DIM = 4, 2, 6


def attention_args(rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    row = torch.zeros(rows, dtype=torch.int64)
    kv = torch.zeros(50, 2, 4, KV_HEADS, DIM, dtype=dtype)
    return torch.zeros(rows, HEADS, DIM, dtype=dtype), kv, torch.zeros(rows, 9, dtype=torch.int32), row, row


def dense_flops(lengths: list[int]) -> int:
    """What PyTorch counts for one query over each of these many tokens."""
    q = torch.ones(1, HEADS, 1, DIM)
    tokens = [torch.ones(1, HEADS, length, DIM) for length in lengths]
    return sum(counted(F.scaled_dot_product_attention, q, kv, kv) for kv in tokens)


def token_bytes(tokens: int, dtype: torch.dtype) -> int:
    """Keys and values of so many tokens."""
    return 2 * nbytes(torch.zeros(tokens, KV_HEADS, DIM, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decode_attention_reads_the_cached_tokens(dtype: torch.dtype) -> None:
    lengths = [1, 12, 33]
    args = attention_args(3, dtype)
    asked = demand(ops.decode_attention, *args, layout=nr.Layout(decode=3, kv_tokens=sum(lengths)))
    assert asked.flops == dense_flops(lengths)
    found = nbytes(*args[3:]) + 12 * args[2].itemsize  # the rows' requests and positions, and twelve pages of 4 tokens
    assert asked.hbm_bytes == 2 * nbytes(args[0]) + token_bytes(sum(lengths), dtype) + found


@pytest.mark.parametrize(("rows", "tokens", "tiles"), [(3, 46, 3), (3, 193, 4), (1, 6400, 100), (0, 0, 0)])
def test_decode_attention_is_shared_out_by_tokens_and_heads_of_the_cache(rows: int, tokens: int, tiles: int) -> None:
    args = attention_args(rows, torch.float32)
    asked = demand(ops.decode_attention, *args, layout=nr.Layout(decode=rows, kv_tokens=tokens))
    assert asked.tiles == KV_HEADS * tiles


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prefill_attention_computes_causal_pairs(dtype: torch.dtype) -> None:
    args = attention_args(7, dtype)
    layout = nr.Layout(prefill=(nr.Segment(4, past=5), nr.Segment(3)))
    asked = demand(ops.prefill_attention, *args, layout=layout)
    assert asked.flops == dense_flops([6, 7, 8, 9, 1, 2, 3])
    found = nbytes(*args[3:]) + 3 * args[2].itemsize  # the rows' requests and positions, and three pages of 4 tokens
    assert asked.hbm_bytes == 2 * nbytes(args[0]) + token_bytes(9 + 3, dtype) + found


def test_prefill_attention_is_shared_out_by_rows_and_heads_of_the_cache() -> None:
    """64 query heads a tile, those of a row that share a head of the cache side by side."""
    group = HEADS // KV_HEADS
    for rows in (1, 64 // group, 64 // group + 1, 1000):
        asked = demand(ops.prefill_attention, *attention_args(rows, torch.float32), layout=nr.Layout(prefill=rows))
        assert asked.tiles == KV_HEADS * math.ceil(rows * group / 64)


def test_pieces_of_attention_do_the_work_of_the_whole() -> None:
    g = nr.Graph("mixed", nr.Layout(decode=6, prefill=(nr.Segment(4, past=5), nr.Segment(4)), kv_tokens=600))
    kv = g.state("kv", (50, 2, 4, KV_HEADS, DIM), torch.float32)
    q = g.input("q", (14, HEADS, DIM), torch.float32, batch=0)
    positions, requests = (g.input(name, (14,), torch.int64, batch=0) for name in ("positions", "requests"))
    pages = g.input("pages", (8, 9), torch.int32)
    for operate, *rows in zip(
        (ops.decode_attention, ops.prefill_attention), g.split(q), g.split(positions), g.split(requests), strict=True
    ):
        operate(rows[0], kv, pages, *rows[1:])
    cut = nr.nano_batch(g, 2)
    for node in g.nodes:
        assert sum(piece.demand.flops for piece in cut.nodes if piece.origin == node.name) == node.demand.flops


@pytest.mark.parametrize("op", [ops.decode_attention, ops.prefill_attention])
def test_attention_asks_for_a_layout_that_fits(op: nr.Op) -> None:
    def call(layout: nr.Layout | None) -> None:
        g = nr.Graph("attention", layout)
        op(*(g.input(f"a{k}", tuple(arg.shape), arg.dtype) for k, arg in enumerate(attention_args(3, torch.float32))))

    with pytest.raises(LayoutError, match=rf"test_ops_demand\.py:\d+: {op.name}: .*layout=nr\.Layout"):
        call(None)
    with pytest.raises(LayoutError, match=r"q has 3 rows, .* has 2 (decode|prefill) rows: use g\.split"):
        call(nr.Layout(decode=2, prefill=2, kv_tokens=9))
