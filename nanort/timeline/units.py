"""Seconds, shares and names as a terminal can show them."""

from __future__ import annotations

from collections.abc import Sequence

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def unit_of(seconds: float) -> tuple[float, str]:
    """The unit in which a person says this many seconds, and its size in seconds."""
    return next(((size, name) for size, name in _UNITS if seconds >= size * 0.9995), (1e-9, "ns"))


def duration(seconds: float) -> str:
    """``seconds`` in three digits and a unit.

    >>> duration(0.01234), duration(0.0), duration(12345.6)
    ('12.3 ms', '0 s', '12346 s')
    """
    if not seconds:
        return "0 s"
    size, name = unit_of(seconds)
    figure = seconds / size
    return f"{figure:.0f} {name}" if figure >= 999.5 else f"{figure:.3g} {name}"


def percent(share: float) -> str:
    """``share`` of one in whole percent.

    >>> percent(0.934)
    '93 %'
    """
    return f"{100 * share:.0f} %"


def change(share: float) -> str:
    """How much more or less, in percent with one decimal.

    >>> change(-0.0312), change(-0.0001)
    ('-3.1 %', '+0.0 %')
    """
    return f"{round(100 * share, 1) + 0.0:+.1f} %"  # no minus before a zero


def counted(count: int, what: str) -> str:
    """``count`` of ``what``.

    >>> counted(1, "stream"), counted(1200, "launch")
    ('1 stream', '1,200 launches')
    """
    ending = "" if count == 1 else "es" if what.endswith("ch") else "s"
    return f"{count:,} {what}{ending}"


def unit(device: str) -> str:
    """What groups of ``device`` are made of: SMs, which are cores on a CPU."""
    return "core" if device == "cpu" else "SM"


def sms(count: int, device: str) -> str:
    """``count`` of them; nothing for none."""
    return counted(count, unit(device)) if count else ""


def plain(name: str, width: int = 0) -> str:
    r"""``name`` in printable ASCII, one column a character, cut to ``width`` columns where one is given.

    Names come from users and files: an escape sequence, a newline or a wide character must not reach the terminal.

    >>> plain("a" + chr(27) + "[2J"), plain("layer0.q_proj", 8)
    ('a\\x1b[2J', 'layer0.~')
    """
    shown = name if name.isascii() and name.isprintable() else ascii(name)[1:-1]
    return shown if not width or len(shown) <= width else shown[: width - 1] + "~"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], most: int = 12) -> list[str]:
    r"""Lines of a table: the first column to the left, figures to the right, and how many rows are left out.

    >>> print("\n".join(table(["", "seconds"], [["linear", "12"], ["rope", "3"]], most=1)))
            seconds
    linear       12
    and 1 more
    """
    shown = [head, *rows[:most]]
    wide = [max(map(len, cells)) for cells in zip(*shown, strict=True)]
    lines = [
        "  ".join(
            f"{cell:{'>' if place else '<'}{width}}"
            for place, (cell, width) in enumerate(zip(cells, wide, strict=True))
        )
        for cells in shown
    ]
    return [line.rstrip() for line in lines] + ([f"and {len(rows) - most} more"] if len(rows) > most else [])


def listed(names: Sequence[str], most: int) -> str:
    """The first ``most`` of ``names`` with commas between them, and how many more there are.

    >>> listed(["q", "k", "v"], 2)
    'q, k, and 1 more'
    """
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*(plain(name, 48) for name in names[:most]), *more])
