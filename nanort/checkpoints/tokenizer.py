"""Text to token ids and back, from the file that holds the weights or its folder; streams of whole characters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from nanort.bounded import content
from nanort.checkpoints.gguf import GGUFFile, demo_package
from nanort.checkpoints.gguf_tokenizer import backend_of, described_by, failures
from nanort.checkpoints.weights import read_json
from nanort.errors import FileError, RequestError, TruncatedFileError
from nanort.printable import said

TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>")
"""What ends a turn in the chats of Llama 3, Qwen and Phi-3."""
LARGEST, LONGEST_TEMPLATE = 256 << 20, 1 << 20
"""Bytes of a tokenizer, and of a chat template."""

_HOLES = 1 << 16  # ids without a token, which even a small vocabulary may have


class Stream:
    """The text of one reply as its tokens arrive: ``push`` holds a character back until all of its bytes are there."""

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids: list[int] = list(before)
        if before and decode(before).endswith("\N{REPLACEMENT CHARACTER}"):
            self._ids = []  # it ends within a character
        self._clean = len(
            self._ids
        )  # that ended on a whole character; they stay as the context that some decoders need
        self._shown = len(decode(self._ids)) if self._ids else 0  # characters of the decoded ids that were given out

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` completes, often one word, sometimes nothing."""
        self._ids.append(token_id)
        if self._decode(self._ids).endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        return self.rest()

    def rest(self) -> str:
        """What is still held back: after the last token, the bytes that never became a character."""
        text = self._decode(self._ids)[self._shown :]
        del self._ids[: self._clean]
        self._clean = len(self._ids)
        self._shown = len(self._decode(self._ids))
        return text


class Tokenizer:
    """A model's own tokenizer and chat template; ``Tokenizer.of(path)`` finds both beside the weights."""

    def __init__(
        self, backend: Any, *, eos_ids: frozenset[int], chat_template: str | None, special_names: Mapping[str, str]
    ) -> None:
        self.eos_ids = eos_ids
        self.vocab_size: int = backend.get_vocab_size()
        # Some files were saved with a training run's limits in force: they would cut a prompt short without a word.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        # A twin that reads special tokens as plain text: switching one backend to and fro would not be thread-safe.
        self._plain = type(backend).from_str(backend.to_str())
        self._plain.encode_special_tokens = True
        self._letter: list[int] = self._plain.encode("a", add_special_tokens=False).ids[-1:]
        self._specials = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
        self._chat_template = chat_template
        self._special_names = special_names

    @classmethod
    def of(cls, path: Path | str) -> Tokenizer:
        """The tokenizer inside a .gguf file, or that of a folder's tokenizer.json."""
        path = Path(path)
        return _of_folder(path) if path.is_dir() else _of_gguf(path)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of ``text``.

        As it stands, ``text`` is somebody's: it never becomes special tokens, and the model's own beginning (a BOS, if
        it has one) is put before it. ``special=True`` is for a finished prompt from ``chat``: its special tokens are
        read as such and nothing is added.
        """
        with _whole_characters():
            text.encode()
        with failures(lambda error: RequestError(f"the model's tokenizer fails on this text: {error}")):
            return self._encode(text, special)

    def _encode(self, text: str, special: bool) -> list[int]:
        # In a batch, for which tokenizers lets other threads go on: encode() stops them all, for seconds a long text.
        backend = self._backend if special else self._plain
        (encoded,) = backend.encode_batch([text], add_special_tokens=not special)
        ids: list[int] = encoded.ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` for a reader: special tokens are left out."""
        with failures(lambda error: RequestError(f"the model's tokenizer fails on these tokens: {error}")):
            text: str = self._backend.decode(ids, skip_special_tokens=True)
        return text

    def inside(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` within a text: some decoders drop the space that a text begins with."""
        return self.decode([*self._letter, *ids])[len(self.decode(self._letter)) :]

    def stream(self, before: Sequence[int] = ()) -> Stream:
        """A new Stream of one reply, to a prompt that ends with the ids ``before``."""
        return Stream(self.decode, before)

    def chat(self, messages: list[dict[str, str]]) -> str:
        """The prompt that asks for the next reply to ``messages``; encode it with ``special=True``."""
        if self._chat_template is None:
            raise RequestError("this model has no chat template: send a plain prompt, or serve an instruct model")
        _check_messages(messages, self._specials)
        jinja2, sandbox = demo_package("jinja2"), demo_package("jinja2.sandbox")

        def raise_exception(message: str) -> NoReturn:
            raise jinja2.TemplateError(message)

        # The template came with the weights: the sandbox keeps it from anything but text.
        environment = sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = raise_exception
        try:
            template = environment.from_string(self._chat_template)
            prompt: str = template.render(messages=messages, add_generation_prompt=True, **self._special_names)
        except Exception as error:  # whatever a template does: its filters raise anything
            raise RequestError(f"the model's chat template fails on these messages: {said(error)}") from error
        return prompt


class ByteTokenizer:
    """A tokenizer for models without one: a token is a byte, and 256 ends a reply.

    >>> ByteTokenizer().encode("hé")
    [104, 195, 169]
    """

    vocab_size = 257
    eos_ids = frozenset({256})

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The UTF-8 bytes of ``text``; no text is special here."""
        with _whole_characters():
            return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; bytes that are no UTF-8 become U+FFFD, ids that are no bytes nothing."""
        return bytes(token_id for token_id in ids if token_id < 256).decode(errors="replace")

    def inside(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` within a text."""
        return self.decode(ids)

    def stream(self, before: Sequence[int] = ()) -> Stream:
        """A new Stream of one reply; what was ``before`` does not matter here."""
        return Stream(self.decode)

    def chat(self, messages: list[dict[str, str]]) -> str:
        """The messages a line each, then the start of a reply."""
        _check_messages(messages, ())
        return "".join(f"{message['role']}: {message['content']}\n" for message in messages) + "assistant: "


def _of_gguf(path: Path) -> Tokenizer:
    if not path.is_file():
        raise FileError(f"there is no tokenizer at {path}: give a .gguf file, or a folder with tokenizer.json")
    metadata = GGUFFile(path).metadata
    backend = backend_of(path, metadata)
    ids = {
        name: metadata[key] for name in ("bos", "eos", "eot") if (key := f"tokenizer.ggml.{name}_token_id") in metadata
    }
    size = backend.get_vocab_size()
    if wrong := {name: token_id for name, token_id in ids.items() if not _is_id(token_id) or token_id >= size}:
        raise TruncatedFileError(f"{path} states tokens {wrong} of a vocabulary of {size}: convert it again")
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, (str, type(None))):
        raise TruncatedFileError(f"{path} has a chat template that is no text: convert it again")
    names = {f"{name}_token": backend.id_to_token(token_id) for name, token_id in ids.items()}
    # Converters leave it out where it is the family's own: sentencepiece's, and Llama 3's.
    always = metadata.get("tokenizer.ggml.model") == "llama" or metadata.get("tokenizer.ggml.pre") == "llama-bpe"
    begun = metadata.get("tokenizer.ggml.add_bos_token", always)
    if begun and "bos" in ids:
        backend.post_processor = demo_package("tokenizers.processors").TemplateProcessing(
            single=[names["bos_token"], "$A"], special_tokens=[(names["bos_token"], ids["bos"])]
        )
    ends = {ids[name] for name in ("eos", "eot") if name in ids}
    if "eot" not in ids:  # as most files have it: the mark is known by its name
        marks = {token.content: token_id for token_id, token in backend.get_added_tokens_decoder().items()}
        ends |= {marks[name] for name in TURN_ENDS if name in marks}
    return _tried(path, backend, eos_ids=frozenset(ends), chat_template=template, special_names=names)


def _of_folder(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileError(f"there is no tokenizer.json in {folder}: sentencepiece's tokenizer.model alone is not read")
    tokenizers = demo_package("tokenizers")
    data = content(path, LARGEST)
    with described_by(path):
        backend = tokenizers.Tokenizer.from_buffer(data)
    highest, size = max(backend.get_vocab().values(), default=0), backend.get_vocab_size()
    if highest > 16 * size + _HOLES:  # tokenizers counts up to it whenever it writes one down
        raise TruncatedFileError(f"{path} has a token {highest} in a vocabulary of {size}: download it again")
    config = _optional_json(folder / "tokenizer_config.json")
    named = {name: config.get(name) for name in ("bos_token", "eos_token")}
    named = {name: token.get("content") if isinstance(token, dict) else token for name, token in named.items()}
    names = {name: token for name, token in named.items() if token}
    if not all(isinstance(token, str) for token in names.values()):
        raise TruncatedFileError(f"{folder / 'tokenizer_config.json'} names tokens that are no text: download it again")
    eos = _optional_json(folder / "generation_config.json").get("eos_token_id")
    if eos is None:
        eos = _optional_json(folder / "config.json").get("eos_token_id")
    if eos is None and "eos_token" in names:
        eos = backend.token_to_id(names["eos_token"])
    eos_ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(_is_id(eos_id) for eos_id in eos_ids):
        raise TruncatedFileError(f"the configs in {folder} have eos_token_id={eos!r:.80}, not ids: download them again")
    template = _chat_template(folder, config)
    return _tried(path, backend, eos_ids=frozenset(eos_ids), chat_template=template, special_names=names)


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The template in its own file, as newer models have it, or in the config: one, or the one named default."""
    path = folder / "chat_template.jinja"
    try:
        if path.is_file():
            return content(path, LONGEST_TEMPLATE).decode()
    except UnicodeDecodeError as error:
        raise TruncatedFileError(f"{path} is not UTF-8 ({error}): download it again") from error
    template: Any = config.get("chat_template")
    if isinstance(template, list) and all(isinstance(entry, dict) for entry in template):
        template = next((entry.get("template") for entry in template if entry.get("name") == "default"), None)
    if not isinstance(template, (str, type(None))):
        raise TruncatedFileError(f"{folder / 'tokenizer_config.json'} has a chat template that is no text: correct it")
    return template


def _tried(path: Path, backend: Any, **about: Any) -> Tokenizer:
    """The tokenizer, once a letter went there and back: a file through which no text gets is refused now."""
    with described_by(path):
        tokenizer = Tokenizer(backend, **about)
        tokenizer.decode(tokenizer.encode("a"))
    return tokenizer


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 32


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _check_messages(messages: list[dict[str, str]], specials: Sequence[str]) -> None:
    if not messages:
        raise RequestError("a chat needs at least one message, such as {'role': 'user', 'content': 'Hello'}")
    for number, message in enumerate(messages):
        if not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise RequestError(f"message {number} needs a role and a content, both text; it has {sorted(message)}")
        if forged := [token for token in specials for text in message.values() if token in str(text)]:
            raise RequestError(
                f"message {number} contains {forged[0]!r}, which the model would read as the chat's own mark: remove it"
            )


@contextmanager
def _whole_characters() -> Iterator[None]:
    try:
        yield
    except UnicodeEncodeError as error:
        raise RequestError(f"the text holds half a surrogate pair at {error.start}, which is no character") from error
