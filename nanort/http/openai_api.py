"""Ask: what a body of OpenAI's API asks for, every field of it understood, harmless or refused by its name."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from nanort.http.bodies import ApiError, Fields, decoded, shown
from nanort.serving.sampling import MOST_LOGPROBS, SamplingParams

MOST_PROMPTS, MOST_STOPS, MOST_STOP_TOKENS, LONGEST_STOP = 64, 4, 64, 1000
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""What chat templates know; a developer's message is what a system's message was."""

HINTS = ("user", "safety_identifier", "prompt_cache_key")
"""Texts that change nothing here."""

UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "frequency_penalty": (0, 0.0),
    "logit_bias": ({},),
    "n": (1,),
    "presence_penalty": (0, 0.0),
}
UNSUPPORTED_IN_TEXT: dict[str, tuple[object, ...]] = {"best_of": (1,), "echo": (False,), "suffix": ()}
UNSUPPORTED_IN_CHAT: dict[str, tuple[object, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),  # there are no tools to call
    "prediction": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": ("in_memory",),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields of OpenAI's that are known and not served, and the values, beside null, that ask for nothing."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a body asks for.

    Attributes:
        model: the name of the model that shall answer.
        prompts: texts or token ids, each of which gets a reply; of a chat there are none.
        messages: of a chat, what was said so far.
        sampling: SamplingParams' fields but ``max_new_tokens``.
        max_tokens: generated for each prompt at most; None is as many as there is room for.
        stream: whether the replies are sent as they grow.
        usage: whether a stream ends with what it used.
    """

    model: str
    prompts: tuple[str | tuple[int, ...], ...]
    messages: tuple[dict[str, str], ...]
    sampling: dict[str, Any]
    max_tokens: int | None
    stream: bool
    usage: bool

    @property
    def chat(self) -> bool:
        """Whether it came as messages."""
        return bool(self.messages)

    def params(self, room: int) -> SamplingParams:
        """How tokens are chosen, where ``room`` of them fit; without a seed of the client's, each time otherwise."""
        seed = self.sampling["seed"]
        most = room if self.max_tokens is None else self.max_tokens
        drawn = secrets.randbits(63) if seed is None else seed
        return SamplingParams(**{**self.sampling, "seed": drawn}, max_new_tokens=most)


def parse(body: bytes, *, chat: bool) -> Ask:
    """What ``body`` asks of /v1/chat/completions, or of /v1/completions.

    Raises:
        ApiError: it is no JSON object; or a field, which the error names, is missing, unknown, not supported, of a
            wrong type or out of range.
    """
    fields = Fields(decoded(body))
    model = fields.text("model")
    messages = _messages(fields.take("messages")) if chat else ()
    prompts = () if chat else _prompts(fields.take("prompt"))
    for name in HINTS:
        fields.text(name, "")
    for name, harmless in (UNSUPPORTED | (UNSUPPORTED_IN_CHAT if chat else UNSUPPORTED_IN_TEXT)).items():
        fields.only(name, harmless)
    most = fields.whole("max_tokens", 1, 1 << 31, None if chat else 16)
    if chat:
        most = fields.whole("max_completion_tokens", 1, 1 << 31, most)
    stream = fields.flag("stream")
    options = Fields(fields.take("stream_options", {}), "stream_options")
    if options.left and not stream:
        raise ApiError("stream_options stands without stream: true: remove it", param="stream_options")
    usage = options.flag("include_usage")
    options.only("include_obfuscation", (False,))
    options.end()
    sampling = {
        "temperature": fields.number("temperature", 0.0, 2.0, 1.0),
        "top_p": fields.number("top_p", 0.0, 1.0, 1.0),
        "top_k": fields.whole("top_k", 0, (1 << 31) - 1, 0),
        "seed": fields.whole("seed", -(1 << 63), (1 << 63) - 1, None),
        "stop": _stops(fields.take("stop", [])),
        "stop_token_ids": _ids(fields.take("stop_token_ids", []), "stop_token_ids", MOST_STOP_TOKENS),
        "ignore_eos": fields.flag("ignore_eos"),
        "include_stop": fields.flag("include_stop_str_in_output"),
        "logprobs": _logprobs(fields, chat),
    }
    fields.end()
    if sampling["top_p"] == 0.0:
        raise ApiError("top_p=0 leaves no token: give more than 0, or temperature=0 for the likeliest", param="top_p")
    return Ask(model, prompts, messages, sampling, most, stream, usage)


def _prompts(value: object) -> tuple[str | tuple[int, ...], ...]:
    """One prompt or several, each a text or token ids."""
    several = isinstance(value, list) and value and isinstance(value[0], (str, list))
    prompts = value if isinstance(value, list) and several else [value]
    if len(prompts) > MOST_PROMPTS:
        raise ApiError(f"prompt has {len(prompts)} prompts: give at most {MOST_PROMPTS}", param="prompt")
    return tuple(prompt if isinstance(prompt, str) else _ids(prompt, "prompt", None) for prompt in prompts)


def _ids(value: object, name: str, most: int | None) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(token) is int and 0 <= token < 1 << 31 for token in value):
        raise ApiError(f"{name} is {shown(value)}: give {'text or ' * (most is None)}an array of token ids", param=name)
    if most is not None and len(value) > most:
        raise ApiError(f"{name} has {len(value)} tokens: give at most {most}", param=name)
    return tuple(value)


def _stops(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(
        isinstance(stop, str) and 0 < len(stop) <= LONGEST_STOP for stop in stops
    ):
        raise ApiError(
            f"stop is {shown(value)}: give a text or an array of texts, each of 1 to {LONGEST_STOP} characters",
            param="stop",
        )  # fmt: skip  # what it is about, in one line
    if len(stops) > MOST_STOPS:
        raise ApiError(f"stop has {len(stops)} texts: give at most {MOST_STOPS}", param="stop")
    return tuple(stops)


def _logprobs(fields: Fields, chat: bool) -> int | None:
    """How many of the likeliest tokens are told: a completion asks by one number, a chat by a flag and a number."""
    if not chat:
        return fields.whole("logprobs", 0, MOST_LOGPROBS, None)
    wanted, top = fields.flag("logprobs"), fields.whole("top_logprobs", 0, MOST_LOGPROBS, None)
    if top is not None and not wanted:
        raise ApiError("top_logprobs stands without logprobs: true: give both", param="top_logprobs")
    return (top or 0) if wanted else None


def _messages(value: object) -> tuple[dict[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise ApiError(f"messages is {shown(value)}: give an array of at least one message", param="messages")
    return tuple(_message(item, f"messages[{number}]") for number, item in enumerate(value))


def _message(value: object, where: str) -> dict[str, str]:
    fields = Fields(value, where)
    role, content = fields.text("role"), fields.take("content")
    if role not in ROLES:
        raise ApiError(
            f"{where}.role is {role!r:.80}: give one of {', '.join(ROLES)}", param=f"{where}.role", code="invalid_value"
        )
    for name in ("name", "refusal", "audio", "function_call"):
        fields.only(name, ())
    for name in ("tool_calls", "annotations"):
        fields.only(name, ([],))
    fields.end()
    return {"role": ROLES[role], "content": content if isinstance(content, str) else _parts(content, where)}


def _parts(value: object, where: str) -> str:
    """The text of a message that comes in parts."""
    if not isinstance(value, list):
        raise ApiError(f"{where}.content is {shown(value)}: give text", param=f"{where}.content")
    texts = []
    for number, item in enumerate(value):
        part = Fields(item, f"{where}.content[{number}]")
        if (kind := part.text("type")) != "text":
            raise ApiError(f"{where}.content[{number}].type is {kind!r:.80}: give text", param=f"{where}.content")
        texts.append(part.text("text"))
        part.end()
    return "".join(texts)
