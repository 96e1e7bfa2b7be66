"""Traces of a GPU in the exact form in which torch.profiler (Kineto, CUDA 12) writes them, made without one."""

from __future__ import annotations

import gzip
import json
from itertools import count
from pathlib import Path
from typing import Any

PID, TID, H200 = 2021, 2021, 132
EPOCH = 4520817245972037
"""Nanoseconds of the first call, from a base in ``baseTimeNanoseconds``."""
GEMM = "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_128x128_32x5_tn_align8>(Params)"
ADD = (
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, std::array<char*, 3ul> >"
    "(int, at::native::CUDAFunctor_add<float>, std::array<char*, 3ul>)"
)


class CudaProfile:
    """A host thread that launches, and streams on which it runs; times are in nanoseconds.

    Attributes:
        rows: as the file has them.
        busy: nanoseconds of kernels, copies and fills by stream.
        now: of the host; every call takes a while.
    """

    def __init__(self, *, pid: int = PID, tid: int = TID, sms: int = H200) -> None:
        self.rows: list[dict[str, Any]] = []
        self.busy: dict[int, int] = {}
        self.now = EPOCH
        self._place = {"pid": pid, "tid": tid}
        self._sms = sms
        self._numbers, self._correlations = count(1), count(1000)
        self._free: dict[int, int] = {}
        self._external = 0
        self._began: tuple[dict[str, Any], int] | None = None

    def operator(self, name: str, dims: list[Any]) -> None:
        """What is launched from now on, up to the next operator or to the end of a span, is launched by it."""
        self._close()
        self._external = next(self._numbers)
        args = {"External id": self._external, "Record function id": 0, "Input Dims": dims, "Ev Idx": self._external}
        self._row("cpu_op", name, self.now, 0, **self._place, args=args)
        self._began = (self.rows[-1], self.now)
        self.now += 1000

    def kernel(self, name: str, stream: int = 7, *, took: int, grid: tuple[int, int, int] = (600, 1, 1)) -> int:
        """Launches a kernel; its correlation."""
        args = {
            "queued": 0, "registers per thread": 32, "shared memory": 0, "blocks per SM": 4.545455,
            "warps per SM": 18.181818, "grid": list(grid), "block": [128, 1, 1], "est. achieved occupancy %": 28,
        }  # fmt: skip  # as it is there
        return self._on_gpu("cudaLaunchKernel", "kernel", name, stream, took, args)

    def copy(self, kind: str, amount: int, stream: int = 7, *, took: int) -> int:
        """Copies bytes; ``kind`` as in ``"HtoD (Pinned -> Device)"``."""
        args = {"bytes": amount, "memory bandwidth (GB/s)": amount / took}
        return self._on_gpu("cudaMemcpyAsync", "gpu_memcpy", f"Memcpy {kind}", stream, took, args)

    def fill(self, amount: int, stream: int = 7, *, took: int) -> int:
        args = {"bytes": amount, "memory bandwidth (GB/s)": amount / took}
        return self._on_gpu("cudaMemsetAsync", "gpu_memset", "Memset (Device)", stream, took, args)

    def call(self, name: str) -> int:
        """A call that runs nothing on the GPU; its correlation."""
        correlation, took = next(self._correlations), 2000
        args = {"External id": self._external, "cbid": 211, "correlation": correlation}
        self._row("cuda_runtime", name, self.now, took, **self._place, args=args)
        self.now += took
        return correlation

    def wait(self, stream: int, other: int) -> None:
        """Makes a stream wait for what another was given so far."""
        record = self.call("cudaEventRecord")
        correlation = self.call("cudaStreamWaitEvent")
        args = {
            "cuda_sync_kind": "Stream Wait Event", "wait_on_stream": other, "wait_on_cuda_event_record_corr_id": record,
            "wait_on_cuda_event_id": 3, "stream": stream, "correlation": correlation, "device": 0, "context": 1,
        }  # fmt: skip  # as it is there
        self._row("cuda_sync", "Stream Wait Event", self.now, 1000, pid=0, tid=stream, args=args)
        self._free[stream] = max(self._free.get(stream, 0), self._free.get(other, 0))

    def span(self, category: str, name: str, begin: int, end: int) -> None:
        """A row around others: an annotation of the user's, or a Python function."""
        self._close()
        self._row(category, name, begin, end - begin, **self._place, args={"External id": next(self._numbers)})

    def write(self, path: Path, **head: Any) -> Path:
        """The file, packed where its name ends so."""
        self._close()
        gpu = {"id": 0, "name": "NVIDIA H200", "totalGlobalMem": 150_000_000_000, "numSms": self._sms}
        about = {"schemaVersion": 1, "deviceProperties": [gpu], "record_shapes": 1, **head}
        about |= {"displayTimeUnit": "ms", "baseTimeNanoseconds": 1790857026000000000}
        instant = {"ph": "i", "s": "g", "name": "Record Window End", "pid": "", "tid": "", "ts": self.now / 1e3}
        text = json.dumps({**about, "traceEvents": [*self.rows, instant], "traceName": path.name}, indent=2)
        opened: Any = gzip.open if path.suffix == ".gz" else open
        with opened(path, "wt", encoding="ascii") as file:
            file.write(text)
        return path

    def _close(self) -> None:
        """The last operator ends."""
        if self._began:
            row, began = self._began
            row["dur"] = (self.now - began) / 1e3
            self._began = None

    def _on_gpu(self, call: str, category: str, name: str, stream: int, took: int, args: dict[str, Any]) -> int:
        correlation = self.call(call)
        begin = max(self.now + 3000, self._free.get(stream, 0))
        place = {"device": 0, "context": 1, "stream": stream, "correlation": correlation}
        self._row(category, name, begin, took, pid=0, tid=stream, args={"External id": self._external, **place, **args})
        for phase, at in (("s", self.now), ("f", begin)):
            self.rows.append({"ph": phase, "id": correlation, "cat": "ac2g", "name": "ac2g", "ts": at / 1e3})
        self._free[stream] = begin + took
        self.busy[stream] = self.busy.get(stream, 0) + took
        return correlation

    def _row(self, category: str, name: str, begin: int, took: int, **rest: Any) -> None:
        self.rows.append({"ph": "X", "cat": category, "name": name, "ts": begin / 1e3, "dur": took / 1e3, **rest})


def small() -> CudaProfile:
    """Two steps of a model on two streams, which wait for each other, with copies, fills and a CUDA graph's capture."""
    profile = CudaProfile()
    for step in range(3, 5):
        began = profile.now
        profile.copy("HtoD (Pinned -> Device)", 1 << 20, 13, took=20_001)
        profile.wait(7, 13)
        profile.operator("aten::addmm", [[16], [32, 64], [64, 16], [], []])
        profile.kernel(GEMM, took=18_017)
        profile.operator("aten::add", [[32, 16], [32, 16], []])
        profile.kernel(ADD, took=5_123, grid=(4, 2, 1))
        profile.fill(512, took=1_000)
        profile.wait(13, 7)
        profile.copy("DtoH (Device -> Pageable)", 2048, 13, took=2_500)
        profile.copy("DtoD (Device -> Device)", 4096, took=2_500)
        profile.span("user_annotation", f"ProfilerStep#{step}", began, profile.now)
        profile.span("user_annotation", "forward", began, profile.now)
        profile.span("python_function", "models/llama.py(84): forward", began, profile.now)
        profile.span("python_function", "nn.Module: Linear_0", began, profile.now)
        profile.span("python_function", "torch/nn/functional.py(12): linear", began, profile.now)
    return profile


def large(path: Path, size: int) -> tuple[int, int]:
    """Writes a profile of at least ``size`` bytes, with stacks and shapes; how many kernels it has, and their time."""
    kernels, profile = 0, CudaProfile()
    with path.open("w", encoding="ascii") as file:
        file.write('{"schemaVersion": 1, "deviceProperties": [{"id": 0, "name": "NVIDIA H200", "numSms": 132}],\n')
        file.write('"traceEvents": [\n')
        while file.tell() < size:
            for line in range(500):
                began = profile.now
                for name in ("aten::linear", "aten::t", "aten::transpose", "aten::addmm"):
                    profile.operator(name, [[2048, 4096], [4096, 4096], [4096], [], []])
                profile.kernel((GEMM, ADD)[line % 2], took=18_017)
                profile.span("python_function", f"models/llama.py({line}): forward", began, profile.now)
                kernels += 1
            if kernels > 500:
                file.write(",\n")
            file.write(json.dumps(profile.rows, indent=2)[1:-1])
            profile.rows.clear()
        file.write('],\n"traceName": "large.json"}\n')
    return kernels, sum(profile.busy.values())
