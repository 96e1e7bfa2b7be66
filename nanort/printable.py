"""Names of users and files as text that is safe to show."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""``text`` with what is not to be seen, or turns the direction of what is, as escapes.

    >>> printable("a" + chr(0) + chr(0x202E) + chr(27))
    'a\\x00\\u202e\\x1b'
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
