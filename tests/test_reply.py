from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanort.checkpoints.tokenizer import ByteTokenizer
from nanort.serving.reply import Reply


def said(text: str, stop: list[str], *, include_stop: bool = False) -> tuple[str, bool]:
    """What is given out of a text that comes byte by byte, and whether it was stopped."""
    reply = Reply(ByteTokenizer().stream(), stop, include_stop=include_stop)
    shown = ""
    for token in text.encode():
        shown += reply.push(token)
        assert text.startswith(shown), "nothing is given out that may have to be taken back"
    return shown + reply.rest(), reply.stopped


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    # The first to be complete stops the reply; of those complete at once the one that began first.
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(one) for one in stop)]
    shown, stopped = said(text, stop)
    assert stopped == bool(ends)
    if not ends:
        assert shown == text
    else:
        assert shown == min((text[: ends[0]].removesuffix(s) for s in stop if text[: ends[0]].endswith(s)), key=len)


def test_the_stop_string_can_be_kept() -> None:
    assert said("one. two.", ["."], include_stop=True) == ("one.", True)
    assert said("one. two.", ["."]) == ("one", True)


@pytest.mark.parametrize("text", ["é€😀", "a😀"])
def test_characters_come_whole(text: str) -> None:
    assert said(text, ["zz"]) == (text, False)


def test_what_never_became_a_character_is_shown_at_the_end() -> None:
    reply = Reply(ByteTokenizer().stream(), ["bc"])
    assert reply.push(ord("b")) == ""
    assert reply.push(0xC3) == ""
    assert reply.rest() == "b\N{REPLACEMENT CHARACTER}"
