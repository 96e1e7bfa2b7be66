from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator

from browser.runs import known, odd
from browser.sheet import VIEWS, Sheet
from nanort.timeline.activities import Activity
from nanort.timeline.events import Timeline
from nanort.timeline.joined import Joined

Opened = Callable[..., Sheet]
MINUS, TIMES = "\u2212", "\u00d7"


def cells(sheet: Sheet, view: str, table: str) -> list[list[str]]:
    """The body of a view's table, as a person reads it."""
    section = sheet.show(view)
    found = section.locator("table").filter(has=sheet.page.locator("caption", has_text=table))
    rows: list[list[str]] = found.evaluate(
        "(table) => [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.innerText.trim()))"
    )
    return rows


def facts(sheet: Sheet, view: str) -> dict[str, str]:
    """The figures at the head of a view by their names."""
    cards = sheet.show(view).locator(".fact")
    return {card[0]: card[1] for card in (text.split("\n") for text in cards.all_inner_texts())}


def test_every_view_has_content_with_a_plan_and_another_run(opened: Opened) -> None:
    run = known()
    sheet = opened(run, other=run.plan)
    for view in VIEWS:
        section = sheet.show(view)
        assert section.locator("canvas, table, svg").count() > 0, view
        assert section.locator(".nothing").count() == 0, view
    assert [tab.get_attribute("id") for tab in sheet.page.locator("[role=tab]").all()] == [f"tab-{v}" for v in VIEWS]


@pytest.mark.parametrize(
    "canvas", ["timeline canvas.lanes", "timeline canvas.curves", "critical canvas", "graph canvas"]
)
def test_every_canvas_is_drawn_in_both_themes(opened: Opened, canvas: str) -> None:
    for theme in ("light", "dark"):
        sheet = opened(known(), theme=theme)
        view, name = canvas.split()
        sheet.show(view)
        assert sheet.drawn(f"#view-{view} {name}") > 4


@pytest.mark.parametrize("kind", list(odd()))
def test_odd_timelines_have_something_to_say_in_every_view(opened: Opened, kind: str) -> None:
    sheet = opened(odd()[kind])
    for view in VIEWS:
        section = sheet.show(view)
        words = section.inner_text().removeprefix(section.locator("h2").inner_text()).strip()
        assert words or section.locator("canvas").count(), view
        assert not re.search(r"NaN|undefined|null|Infinity", words), view


def test_critical_path_is_the_makespan_and_says_what_an_operator_twice_as_fast_gains(opened: Opened) -> None:
    run = known()
    sheet = opened(run)
    assert facts(sheet, "critical") == {"Length": "130 µs", "Launches on the path": "4", "Gaps on the path": "0 s"}
    rows = {row[0]: row for row in cells(sheet, "critical", "By operator")}
    assert set(rows) == {"fetch", "attention", "norm", "join"}
    assert rows["attention"][1:4] == ["1", "40 µs", "30.8 %"]
    gained = run.critical_path().what_if("join").makespan_ns
    assert gained == 110_000
    assert rows["join"][5:] == [f"{MINUS}15.4 %", "110 µs"]
    steps = cells(sheet, "critical", "Step by step")
    assert [row[0] for row in steps] == ["layer0.fetch/0", "layer0.attention/0", "layer1.norm/0", "layer1.join"]
    assert steps[0][1:] == ["0 s", "40 µs", "from the start of the run"]


def test_a_step_of_the_critical_path_leads_to_the_lanes(opened: Opened) -> None:
    sheet = opened(known())
    sheet.show("critical").get_by_role("button", name="layer1.norm/0").click()
    assert sheet.selected == "layer1.norm/0"
    assert sheet.page.locator("#view-timeline").is_visible()


def test_idle_time_has_a_row_per_lane_and_one_for_all(opened: Opened) -> None:
    run = known()
    sheet = opened(run)
    rows = cells(sheet, "idle", "By lane")
    assert [row[0] for row in rows] == ["g0", "g1", "h2d", "all lanes"]
    assert [row[2] for row in rows] == ["84.6 %", "38.5 %", "30.8 %", "51.3 %"]
    idle = run.idle()
    assert sum(idle.causes.values()) == (20 + 80 + 90) * 1000
    parts = sheet.page.locator("#view-idle tbody tr").nth(1).locator(".stack span").all()
    told = {str(part.get_attribute("title")) for part in parts}
    causes = {cause for cause, ns in idle.lanes["g1"].items() if ns}
    assert {words.rsplit(" ", 2)[0] for words in told} == {"busy", *causes}


def test_overlap_lists_each_operator_with_what_it_could_still_overlap_with(opened: Opened) -> None:
    run = known()
    rows = cells(opened(run), "overlap", "By operator")
    expected = {row.operator: row for row in run.overlap().operators}
    assert {row[0] for row in rows} == set(expected)
    linear = next(row for row in rows if row[0] == "linear")
    assert linear[1:4] == ["0 s", "70 µs", "100 %"]
    assert {could.other for could in expected["linear"].could} <= set(linear[5].split())
    assert all(could.why in linear[5] for could in expected["linear"].could)


def test_bounds_stand_in_order_and_the_plan_beside_what_came_of_it(opened: Opened) -> None:
    sheet = opened(known())
    gauge = cells(sheet, "bounds", "No schedule can beat a bound")
    assert [row[0] for row in gauge][:2] == ["SMs", "longest path"]
    assert {row[0]: row[2] for row in gauge} == {
        "SMs": "100 µs", "longest path": "120 µs", "its plan": "120 µs", "this run": "130 µs",
        "one operator after the other": "190 µs",
    }  # fmt: skip
    assert facts(sheet, "bounds") == {
        "Makespan": "130 µs", "Above the least possible": "+8.3 %", "As fast as serial": f"1.46{TIMES}",
        "Against its plan": "+8.3 %",
    }  # fmt: skip
    by_operator = cells(sheet, "bounds", "By operator, worst first")
    assert [row[0] for row in by_operator][:2] in (["linear", "fetch"], ["fetch", "linear"])
    assert {row[0]: row[3] for row in by_operator} == {
        "linear": "+10 µs", "fetch": "+10 µs", "attention": "0 s", "norm": "0 s", "join": "0 s",
    }  # fmt: skip
    assert cells(sheet, "bounds", "By launch, worst first")[0][1:4] in (
        ["30 µs", "40 µs", "+10 µs"],
        ["30 µs", "40 µs", "+10 µs"],
    )


def test_a_run_that_stopped_is_not_held_against_bounds(opened: Opened) -> None:
    said = facts(opened(odd()["failed"]), "bounds")
    assert said.pop("Makespan") == "70 µs"
    assert said == dict.fromkeys(("Above the least possible", "As fast as serial", "Against its plan"), "\N{EN DASH}")


def test_launches_of_one_name_stand_by_themselves(opened: Opened) -> None:
    sheet = opened(Joined([known(), known()], "step", [0, 1]))
    rows = [row for row in cells(sheet, "bounds", "By launch, worst first") if row[0] == "layer0.fetch/0"]
    assert [row[1:3] for row in rows] == [["30 µs", "40 µs"]] * 2
    link = sheet.page.locator("#view-bounds").get_by_role("button", name="layer0.fetch/0").last
    link.click()
    assert "step 1" in sheet.page.locator("#panel").inner_text()


def test_a_name_that_every_object_knows_is_a_name(opened: Opened) -> None:
    made = [
        Activity("a", "x", "constructor", needs=()),
        Activity("b", "x", "toString", needs=(0,), waits=((0, "valueOf"),)),
    ]
    sheet = opened(Timeline(made, [0.0, 1e-6], [1e-6, 2e-6], kind="measured", device="d"))
    sheet.page.evaluate("app.select(1)")
    words = sheet.page.locator("body").inner_text() + sheet.show("critical").inner_text()
    assert "native code" not in words
    assert "Copy engines" not in words


def test_the_difference_of_two_runs_is_aligned_by_name(opened: Opened) -> None:
    run = known()
    sheet = opened(run, other=run.plan)
    assert facts(sheet, "diff") == {"This run": "130 µs", "The other run": "120 µs", "Difference": "+8.3 %"}
    rows = {row[0]: row[1:4] for row in cells(sheet, "diff", "By operator")}
    assert rows["fetch"] == ["40 µs", "30 µs", "+10 µs"]
    assert "attention" not in rows


def test_a_run_does_not_differ_from_itself(opened: Opened) -> None:
    run = known()
    section = opened(run, other=run).show("diff")
    assert section.locator(".nothing").inner_text().startswith("No difference")
    assert section.locator("table").count() == 0


def test_without_another_run_the_view_says_how_to_give_one(opened: Opened) -> None:
    assert "nanort trace diff" in opened(known()).show("diff").inner_text()


def test_roofline_has_a_point_and_a_row_for_each_operator_that_computes(opened: Opened) -> None:
    run = known()
    sheet = opened(run)
    rows = cells(sheet, "roofline", "By operator")
    assert {row[0] for row in rows} == {"linear", "attention", "norm", "join"}  # a copy computes nothing
    section = sheet.page.locator("#view-roofline")
    assert section.locator("circle").count() == 4
    assert section.locator(".roof polyline").count() == 1
    linear = next(row for row in rows if row[0] == "linear")
    assert linear[3:6] == ["600", "857 TFLOP/s", "110 %"]
    below = section.evaluate(
        """(root) => [...root.querySelectorAll("circle")].every((circle) =>
            circle.cx.baseVal.value > 0 && circle.cy.baseVal.value > 0)"""
    )
    assert below


def test_the_graph_has_a_box_under_the_pointer_and_walks_by_keys(opened: Opened) -> None:
    sheet = opened(known())
    canvas = sheet.show("graph").locator("canvas")
    canvas.focus()
    sheet.page.keyboard.press("ArrowDown")  # nothing is selected: the first of the first row
    first = sheet.selected
    assert first in ("layer0.linear/0", "layer0.fetch/0")
    sheet.page.keyboard.press("ArrowDown")
    assert sheet.selected == "layer0.attention/0"
    sheet.page.keyboard.press("ArrowDown")
    assert sheet.selected == "layer1.norm/0"
    sheet.page.keyboard.press("ArrowUp")
    assert sheet.selected == "layer0.attention/0"
    box = canvas.bounding_box()
    assert box is not None
    sheet.page.keyboard.press("f")
    middle = [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]
    sheet.page.mouse.click(middle[0] - box["width"] / 2 + 4, middle[1] - box["height"] / 2 + 4)
    assert sheet.selected == ""  # beside all boxes
    assert "needs 2 others, needed by 1" in select(sheet, "layer0.attention/0")
    assert sheet.page.locator("#view-graph").is_visible()


def picture(canvas: Locator) -> str:
    """What is drawn on a canvas."""
    return str(canvas.evaluate("(canvas) => canvas.toDataURL()"))


def select(sheet: Sheet, name: str) -> str:
    """What the graph says of the node that is selected from elsewhere."""
    sheet.page.evaluate(
        "(name) => app.select([...Array(app.data.count).keys()].find((k) => app.data.name(k) === name))", name
    )
    return sheet.page.locator("#view-graph output.told").inner_text()


def test_the_graph_zooms_under_the_wheel_and_moves_under_the_hand(opened: Opened) -> None:
    sheet = opened(known())
    canvas = sheet.show("graph").locator("canvas")
    box = canvas.bounding_box()
    assert box is not None

    shown = [picture(canvas)]
    sheet.page.mouse.move(box["x"] + 200, box["y"] + 100)
    sheet.page.mouse.wheel(0, -300)
    shown.append(picture(canvas))
    sheet.page.mouse.down()
    sheet.page.mouse.move(box["x"] + 300, box["y"] + 180, steps=3)
    sheet.page.mouse.up()
    shown.append(picture(canvas))
    assert len(set(shown)) == 3
    assert sheet.selected == ""  # a drag is no click


def test_the_graph_zooms_by_buttons_keys_and_two_fingers(opened: Opened) -> None:
    sheet = opened(known())
    section = sheet.show("graph")
    canvas = section.locator("canvas")
    shown = [picture(canvas)]
    for name in ("Zoom in (+)", "Zoom out (-)"):
        section.get_by_role("button", name=name).click()
        shown.append(picture(canvas))
    assert shown[0] == shown[2] != shown[1]
    canvas.focus()
    sheet.page.keyboard.press("+")
    assert picture(canvas) == shown[1]
    section.get_by_role("button", name="All of the graph (f)").click()
    assert picture(canvas) == shown[0]
    box = canvas.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    sheet.touch("touchStart", (x - 20, y), (x + 20, y))
    sheet.touch("touchMove", (x - 60, y), (x + 60, y))
    sheet.touch("touchEnd")
    assert picture(canvas) != shown[0]
    assert sheet.selected == ""  # a pinch is no tap


def test_the_graph_is_coloured_by_what_is_asked_for(opened: Opened) -> None:
    section = opened(known()).show("graph")
    legends = {}
    for name in ("Operator", "Nano-batch", "What binds it"):
        section.get_by_role("button", name=name).click()
        legends[name] = section.locator(".legend").inner_text().split("\n")
        assert section.locator("button[aria-pressed=true]").inner_text() == name
    assert set(legends["Operator"]) == {"linear", "fetch", "attention", "norm", "join"}
    assert legends["Nano-batch"] == ["nano-batch 0", "nano-batch 1"]
    assert set(legends["What binds it"]) == {"compute", "pcie", "memory", "launch"}


def test_a_graph_too_large_to_read_is_told_not_drawn(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanort.report.dag.LARGEST", 5)
    section = opened(known()).show("graph")
    assert "6 launches is too large to read" in section.inner_text()
    assert section.locator("canvas").count() == 0


def test_what_the_trace_does_not_know_has_no_empty_place(opened: Opened) -> None:
    bare = Timeline([Activity("a", "aten::mm", "thread 1")], [0.0], [1e-6], kind="measured", device="cpu")
    sheet = opened(bare)
    lanes = sheet.show("timeline")
    assert lanes.locator("canvas.lanes").is_visible()
    assert not lanes.locator("canvas.curves").is_visible()
    assert "dashed" not in lanes.inner_text()
    assert "Pairs that could overlap\n\u2013" in sheet.show("overlap").inner_text()
    assert cells(sheet, "overlap", "By operator")[0][-1] == "not known"
    for view in ("critical", "idle"):
        assert "Nothing says what needs what" in sheet.show(view).inner_text()
    assert "states arithmetic or bytes" in sheet.show("roofline").locator(".nothing").inner_text()


def test_cores_stand_for_sms_on_a_cpu(opened: Opened) -> None:
    run = Timeline([Activity("a", "mm", "g0", "g0", 2)], [0.0], [1e-6], kind="measured", device="cpu", sm_capacity=2)
    sheet = opened(run)
    said = sheet.show("timeline").inner_text() + sheet.page.locator("#panel").inner_text()
    assert "2 cores" in said
    assert "Cores in use" in said
    assert "SMs" not in said


def test_colours_that_mean_something_stay_where_the_system_forces_its_own(opened: Opened) -> None:
    sheet = opened(known(), other=known().plan)
    calm = sheet.page.locator
    fill = "(node) => getComputedStyle(node).backgroundColor"
    seen = [
        ("timeline", "#panel .swatch"), ("timeline", "#panel .meter span"), ("idle", ".idle .stack span"),
        ("overlap", ".overlap .barred .fill"), ("diff", ".diff .swing .fill"),
    ]  # fmt: skip  # in two lines
    before = [(sheet.show(view), calm(place).first.evaluate(fill))[1] for view, place in seen]
    sheet.page.emulate_media(forced_colors="active")
    assert [(sheet.show(view), calm(place).first.evaluate(fill))[1] for view, place in seen] == before
    line = "(node) => getComputedStyle(node).borderBottomColor"
    tabs = [calm(f"nav button[aria-selected={on}]").first.evaluate(line) for on in ("true", "false")]
    assert tabs[0] != tabs[1]


def test_heads_sort_tables_both_ways_by_mouse_and_by_keys(opened: Opened) -> None:
    sheet = opened(known())
    section = sheet.show("critical")
    head = section.locator("table").first.get_by_role("button", name="on the path")
    head.click()
    down = [row[2] for row in cells(sheet, "critical", "By operator")]
    head.focus()
    sheet.page.keyboard.press("Enter")
    up = [row[2] for row in cells(sheet, "critical", "By operator")]
    assert down[0] == "40 µs"
    assert up[0] == "10 µs"
    assert sorted(down) == sorted(up)
    assert section.locator("th[aria-sort=ascending]").count() == 1


def test_the_critical_path_is_walked_by_arrow_keys(opened: Opened) -> None:
    sheet = opened(known())
    section = sheet.show("critical")
    section.locator("canvas").focus()
    told = section.locator("output.told")
    sheet.page.keyboard.press("ArrowRight")
    assert told.inner_text() == "0 s: layer0.fetch/0, 40 µs, from the start of the run"
    sheet.page.keyboard.press("End")
    assert told.inner_text().startswith("90 µs: layer1.join, 40 µs")
    sheet.page.keyboard.press("Enter")
    assert sheet.selected == "layer1.join"
