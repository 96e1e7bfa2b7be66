"""What a kernel is called without its template arguments, parameters and namespaces that nobody named."""

from __future__ import annotations

import re

WRAPPERS = ("cutlass::Kernel", "cutlass::Kernel2", "cutlass::device_kernel")
"""Kernels that only run their first template argument."""
UNNAMED = re.compile(r"\(anonymous namespace\)::|<unnamed>::")


def operator_of(name: str) -> str:
    """The operator that a kernel's, or a copy's, name in a profile stands for.

    >>> operator_of("void at::native::vectorized_elementwise_kernel<4, at::native::AbsFunctor<float> >(int)")
    'at::native::vectorized_elementwise_kernel'
    >>> operator_of("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16>(Params)")
    'cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16'
    >>> operator_of("Memcpy HtoD (Pinned -> Device)")
    'Memcpy HtoD'
    """
    if name.startswith(("Memcpy ", "Memset ")):
        return name.partition(" (")[0]
    full = UNNAMED.sub("", name)
    short = _outside(full)
    return _outside(full.partition("<")[2]) or short if short in WRAPPERS else short or name


def _outside(name: str) -> str:
    """The last word that stands outside all brackets, up to the first comma there."""
    kept, depth = [], 0
    for character in name:
        if character in "<(":
            depth += 1
        elif character in ">)":
            depth -= 1
        elif not depth:
            if character == ",":
                break
            kept.append(character)
        if depth < 0:
            break
    return "".join("".join(kept).split()[-1:])
