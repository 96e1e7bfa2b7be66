"""Pages of a KV cache swapped over PCIe, both ways, beside a decode step: what the copies cost on top of it."""

from __future__ import annotations

from dataclasses import replace

import torch

import nanort as nr
from nanort import graphs

CONFIG = replace(graphs.CONFIGS["llama-3-8b"], layers=4)
REQUESTS, CONTEXT, PAGE = 384, 1024, 16  # a page holds 16 tokens: 64 KiB of each layer


def step(swap: int) -> nr.Graph:
    """A decode step during which ``swap`` pages of every layer leave for the host, and as many come from it."""
    return graphs.offload(
        CONFIG,
        nr.Layout(decode=REQUESTS, kv_tokens=REQUESTS * CONTEXT),
        swap_out=swap,
        swap_in=swap,
        pages=1 + REQUESTS * CONTEXT // PAGE + swap,
        requests=REQUESTS,
        table_width=CONTEXT // PAGE,
        dtype=torch.bfloat16,
    )


def main() -> None:
    """Schedules the step for an H200 with more and more pages swapped."""
    print("pages  MB each way  one after the other  co-scheduled  compute beside copies down, up")
    for swap in (0, 128, 256, 384):
        schedule = nr.co_schedule(step(swap), nr.device("h200"))
        planned, moved = schedule.timeline(), sum(node.demand.h2d_bytes for node in schedule.source.nodes)
        beside = planned.overlap().pairs
        print(
            f"{swap:5}{moved / 1e6:13.1f}{1e3 * schedule.serial_makespan:18.2f} ms{1e3 * planned.makespan:11.2f} ms"
            f"{1e3 * beside['sms', 'h2d']:24.2f}, {1e3 * beside['sms', 'd2h']:.2f} ms"
        )
    print(schedule)


if __name__ == "__main__":
    main()
