"""Names of users and files, and what their errors say, as text that is safe to show."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""``text`` with what is not to be seen, or turns the direction of what is, as escapes.

    >>> printable("a" + chr(0) + chr(0x202E) + chr(27))
    'a\\x00\\u202e\\x1b'
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def said(error: BaseException) -> str:
    """What an error of somebody's code says, or of which kind it is where it says nothing or fails to.

    >>> said(ValueError("too long")), said(AssertionError())
    ('too long', 'AssertionError')
    """
    try:
        return str(error) or type(error).__name__
    except Exception:  # noqa: BLE001  # whatever its author's __str__ raises
        return type(error).__name__
