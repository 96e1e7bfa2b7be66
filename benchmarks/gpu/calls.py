"""Calls of an operator's kernels on tensors that are used in turn, and how far from exact what they give is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import torch

import nanort as nr
from benchmarks.gpu.timing import Work, sized
from nanort.kernels.kernel import Kernel

Maker = Callable[[int], Sequence[Work]]
"""Given the most SMs that it may use, what queues a call, once for each set of tensors that is used in turn."""

TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""How far results may be from the exact ones, relative and absolute, as the tests have it."""
COLD_BYTES = 256 << 20
"""What is touched before a tensor's turn comes again: several times what L2 holds, so that it is read from memory."""
TURNS = 32
"""The most sets that are used in turn."""


def turns(nbytes: int, scale: float) -> range:
    """One turn for each set of tensors of which a call touches ``nbytes``."""
    return range(min(sized(TURNS, scale), math.ceil(COLD_BYTES / nbytes)))


@dataclass(frozen=True, slots=True)
class Calls:
    """One call of an operator, on each of several sets of tensors.

    Attributes:
        op: what is called.
        sets: its arguments, of one shape.
        static: as the operator takes it.
    """

    op: nr.Op
    sets: Sequence[tuple[Any, ...]]
    static: Mapping[str, Any] = field(default_factory=dict)

    @property
    def demand(self) -> nr.Demand:
        """Of one call."""
        return self.op.work(self._meta, self._results, self.static)

    @property
    def kernels(self) -> dict[str, Maker]:
        """Those of the operator, ``operator.kernel`` each."""
        return {f"{self.op.name}.{kernel}": partial(self._by, kernel) for kernel in self.op.kernels}

    def of(self, function: Callable[..., object]) -> Maker:
        """Another function of the same arguments, which finds out by itself how many SMs there are."""
        return lambda sms: [partial(function, *args, **self.static) for args in self.sets]

    def error(self, kernel: str, sms: int) -> float:
        """How far a kernel is from the exact result, of the first set, as a share of what is allowed."""
        ours, exact = ([_copied(a, wide) for a in self.sets[0]] for wide in (False, True))
        given = self.bound(kernel, ours, sms)
        given.call()
        wanted = _several(self.op.reference(*exact, **self.static))
        pairs = [*zip(given.out, wanted, strict=True), *((ours[at], exact[at]) for at in self.op.writes)]
        return max(_error(*pair) for pair in pairs)

    def _by(self, kernel: str, sms: int) -> list[Work]:
        return [self.bound(kernel, args, sms).call for args in self.sets]

    def bound(self, kernel: str, args: Sequence[Any], sms: int) -> Bound:
        """One kernel on one set of tensors, with all the memory that it needs."""
        module, _, name = self.op.kernels[kernel].partition(":")
        function = getattr(import_module(module), name)
        device = next(a.device for a in args if isinstance(a, torch.Tensor))
        out = tuple(torch.empty(spec.shape, dtype=spec.dtype, device=device) for spec in self._results)
        needed = function.scratch_bytes(*args, sms=sms, **self.static) if isinstance(function, Kernel) else 0
        scratch = torch.empty(needed, dtype=torch.uint8, device=device) if needed else None
        where = out[0] if len(out) == 1 else out or None
        return Bound(partial(function, *args, out=where, scratch=scratch, sms=sms, **self.static), out)

    @property
    def _meta(self) -> tuple[Any, ...]:
        return tuple(a.to("meta") if isinstance(a, torch.Tensor) else a for a in self.sets[0])

    @property
    def _results(self) -> tuple[torch.Tensor, ...]:
        return self.op.outputs(self._meta, self.static)


@dataclass(frozen=True, slots=True)
class Bound:
    """What queues a kernel, and where its results are then."""

    call: Work
    out: tuple[torch.Tensor, ...]


def _several(result: Any) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else () if result is None else (result,)


def _copied(argument: Any, wide: bool) -> Any:
    if not isinstance(argument, torch.Tensor):
        return argument
    return argument.to(torch.float64 if wide and argument.is_floating_point() else argument.dtype, copy=True)


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest error as a share of what is allowed; endless where it is no number, or another whole one."""
    if not found.is_floating_point():
        return 0.0 if torch.equal(found, exact.to(found.dtype)) else math.inf
    allowed = TOLERANCES[found.dtype]
    share = (found.double() - exact).abs_() / (allowed + allowed * exact.abs())
    return float(share.nan_to_num(nan=math.inf).max())
