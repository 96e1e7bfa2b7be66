"""What a soak held, drawn as SVG: memory, threads and open files over the minutes, each in a strip of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

WIDTH, HEIGHT, LEFT, GAP = 720, 110, 64, 34
"""Of a strip, of the margin that holds its figures, and between two."""


class Held(Protocol):
    """One sample."""

    @property
    def seconds(self) -> float: ...
    @property
    def rss_bytes(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def descriptors(self) -> int: ...
    @property
    def rest(self) -> bool: ...


def plot(samples: Sequence[Held]) -> str:
    """Lines of all samples, and dots where everything rested."""
    minutes = [sample.seconds / 60 for sample in samples]
    strips = (
        ("memory, MB", [sample.rss_bytes / 1e6 for sample in samples]),
        ("threads", [float(sample.threads) for sample in samples]),
        ("open files", [float(sample.descriptors) for sample in samples]),
    )
    rests = [index for index, sample in enumerate(samples) if sample.rest]
    drawn = [_strip(top, *strip, minutes, rests) for top, strip in enumerate(strips)]
    height = len(strips) * (HEIGHT + GAP) + 12
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 16} {height}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{"".join(drawn)}</svg>\n'
    )


def _strip(number: int, name: str, values: list[float], minutes: list[float], rests: list[int]) -> str:
    """One quantity from zero up to a tenth above its largest value, over all minutes."""
    top, most, last = GAP + number * (HEIGHT + GAP), 1.1 * max(values), max(minutes)
    at = [(LEFT + WIDTH * m / last, top + HEIGHT * (1 - v / most)) for m, v in zip(minutes, values, strict=True)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    dots = "".join(f'<circle cx="{at[i][0]:.1f}" cy="{at[i][1]:.1f}" r="1.6" fill="#D55E00"/>' for i in rests)
    marks = "".join(
        f'<text x="{LEFT - 6}" y="{top + HEIGHT * (1 - v / most) + 4:.1f}" text-anchor="end">{v:,.0f}</text>'
        for v in (0.0, max(values))
    )
    ends = "".join(
        f'<text x="{LEFT + WIDTH * part:.0f}" y="{top + HEIGHT + 14}" text-anchor="middle">{last * part:.0f} min</text>'
        for part in (0.25, 0.5, 0.75, 1.0)
    )
    return (
        f'<text x="{LEFT}" y="{top - 6}" font-weight="bold">{name}</text>'
        f'<path d="M{LEFT} {top}v{HEIGHT}h{WIDTH}" fill="none" stroke="#999"/>{marks}{ends}'
        f'<polyline points="{line}" fill="none" stroke="#0072B2"/>{dots}\n'
    )
