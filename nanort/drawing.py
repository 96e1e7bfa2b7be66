"""A graph drawn as SVG: a box per node, coloured by what binds it, rows from top to bottom."""

from __future__ import annotations

import html
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanort.devices import Device
from nanort.errors import GraphError
from nanort.layered import LARGEST, Layered, layered
from nanort.printable import printable

if TYPE_CHECKING:
    from nanort.graph import Graph
    from nanort.nodes import Node

BOUND = {"compute": "#0062a3", "memory": "#d55e00", "pcie": "#008a64", "network": "#b4558a", "launch": "#69737d"}
"""What binds an operator and its colour, after those of Okabe and Ito, which colour-blind eyes tell apart."""

DASHES = {"data": "", "state": ' stroke-dasharray="6 3"', "after": ' stroke-dasharray="1.5 3"'}
INK, FAINT, EDGE = "#1a1f24", "#59636e", "#8a939c"
LETTER, LONGEST = 6.7, 28  # pixels a character, and characters of the longest label
HIGH, ROW, SPACE = 24.0, 56.0, 18.0  # pixels: a box, from one row to the next, between two boxes
MARGIN, HEAD = 16.0, 44.0
FONT = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"


@dataclass(frozen=True, slots=True)
class _Canvas:
    """Where everything lies, in pixels: the middle of each box, and the points that each edge goes through."""

    box: float
    x: tuple[float, ...]
    y: tuple[float, ...]
    edges: tuple[tuple[int, int, tuple[tuple[float, float], ...]], ...]

    @staticmethod
    def of(places: Layered, box: float) -> _Canvas:
        """The places in boxes of this width; a bend is a straight line past the boxes beside it."""

        def across(x: float) -> float:
            return MARGIN + box / 2 + x * (box + SPACE)

        def down(row: int) -> float:
            return HEAD + MARGIN + HIGH / 2 + row * ROW

        edges = []
        for source, target, bends in places.edges:
            points = [(across(places.x[source]), down(places.y[source]) + HIGH / 2)]
            for row, bend in enumerate(bends, places.y[source] + 1):
                points += [(across(bend), down(row) - HIGH / 2), (across(bend), down(row) + HIGH / 2)]
            points.append((across(places.x[target]), down(places.y[target]) - HIGH / 2))
            edges.append((source, target, tuple(points)))
        return _Canvas(box, tuple(map(across, places.x)), tuple(map(down, places.y)), tuple(edges))

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of what is drawn."""
        bends = (x for _, _, points in self.edges for x, _ in points)
        right = max(max(self.x, default=0.0) + self.box / 2, *bends, 0.0)
        return right + MARGIN, max(self.y, default=HEAD) + HIGH / 2 + MARGIN


def svg(graph: Graph, device: Device) -> str:
    """A whole SVG document in which ``graph`` is drawn, coloured by what binds each node alone on ``device``.

    Raises:
        GraphError: it has more nodes than a person can read.
    """
    nodes = graph.nodes
    if len(nodes) > LARGEST:
        raise GraphError(
            f"graph {graph.name!r} has {len(nodes):,} nodes, too many to draw: up to {LARGEST:,} can be, such as those "
            "of a model with fewer layers"
        )
    labels = [label(node.name) for node in nodes]
    bounds = [node.bound_by(device) for node in nodes]
    reasons = {(pred, node.index): reason for node in nodes for pred, reason in reversed(node.preds)}
    places = layered([[pred for pred, _ in node.preds] for node in nodes])
    canvas = _Canvas.of(places, LETTER * max(map(columns, labels), default=0) + 20)
    legend = list(_legend(graph, device, Counter(bounds), set(reasons.values())))
    width, height = canvas.size
    width = max(width, *(end for _, end in legend))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="{FONT}" font-size="11" role="img" aria-label="{escaped(str(graph))}">',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#fff"/>',
        *(text for text, _ in legend),
        f'<g fill="none" stroke="{EDGE}" stroke-width="1.1">',
        *(f'<path d="{_curve(points)}"{DASHES[reasons[a, b]]}/>' for a, b, points in canvas.edges),
        f'</g><g fill="{EDGE}">',
        *(_arrow(canvas.x[node], canvas.y[node]) for node in dict.fromkeys(end for _, end, _ in canvas.edges)),
        '</g><g text-anchor="middle">',
        *(
            f"<g><title>{escaped(tip(node, bound))}</title>"
            f"{_box(x, y, canvas.box, BOUND[bound])}{_text(x, y + 4, text, INK)}</g>"
            for node, text, bound, x, y in zip(nodes, labels, bounds, canvas.x, canvas.y, strict=True)
        ),
        "</g></svg>",
    ]
    return "\n".join(parts) + "\n"


def tip(node: Node, bound: str) -> str:
    """What is told of a node where a mouse rests on it."""
    where = f"\nat {node.where}" if node.where else ""
    return f"{node.name}: {node.op.name}\n{node.shapes}\nbound by {bound}, {node.demand}{where}"


def label(name: str) -> str:
    """``name`` as it stands in a box: what cannot be printed escaped, and the middle of a long one left out."""
    shown = printable(name)
    while columns(shown) > LONGEST:
        half = (len(shown) - 1) // 2 if len(shown) <= 2 * LONGEST else LONGEST
        shown = f"{shown[: half - 1]}…{shown[len(shown) - half :]}" if half > 1 else "…"
    return shown


def columns(text: str) -> int:
    """How many columns of a terminal, or digits of width, ``text`` takes."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def escaped(text: str) -> str:
    r"""``text`` as XML and HTML may hold it; line breaks stay.

    >>> escaped("<b>\x1b\n&")
    '&lt;b&gt;\\x1b\n&amp;'
    """
    return html.escape("\n".join(map(printable, text.split("\n"))))


def _legend(graph: Graph, device: Device, bounds: Counter[str], reasons: set[str]) -> Iterator[tuple[str, float]]:
    """What stands above the picture, each part with the x where it ends."""
    title = label(graph.name)
    told = f"{len(graph.nodes):,} node{'s' * (len(graph.nodes) != 1)}, by what binds them on {printable(device.name)}"
    end = MARGIN + LETTER * columns(title) * 13 / 11 + 12
    yield f'<g font-size="13" font-weight="600">{_text(MARGIN, 22, title, INK)}</g>', end
    yield _text(end, 22, told, FAINT), end + LETTER * columns(told) + MARGIN
    x = MARGIN
    for bound in (bound for bound in BOUND if bounds[bound]):
        words = f"{bound} {bounds[bound]}"
        end = x + 18 + LETTER * len(words)
        yield _box(x + 6, 38, 12, BOUND[bound], 12) + _text(x + 18, 42, words, FAINT), end + MARGIN
        x = end + 16
    for reason in (reason for reason in DASHES if reason in reasons and reasons != {"data"}):
        end = x + 28 + LETTER * len(reason)
        line = f'<path d="M{x:.1f} 38h22" stroke="{EDGE}" stroke-width="1.3"{DASHES[reason]}/>'
        yield line + _text(x + 28, 42, reason, FAINT), end + MARGIN
        x = end + 16


def _text(x: float, y: float, words: str, color: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}">{escaped(words)}</text>'


def _box(x: float, y: float, width: float, color: str, height: float = HIGH) -> str:
    """A box of a faint colour on white, which hides the edges behind it."""
    place = f'x="{x - width / 2:.1f}" y="{y - height / 2:.1f}" width="{width:.1f}" height="{height:g}" rx="3"'
    return f'<rect {place} fill="#fff"/><rect {place} fill="{color}" fill-opacity=".14" stroke="{color}"/>'


def _arrow(x: float, y: float) -> str:
    """The head of the edges that end at the box in ``x`` and ``y``."""
    return f'<path d="M{x:.1f} {y - HIGH / 2:.1f}l-3.5 -6h7z"/>'


def _curve(points: Sequence[tuple[float, float]]) -> str:
    """A path through the points, in turn a curve that begins and ends straight down, and a straight line down."""
    (x, y), *rest = points
    path = f"M{x:.1f} {y:.1f}"
    for at, (to, below) in enumerate(rest):
        half = (below - y) / 2
        path += (
            f"V{below:.1f}" if at % 2 else f"C{x:.1f} {y + half:.1f} {to:.1f} {below - half:.1f} {to:.1f} {below:.1f}"
        )
        x, y = to, below
    return path
