"""Steps: a program compiled for the host, each launch to one call on a list of tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import torch

from nanort.errors import DeviceMemoryError
from nanort.programs.program import Buffer, Copy, Launch, Program, View

Env = list[Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One launch or copy: its result goes into ``env[slot]``, or where ``store`` puts it."""

    index: int  # among the program's activities
    call: Callable[..., Any]
    fetch: Callable[[Env], Sequence[Any]]
    slot: int  # where the one fresh result goes, or -1
    store: Callable[[Env, Any], None] | None
    uses: tuple[int, ...]  # buffers whose memory may go once all their users are done
    name: str
    where: str


class Compiler:
    """Compiles the launches of one program; ``env`` has a slot for every buffer, then for every literal."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.literals: list[Any] = []
        self.last = {view.buffer for view in program.outputs.values()}
        launches = [step for step in program.instructions if isinstance(step, (Launch, Copy))]
        self.read = {view.buffer for step in launches for view in _views(step)}
        self.steps = {step.node: self._step(index, step) for index, step in enumerate(launches)}
        counts = Counter(buffer for step in self.steps.values() for buffer in step.uses)
        self.counts = [counts[buffer.index] for buffer in program.buffers]

    def env(self, bound: dict[int, torch.Tensor]) -> Env:
        """A fresh list of tensors: those bound, buffers of joins, empties, literals; results come as they are made."""
        env: Env = [None] * len(self.program.buffers)
        for buffer in self.program.buffers:
            if buffer.kind in ("join", "empty"):
                env[buffer.index] = self._empty(buffer)
            elif buffer.kind != "result":
                env[buffer.index] = bound[buffer.root]
        return env + self.literals

    def users(self) -> list[list[None]]:
        """For every buffer a list as long as it has users; whoever takes the last item frees it."""
        return [[None] * count for count in self.counts]

    def outputs(self, env: Env) -> dict[str, torch.Tensor]:
        """The program's outputs."""
        return {name: view.of(env[view.buffer]) for name, view in self.program.outputs.items()}

    def _empty(self, buffer: Buffer) -> torch.Tensor:
        try:
            return torch.empty(buffer.shape, dtype=buffer.dtype)
        except RuntimeError as error:
            raise DeviceMemoryError(
                f"program {self.program.name} takes {buffer.nbytes:,} bytes of the host for {buffer.name}, and there "
                f"is no room for them ({error}): free some, or use a smaller batch"
            ) from error

    def _step(self, index: int, step: Launch | Copy) -> Step:
        call: Callable[..., Any] = torch.clone
        args: tuple[Any, ...] = _views(step)
        outs = (step.target,) if isinstance(step, Copy) else step.outs
        if isinstance(step, Launch):
            call = partial(step.op.reference, **step.static) if step.static else step.op.reference
            args = step.args
        slot, store = self._target(outs)
        uses = {view.buffer for view in _views(step) if self._freed(view)}
        uses |= {view.buffer for view in outs if self._freed(view) and not self._awaited(view)}
        return Step(index, call, self._fetch(args), slot, store, tuple(uses), step.name, step.where)

    def _freed(self, view: View) -> bool:
        """Whether the buffer's memory may go before the run ends."""
        return self.program.buffers[view.buffer].kind in ("result", "join") and view.buffer not in self.last

    def _awaited(self, view: View) -> bool:
        """Whether a result comes to be with this step and is freed by those that read it."""
        return self._fresh(view) and view.buffer in self.read

    def _fetch(self, args: Sequence[Any]) -> Callable[[Env], Sequence[Any]]:
        """What takes the arguments out of the env; whole buffers and literals come without any work."""
        if all(not isinstance(arg, View) or self._whole(arg) for arg in args):
            slots = [arg.buffer if isinstance(arg, View) else self._literal(arg) for arg in args]
            if len(slots) == 1:
                (slot,) = slots
                return lambda env: (env[slot],)
            return itemgetter(*slots) if slots else lambda env: ()
        return lambda env: [arg.of(env[arg.buffer]) if isinstance(arg, View) else arg for arg in args]

    def _literal(self, argument: Any) -> int:
        self.literals.append(argument)
        return len(self.program.buffers) + len(self.literals) - 1

    def _target(self, outs: tuple[View, ...]) -> tuple[int, Callable[[Env, Any], None] | None]:
        """The slot that adopts the one result, or what stores all others."""
        if len(outs) == 1 and self._fresh(outs[0]):
            return outs[0].buffer, None
        puts = [partial(self._put, view) for view in outs]
        if len(outs) == 1:
            return -1, puts[0]

        def store(env: Env, results: Any) -> None:
            for put, result in zip(puts, results or (), strict=True):
                put(env, result)

        return -1, store

    def _put(self, view: View, env: Env, result: torch.Tensor) -> None:
        """Adopts a fresh result, or copies it into its part of a joined buffer."""
        if self._fresh(view):
            env[view.buffer] = result.contiguous()
        else:
            view.of(env[view.buffer]).copy_(result)

    def _fresh(self, view: View) -> bool:
        return self.program.buffers[view.buffer].kind == "result"

    def _whole(self, view: View) -> bool:
        return view.is_whole(self.program.buffers[view.buffer])


def _views(step: Launch | Copy) -> tuple[View, ...]:
    if isinstance(step, Copy):
        return (step.source,)
    return tuple(argument for argument in step.args if isinstance(argument, View))
