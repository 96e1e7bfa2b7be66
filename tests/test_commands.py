from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import httpx2
import openai
import pytest
from typer.testing import CliRunner

from hosted import until
from nanort import cli, commands
from nanort.checkpoints.tokenizer import ByteTokenizer
from nanort.devices import device
from nanort.errors import RequestError
from nanort.serving.generate import LLM, Token
from nanort.timeline.events import Timeline


def call(*arguments: str, typed: str = "") -> str:
    result = CliRunner().invoke(cli.app, arguments, input=typed, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_generate_prints_text_or_json() -> None:
    rows = json.loads(call("generate", "ab", "cd", "--model", "tiny", "--max-new-tokens", "3", "--json"))
    assert [row["prompt"] for row in rows] == ["ab", "cd"]
    assert all(1 <= len(row["tokens"]) <= 3 for row in rows)
    assert call("generate", "ab", "cd", "--model", "tiny", "--max-new-tokens", "3").startswith("> ab\n")


def test_generate_ends_at_a_stop_text() -> None:
    def text(*more: str) -> str:
        (row,) = json.loads(call("generate", "ab", "--model", "tiny", "--max-new-tokens", "8", "--json", *more))
        return str(row["text"])

    whole = text()
    assert text("--stop", "never said", "--stop", whole[2]) == whole[: whole.index(whole[2])]


def test_chat_remembers_until_it_is_told_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[dict[str, str]]] = []

    def noted(self: ByteTokenizer, messages: list[dict[str, str]]) -> str:
        seen.append(messages)
        return "x"

    monkeypatch.setattr(ByteTokenizer, "chat", noted)
    chat = ["chat", "--model", "tiny", "--system", "Be short.", "--max-new-tokens", "2"]
    output = call(*chat, typed="one\n\ntwo\n/new\nthree\n/exit\nfour\n")
    seen.pop(0)  # whether the model can chat
    roles = [[message["role"] for message in messages] for messages in seen]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"], ["system", "user"]]
    assert [messages[-1]["content"] for messages in seen] == ["one", "two", "three"]
    assert output.count("\n") >= 3


def test_chat_says_what_is_too_long_and_goes_on() -> None:
    output = call("chat", "--model", "tiny", "--max-new-tokens", "2", typed=f"{'long ' * 2000}\nshort\n")
    assert "/new begins again" in output


def test_ctrl_c_ends_a_reply_and_not_the_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, replies = LLM.stream, []

    def pressing(self: LLM, *asked: object) -> Iterator[Token]:
        replies.append(0)
        for token in stream(self, *asked):  # type: ignore[arg-type]
            replies[-1] += 1
            signal.raise_signal(signal.SIGINT)
            yield token

    monkeypatch.setattr(LLM, "stream", pressing)
    call("chat", "--model", "tiny", typed="one\ntwo\n")
    assert replies == [1, 1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_serve_answers_until_its_signals() -> None:
    command = [sys.executable, "-m", "nanort", "serve", "--model", "tiny", "--port", "0", "--grace", "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        assert served.stderr is not None
        line = served.stdout.readline()
        try:
            assert line.startswith("tiny at http://127.0.0.1:")
            url = line.split()[2]
            health = url.removesuffix("/v1") + "/health"
            client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
            endless = client.completions.create(
                model="tiny", prompt="ab", max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
            )
            assert next(iter(endless)).model == "tiny"
            assert httpx2.get(health).status_code == 200
            served.send_signal(signal.SIGTERM)
            until(lambda: httpx2.get(health).json() == {"status": "closing"})
            served.send_signal(signal.SIGINT)  # the second ends what still runs
            with pytest.raises(openai.APIError, match="the server closed before the reply ended"):
                list(endless)
            assert served.wait(60) == 0
            assert served.stderr.read() == ""
        finally:
            served.kill()


@pytest.mark.parametrize("where", [(), ("--device", "h200")])
def test_bench_serve_measures_a_model_or_simulates_it(where: tuple[str, ...], tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    asked = ["bench", "serve", "--model=tiny", "--lengths=const:24/6", "--requests=3", "--policy=serial"]
    data = json.loads(call(*asked, *where, "--trace", str(trace), "--json"))
    assert (data["requests"], data["prompt_tokens"], data["output_tokens"]) == (3, 72, 18)
    assert data["device"] == (where[-1] if where else "cpu")
    timelines = sorted(trace.glob("step-*.json"))
    assert len(timelines) == data["steps"]
    assert len(Timeline.load(timelines[0])) > 0


@pytest.mark.parametrize(("options", "called"), [((), "tiny"), (("--name", "{x}"), "{x}")])
def test_a_folder_is_served_by_its_name(
    options: tuple[str, ...], called: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def served(llm: object, *, name: str, ready: Callable[[str], None], **rest: object) -> None:
        names.append(name)
        ready("http://there")

    names: list[str] = []
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path / "tiny")
    monkeypatch.setattr(commands, "_loaded", lambda model, **rest: nullcontext(SimpleNamespace(device=device("cpu"))))
    monkeypatch.setattr(commands, "serve_until_stopped", served)
    assert call("serve", "--model", ".", *options).startswith(f"{called} at http://there/v1")
    assert names == [called]


def test_an_address_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RequestError, match="give another --host or"):
        call("serve", "--model", "tiny", "--port", str(taken.getsockname()[1]))
