"""ByHand: the launches, records and waits of a program as one would write them in torch, without nanort's driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

import nanort as nr
from nanort.programs.program import Launch, Record, View, Wait


class ByHand:
    """Queues a program's launches on torch's own streams, in the program's order, each into a tensor that is there.

    Where there is no GPU there are no streams either: the launches are carried out in that order.

    Args:
        program: its results are all like its constants; output ``y`` is what is compared.
        calls: by operator, what is called with ``out=``.
        constants: by name.
    """

    def __init__(
        self,
        program: nr.Program,
        calls: Mapping[str, Callable[..., torch.Tensor]],
        constants: Mapping[str, torch.Tensor],
    ) -> None:
        like = next(iter(constants.values()))
        tensors = [
            constants[buffer.name] if buffer.kind == "constant" else torch.empty_like(like)
            for buffer in program.buffers
        ]
        self.y = tensors[program.outputs["y"].buffer]
        self.queue: list[Callable[[], object]] = []
        self.streams: dict[str, torch.cuda.Stream] = {}
        events: list[torch.cuda.Event] = []
        if like.is_cuda:
            self.streams = {step.stream: torch.cuda.Stream() for step in program.instructions}
            events = [torch.cuda.Event() for _ in range(program.events)]
        current = ""
        for step in program.instructions:
            if isinstance(step, Launch):
                if self.streams and step.stream != current:
                    self.queue.append(partial(torch.cuda.set_stream, self.streams[step.stream]))
                    current = step.stream
                args = [tensors[view.buffer] for view in step.args if isinstance(view, View)]
                self.queue.append(partial(calls[step.op.name], *args, out=tensors[step.outs[0].buffer]))
            elif self.streams and isinstance(step, Record):
                self.queue.append(partial(events[step.event].record, self.streams[step.stream]))
            elif self.streams and isinstance(step, Wait):
                self.queue.append(partial(self.streams[step.stream].wait_event, events[step.event]))

    def __call__(self) -> None:
        """Queues everything between what the caller's stream has queued and what it will."""
        if not self.streams:
            for call in self.queue:
                call()
            return
        caller = torch.cuda.current_stream()
        for stream in self.streams.values():
            stream.wait_stream(caller)
        for call in self.queue:
            call()
        torch.cuda.set_stream(caller)
        for stream in self.streams.values():
            caller.wait_stream(stream)

    def captured(self) -> Callable[[], None]:
        """What replays it as one graph."""
        if not self.streams:
            return self
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self()
        return graph.replay
