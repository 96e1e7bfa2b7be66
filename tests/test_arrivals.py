from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest

from nanort.bench.arrivals import LIKE, Arrival, arrivals
from nanort.errors import FileError, NanortError, RequestError, TruncatedFileError

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROWS = "2023-11-16 23:59:59.5000000,374,44\n2023-11-17 00:00:01.2500001,396,0\n"


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.csv"
    path.write_text(HEAD + ROWS, encoding="utf-8")
    return str(path)


def conversations(tmp_path: Path, data: Any) -> str:
    path = tmp_path / "texts.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return str(path)


def words(text: str) -> int:
    return len(text.split())


def test_constant_lengths_come_at_once_or_at_a_rate() -> None:
    assert arrivals("const:1024/512", 3) == (Arrival(0.0, 1024, 512),) * 3
    found = arrivals("const:8/2", 4000, rate=2.0)
    assert found[0].at == 0.0
    between = [later.at - earlier.at for earlier, later in pairwise(found)]
    assert min(between) >= 0
    assert fmean(between) == pytest.approx(0.5, rel=0.05)
    assert pstdev(between) == pytest.approx(0.5, rel=0.1)  # as a Poisson process has it


@pytest.mark.parametrize("name", LIKE)
def test_drawn_lengths_have_the_moments_of_their_data(name: str) -> None:
    found = arrivals(name, 20_000)
    for tokens, (mean, deviation) in (
        ([one.prompt for one in found], LIKE[name].prompt),
        ([one.output for one in found], LIKE[name].output),
    ):
        assert fmean(tokens) == pytest.approx(mean, rel=0.05)
        assert pstdev(tokens) == pytest.approx(deviation, rel=0.25)  # the tail is heavy
        assert min(tokens) >= 1
    assert found == arrivals(name, 20_000) != arrivals(name, 20_000, seed=1)


def test_a_trace_is_read_with_its_times(trace: str, tmp_path: Path) -> None:
    assert arrivals(trace) == (Arrival(0.0, 374, 44), Arrival(0.0, 396, 1))
    assert [one.at for one in arrivals(trace, replay=True)] == [0.0, pytest.approx(1.75)]
    packed = tmp_path / "trace.csv.gz"
    packed.write_bytes(gzip.compress((HEAD + ROWS).encode()))
    assert arrivals(str(packed), 1) == (Arrival(0.0, 374, 44),)


def test_a_trace_out_of_order_is_put_in_order(tmp_path: Path) -> None:
    path = tmp_path / "mixed.csv"
    path.write_text(HEAD + "".join(reversed(ROWS.splitlines(keepends=True))), encoding="utf-8")
    assert [one.prompt for one in arrivals(str(path), replay=True)] == [374, 396]


def test_conversations_give_the_tokens_of_their_first_two_turns(tmp_path: Path) -> None:
    def turns(*texts: str) -> dict[str, Any]:
        return {"conversations": [{"from": "someone", "value": text} for text in texts]}

    path = conversations(tmp_path, [turns("a b c", "d e", "f"), turns("alone"), turns("", "x"), turns("g", "h i")])
    assert arrivals(path, count=words) == (Arrival(0.0, 3, 2), Arrival(0.0, 1, 2))


def test_lengths_are_scaled_and_cut_to_what_fits() -> None:
    assert arrivals("const:1024/512", 1, scale=1 / 8)[0] == Arrival(0.0, 128, 64)
    assert arrivals("const:1024/512", 1, most=1000)[0] == Arrival(0.0, 488, 512)
    assert arrivals("const:1024/512", 1, most=100)[0] == Arrival(0.0, 1, 99)
    assert arrivals("const:1/1", 1, scale=1e-9)[0] == Arrival(0.0, 1, 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lengths": "const:8/2"}, "say how many"),
        ({"lengths": "azure"}, "say how many"),
        ({"lengths": "const:8", "requests": 1}, "const:1024/512"),
        ({"lengths": "const:0/8", "requests": 1}, "const:1024/512"),
        ({"lengths": "const:8/99999999999", "requests": 1}, "const:1024/512"),
        ({"lengths": "const:²/2", "requests": 1}, "const:1024/512"),
        ({"lengths": "wikipedia", "requests": 1}, "azure or sharegpt"),
        ({"lengths": "azure", "requests": 0}, "1 or more"),
        ({"lengths": "azure", "requests": 1, "rate": 0.0}, "above 0"),
        ({"lengths": "azure", "requests": 1, "rate": float("inf")}, "above 0"),
        ({"lengths": "azure", "requests": 1, "scale": -1.0}, "above 0"),
        ({"lengths": "azure", "requests": 1, "most": 1}, "2 tokens or more"),
        ({"lengths": "azure", "requests": 1, "replay": True}, "replay a csv file"),
        ({"lengths": "x.csv", "replay": True, "rate": 1.0}, "replay a csv file"),
        ({"lengths": "texts.json"}, "tokenizer"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        arrivals(**options)


def test_more_requests_than_a_file_has_are_refused(trace: str) -> None:
    with pytest.raises(RequestError, match=r"holds 2 requests: ask for 1 to as many, not for 3"):
        arrivals(trace, 3)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("", FileError, "no column TIMESTAMP, ContextTokens, GeneratedTokens"),
        ("TIMESTAMP,ContextTokens\n", FileError, "no column GeneratedTokens"),
        (HEAD, RequestError, "holds 0 requests"),
        (HEAD + "2023-11-16 18:15:46,many,44\n", TruncatedFileError, r":2 is no row"),
        (HEAD + "yesterday,1,44\n", TruncatedFileError, r":2 is no row"),
        (HEAD + "2023-11-16 18:15:46,1\n", TruncatedFileError, r":2 is no row"),
        (HEAD + "2023-11-16 18:15:46,-1,44\n", FileError, "-1 and 44 tokens"),
        (HEAD + "2023-11-16 18:15:46,99999999999,44\n", FileError, "99999999999 and 44 tokens"),
        (HEAD + '2023-11-16 18:15:46,"' + "9" * 200_000, TruncatedFileError, r"is no row"),
    ],
)
def test_broken_traces_are_refused(text: str, error: type[NanortError], said: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(error, match=said):
        arrivals(str(path))


@pytest.mark.parametrize(
    "content",
    [b"not gzip", gzip.compress((HEAD + ROWS).encode(), mtime=0)[:-20], b"\x1f\x8b"],
    ids=["none", "cut", "begun"],
)
def test_broken_archives_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"trace\.csv\.gz"):
        arrivals(str(path))


def test_texts_that_are_no_utf8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(HEAD.encode() + b"\xff\xfe\n")
    with pytest.raises(TruncatedFileError, match="is no row"):
        arrivals(str(path))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "holds a JSON dict"),
        ([1], "entry 0"),
        ([{"conversations": [{"from": "human"}]}], "entry 0"),
        ([{"conversations": []}], "holds 0 requests"),
    ],
)
def test_broken_conversations_are_refused(data: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(NanortError, match=said):
        arrivals(conversations(tmp_path, data), count=words)


@pytest.mark.parametrize("name", ["absent.csv", "absent.csv.gz", "absent.json"])
def test_files_that_are_not_there_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="there is no file"):
        arrivals(str(tmp_path / name), count=words)
