from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import nanort as nr
from hostile import HOSTILE, LONG
from nanort import drawing, ops
from nanort.errors import DeviceError, GraphError
from nanort.graphs import synthetic
from nanort.layered import LARGEST
from nanort.printable import printable

H200 = nr.device("h200")
BF16 = torch.bfloat16
SVG = "{http://www.w3.org/2000/svg}"


def overlapping() -> nr.Graph:
    """A node for each of three resources, and one that waits for two of them."""
    g = nr.Graph("three", layout=nr.Layout(decode=256, kv_tokens=1 << 18))
    x = g.input("x", (4096, 8192), BF16)
    kv = g.state("kv", (16384, 2, 16, 8, 128), BF16)
    y = ops.linear(x, g.constant("w", (8192, 8192), BF16))
    pages, at = g.input("pages", (256, 64), torch.int32), g.input("positions", (256,), torch.int32)
    ops.decode_attention(g.input("q", (256, 32, 128), BF16), kv, pages, at)
    block = ops.to_device(g.input("block", (1 << 25,), torch.uint8, device="host"))
    g.call(torch.clone, block, demand=nr.Demand(hbm_bytes=1.0), name="last", axes="whole", after=y)
    return g


def one(name: str) -> nr.Graph:
    """A graph of that name with one node of that name."""
    g = nr.Graph(name)
    g.call(torch.clone, g.input("x", (2,), BF16), demand=nr.Demand(hbm_bytes=1.0), name=name)
    return g


def texts(picture: str) -> list[str]:
    """What a person reads in the picture, tips included."""
    return ["".join(found.itertext()) for found in ElementTree.fromstring(picture).iter() if found.text]


def test_each_node_is_a_box_in_the_colour_of_what_binds_it() -> None:
    graph = overlapping()
    root = ElementTree.fromstring(drawing.svg(graph, H200))
    boxes = {
        (group.findtext(f"{SVG}text"), group.findall(f"{SVG}rect")[-1].get("stroke"))
        for group in root.iter(f"{SVG}g")
        if group.find(f"{SVG}title") is not None
    }
    assert boxes == {(node.name, drawing.BOUND[node.bound_by(H200)]) for node in graph.nodes}
    assert len({color for _, color in boxes}) == 4


def test_the_legend_names_what_binds_and_the_kinds_of_edges() -> None:
    shown = texts(drawing.svg(overlapping(), H200))
    assert {"compute 1", "memory 1", "pcie 1", "launch 1", "data", "after"} <= set(shown)
    assert not {"network 0", "state"} & set(shown)
    assert "three" in shown
    assert "4 nodes, by what binds them on h200" in shown


def test_edges_of_other_reasons_are_dashed() -> None:
    picture = drawing.svg(overlapping(), H200)
    assert picture.count(drawing.DASHES["after"].strip()) == 2  # the edge and the legend's line
    assert picture.count("<path d=") == 2 + 1 + 2  # two edges, the head of both, two lines of the legend


def test_a_tip_has_shapes_demand_and_the_line_of_user_code() -> None:
    graph = overlapping()
    tip = next(shown for shown in texts(drawing.svg(graph, H200)) if shown.startswith("linear: linear\n"))
    assert graph.nodes[0].shapes in tip
    assert "bound by compute" in tip
    assert "test_drawing.py:" in tip


def test_everything_lies_within_the_picture() -> None:
    root = ElementTree.fromstring(drawing.svg(synthetic.layered(60, 1), H200))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for box in root.iter(f"{SVG}rect"):
        x, y = float(box.get("x", 0)), float(box.get("y", 0))
        assert x >= 0
        assert x + float(box.attrib["width"]) <= width
        assert y + float(box.attrib["height"]) <= height


def test_an_empty_graph_is_a_picture_too() -> None:
    assert "0 nodes, by what binds them on h200" in texts(drawing.svg(nr.Graph("nothing"), H200))


@pytest.mark.parametrize("name", [*HOSTILE, LONG], ids=ascii)
def test_hostile_names_are_text_in_one_whole_document(name: str) -> None:
    graph = one(name)
    picture = drawing.svg(graph, H200)
    root = ElementTree.fromstring(picture.encode())
    assert {found.tag.removeprefix(SVG) for found in root.iter()} == {"svg", "g", "rect", "text", "title"}
    attributes = {key for found in root.iter() for key in found.attrib}
    assert not {key for key in attributes if key.startswith("on") or "href" in key}
    tip = next("".join(title.itertext()) for title in root.iter(f"{SVG}title"))
    assert tip.startswith("\n".join(map(printable, f"{graph.nodes[0].name}: clone".split("\n"))))
    assert drawing.label(graph.nodes[0].name) in ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]


@pytest.mark.parametrize("name", [*HOSTILE, LONG], ids=ascii)
def test_a_label_is_short_and_can_be_seen(name: str) -> None:
    shown = drawing.label(name)
    assert shown.isprintable()
    assert drawing.columns(shown) <= drawing.LONGEST


def test_a_long_label_keeps_its_two_ends() -> None:
    assert drawing.label("layer0.the_first_projection_of_queries/1") == "layer0.the_fi…n_of_queries/1"


def test_save_svg_writes_the_picture_for_a_device(tmp_path: Path) -> None:
    graph = overlapping()
    graph.save_svg(tmp_path / "graph.svg", H200)
    assert (tmp_path / "graph.svg").read_text(encoding="utf-8") == drawing.svg(graph, H200)


def test_save_svg_draws_for_this_machine_where_no_device_is_given(tmp_path: Path) -> None:
    overlapping().save_svg(tmp_path / "graph.svg")
    assert f"on {nr.Device.current().name}" in (tmp_path / "graph.svg").read_text(encoding="utf-8")


def test_a_graph_too_large_to_read_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    graph = nr.Graph("large")
    x = graph.input("x", (2,), BF16)
    for _ in range(LARGEST + 1):
        graph.call(torch.clone, x, demand=nr.Demand(hbm_bytes=1.0), name=None, axes="whole")
    with pytest.raises(GraphError, match=r"graph 'large' has 2,001 nodes, too many to draw: up to 2,000"):
        graph.save_svg(tmp_path / "graph.svg", H200)
    assert list(tmp_path.iterdir()) == []


def test_a_notebook_shows_a_small_graph_drawn_and_a_large_one_in_words() -> None:
    small, large = one("<b>"), synthetic.layered(61, 0)
    assert small._repr_html_() == drawing.svg(small, nr.Device.current())
    assert large._repr_html_() == f"<pre>{large}</pre>"


def test_a_notebook_shows_words_where_the_machine_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> nr.Device:
        raise DeviceError("the database has no rates for 'x'")

    monkeypatch.setattr(nr.Device, "current", unknown)
    graph = one("<b>")
    assert graph._repr_html_() == "<pre>Graph &lt;b&gt;: 1 node, 0 edges, 1 input, 0 outputs</pre>"
