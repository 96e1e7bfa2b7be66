from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import torch

from hosted import Hosted, hosted, http, until
from nanort.checkpoints.tokenizer import ByteTokenizer
from nanort.devices import device
from nanort.errors import BackendError, ExecutionError, PoisonedError
from nanort.graphs import CONFIGS, random_weights
from nanort.http import server
from nanort.serving.generate import LLM
from nanort.serving.requests import Output
from nanort.serving.sampling import SamplingParams
from nanort.serving.traces import Trace, follow

PROMPTS = ["The sea", "is wide", "hé"]
MESSAGES: list[Any] = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}]
COUNT = 12
GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": COUNT}
LONG: dict[str, Any] = {"model": "tiny", "prompt": "ab", "max_tokens": 400, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    config, core = CONFIGS["tiny"], device("cpu").with_(sms=1, hbm_saturation_sms=(1, 1))
    weights = random_weights(config, torch.float32, seed=1)
    with LLM(config, weights, ByteTokenizer(), device=core, policy="serial", nano_batches=(1,), max_rows=64) as llm:
        yield llm


@pytest.fixture(scope="module")
def texts(llm: LLM) -> list[str]:
    """What the model says to PROMPTS, without a server."""
    return [completion.text for completion in llm.generate(PROMPTS, SamplingParams(max_new_tokens=COUNT))]


@pytest.fixture(scope="module")
def there(llm: LLM, texts: list[str]) -> Iterator[Hosted]:
    with hosted(llm, queue_limit=64) as there:
        yield there


@pytest.fixture
def client(there: Hosted) -> openai.OpenAI:
    return there.client()


@contextmanager
def held(llm: LLM) -> Iterator[threading.Event]:
    """The engine makes no step until the event is set."""
    gate, step = threading.Event(), llm.engine.step

    def waiting() -> list[Output]:
        gate.wait()
        return step()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llm.engine, "step", waiting)
        try:
            yield gate
        finally:
            gate.set()


def emptied(llm: LLM) -> None:
    """Ends what an engine still holds whose loop has failed."""
    for request in (*llm.engine.waiting, *llm.engine.running):
        llm.engine.cancel(request)
    while llm.engine.busy:
        llm.engine.step()


# What the official client gets


def test_models_are_the_one(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "nanort"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.models.retrieve("other")


def test_a_completion_is_what_the_model_says(client: openai.OpenAI, texts: list[str]) -> None:
    for prompt, text in zip(PROMPTS, texts, strict=True):
        found = client.completions.create(prompt=prompt, **GREEDY)
        assert (found.object, found.model, len(found.choices)) == ("text_completion", "tiny", 1)
        assert (found.choices[0].text, found.choices[0].finish_reason) == (text, "length")
        assert found.usage is not None
        assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(prompt.encode()), COUNT)


def test_prompts_of_one_request_get_a_choice_each(client: openai.OpenAI, texts: list[str]) -> None:
    found = client.completions.create(prompt=PROMPTS, **GREEDY)
    assert [(choice.index, choice.text) for choice in found.choices] == list(enumerate(texts))
    tokens = [list(prompt.encode()) for prompt in PROMPTS]
    assert [choice.text for choice in client.completions.create(prompt=tokens, **GREEDY).choices] == texts
    parts = ["", "", ""]
    for chunk in client.completions.create(prompt=PROMPTS, stream=True, **GREEDY):
        for choice in chunk.choices:
            parts[choice.index] += choice.text
    assert parts == texts


def test_a_chat_is_answered_whole_and_as_a_stream(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=MESSAGES, **GREEDY)
    message = whole.choices[0].message
    assert (message.role, whole.choices[0].finish_reason, whole.object) == ("assistant", "length", "chat.completion")
    prompt = "system: Be short.\nuser: Why?\nassistant: "
    assert message.content == client.completions.create(prompt=prompt, **GREEDY).choices[0].text
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(messages=MESSAGES, **options, **GREEDY))
    *deltas, usage = chunks
    assert deltas[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in deltas) == message.content
    assert [chunk.choices[0].finish_reason for chunk in deltas if chunk.choices[0].finish_reason] == ["length"]
    assert (usage.choices, usage.usage and usage.usage.completion_tokens) == ([], COUNT)
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_stop_texts_end_a_reply_before_them(client: openai.OpenAI, texts: list[str]) -> None:
    text = texts[0]
    stop = text[3:5]
    expected = text[: text.index(stop)]
    found = client.completions.create(prompt=PROMPTS[0], stop=stop, **GREEDY).choices[0]
    assert (found.text, found.finish_reason) == (expected, "stop")
    streamed = list(client.completions.create(prompt=PROMPTS[0], stop=["\0never", stop], stream=True, **GREEDY))
    assert "".join(chunk.choices[0].text for chunk in streamed) == expected
    assert streamed[-1].choices[0].finish_reason == "stop"
    shown = client.completions.create(
        prompt=PROMPTS[0], stop=stop, extra_body={"include_stop_str_in_output": True}, **GREEDY
    )
    assert shown.choices[0].text == expected + stop


def test_log_probabilities_are_of_the_tokens_that_were_drawn(client: openai.OpenAI) -> None:
    found = client.completions.create(prompt="ab", logprobs=3, **GREEDY).choices[0].logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.token_logprobs is not None
    assert found.top_logprobs is not None
    assert len(found.tokens) == len(found.text_offset or ()) == COUNT
    for token, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        assert top[token] == logprob == max(top.values()), "a greedy token is the likeliest one"
        assert logprob < 0
    chat = client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=2, **GREEDY)
    streamed = client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=2, stream=True, **GREEDY)
    content = chat.choices[0].logprobs and chat.choices[0].logprobs.content
    assert content is not None
    assert [len(entry.top_logprobs) for entry in content] == [2] * COUNT
    pieces = [choice.logprobs.content or [] for chunk in streamed for choice in chunk.choices if choice.logprobs]
    assert [entry for piece in pieces for entry in piece] == content


def test_draws_follow_the_seed(client: openai.OpenAI) -> None:
    def drawn(**more: Any) -> str:
        text: str = client.completions.create(model="tiny", prompt="ab", max_tokens=24, **more).choices[0].text
        return text

    assert drawn(seed=7) == drawn(seed=7) != drawn(seed=8)
    assert drawn() != drawn()


@pytest.mark.parametrize(
    ("more", "error", "param", "code"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model", "model_not_found"),
        ({"n": 2}, openai.BadRequestError, "n", "unsupported_parameter"),
        ({"presence_penalty": 0.5}, openai.BadRequestError, "presence_penalty", "unsupported_parameter"),
        ({"temperature": 3}, openai.BadRequestError, "temperature", None),
        ({"extra_body": {"colour": "red"}}, openai.BadRequestError, "colour", "unknown_parameter"),
        ({"prompt": ""}, openai.BadRequestError, "prompt", None),
        ({"prompt": []}, openai.BadRequestError, "prompt", None),
        ({"prompt": [99999]}, openai.BadRequestError, "prompt", None),
        ({"prompt": "a" * 3000}, openai.BadRequestError, "prompt", "context_length_exceeded"),
        ({"max_tokens": 100_000}, openai.BadRequestError, "prompt", "context_length_exceeded"),
    ],
)
def test_errors_are_the_clients_own(
    there: Hosted,
    client: openai.OpenAI,
    more: dict[str, Any],
    error: type[openai.APIStatusError],
    param: str,
    code: str,
) -> None:
    with pytest.raises(error) as caught:
        client.completions.create(**{"prompt": "ab", **GREEDY, **more})
    assert isinstance(caught.value.body, dict)
    assert caught.value.body.keys() == {"message", "type", "param", "code"}
    assert (caught.value.param, caught.value.code) == (param, code)
    assert there.idle


def test_64_streams_at_once_get_what_each_gets_alone(there: Hosted, texts: list[str]) -> None:
    async def one(client: openai.AsyncOpenAI, prompt: str) -> str:
        stream = await client.completions.create(prompt=prompt, stream=True, **GREEDY)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{there.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, PROMPTS[number % 3]) for number in range(64)))

    assert asyncio.run(all_of_them()) == [texts[number % 3] for number in range(64)]
    until(lambda: there.idle)


def test_a_reply_is_followed_by_its_id_through_a_trace(llm: LLM, client: openai.OpenAI, tmp_path: Path) -> None:
    trace = Trace(tmp_path / "trace")
    llm.engine.observers.append(trace)
    try:
        found = client.completions.create(prompt=PROMPTS[0], **GREEDY)
    finally:
        llm.engine.observers.remove(trace)
    life = follow(tmp_path / "trace", found.id)
    assert [passage.drew is not None for passage in life] == [True] * COUNT
    assert (life[0].stop, life[-1].stop) == (len(PROMPTS[0]), len(PROMPTS[0]) + COUNT - 1)


# Clients that go away


def streaming(**more: Any) -> bytes:
    asked = {**LONG, "stream": True, **more}
    asked |= asked.pop("extra_body")
    return http("POST", "/v1/completions", json.dumps(asked).encode())


def test_a_client_that_goes_away_in_the_middle_gives_its_pages_back(there: Hosted, llm: LLM) -> None:
    with there.connected() as connection:
        connection.sendall(streaming())
        got = b""
        while got.count(b"data: ") < 3:
            got += connection.recv(4096)
        (request,) = llm.engine.running
        assert llm.engine.cache.used > 0
    until(lambda: there.idle)
    assert request.finish == "cancelled"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_before_its_first_token_does_too(there: Hosted, llm: LLM, stream: bool) -> None:
    with held(llm) as gate:
        with there.connected() as connection:
            connection.sendall(streaming(stream=stream))
            until(lambda: llm.engine.busy)
            (request,) = llm.engine.waiting
        gate.set()
        until(lambda: there.idle)
    assert request.finish == "cancelled"


def test_a_client_that_goes_away_while_it_sends_leaves_nothing(there: Hosted) -> None:
    with there.connected() as connection:
        connection.sendall(http("POST", "/v1/completions", b"x" * 1000)[:-500])
    assert there.ask("GET", "/health")[0] == 200
    assert there.idle


# Hostile input


POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNK = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (http("POST", "/v1/completions", b"{"), 400),
        (http("POST", "/v1/completions", b"[" * 200_000), 400),
        (http("POST", "/v1/chat/completions", b'{"model": "tiny", "messages": "x"}'), 400),
        (http("POST", "/v1/completions", b'{"prompt": "a"}', "Content-Type: text/plain"), 415),
        (http("POST", "/v1/completions", b"", "Content-Type: application/json; charset=utf-8"), 400),
        (http("POST", "/v1/completions", b'{"model": "tiny", "prompt": "\\ud800"}'), 400),
        (http("POST", "/v1/completions", b"x" * 5_000_000), 413),
        (POST + b"Content-Length: 99999999999\r\n\r\n", 413),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n" + 5 * CHUNK + b"0\r\n\r\n", 413),
        (http("GET", "/v1/completions"), 405),
        (http("POST", "/v2/completions", b"{}"), 404),
        (http("GET", "/v1/models/" + "x" * 5000), 404),
        (http("GET", "/v1/models/%ff%00"), 404),
        (http("GET", "/health", b"", "Upgrade: websocket", "Connection: Upgrade"), 200),
    ],
)  # fmt: skip
def test_hostile_requests_get_their_status_in_openais_shape(there: Hosted, data: bytes, status: int) -> None:
    got = there.raw(data)
    assert int(got.split()[1]) == status
    if status >= 400:
        assert json.loads(got.partition(b"\r\n\r\n")[2])["error"].keys() == {"message", "type", "param", "code"}
    assert there.ask("GET", "/health")[2] == {"status": "ok"}


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x00\xa5\x01", b"GET / HTTP/9.9\r\n\r\n", b"\0" * 70_000, b"\r\n\r\n\r\n"]
)
def test_what_is_no_http_at_all_harms_nothing(there: Hosted, data: bytes) -> None:
    with there.connected() as connection:
        connection.sendall(data)
    assert there.ask("GET", "/health")[0] == 200


def test_a_body_that_does_not_come_is_not_waited_for(there: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BODY_SECONDS", 0.05)
    status, *_ = there.raw(http("POST", "/v1/completions", b"{}")[:-1]).split()[1:]
    assert status == b"408"


# Overload, closing, failure


def test_a_full_queue_says_when_to_come_again(there: Hosted, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.engine, "queue_limit", 1)
    status, headers, told = there.ask("POST", "/v1/completions", model="tiny", prompt=["ab", "cd"], max_tokens=1)
    assert (status, told["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(headers["retry-after"]) >= 1
    until(lambda: there.idle)
    assert there.ask("POST", "/v1/completions", model="tiny", prompt=["ab"], max_tokens=1)[0] == 200


def test_more_prompts_than_may_ever_wait_are_no_reason_to_come_again(llm: LLM) -> None:
    with hosted(llm, queue_limit=2) as there:
        status, _, told = there.ask("POST", "/v1/completions", model="tiny", prompt=["a"] * 3, max_tokens=1)
        assert (status, told["error"]["param"]) == (400, "prompt")


def test_closing_lets_replies_end_and_refuses_new_ones(llm: LLM, texts: list[str]) -> None:
    with hosted(llm) as there, held(llm) as gate:
        found: list[str] = []
        ask = {"prompt": PROMPTS[0], **GREEDY}
        thread = threading.Thread(
            target=lambda: found.append(there.client().completions.create(**ask).choices[0].text)
        )  # fmt: skip  # one call
        thread.start()
        until(lambda: llm.engine.busy)
        draining = there.drain(60.0)
        until(lambda: there.ask("GET", "/health")[2] == {"status": "closing"})
        status, headers, told = there.ask("POST", "/v1/completions", **ask)
        assert (status, told["error"]["type"], "retry-after" in headers) == (503, "server_error", True)
        assert not draining.done()
        gate.set()
        draining.result()
        thread.join()
        assert found == [texts[0]]


def test_what_has_not_ended_in_time_is_cut_off_with_an_error(llm: LLM) -> None:
    with hosted(llm) as there, held(llm) as gate:
        stream = there.client().completions.create(stream=True, **LONG)
        there.drain(0.0).result()
        with pytest.raises(openai.APIError, match="the server closed before the reply ended"):
            list(stream)
        gate.set()
    until(lambda: not llm.engine.busy)
    assert llm.engine.cache.used == 0


def test_a_request_whose_step_fails_is_told_and_the_others_go_on(
    there: Hosted, client: openai.OpenAI, llm: LLM, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = llm.engine.step

    def failing() -> list[Output]:
        for request in (*llm.engine.waiting, *llm.engine.running):
            if request.params.seed == 13:
                llm.engine.cancel(request)
                request.error = ExecutionError("a node failed", node="secret")
                return [Output(request, (), "", "error")]
        return step()

    monkeypatch.setattr(llm.engine, "step", failing)
    with pytest.raises(openai.InternalServerError, match="the server's log says where") as caught:
        client.completions.create(prompt="ab", seed=13, **GREEDY)
    assert "secret" not in str(caught.value)
    with pytest.raises(openai.APIError, match="the server's log says where"):
        list(client.completions.create(prompt="ab", seed=13, stream=True, **GREEDY))
    assert client.completions.create(prompt=PROMPTS[1], **GREEDY).choices[0].text == texts[1]
    until(lambda: there.idle)


def test_an_engine_that_fails_ends_all_streams_and_health(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Output]:
        raise RuntimeError("the device is gone")

    with hosted(llm) as there:
        with held(llm) as gate:
            stream = there.client().completions.create(stream=True, **LONG)
        assert gate.is_set()
        next(iter(stream))
        monkeypatch.setattr(llm.engine, "step", broken)
        with pytest.raises(openai.APIError, match="the engine failed before the reply ended"):
            list(stream)
        assert there.ask("GET", "/health")[::2] == (503, {"status": "failed"})
        with pytest.raises(openai.InternalServerError, match="the engine takes no requests"):
            there.client().completions.create(prompt="ab", **GREEDY)
    monkeypatch.undo()
    emptied(llm)


def test_a_server_ends_with_what_its_engine_failed_of(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Output]:
        raise PoisonedError("the device is gone: start the process again")

    def ask(url: str) -> None:
        with pytest.raises(openai.InternalServerError, match="the engine failed before the reply ended"):
            openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0).completions.create(prompt="a", **GREEDY)
        told.append(url)

    told: list[str] = []
    clients: list[threading.Thread] = []

    def ready(url: str) -> None:
        clients.append(threading.Thread(target=ask, args=(url,)))
        clients[0].start()

    monkeypatch.setattr(llm.engine, "step", broken)
    with pytest.raises(PoisonedError, match="start the process again"):
        server.serve(llm, port=0, name="tiny", ready=ready)
    clients[0].join()
    assert told
    monkeypatch.undo()
    emptied(llm)


# What is counted, and what has to be installed


def test_metrics_count_what_was_served(llm: LLM) -> None:
    with hosted(llm) as there:
        there.client().completions.create(prompt=PROMPTS, **GREEDY)
        there.ask("POST", "/v1/completions", model="tiny")
        with there.connected() as connection:
            connection.sendall(streaming())
            connection.recv(1)
        until(lambda: there.idle)
        status, headers, text = there.ask("GET", "/metrics")
    counted = {name: float(value) for name, value in (line.split() for line in text.splitlines() if line[0] != "#")}
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    assert counted['nanort_requests_total{finish="length"}'] == 3
    assert counted['nanort_requests_total{finish="cancelled"}'] == 1
    assert 3 * COUNT <= counted["nanort_generated_tokens_total"] < 3 * COUNT + LONG["max_tokens"]
    assert counted["nanort_prompt_tokens_total"] == sum(len(prompt.encode()) for prompt in [*PROMPTS, LONG["prompt"]])
    assert counted['nanort_refused_total{status="400"}'] == 1
    assert counted["nanort_time_to_first_token_seconds_count"] >= 3
    assert counted['nanort_rows_total{kind="decode"}'] >= 3 * (COUNT - 1)
    assert counted["nanort_step_seconds_count"] >= COUNT
    assert counted["nanort_cache_pages_used"] == 0
    assert counted["nanort_cache_pages"] == llm.engine.cache.pages - 1


@pytest.mark.parametrize("absent", ["starlette", "uvicorn", "prometheus_client"])
def test_without_the_extra_it_says_how_to_get_it(llm: LLM, absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> object:
        if name.split(".")[0] == absent:
            raise ModuleNotFoundError(f"No module named {absent!r}", name=absent)
        return importlib.import_module(name)

    monkeypatch.setattr(server, "importlib", SimpleNamespace(import_module=found))
    with pytest.raises(BackendError, match=rf"{absent} is not installed: pip install nanort\[serve\]"):
        server.serve(llm, port=0)


def test_importing_the_command_line_needs_none_of_the_extra() -> None:
    code = "import sys, nanort.cli, nanort.http.server; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {name.split(".")[0] for name in loaded} & {"starlette", "uvicorn", "prometheus_client"} == set()
