"""Kernel: an implementation of an operator as a plan, from tensors to launches, to be called or to be looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from nanort.kernels.launch import Launch

IDLE_SMS = 4
"""SMs that a kernel is given by default where there are none: it is interpreted."""


def _nothing(*_: Any, **__: Any) -> Any:
    return None


def _anything(*_: Any, **__: Any) -> str:
    return ""


def _no_scratch(*_: Any, sms: int, **__: Any) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class Kernel:
    """An implementation of an operator, called ``kernel(*tensors, out=, scratch=, sms=, **static)``.

    Args:
        launches: the plan, called like the kernel with nothing left out: what is launched, one after another. It reads
            no tensor, so that it can be asked about meta tensors.
        result: allocates what the kernel returns: a tensor, several, or None for one that changes its arguments.
        refuses: why it does not take such arguments, or "": of ``(*tensors, **static)``, meta tensors too.
        scratch_bytes: of ``(*tensors, sms=, **static)``, the bytes that it needs besides, whatever they hold before.
    """

    launches: Callable[..., Sequence[Launch]]
    result: Callable[..., Any] = _nothing
    refuses: Callable[..., str] = _anything
    scratch_bytes: Callable[..., int] = _no_scratch

    def __call__(
        self, *args: Any, out: Any = None, scratch: torch.Tensor | None = None, sms: int | None = None, **static: Any
    ) -> Any:
        """Queues it on the current stream, and returns its results.

        Args:
            args: as the operator takes them.
            out: where the results belong; allocated if absent.
            scratch: bytes that it may use; allocated if absent.
            sms: the most SMs that it may occupy; by default all of the device.
            static: as the operator takes it.

        Raises:
            ValueError: it does not take such arguments, or it needs more scratch.
        """
        if reason := self.refuses(*args, **static):
            raise ValueError(reason)
        device = args[0].device
        sms = sms or (_sms(device) if device.type == "cuda" else IDLE_SMS)
        out = self.result(*args, **static) if out is None else out
        needed = self.scratch_bytes(*args, sms=sms, **static)
        if scratch is None and needed:
            scratch = torch.empty(needed, dtype=torch.uint8, device=device)
        if needed and scratch is not None and scratch.nbytes < needed:
            raise ValueError(f"needs {needed} bytes of scratch, not {scratch.nbytes}")
        self.prepared(*args, out=out, scratch=scratch, sms=sms, **static)()
        return out

    def prepared(self, *args: Any, **options: Any) -> Callable[[], None]:
        """What queues it on the current stream, again and again on the same tensors; called with nothing left out."""
        launches = self.launches(*args, **options)

        def queue() -> None:
            for launch in launches:
                launch()

        return queue


def kernel(
    *,
    result: Callable[..., Any] = _nothing,
    refuses: Callable[..., str] = _anything,
    scratch_bytes: Callable[..., int] = _no_scratch,
) -> Callable[[Callable[..., Sequence[Launch]]], Kernel]:
    """Makes a :class:`Kernel` of its plan; see there for the arguments."""
    return lambda launches: Kernel(launches, result, refuses, scratch_bytes)


@dataclass(frozen=True, slots=True)
class Typical:
    """A call of a kernel at the sizes of a real model, on meta tensors: what is compiled to see what a kernel occupies.

    Attributes:
        name: of the kernel, ``operator.kernel`` as in ``"linear.coresident"``.
        sizes: what distinguishes the call, for a table, such as ``"2048 x 4096 x 4096 bfloat16"``.
        kernel, args, static: the call.
    """

    name: str
    sizes: str
    kernel: Kernel
    args: tuple[Any, ...]
    static: Mapping[str, Any] = field(default_factory=dict)

    def launches(self, sms: int) -> Sequence[Launch]:
        """What it launches on so many SMs."""
        out = self.kernel.result(*self.args, **self.static)
        scratch = meta(self.kernel.scratch_bytes(*self.args, sms=sms, **self.static), dtype=torch.uint8)
        return self.kernel.launches(*self.args, out=out, scratch=scratch, sms=sms, **self.static)


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """A tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


@cache
def _sms(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
