from __future__ import annotations

import json
import re
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tree import ROOT

gguf = pytest.importorskip("gguf")
pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

from fuzz.judge import BreachError, Target, accept, judge  # noqa: E402  # what needs the packages above
from fuzz.mutations import STATEMENTS, chars, gguf_numbers  # noqa: E402
from fuzz.targets import targets  # noqa: E402
from nanort.errors import FileError  # noqa: E402

TARGETS = targets()
FILES = 200


@pytest.mark.parametrize("name", TARGETS)
def test_no_damaged_file_breaks_its_reader(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    accept(target, tmp_path)
    outcomes = [judge(target, target.case(0, number), tmp_path) for number in range(FILES)]
    assert {"read"} < set(outcomes), "some damage does no harm, some is refused"


def test_the_same_seed_gives_the_same_files() -> None:
    for target in TARGETS.values():
        assert target.case(3, 7) == target.case(3, 7)
    assert len({TARGETS["profile"].case(3, number) for number in range(40)}) > 30


# The judge.


def _writes_outside(path: Path) -> None:
    (path.parent.parent / "outside").write_text("x")


def _spawns(path: Path) -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)


def _runs(path: Path) -> None:
    compile(path.read_bytes(), "data", "exec")


def _hangs(path: Path) -> None:
    while True:
        try:
            path.stat()
        except Exception:  # noqa: BLE001  # a reader may catch too much
            continue


def _takes_memory(path: Path) -> None:
    np.ones(64 << 20)


def _raises(path: Path) -> None:
    raise KeyError("length")


def _blames_nothing(path: Path) -> None:
    raise FileError("it is broken")


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (_writes_outside, "it writes to"),
        (_spawns, "it does subprocess.Popen"),
        (_runs, "it does compile"),
        (_hangs, r"more than 2\.0 s for 1 bytes"),
        (_takes_memory, "MiB for a file of 1 bytes"),
        (_raises, "KeyError: 'length'"),
        (_blames_nothing, "FileError does not name the file: it is broken"),
    ],
)
def test_the_judge_notices_what_a_reader_must_not_do(read: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    (tmp_path / "case").mkdir()
    with pytest.raises(BreachError, match=says):
        judge(Target("bad", "file", (b"x",), chars, read, (FileError,)), b"x", tmp_path / "case")


def test_fuzzing_says_how_to_repeat_what_it_finds() -> None:
    command = [sys.executable, "-m", "fuzz", "rcp", "--runs", "30", "--seed", "1"]
    found = subprocess.run(command, cwd=ROOT / "tests", check=True, capture_output=True, text=True).stdout
    assert found.startswith("rcp: 30 files in ")


# What fuzzing found.


def _with(name: str, path: tuple[str | int, ...], value: object) -> bytes:
    """The first sound JSON file of a format with one other value."""
    tree = json.loads(TARGETS[name].seeds[0])
    holder = tree
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return json.dumps(tree).encode()


def _safetensors_index(file: str) -> bytes:
    return json.dumps({"weight_map": {"model.norm.weight": file}}).encode()


DEEP = b"[" * 100_000
FOUND = {
    "config: nesting": ("config", DEEP, "TruncatedFileError"),
    "config: an architecture that is a list": ("config", _with("config", ("architectures",), [[]]), "read"),
    "config: rope as a word": ("config", _with("config", ("rope_parameters",), "default"), "read"),
    "config: layers without end": ("config", _with("config", ("num_hidden_layers",), 2**62), "read"),
    "config: an end that is no token": (
        "tokenizer_config",
        _with("tokenizer_config", ("eos_token",), {"id": 1}),
        "read",
    ),
    "index: no name": ("index", _safetensors_index(""), "TruncatedFileError"),
    "index: a name that is too long": ("index", _safetensors_index("a" * 5000), "FileError"),
    "timeline: a time that overflows": (
        "timeline",
        re.sub(rb'"ts": [0-9.]+', b'"ts": 1e308', TARGETS["timeline"].seeds[0]),
        "FileError",
    ),
    "schedule: flops as a list": ("schedule", _with("schedule", ("device", "flops"), [[]]), "FileError"),
    "schedule: pieces without end": (
        "schedule",
        _with("schedule", ("split",), {"sizes": 2**53, "per_op": {}}),
        "FileError",
    ),
    "schedule: a broken constraint": ("schedule", _with("schedule", ("assignments",), []), "ScheduleError"),
    "profile: less than no time": (
        "profile",
        _with("profile", ("measurements", 0, 7), -1.0),
        "CostError",
    ),
    "tokenizer: an id far away": (
        "tokenizer",
        _with("tokenizer", ("model", "vocab", "!"), 2**31 - 1),
        "TruncatedFileError",
    ),
    "tokenizer: a prefix longer than its tokens": (
        "tokenizer",
        _with("tokenizer", ("model", "continuing_subword_prefix"), "long" * 9),
        "TruncatedFileError",
    ),
    "tokenizer: a template that is a number": (
        "tokenizer_config",
        _with("tokenizer_config", ("chat_template",), 1),
        "TruncatedFileError",
    ),
    "tokenizer: templates without names": (
        "tokenizer_config",
        _with("tokenizer_config", ("chat_template",), [{"template": 1}]),
        "read",
    ),
    "tokenizer: a special token that is a list": (
        "tokenizer_config",
        _with("tokenizer_config", ("bos_token",), [1]),
        "TruncatedFileError",
    ),
    "tokenizer: a template nested too deeply": (
        "tokenizer_config",
        _with("tokenizer_config", ("chat_template",), "{{" + "(" * 5000),
        "read",
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_found_files_are_refused_in_words(case: str, tmp_path: Path) -> None:
    name, data, outcome = FOUND[case]
    accept(TARGETS[name], tmp_path)
    assert judge(TARGETS[name], data, tmp_path) == outcome


def _gguf(**arrays: tuple[int, int, bytes]) -> bytes:
    """A GGUF file of no tensors whose metadata are arrays: their type, their length, and their items."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, len(arrays))
    fields = [
        struct.pack("<Q", len(name)) + name.encode() + struct.pack("<IIQ", 9, kind, count) + items
        for name, (kind, count, items) in arrays.items()
    ]
    return head + b"".join(fields)


def _last_tensor_at(offset: int) -> bytes:
    """A sound GGUF file but for where its last tensor lies."""
    data = bytearray(TARGETS["gguf"].seeds[0])
    at, width = list(gguf_numbers(bytes(data)))[-1]
    data[at : at + width] = struct.pack("<Q", offset)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (_gguf(a=(0, 2 << 20, bytes(2 << 20))), "UnsupportedModelError"),
        (_gguf(a=(8, 1 << 17, bytes(1 << 20))), "UnsupportedModelError"),
        (_gguf(a=(9, 1 << 40, struct.pack("<IQ", 9, 1 << 40) * 5000)), "TruncatedFileError"),
        (_gguf(a=(8, 2, struct.pack("<Q", 1) + b"\xff" + bytes(8))), "TruncatedFileError"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 0) + bytes(1 << 20), "TruncatedFileError"),
        (_last_tensor_at(0), "TruncatedFileError"),
        (_last_tensor_at(2**64 - 64), "TruncatedFileError"),
    ],
    ids=["many bytes", "many texts", "arrays of arrays", "no UTF-8", "many tensors", "overlap", "in the head"],
)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # gguf adds offsets in 64 bits
def test_gguf_files_that_lie_are_refused(data: bytes, outcome: str, tmp_path: Path) -> None:
    accept(TARGETS["gguf"], tmp_path)
    assert judge(TARGETS["gguf"], data, tmp_path) == outcome


@pytest.mark.parametrize("statement", [text for text in STATEMENTS if "VIEW" in text or "TRIGGER" in text])
def test_a_store_with_a_program_in_it_is_refused(statement: str, tmp_path: Path) -> None:
    path = tmp_path / "made.sqlite"
    path.write_bytes(TARGETS["store"].seeds[0])
    connection = sqlite3.connect(path)
    connection.executescript(statement)
    connection.close()
    assert judge(TARGETS["store"], path.read_bytes(), tmp_path) == "TruncatedFileError"


@pytest.mark.parametrize("shapes", ["[" * 100_000, "[[1e999]]"], ids=["deep", "infinite"])
def test_a_store_whose_shapes_cannot_be_is_refused(shapes: str, tmp_path: Path) -> None:
    path = tmp_path / "made.sqlite"
    path.write_bytes(TARGETS["store"].seeds[0])
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE OR IGNORE calls SET shapes = ?", (shapes,))
    connection.close()
    assert judge(TARGETS["store"], path.read_bytes(), tmp_path) == "FileError"


def test_a_template_that_is_no_text_is_refused(tmp_path: Path) -> None:
    target = TARGETS["tokenizer_config"]
    target = replace(target, beside=(*target.beside, ("chat_template.jinja", b"\xff\xfe")))
    assert judge(target, target.seeds[0], tmp_path) == "TruncatedFileError"
