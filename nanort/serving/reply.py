"""Reply: the text of one reply as its tokens come, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from nanort.checkpoints.tokenizer import Stream


class Reply:
    """Gives out text as it becomes certain: what may be the beginning of a stop string is held back.

    >>> from nanort.checkpoints.tokenizer import ByteTokenizer
    >>> reply = Reply(ByteTokenizer().stream(), ["--"])
    >>> [reply.push(token) for token in b"a-b--c"], reply.stopped
    (['a', '', '-b', '', '', ''], True)
    """

    def __init__(self, stream: Stream, stop: Sequence[str] = (), *, include_stop: bool = False) -> None:
        self.stopped = False
        self._stream, self._stop, self._include_stop = stream, tuple(stop), include_stop
        self._held = ""

    def push(self, token: int) -> str:
        """The text that is certain with one more token; nothing after a stop string."""
        return self._certain(self._stream.push(token))

    def rest(self) -> str:
        """What is still held back, after the last token."""
        text = self._certain(self._stream.rest())
        text, self._held = text + self._held, ""
        return text

    def _certain(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [(at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            at, stop = min(found)
            self.stopped, self._held = True, ""
            return text[: at + len(stop)] if self._include_stop else text[:at]
        kept = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[kept:]
        return text[:kept]


def _overlap(text: str, stop: str) -> int:
    """The longest end of ``text`` that ``stop`` may go on from."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
