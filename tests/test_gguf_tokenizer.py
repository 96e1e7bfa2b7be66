"""The tokenizers of GGUF files, beside those that transformers builds of the same metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanort.checkpoints.gguf_tokenizer import backend_of
from nanort.errors import TruncatedFileError, UnsupportedModelError

tokenizers = pytest.importorskip("tokenizers")
mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")

HERE = Path("model.gguf")
TEXTS = [
    "", "Hello, world!", "I'll say: it's 12345 o'clock.\n\n  Indented\tcode = {x**2}\r\n", "naïve café — 東京 🎉",
    "  two", "DON'T", "a\u0301 combined", "x\n\n1", "<s>not special</s>",
]  # fmt: skip
CORPUS = ["the quick brown fox's 2024 jumps; it'll be 12345 lazy dogs\n\n   and 'they've' gone, naïve café"] * 3


def byte_level(cut: str) -> dict[str, Any]:
    """A vocabulary trained on a few words, as a file of that family states it."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, special_tokens=special)
    backend.train_from_iterator(CORPUS, trainer)
    vocab = backend.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    made = json.loads(backend.to_str())["model"]["merges"]
    return {"tokens": tokens, "merges": [" ".join(pair) for pair in made], "pre": cut, "model": "gpt2"}


def sentencepiece() -> dict[str, Any]:
    """Control tokens, every byte, and pieces of a few words, shorter ones with better scores."""
    words = "".join(CORPUS).replace("\n", " ").split()
    pieces = {f"▁{word}"[at:end] for word in words for at in range(len(word)) for end in range(at + 1, at + 5)}
    ranked = sorted(pieces | {"▁", "▁▁"}, key=lambda piece: (len(piece), piece))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *ranked]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(ranked))]
    types = [2, 3, 3] + [6] * 256 + [1] * len(ranked)
    return {"tokens": tokens, "scores": scores, "token_type": types, "model": "llama", "unknown_token_id": 0}


def metadata(stated: dict[str, Any]) -> dict[str, Any]:
    types = [3, 3] + [1] * (len(stated["tokens"]) - 2)
    return {f"tokenizer.ggml.{key}": value for key, value in ({"token_type": types} | stated).items()}


def theirs(stated: dict[str, Any]) -> Any:
    """What transformers builds of it."""
    words = {"pre": "pre_tokenizer_type", "model": "tokenizer_type", "unknown_token_id": "unk_token_id"}
    given = {words.get(key, key): value for key, value in stated.items()}
    given.setdefault("token_type", [3, 3] + [1] * (len(stated["tokens"]) - 2))
    return mapping.convert_gguf_tokenizer("phi3" if stated["model"] == "llama" else "llama", given)[0]


@pytest.fixture(scope="module", params=["llama-bpe", "qwen2", "sentencepiece"])
def both(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Ours and theirs."""
    stated = sentencepiece() if request.param == "sentencepiece" else byte_level(request.param)
    return backend_of(HERE, metadata(stated)), theirs(stated)


def same(both: tuple[Any, Any], text: str) -> None:
    ours, wanted = (backend.encode(text, add_special_tokens=False).ids for backend in both)
    assert ours == wanted
    assert both[0].decode(ours) == both[1].decode(ours)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers(both: tuple[Any, Any], text: str) -> None:
    if both[0].normalizer is not None and not str(both[0].normalizer).startswith("Sequence"):
        text = text.replace("a\u0301", "á")  # Qwen2 composes characters, which transformers forgets for GGUF
    same(both, text)


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.sampled_from("ab 'lqunkthe129\n\t.é東<"), max_size=30))
def test_any_text_is_cut_the_same(both: tuple[Any, Any], text: str) -> None:
    same(both, text)


def test_qwen2_composes_characters() -> None:
    ours = backend_of(HERE, metadata(byte_level("qwen2")))
    assert ours.encode("cafe\u0301").ids == ours.encode("café").ids
    plain = backend_of(HERE, metadata(byte_level("llama-bpe")))
    assert plain.encode("cafe\u0301").ids != plain.encode("café").ids


def test_llama3_takes_words_that_no_merges_lead_to() -> None:
    stated = byte_level("llama-bpe")
    stated["tokens"] = [*stated["tokens"], "zzz"]
    assert backend_of(HERE, metadata(stated)).encode("zzz").ids == [len(stated["tokens"]) - 1]
    assert len(backend_of(HERE, metadata(stated | {"pre": "qwen2"})).encode("zzz").ids) == 3


def test_sentencepiece_puts_a_space_before_the_text_unless_told_not_to() -> None:
    with_space, without = (
        backend_of(HERE, metadata(sentencepiece() | {"add_space_prefix": spaced})) for spaced in (True, False)
    )
    assert with_space.encode("the").tokens[0].startswith("▁")
    assert not without.encode("the").tokens[0].startswith("▁")
    for backend in (with_space, without):
        assert backend.decode(backend.encode("the 東 fox").ids) == "the 東 fox"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "t5"}, UnsupportedModelError, r"kind \('t5', None\)"),
        ({"scores": None}, TruncatedFileError, "does not state its tokenizer's scores"),
        ({"scores": [0.0]}, TruncatedFileError, "does not describe a tokenizer"),
        ({"tokens": ["a" * 300]}, TruncatedFileError, "no text of up to 256 characters"),
        ({"tokens": [1, 2]}, TruncatedFileError, "no text of up to 256 characters"),
        ({"unknown_token_id": 10**6}, TruncatedFileError, "does not describe a tokenizer"),
    ],
)
def test_what_makes_no_tokenizer_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        backend_of(HERE, metadata(sentencepiece() | change))
