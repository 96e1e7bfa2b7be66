"""Launch: one kernel, its grid and its arguments, to be run on a GPU, interpreted, or compiled where there is none."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs
from triton.tools.tensor_descriptor import TensorDescriptor

INTERPRETED = bool(knobs.runtime.interpret)
"""Whether kernels run on the CPU, program after program: TRITON_INTERPRET=1 when they were imported."""

COPIES_TILES = 90
"""The first compute capability of GPUs whose SMs have an engine that copies tiles of a described tensor."""

_POINTERS = {
    torch.bool: "*i1", torch.int8: "*i8", torch.uint8: "*u8", torch.int32: "*i32", torch.int64: "*i64",
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the compiler made of a launch for one architecture: what each of its programs occupies of an SM.

    Attributes:
        registers: of each thread.
        spilled_bytes: of each thread, in local memory, because registers did not suffice.
        shared_bytes: of each program.
        threads: of each program.
        ptx: the assembly, in which tensor core instructions can be read.
    """

    registers: int
    spilled_bytes: int
    shared_bytes: int
    threads: int
    ptx: str = field(repr=False)

    @property
    def has_wgmma(self) -> bool:
        """Whether it uses the tensor cores of Hopper by groups of four warps, which alone reach their full rate."""
        return "wgmma.mma_async" in self.ptx


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel on one grid.

    Args:
        kernel: a function of ``triton.jit``.
        programs: the grid.
        arguments: by name, tensors, numbers, and what the kernel declares ``tl.constexpr``. A TensorDescriptor is for
            the engine that copies tiles on Hopper and its successors; on older GPUs the tensor takes its place.
        warps, stages: of each program; loads of so many steps of a loop are under way at once.
        registers: the most that a thread may have; 0 leaves it to the compiler.
    """

    kernel: Any
    programs: int
    arguments: Mapping[str, Any]
    warps: int = 4
    stages: int = 3
    registers: int = 0

    def __call__(self) -> None:
        """Queues it on the current stream."""
        if INTERPRETED:
            _interpreter_checks(knobs.runtime.debug)
        major, minor = divmod(COPIES_TILES, 10) if INTERPRETED else torch.cuda.get_device_capability()
        self.kernel[(self.programs,)](**self._arguments(10 * major + minor), **self._options)

    def compiled(self, capability: int) -> Compiled:
        """What GPUs of that compute capability, 90 for Hopper, would run; it takes no GPU, nor its tensors' memory.

        Raises:
            RuntimeError: kernels are interpreted in this process (TRITON_INTERPRET=1).
        """
        if INTERPRETED:
            raise RuntimeError("kernels are interpreted in this process: unset TRITON_INTERPRET to compile them")
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        found = triton.compile(
            ASTSource(self.kernel, *self._signature(self._arguments(capability))),
            target=GPUTarget("cuda", capability, 32),
            options={**self._options, "debug": knobs.runtime.debug},
        )
        registers, spilled = _usage(found.asm["cubin"])
        return Compiled(registers, spilled, found.metadata.shared, 32 * found.metadata.num_warps, found.asm["ptx"])

    @property
    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}
        return {**options, "maxnreg": self.registers} if self.registers else options

    def _arguments(self, capability: int) -> Mapping[str, Any]:
        if capability >= COPIES_TILES:
            return self.arguments
        return {name: v.base if isinstance(v, TensorDescriptor) else v for name, v in self.arguments.items()}

    def _signature(
        self, arguments: Mapping[str, Any]
    ) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int, ...], list[list[Any]]]]:
        """Types, constants and alignments as a launch on a GPU would find them."""
        types: dict[str, str] = {}
        constants: dict[str, Any] = {}
        aligned: dict[tuple[int, ...], list[list[Any]]] = {}
        for at, parameter in enumerate(self.kernel.params):
            value = arguments[parameter.name]
            if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
                types[parameter.name], constants[parameter.name] = "constexpr", value
                continue
            types[parameter.name], number = _typed(value)
            if number is not None and number % 16 == 0:
                aligned[(at,)] = [["tt.divisibility", 16]]
        return types, constants, aligned


def _typed(value: Any) -> tuple[str, int | None]:
    """The type of an argument, and the number whose divisibility the compiler may rely on."""
    if isinstance(value, torch.Tensor):
        return _POINTERS[value.dtype], int(value.storage_offset()) * value.itemsize
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{_POINTERS[value.base.dtype][1:]}[{', '.join(map(str, value.block_shape))}]>", None
    if isinstance(value, bool):
        return "u1", None
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64", value
    return "fp32", None


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes that it spills, as NVIDIA's cuobjdump reads them off the machine code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = knobs.nvidia.cuobjdump.path
        told = subprocess.run([tool, "-res-usage", os.fspath(path)], check=True, capture_output=True, text=True).stdout
    registers, stack, local = (int(_found(rf"{name}:(\d+)", told)) for name in ("REG", "STACK", "LOCAL"))
    return registers, max(stack, local)


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"cuobjdump does not say {pattern!r}; it says: {text!r}")
    return match[1]


def _interpreter_checks(wanted: bool) -> None:
    """Turns ``tl.device_assert`` on or off, which the interpreter does not learn from TRITON_DEBUG by itself."""
    from triton.runtime.interpreter import interpreter_builder

    if interpreter_builder.options.debug != wanted:
        interpreter_builder.options = replace(interpreter_builder.options, debug=wanted)
