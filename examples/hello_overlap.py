"""Three operators, three bottlenecks: tensor cores, device memory, PCIe. nanort runs them at the same time."""

from __future__ import annotations

import torch

import nanort as nr
from nanort import ops


def hello(rows: int, width: int, requests: int, context: int, block: int) -> nr.Graph:
    """A dense layer, attention of ``requests`` to ``context`` cached tokens each, and ``block`` bytes to upload."""
    g = nr.Graph("hello", layout=nr.Layout(decode=requests, kv_tokens=requests * context))
    x = g.input("x", (rows, width), torch.bfloat16)
    weight = g.constant("weight", (width, width), torch.bfloat16)
    q = g.input("q", (requests, 32, 128), torch.bfloat16)
    kv = g.state("kv", (requests * context // 16, 2, 16, 8, 128), torch.bfloat16)
    pages = g.input("pages", (requests, context // 16), torch.int32)
    positions = g.input("positions", (requests,), torch.int32)
    host = g.input("block", (block,), torch.uint8, device="host")
    g.output(
        dense=ops.linear(x, weight),  # bound by compute
        attention=ops.decode_attention(q, kv, pages, positions),  # bound by device memory
        block=ops.to_device(host),  # bound by PCIe
    )
    return g


def tensors(graph: nr.Graph) -> dict[str, torch.Tensor]:
    """Random numbers for all that a graph asks for, and the pages of each request in their order."""
    noise = torch.Generator().manual_seed(0)
    made = {
        root.name: torch.randn(root.shape, generator=noise).to(root.dtype)
        for root in graph.roots
        if root.kind in ("input", "constant", "state")
    }
    requests, width = made["pages"].shape
    made["pages"] = torch.arange(requests * width, dtype=torch.int32).view(requests, width)
    made["positions"] = torch.full((requests,), 16 * width - 1, dtype=torch.int32)
    return made


def main() -> None:
    """Schedules the graph for an H200 in simulation, then runs a small one on this machine's CPU."""
    schedule = nr.co_schedule(hello(4096, 8192, 256, 1024, 1 << 25), nr.device("h200"))
    print(schedule)
    print(schedule.explain())

    small = nr.co_schedule(hello(64, 256, 4, 64, 1 << 12), nr.device("cpu"))
    given = tensors(small.source)
    expected = small.source.eager(**given)
    constants, states = {"weight": given.pop("weight")}, {"kv": given.pop("kv")}
    with nr.Executor(small, constants=constants, states=states, backend="cpu") as run:
        found = run(**given)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])
        print(f"{name}: {list(value.shape)} on the cpu, as the graph run in order gives it")


if __name__ == "__main__":
    main()
