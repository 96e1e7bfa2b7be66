from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanort.http.bodies import DEEPEST, ApiError
from nanort.http.openai_api import HINTS, UNSUPPORTED, UNSUPPORTED_IN_CHAT, UNSUPPORTED_IN_TEXT, parse

TEXT: dict[str, Any] = {"model": "m", "prompt": "ab"}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "ab"}]}


def body(known: dict[str, Any], **more: object) -> bytes:
    return json.dumps(known | more).encode()


def refused(data: bytes, *, chat: bool = False) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(data, chat=chat)
    assert caught.value.status == 400
    assert len(str(caught.value)) < 400, "an error repeats no more than the beginning of what it was sent"
    return caught.value


def test_defaults_are_openais() -> None:
    text, chat = parse(body(TEXT), chat=False), parse(body(CHAT), chat=True)
    assert (text.prompts, text.max_tokens, text.stream, text.chat) == (("ab",), 16, False, False)
    assert (chat.messages, chat.max_tokens, chat.chat) == (({"role": "user", "content": "ab"},), None, True)
    params = text.params(room=100)
    assert (params.temperature, params.top_p, params.max_new_tokens, params.stop) == (1.0, 1.0, 16, ())
    assert chat.params(room=100).max_new_tokens == 100


def test_fields_become_sampling_params() -> None:
    asked = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": -3, "stop": ["x", "yz"], "stop_token_ids": [4]}
    more = {"ignore_eos": True, "include_stop_str_in_output": True, "logprobs": 2, "max_tokens": 9}
    params = parse(body(TEXT, **asked, **more), chat=False).params(room=100)
    assert (params.temperature, params.top_p, params.top_k, params.seed) == (0.5, 0.9, 7, -3)
    assert (params.stop, params.stop_token_ids, params.include_stop) == (("x", "yz"), (4,), True)
    assert (params.ignore_eos, params.logprobs, params.max_new_tokens) == (True, 2, 9)


def test_without_a_seed_draws_differ() -> None:
    ask = parse(body(TEXT), chat=False)
    assert ask.params(9).seed != ask.params(9).seed


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("ab", ("ab",)),
        (["ab", "c"], ("ab", "c")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        (["ab", [3]], ("ab", (3,))),
    ],
)
def test_prompts_are_texts_or_tokens(prompt: object, prompts: object) -> None:
    assert parse(body(TEXT, prompt=prompt), chat=False).prompts == prompts


def test_messages_come_whole_or_in_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    said = [{"role": "developer", "content": parts}, {"role": "assistant", "content": "c", "tool_calls": None}]
    asked = parse(body(CHAT, messages=said), chat=True)
    assert asked.messages == ({"role": "system", "content": "ab"}, {"role": "assistant", "content": "c"})


def test_logprobs_of_a_chat_take_a_flag_and_a_number() -> None:
    assert parse(body(CHAT, logprobs=True), chat=True).sampling["logprobs"] == 0
    assert parse(body(CHAT, logprobs=True, top_logprobs=3), chat=True).sampling["logprobs"] == 3
    assert parse(body(CHAT, logprobs=False), chat=True).sampling["logprobs"] is None
    assert refused(body(CHAT, top_logprobs=3), chat=True).param == "top_logprobs"


def test_the_newer_name_of_max_tokens_goes_first() -> None:
    assert parse(body(CHAT, max_tokens=3, max_completion_tokens=5), chat=True).max_tokens == 5
    assert parse(body(CHAT, max_tokens=3), chat=True).max_tokens == 3


@pytest.mark.parametrize("chat", [False, True])
def test_unsupported_fields_are_known_by_name_and_harmless_by_value(chat: bool) -> None:
    known, mine = (CHAT, UNSUPPORTED_IN_CHAT) if chat else (TEXT, UNSUPPORTED_IN_TEXT)
    for name, harmless in (UNSUPPORTED | mine).items():
        for value in (*harmless, None):
            parse(body(known, **{name: value}), chat=chat)
        error = refused(body(known, **{name: "something else"}), chat=chat)
        assert (error.param, error.code) == (name, "unsupported_parameter")
        assert name in str(error)


def test_hints_are_read_and_null_is_as_good_as_absent() -> None:
    hints = {"user": "me", "safety_identifier": "x", "prompt_cache_key": "y"}
    nulls = dict.fromkeys(
        ["max_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options", "logprobs"]
    )
    assert parse(body(TEXT, **hints, **nulls), chat=False).max_tokens == 16


def test_usage_of_a_stream_is_an_option() -> None:
    options = {"include_usage": True, "include_obfuscation": False}
    assert parse(body(TEXT, stream=True, stream_options=options), chat=False).usage
    assert refused(body(TEXT, stream_options=options)).param == "stream_options"
    assert refused(body(TEXT, stream=True, stream_options={"x": 1})).param == "stream_options.x"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"prompt": None}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [1, True]}, "prompt"),
        ({"prompt": [[1], "a", 3]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1.0]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"seed": 1 << 63}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["x"] * 5}, "stop"),
        ({"stop": "x" * 1001}, "stop"),
        ({"stop_token_ids": "x"}, "stop_token_ids"),
        ({"stop_token_ids": [1] * 65}, "stop_token_ids"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"stream": 1}, "stream"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"user": 7}, "user"),
        ({"n": True}, "n"),
        ({"messages": []}, "messages"),
        ({"max_token": 5}, "max_token"),
        ({"max_token": None}, "max_token"),
        ({"\ud800": 5}, "\ud800"),
    ],
)
def test_a_bad_field_is_named(more: dict[str, object], param: str) -> None:
    error = refused(body(TEXT, **more))
    assert error.param == param
    assert (repr(param) if param.startswith("\ud800") else param) in str(error)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hi", "messages"),
        (["hi"], "messages[0]"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "tool", "content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": "x", "name": "me"}], "messages[0].name"),
        ([{"role": "user", "content": "x", "colour": 1}], "messages[0].colour"),
        ([{"role": "assistant", "content": "x", "tool_calls": [{}]}], "messages[0].tool_calls"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "text", "text": "x", "y": 1}]}], "messages[0].content[0].y"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
    ],
)
def test_a_bad_message_is_named(messages: object, param: str) -> None:
    assert refused(body(CHAT, messages=messages), chat=True).param == param


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe{}",
        b"{}{}",
        b'{"model": "m", "model": "m", "prompt": "a"}',
        b'{"model": "m", "prompt": "a", "temperature": NaN}',
        b'{"model": "m", "prompt": "a", "temperature": Infinity}',
        b'{"model": "m", "prompt": "a", "temperature": 1e999}',
        b'{"model": "m", "prompt": "a", "seed": ' + b"9" * 100_000 + b"}",
        b'{"model": "m", "prompt": "a", "x": ' + b"[" * 100_000,
        b'{"model": "m", "prompt": "a", "n": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"model": "m", "prompt": ' + b'{"a":' * 100_000,
        b'{"model": "' + b"m" * 100_000 + b'", "prompt": 3}',
        b'{"model": "m", "prompt": "a", "' + b"\\u0000" * 10_000 + b'": 1}',
    ],
    ids=lambda data: data[:40].decode(errors="replace"),
)
def test_hostile_bodies_are_refused_in_a_line(data: bytes) -> None:
    assert "\n" not in str(refused(data))


def test_nesting_is_allowed_up_to_its_limit() -> None:
    def nested(depth: int) -> bytes:
        return b'{"x": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"

    assert refused(nested(DEEPEST)).param == "model"
    assert "nested" in str(refused(nested(DEEPEST + 1)))


KNOWN = [
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "stream", "stream_options", "temperature",
    "top_p", "top_k", "seed", "stop", "stop_token_ids", "ignore_eos", "include_stop_str_in_output", "logprobs",
    "top_logprobs", *HINTS, *UNSUPPORTED, *UNSUPPORTED_IN_TEXT, *UNSUPPORTED_IN_CHAT,
]  # fmt: skip  # as they are sent
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "text"]), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(KNOWN), VALUES, max_size=4), st.booleans())
def test_whatever_is_sent_is_served_or_refused_by_name(sent: dict[str, object], chat: bool) -> None:
    field: str | None = None  # of a body that is refused whole, or served
    try:
        parse(body(CHAT if chat else TEXT, **sent), chat=chat).params(room=50)
    except ApiError as error:
        field = error.param
    assert field is None or field.split(".")[0].split("[")[0] in KNOWN


@given(st.binary(max_size=40) | st.text(alphabet='{}[]",:0e-truflsn\\ ', max_size=40).map(str.encode))
def test_whatever_bytes_come_are_json_or_refused(data: bytes) -> None:
    refused(data)
