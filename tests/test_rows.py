from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanort.errors import FileError, TruncatedFileError
from nanort.timeline import rows
from nanort.timeline.rows import ROWS, fields

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
heads = st.dictionaries(st.text(max_size=4).filter(lambda name: name != ROWS), values, max_size=3)


def told(head: dict[str, Any], listed: list[Any], tail: dict[str, Any]) -> list[tuple[str, Any]]:
    return [*head.items(), *((ROWS, row) for row in listed), *tail.items()]


@given(heads, st.lists(values, max_size=5), heads, st.integers(1, 40), st.sampled_from((None, 2)), st.booleans())
def test_what_is_in_a_file_comes_in_its_order_whatever_the_window(
    tmp_path_factory: pytest.TempPathFactory,
    head: dict[str, Any], listed: list[Any], tail: dict[str, Any], window: int, indent: int | None, plain: bool,
) -> None:  # fmt: skip  # in two lines
    tail = {name: value for name, value in tail.items() if name not in head}
    path = tmp_path_factory.mktemp("rows") / "trace.json"
    text = json.dumps({**head, ROWS: listed, **tail}, indent=indent, ensure_ascii=plain)
    path.write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "WINDOW", window)
        assert list(fields(path)) == told(head, listed, tail)


@pytest.mark.parametrize("window", [1, 3, 7, 64])
def test_figures_keep_their_digits(window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "WINDOW", window)
    path = tmp_path / "trace.json"
    path.write_text(f'{{"a": 12, "{ROWS}": [1716459339123456.789, -1.5e3, 1234567890123456789, NaN]}}')
    assert list(fields(path)) == [
        ("a", 12), (ROWS, "1716459339123456.789"), (ROWS, "-1.5e3"), (ROWS, 1234567890123456789), (ROWS, None),
    ]  # fmt: skip  # as it stands there


SOUND = json.dumps({"a": [1, {"b": "c\u00e9"}], ROWS: [{"x": 1.5}, {}, "y"], "z": None}).encode()


@pytest.mark.parametrize("end", range(len(SOUND)))
def test_a_file_cut_anywhere_is_refused_by_its_name(end: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.json"
    path.write_bytes(SOUND[:end])
    with pytest.raises(TruncatedFileError, match=r"cut\.json"):
        list(fields(path))


def test_bytes_that_are_no_text_are_marked_in_what_they_stand_in(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_bytes(b'\xef\xbb\xbf{"traceEvents": ["a\xb0b"], "c": "\xc3\xa9"}')
    assert list(fields(path)) == [(ROWS, "a\ufffdb"), ("c", "\u00e9")]


def test_a_packed_file_is_read_and_refused_where_it_is_cut_or_changed(tmp_path: Path) -> None:
    packed, path = gzip.compress(SOUND), tmp_path / "named_otherwise"
    path.write_bytes(packed)
    assert len(list(fields(path))) == 5
    changed = bytearray(packed)
    changed[-6] ^= 1
    for data in (packed[:15], packed[:-9], packed[:-1], bytes(changed)):
        path.write_bytes(data)
        with pytest.raises(TruncatedFileError, match="named_otherwise"):
            list(fields(path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[]", "does not begin"),
        (b"\x00\x01", "does not begin"),
        (b"PK\x03\x04", "does not begin"),
        (b"\xff\xfe{", "does not begin"),
        (b'{"traceEvents": {}}', "no list"),
        (b'{"traceEvents": [1 2]}', "comma"),
        (b'{"traceEvents": [1,]}', "Expecting value"),
        (b'{"traceEvents": [' + b"[" * 100_000, "is cut short, or is not JSON"),
        (b'{"traceEvents": [' + b"9" * 10_000 + b"]}", "digits"),
        (b'{"a" 1}', "no name"),
        (b"{1: 1}", "no name"),
    ],
)
def test_what_is_no_trace_is_refused(text: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.json"
    path.write_bytes(text)
    with pytest.raises(TruncatedFileError, match=said) as refusal:
        list(fields(path))
    assert len(str(refusal.value)) < 400


def test_a_row_or_a_file_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "WINDOW", 100)
    path = tmp_path / "large.json"
    path.write_text(json.dumps({ROWS: ["x" * 2000]}))
    monkeypatch.setattr(rows, "LONGEST", 1000)
    with pytest.raises(FileError, match="a row is longer than 1,000"):
        list(fields(path))
    path.write_text(json.dumps({ROWS: ["x" * 200] * 20}))
    monkeypatch.setattr(rows, "LARGEST", 3000)
    with pytest.raises(FileError, match="more than 3,000"):
        list(fields(path))


def test_what_is_wrong_is_found_without_reading_on(tmp_path: Path) -> None:
    path = tmp_path / "wrong.json"
    with path.open("wb") as file:
        file.write(b'{"traceEvents": [{"a": nothing}, ')
        file.truncate(1 << 40)  # a hole: none of it is read
    with pytest.raises(TruncatedFileError, match=r"Expecting value \(character 23\)"):
        list(fields(path))
