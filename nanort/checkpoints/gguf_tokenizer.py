"""The tokenizer that a GGUF file's metadata describes: byte-level BPE, or sentencepiece's by its scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nanort.checkpoints.gguf import demo_package
from nanort.errors import TruncatedFileError, UnsupportedModelError

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {"llama-bpe": _WORDS.replace("DIGITS", r"\p{N}{1,3}"), "qwen2": _WORDS.replace("DIGITS", r"\p{N}")}
"""How text is cut before merging, by the name of the pre-tokenizer; smollm's is made of two that have names."""
_CONTROL, _USER_DEFINED = 3, 4  # token types of GGUF
_LONGEST = 256
"""Characters of a token: every way to cut it in two is tried."""
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What stands for a space in sentencepiece's tokens."""


def backend_of(path: Path, metadata: Mapping[str, Any]) -> Any:
    """The ``tokenizers.Tokenizer`` of a file's metadata, without what is put before and after a text.

    Raises:
        UnsupportedModelError: a kind of tokenizer that is not known.
        TruncatedFileError: what it needs is missing, or makes no tokenizer.
    """
    kind, cut = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind == "llama":
        backend = _sentencepiece(path, metadata)
    elif kind == "gpt2" and cut in ("smollm", *_SPLITS):
        backend = _byte_level(path, metadata, str(cut))
    else:
        raise UnsupportedModelError(
            f"{path} has a tokenizer of the kind {(kind, cut)!r:.80}: only 'llama', and 'gpt2' cut as by smollm, "
            f"{', '.join(_SPLITS)}, are read from GGUF; for others, give the model's folder with its tokenizer.json"
        )
    tokenizers = demo_package("tokenizers")
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    with described_by(path):
        backend.add_tokens(
            [
                tokenizers.AddedToken(token, special=kind == _CONTROL, normalized=False)
                for token, kind in zip(tokens, types, strict=False)
                if kind in (_CONTROL, _USER_DEFINED)
            ]
        )
    return backend


def _byte_level(path: Path, metadata: Mapping[str, Any], cut: str) -> Any:
    """GPT-2's byte-level BPE, on text cut in the way of its family."""
    tokenizers = demo_package("tokenizers")
    _need(path, metadata, "tokens", "merges", "token_type")
    with described_by(path):
        vocab = {token: token_id for token_id, token in enumerate(metadata["tokenizer.ggml.tokens"])}
        merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
        # Llama 3 has words that no merges lead to: they are taken whole.
        model = tokenizers.models.BPE(vocab=vocab, merges=merges, ignore_merges=cut == "llama-bpe")
        backend = tokenizers.Tokenizer(model)
    cuts = tokenizers.pre_tokenizers
    if cut in _SPLITS:
        pattern = tokenizers.Regex(_SPLITS[cut])
        steps = [cuts.Split(pattern, behavior="isolated"), cuts.ByteLevel(add_prefix_space=False, use_regex=False)]
    else:
        # Digits come first, so the blanks before one stay together ("\n\n1"); transformers 5.23 forgets this for GGUF.
        steps = [cuts.Digits(individual_digits=True), cuts.ByteLevel(add_prefix_space=False)]
    backend.pre_tokenizer = cuts.Sequence(steps)
    if cut == "qwen2":
        backend.normalizer = tokenizers.normalizers.NFC()
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend


def _sentencepiece(path: Path, metadata: Mapping[str, Any]) -> Any:
    """Sentencepiece's BPE: what has the best score is merged first, and a character without a token is its bytes."""
    tokenizers = demo_package("tokenizers")
    _need(path, metadata, "tokens", "scores", "token_type")
    tokens, unknown = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.unknown_token_id")
    if not all(isinstance(token, str) and len(token) <= _LONGEST for token in tokens):
        raise TruncatedFileError(
            f"{path} has tokens that are no text of up to {_LONGEST} characters: download it again"
        )
    with described_by(path):
        merges = _merges(dict(zip(tokens, metadata["tokenizer.ggml.scores"], strict=True)))
        vocab = {token: token_id for token_id, token in enumerate(tokens)}
        spare = None if unknown is None else tokens[unknown]
        model = tokenizers.models.BPE(vocab=vocab, merges=merges, unk_token=spare, fuse_unk=True, byte_fallback=True)
        backend = tokenizers.Tokenizer(model)
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    spaced = metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", _SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if spaced else spaces
    parts = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if spaced else parts)
    return backend


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """The pairs of tokens that make another one, the best first."""
    found = []
    for token, score in scores.items():
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in scores and right in scores:
                found.append((score, len(left), len(right), left, right))
    found.sort(key=lambda pair: pair[:3], reverse=True)
    return [pair[3:] for pair in found]


def _need(path: Path, metadata: Mapping[str, Any], *keys: str) -> None:
    if absent := [key for key in keys if not isinstance(metadata.get(f"tokenizer.ggml.{key}"), list)]:
        raise TruncatedFileError(f"{path} does not state its tokenizer's {', '.join(absent)}: convert it again")


@contextmanager
def described_by(path: Path) -> Iterator[None]:
    """Makes what tokenizers raises a TruncatedFileError that names the file.

    Raises:
        TruncatedFileError: what was raised inside.
    """
    with failures(
        lambda error: TruncatedFileError(f"{path} does not describe a tokenizer ({error}): download it again")
    ):
        yield


@contextmanager
def failures(become: Callable[[BaseException], Exception]) -> Iterator[None]:
    """Makes of what tokenizers raises inside what ``become`` says.

    tokenizers raises nothing narrower than Exception, and a panic of its own is not even one.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise become(error) from error
