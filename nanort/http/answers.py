"""Answer: what comes of requests as the objects of OpenAI's API, whole or in the chunks of a stream."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from nanort.http.openai_api import Ask
from nanort.serving.requests import Output, Request, TokenLogprobs

DONE = b"data: [DONE]\n\n"
"""The last event of a stream that went well."""


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


class Answer:
    """The reply called ``name`` to one Ask, told the Outputs of its ``requests``, one for each prompt, as they come.

    ``decode`` makes text of one token, for log-probabilities.
    """

    def __init__(
        self, name: str, ask: Ask, requests: Sequence[Request], decode: Callable[[Sequence[int]], str]
    ) -> None:
        self._ask, self._requests, self._decode = ask, requests, decode
        self._index = {request: number for number, request in enumerate(requests)}
        self._texts = ["" for _ in requests]
        self._logprobs: list[list[TokenLogprobs]] = [[] for _ in requests]
        self._offsets = [0 for _ in requests]
        self._head = {"id": name, "created": int(time.time()), "model": ask.model}

    def keep(self, outputs: Sequence[Output]) -> None:
        """Adds what is new to the reply that ``whole`` gives."""
        for output in outputs:
            number = self._index[output.request]
            self._texts[number] += output.text
            self._logprobs[number] += output.logprobs or ()

    def whole(self) -> dict[str, Any]:
        """The reply in one piece, once every request has ended."""
        choices = [
            self._choice(number, text, logprobs, request.finish)
            for number, (request, text, logprobs) in enumerate(
                zip(self._requests, self._texts, self._logprobs, strict=True)
            )
        ]
        kind = "chat.completion" if self._ask.chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices, "usage": self._usage()}

    def opening(self) -> list[dict[str, Any]]:
        """The chunks that a stream begins with: who speaks."""
        if not self._ask.chat:
            return []
        return [self._chunk([_delta(0, {"role": "assistant", "content": ""}, None, None)])]

    def chunks(self, outputs: Sequence[Output]) -> list[dict[str, Any]]:
        """What is new, one chunk for each output that shows anything."""
        shown = (output for output in outputs if output.text or output.finish or output.logprobs)
        return [
            self._chunk([self._choice(self._index[output.request], output.text, output.logprobs, output.finish, True)])
            for output in shown
        ]

    def closing(self) -> list[dict[str, Any]]:
        """The chunks that a stream ends with: what was used, where that was asked for."""
        return [self._chunk([]) | {"usage": self._usage()}] if self._ask.usage else []

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._ask.chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices} | ({"usage": None} if self._ask.usage else {})

    def _usage(self) -> dict[str, Any]:
        prompt = sum(len(request.prompt) for request in self._requests)
        generated = sum(len(request.generated) for request in self._requests)
        # One that had to make room found its own tokens again, too.
        hits = sum(min(request.prefix_hits, len(request.prompt)) for request in self._requests)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": hits},
        }

    def _choice(
        self, number: int, text: str, logprobs: Sequence[TokenLogprobs] | None, finish: str | None, new: bool = False
    ) -> dict[str, Any]:
        """One prompt's reply, or what is ``new`` of it."""
        told = None
        if logprobs and self._ask.sampling["logprobs"] is not None:
            told = self._of_chat(logprobs) if self._ask.chat else self._of_text(number, logprobs)
        if not self._ask.chat:
            return {"index": number, "text": text, "logprobs": told, "finish_reason": finish}
        if new:
            return _delta(number, {"content": text} if text else {}, told, finish)
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": number, "message": message, "logprobs": told, "finish_reason": finish}

    def _of_chat(self, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
        entries = [
            self._entry(each.token, each.logprob) | {"top_logprobs": [self._entry(*likely) for likely in each.top]}
            for each in logprobs
        ]
        return {"content": entries, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._decode([token])
        whole = "\N{REPLACEMENT CHARACTER}" not in text  # else the token is a part of a character
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}

    def _of_text(self, number: int, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
        tokens = [self._decode([each.token]) for each in logprobs]
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[number])
            self._offsets[number] += len(token)
        # Several tokens may have one text, such as parts of characters: the last one told stays, the drawn one.
        likely = [(*reversed(each.top), (each.token, each.logprob)) for each in logprobs]
        return {
            "tokens": tokens,
            "token_logprobs": [each.logprob for each in logprobs],
            "top_logprobs": [{self._decode([token]): logprob for token, logprob in each} for each in likely],
            "text_offset": offsets,
        }


def _delta(number: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
    return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
