"""What the attention kernels share: where tokens lie in a paged KV cache, and which tensors they take."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LARGEST_DIM = 256
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
INTEGERS = (torch.int32, torch.int64)


@triton.jit
def request_of(requests, row, count):
    """The row of the page table, of ``count`` rows, that belongs to a row of q; 64-bit."""
    request = row.to(tl.int64)
    if requests is not None:
        request = tl.load(requests + row).to(tl.int64)
        tl.device_assert((request >= 0) & (request < count), "a request is outside the page table")
    return request


@triton.jit
def page_of(table, tokens, seen, width, pages, PAGE_SIZE: tl.constexpr):
    """The pages of a block of tokens, by one request's row of the page table; 0 where a token is not ``seen``."""
    tl.device_assert(tokens // PAGE_SIZE < width, "a position is beyond the page table", mask=seen)
    page = tl.load(table + tokens // PAGE_SIZE, mask=seen, other=0)
    tl.device_assert((page >= 0) & (page < pages), "a page is outside the cache", mask=seen)
    return page


@triton.jit
def offset_of(page, tokens, page_stride, token_stride, PAGE_SIZE: tl.constexpr):
    """Elements from the first token's keys (or values) in the cache to those of tokens in these pages; 64-bit."""
    return page.to(tl.int64) * page_stride + tokens % PAGE_SIZE * token_stride


def refuses(
    q: torch.Tensor,
    kv: torch.Tensor,
    pages: torch.Tensor,
    positions: torch.Tensor,
    requests: torch.Tensor | None = None,
    *,
    layout: object = None,
) -> str:
    """Why paged attention kernels do not take these, or ""."""
    if q.dtype not in FLOATS:
        return f"takes float16, bfloat16 and float32, not {q.dtype}"
    if q.shape[2] > LARGEST_DIM:
        return f"takes heads of at most {LARGEST_DIM} dimensions, not {q.shape[2]}"
    indices = [pages, positions, *([] if requests is None else [requests])]
    if found := [index.dtype for index in indices if index.dtype not in INTEGERS]:
        return f"takes pages, positions and requests of int32 and int64, not {found[0]}"
    if any(tensor.stride(-1) != 1 for tensor in (q, kv, *indices) if tensor.shape[-1] > 1):
        return "takes tensors whose last dimension is contiguous"
    return ""
