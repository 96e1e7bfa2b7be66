"""The commands that serve: generate, chat, chaos, serve and bench serve."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from nanort.bench.arrivals import arrivals
from nanort.bench.serve import bench_serve
from nanort.chaos.faults import KINDS
from nanort.chaos.run import Sum
from nanort.chaos.run import chaos as worlds
from nanort.demo import progress_bar
from nanort.devices import Device
from nanort.drafts import draft
from nanort.errors import CacheFullError, RequestError
from nanort.http.server import serve as serve_until_stopped
from nanort.interrupts import CtrlC
from nanort.options import (
    SERVED_TOKENS,
    CacheTokens,
    DrawSeed,
    HostCache,
    Json,
    MaxRows,
    Memory,
    ModelFiles,
    NewTokens,
    Pieces,
    Seed,
    SloTpot,
    Temperature,
    TopK,
    TopP,
    TraceFolder,
    bytes_of,
    config_of,
    counts_of,
    device_of,
    dtype_of,
    pace_of,
)
from nanort.serving.generate import LLM, load_model
from nanort.serving.sampling import SamplingParams
from nanort.serving.simulated import Simulation

serving = typer.Typer(rich_markup_mode="markdown")
bench = typer.Typer(no_args_is_help=True, help="Measures serving, or simulates it.")
serving.add_typer(bench, name="bench")

Message = dict[str, str]


@serving.command(epilog='Example: nanort generate "The capital of France is" --max-new-tokens 16')
def generate(
    prompts: Annotated[list[str], typer.Argument(help="One or more prompts, generated in one batch.")],
    model: ModelFiles = "smollm2",
    max_new_tokens: NewTokens = 64,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: DrawSeed = 0,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends a reply; may be given again.")] = None,
    chat: Annotated[bool, typer.Option(help="Put each prompt into the model's chat template.")] = False,
    nano_batches: Pieces = "1,2",
    memory: Memory = None,
    trace: TraceFolder = None,
    as_json: Json = False,
) -> None:
    """Generates text with a model, all prompts in one batch."""
    params = SamplingParams(temperature, top_k, top_p, max_new_tokens, seed=seed, stop=tuple(stop or ()))
    with _loaded(model, nano_batches=counts_of(nano_batches), memory=bytes_of("--memory", memory), trace=trace) as llm:
        asked = [llm.tokenizer.chat([{"role": "user", "content": prompt}]) for prompt in prompts] if chat else prompts
        encoded = [llm.tokenizer.encode(prompt, special=chat) for prompt in asked]
        if as_json:
            found = llm.generate(encoded, params)
            rows = [
                {"prompt": p, "text": c.text, "finish": c.finish, "tokens": c.tokens}
                for p, c in zip(prompts, found, strict=True)
            ]
            typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        elif len(prompts) == 1:
            for token in llm.stream(encoded, params):
                typer.echo(token.text, nl=False)
            typer.echo()
        else:
            for prompt, completion in zip(prompts, llm.generate(encoded, params), strict=True):
                typer.echo(f"> {prompt}\n{completion.text}\n")


@serving.command(epilog='Example: nanort chat --system "Answer in one sentence."')
def chat(
    model: ModelFiles = "smollm2",
    system: Annotated[str, typer.Option(help="What the model is told before anything else.")] = "",
    max_new_tokens: NewTokens = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: DrawSeed = 0,
    nano_batches: Pieces = "1,2",
    memory: Memory = None,
) -> None:
    """Talks with a model, a line each; /new begins again, Ctrl-C ends a reply, Ctrl-D or /exit the talk."""
    params = SamplingParams(temperature, top_k, top_p, max_new_tokens, seed=seed)
    beginning: list[Message] = [{"role": "system", "content": system}] if system else []
    said = [*beginning]
    with _loaded(model, nano_batches=counts_of(nano_batches), memory=bytes_of("--memory", memory)) as llm:
        llm.tokenizer.chat([*beginning, {"role": "user", "content": "Hello"}])  # a model that cannot is refused now
        for line in _lines():
            if line == "/new":
                said = [*beginning]
                continue
            asked = [*said, {"role": "user", "content": line}]
            try:
                reply = _said(llm, asked, params)
            except (CacheFullError, RequestError) as error:
                typer.echo(f"{error}; /new begins again", err=True)
            else:
                said = [*asked, {"role": "assistant", "content": reply}]


@serving.command(epilog="Example: nanort chaos --seed 7 --seeds 100")
def chaos(
    seed: Annotated[int, typer.Option(help="Of everything: the same gives the same bytes.", min=0)] = 0,
    seeds: Annotated[int, typer.Option(help="How many worlds, of this seed and those after it.", min=1)] = 1,
    requests: Annotated[int, typer.Option(help="How many each world is asked.", min=1)] = 12,
    faults: Annotated[
        str | None, typer.Option(help=f"Those that may strike: {', '.join(KINDS)}; by default all, none for none.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for a report of each world, seed-7.txt.")] = None,
) -> None:
    """Serves workloads on a simulated GPU on which things go wrong; exit code 1 where what must hold did not."""
    kinds = tuple(KINDS) if faults is None else () if faults == "none" else tuple(faults.replace(" ", "").split(","))
    total = Sum()
    for report in worlds(range(seed, seed + seeds), requests=requests, kinds=kinds):
        total.add(report)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            with draft(out / f"seed-{report.seed}.txt") as beside:
                beside.write_text(str(report), encoding="utf-8")
        if seeds == 1 or report.breach:
            typer.echo(str(report), nl=False)
    if seeds > 1:
        typer.echo(str(total), nl=False)
    if total.breaches:
        raise typer.Exit(1)


@serving.command(epilog="Example: nanort serve --model smollm2 --port 8000")
def serve(
    model: ModelFiles = "smollm2",
    host: Annotated[str, typer.Option(help="Where to listen; anyone who reaches it is served.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 is any that is free.", min=0, max=65535)] = 8000,
    name: Annotated[
        str | None, typer.Option(help="What requests call the model; by default its folder's name.")
    ] = None,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more are told to come again.", min=1)] = 256,
    grace: Annotated[float, typer.Option(help="Seconds that replies have to end after Ctrl-C.", min=0)] = 30.0,
    nano_batches: Pieces = "1,2",
    cache_tokens: CacheTokens = None,
    memory: Memory = None,
    host_cache: HostCache = None,
    max_rows: MaxRows = None,
    slo_tpot: SloTpot = None,
    trace: TraceFolder = None,
) -> None:
    """Serves OpenAI's API until Ctrl-C: completions, chat, models, health and metrics."""
    with _loaded(
        model, nano_batches=counts_of(nano_batches), memory=bytes_of("--memory", memory), max_rows=max_rows,
        host_cache=bytes_of("--host-cache", host_cache), slo_tpot=pace_of(slo_tpot), background=True, trace=trace,
        cache_tokens=cache_tokens,
    ) as llm:  # fmt: skip  # in three lines
        path = Path(model) if Path(model).name not in ("", "..") else Path(model).resolve()
        called = name or path.name.removesuffix(".gguf")
        serve_until_stopped(
            llm, host=host, port=port, grace_seconds=grace, name=called, queue_limit=queue,
            ready=lambda url: typer.echo(f"{called} at {url}/v1 on {llm.device.name}: Ctrl-C ends"),
        )  # fmt: skip  # in two lines


@bench.command("serve", epilog="Example: nanort bench serve --model tiny --lengths const:64/16 --requests 8")
def bench_serving(
    model: Annotated[
        str, typer.Option(help="As for nanort serve; with --device one of nanort plan, which is simulated there.")
    ] = "smollm2",
    lengths: Annotated[
        str, typer.Option(help="const:1024/512, azure, sharegpt, a trace of Azure's (.csv) or ShareGPT's (.json).")
    ] = "const:128/32",
    requests: Annotated[int | None, typer.Option(help="How many; by default all of a file.", min=1)] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second, at random; by default all at once.")] = None,
    replay: Annotated[bool, typer.Option("--replay", help="Requests arrive when the trace says.")] = False,
    scale: Annotated[float, typer.Option(help="Lengths are multiplied by it.")] = 1.0,
    on: Annotated[str | None, typer.Option("--device", help="Simulate this device of the database.")] = None,
    nano_batches: Pieces = "1,2",
    policy: Annotated[str | None, typer.Option(help="serial, list, search or auto.")] = None,
    cache_tokens: CacheTokens = None,
    memory: Memory = None,
    host_cache: HostCache = None,
    max_rows: MaxRows = None,
    slo_tpot: SloTpot = None,
    trace: TraceFolder = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Serves a workload and reports throughput, latency and what of the best possible that is."""
    options: dict[str, Any] = {
        "nano_batches": counts_of(nano_batches), "policy": policy, "memory": bytes_of("--memory", memory),
        "host_cache": bytes_of("--host-cache", host_cache), "max_rows": max_rows, "slo_tpot": pace_of(slo_tpot),
        "cache_tokens": cache_tokens, "trace": trace,
    }  # fmt: skip  # in three lines
    with _loaded(model, **options) if on is None else _simulated(model, on, **options) as served:
        count = (lambda text: len(served.tokenizer.encode(text))) if isinstance(served, LLM) else None
        asked = arrivals(
            lengths, requests, rate=rate, replay=replay, scale=scale, seed=seed, count=count,
            most=served.engine.max_tokens,
        )  # fmt: skip  # in two lines
        with progress_bar(Console(stderr=True), "serving") as progress:
            report = bench_serve(served, asked, seed=seed, progress=progress)
        typer.echo(json.dumps(report.data, indent=2) if as_json else report)


def _loaded(model: str, **options: Any) -> LLM:
    """The model on this machine's GPU, else its CPU, with those of LLM's options that were given."""
    target, given = Device.current(), _given(options)
    if target.kind == "cpu" and "memory" not in given:
        given.setdefault("cache_tokens", SERVED_TOKENS)
    with progress_bar(Console(stderr=True), f"loading {model}") as progress:
        return load_model(model, progress, device=target, dtype=dtype_of(target), **given)


def _simulated(model: str, on: str, **options: Any) -> Simulation:
    """A model of that name or folder, simulated on a device."""
    target = device_of(on)
    return Simulation(config_of(model), target, dtype=dtype_of(target), **_given(options))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _lines() -> Iterator[str]:
    """What is typed, line by line, until /exit or the end."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if line == "/exit":
            return
        if line:
            yield line


def _said(llm: LLM, messages: list[Message], params: SamplingParams) -> str:
    """The model's reply, printed as it grows; Ctrl-C ends it."""
    prompt = llm.tokenizer.encode(llm.tokenizer.chat(messages), special=True)
    texts = []
    with CtrlC(held=True) as ctrl_c:  # a step that stopped half way would leave a broken cache
        for token in llm.stream([prompt], params):
            typer.echo(token.text, nl=False)
            texts.append(token.text)
            if ctrl_c.pressed:
                break
    typer.echo()
    return "".join(texts)
