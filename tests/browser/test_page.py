from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

import nanort as nr
from browser.runs import hostile, known
from browser.sheet import VIEWS, Sheet
from hostile import HOSTILE, LONG
from nanort import drawing
from nanort.timeline.activities import Activity
from nanort.timeline.events import Timeline
from test_drawing import one

Opened = Callable[..., Sheet]

CONTRAST = """() => {
  const channels = (words) => words.match(/[\\d.]+/g).map(Number);
  const luminance = (rgb) => rgb.slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, k) => sum + c * [0.2126, 0.7152, 0.0722][k], 0);
  const background = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const rgb = channels(getComputedStyle(at).backgroundColor);
      if (rgb.length === 3 || rgb[3] === 1) return rgb;
    }
    return [255, 255, 255];
  };
  const low = new Set();
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = texts.nextNode(); text; text = texts.nextNode()) {
    const element = text.parentElement;
    if (!text.data.trim() || !element.checkVisibility()) continue;
    if (element.closest("script, noscript, .unseen, .skip")) continue;
    const style = getComputedStyle(element);
    const ink = channels(element.closest("svg") ? style.fill : style.color);
    const [a, b] = [luminance(ink), luminance(background(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.add(`${text.data.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return [...low];
}"""


def test_search_finds_a_node_and_goes_to_it(opened: Opened) -> None:
    sheet = opened(known())
    sheet.page.keyboard.press("/")
    sheet.page.keyboard.type("LINEAR")
    expect(sheet.page.locator("#found")).to_have_text("2")
    sheet.page.keyboard.press("Enter")
    assert sheet.selected == "layer0.linear/0"
    sheet.page.keyboard.press("Enter")
    assert sheet.selected == "layer0.linear/1"
    assert sheet.page.locator("#found").inner_text() == "2 of 2"
    sheet.page.keyboard.press("Escape")
    assert sheet.selected == ""
    assert sheet.page.locator("#query").input_value() == ""


def test_what_was_searched_is_found_again_after_escape(opened: Opened) -> None:
    sheet = opened(known())
    sheet.page.fill("#query", "linear")
    expect(sheet.page.locator("#found")).to_have_text("2")
    sheet.page.focus("canvas.lanes")
    sheet.page.keyboard.press("Escape")
    sheet.page.fill("#query", "linear")
    expect(sheet.page.locator("#found")).to_have_text("2")


@pytest.mark.parametrize(("words", "count"), [("model.py:14", "1"), ("layer 1", "2"), ("nowhere", "none")])
def test_search_looks_at_source_lines_and_labels(opened: Opened, words: str, count: str) -> None:
    sheet = opened(known())
    sheet.page.fill("#query", words)
    expect(sheet.page.locator("#found")).to_have_text(count)


def test_the_selected_node_shows_all_that_is_known_of_it(opened: Opened) -> None:
    sheet = opened(known())
    sheet.page.fill("#query", "attention")
    sheet.page.press("#query", "Enter")
    panel = sheet.page.locator("#panel").inner_text()
    for words in (
        "layer0.attention/0", "bound by memory", "40 µs", "80 µs", "+10 µs", "g1", "64", "120 MB", "1 GFLOP",
        "model.py:18", "layer 0", "layer0.fetch/0", "layer0.linear/0",
    ):  # fmt: skip
        assert words in panel


def test_every_view_is_reached_and_used_without_a_mouse(opened: Opened) -> None:
    sheet = opened(known())
    keyboard = sheet.page.keyboard
    for number, view in enumerate(VIEWS, 1):
        keyboard.press(str(number))
        assert sheet.page.locator(f"#view-{view}").is_visible()
    sheet.page.focus("#tab-graph")
    keyboard.press("ArrowRight")  # round to the first
    assert sheet.page.evaluate("document.activeElement.id") == "tab-timeline"
    assert sheet.page.locator("#view-timeline").is_visible()


def test_the_lanes_zoom_pan_and_walk_by_keys(opened: Opened) -> None:
    sheet = opened(known())
    sheet.page.emulate_media(reduced_motion="reduce")  # moves happen at once

    def sight() -> list[float]:
        found: list[float] = sheet.page.evaluate("[time.from, time.to]")
        return found

    whole = sight()
    sheet.page.keyboard.press("w")
    near = sight()
    assert near[1] - near[0] < 0.7 * (whole[1] - whole[0])
    sheet.page.keyboard.press("d")
    assert sight()[0] > near[0]
    sheet.page.keyboard.press("a")
    assert sight() == pytest.approx(near)
    sheet.page.keyboard.press("s")
    sheet.page.keyboard.press("f")
    assert sight() == pytest.approx(whole)
    sheet.page.focus("canvas.lanes")
    sheet.page.keyboard.press("Enter")
    assert sheet.selected
    before = sheet.selected
    sheet.page.keyboard.press(".")
    sheet.page.keyboard.press(",")
    assert sheet.selected == before


def test_a_click_on_a_lane_selects_what_lies_there(opened: Opened) -> None:
    sheet = opened(known())
    lanes = sheet.page.locator("canvas.lanes")
    box = lanes.bounding_box()
    assert box is not None
    moment = sheet.page.evaluate("(110000 - time.from) / time.span()")  # join runs on g0 then
    low = sheet.page.evaluate("stage.layout.lanes[0].y + 0.8 * stage.layout.lanes[0].height")
    sheet.page.mouse.click(box["x"] + moment * box["width"], box["y"] + low)
    assert sheet.selected == "layer1.join"
    assert "join" in sheet.page.locator("#panel h2").inner_text()


def test_help_lists_the_keys_and_closes(opened: Opened) -> None:
    sheet = opened(known())
    sheet.page.keyboard.press("?")
    assert "zoom in" in sheet.page.locator("dialog").inner_text()
    sheet.page.keyboard.press("Escape")
    assert not sheet.page.locator("dialog").is_visible()


def test_everything_that_takes_focus_has_a_name_and_shows_it(opened: Opened) -> None:
    sheet = opened(known())
    for view in VIEWS:
        sheet.show(view)
        nameless = sheet.page.evaluate(
            """() => [...document.querySelectorAll("button, input, canvas[tabindex], [tabindex='0'], [role=tab]")]
              .filter((one) => one.checkVisibility())
              .filter((one) => !(one.innerText?.trim() || one.ariaLabel || one.labels?.length || one.title))
              .map((one) => one.outerHTML.slice(0, 80))"""
        )
        assert nameless == []
    sheet.page.keyboard.press("Tab")
    outline = sheet.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_in_both_themes(opened: Opened, theme: str) -> None:
    run = known()
    sheet = opened(run, other=run.plan, theme=theme)
    assert sheet.page.evaluate("document.documentElement.dataset.theme") == theme
    for view in VIEWS:
        sheet.show(view)
        assert sheet.page.evaluate(CONTRAST) == [], view


def test_the_theme_follows_the_system_and_the_switch(opened: Opened) -> None:
    sheet = opened(known(), theme="light")
    page = sheet.page.locator("html")
    expect(page).to_have_attribute("data-theme", "light")
    light = sheet.page.evaluate("getComputedStyle(document.body).backgroundColor")
    sheet.page.emulate_media(color_scheme="dark")
    expect(page).to_have_attribute("data-theme", "dark")
    assert sheet.page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    sheet.page.click("#theme")
    expect(page).to_have_attribute("data-theme", "light")
    assert sheet.page.evaluate("getComputedStyle(document.body).backgroundColor") == light


def test_paper_shows_all_views_in_light(opened: Opened, tmp_path: Path) -> None:
    sheet = opened(known(), theme="dark")
    sheet.page.emulate_media(media="print")
    expect(sheet.page.locator("html")).to_have_class("printing")
    for view in VIEWS:
        assert sheet.page.locator(f"#view-{view}").is_visible()
    assert sheet.page.evaluate("document.documentElement.dataset.theme") == "light"
    assert not sheet.page.locator("nav").is_visible()
    paper = sheet.page.pdf(prefer_css_page_size=True)
    assert paper.startswith(b"%PDF")
    sheet.page.emulate_media(media="screen")
    expect(sheet.page.locator("html")).not_to_have_class("printing")
    assert [view for view in VIEWS if sheet.page.locator(f"#view-{view}").is_visible()] == ["timeline"]
    assert sheet.page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_a_small_screen_loses_nothing_to_the_side(opened: Opened) -> None:
    sheet = opened(known())
    sheet.page.set_viewport_size({"width": 420, "height": 800})
    for view in VIEWS:
        section = sheet.show(view)
        assert section.bounding_box()["width"] <= 420, view  # type: ignore[index]
        assert sheet.page.evaluate("document.documentElement.scrollWidth") <= 420, view


def test_a_finger_on_the_lanes_moves_a_small_page(opened: Opened) -> None:
    sheet = opened(known())
    sheet.page.set_viewport_size({"width": 420, "height": 500})
    box = sheet.page.locator("canvas.curves").bounding_box()
    assert box is not None
    x = box["x"] + 40
    sheet.touch("touchStart", (x, 450))
    for y in range(440, 40, -40):
        sheet.touch("touchMove", (x, y))
    sheet.touch("touchEnd")
    sheet.page.wait_for_function("document.querySelector('.body').scrollTop > 100")


def test_lanes_higher_than_any_canvas_are_drawn(opened: Opened) -> None:
    made = [Activity(f"n{k}", "x", "s") for k in range(5000)]
    begun = np.arange(len(made)) * 1e-9
    sheet = opened(Timeline(made, begun, 1e-3 + begun, kind="measured", device="d"))  # all at once
    assert sheet.page.evaluate("document.querySelector('canvas.lanes').height") < 2000
    assert sheet.drawn("canvas.lanes") > 2
    box = sheet.page.locator("canvas.lanes").bounding_box()
    assert box is not None
    sheet.page.evaluate("stage.scroll(1000)")
    sheet.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 100)
    y = sheet.page.evaluate("stage.layout.rows[stage.layout.rowOf[app.selected]].y")
    assert 0 <= 1100 - y <= 40


def test_two_fingers_zoom_the_lanes(opened: Opened) -> None:
    sheet = opened(known())
    box = sheet.page.locator("canvas.lanes").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    before = sheet.page.evaluate("time.span()")
    sheet.touch("touchStart", (x - 40, y), (x + 40, y))
    sheet.touch("touchMove", (x - 120, y), (x + 120, y))
    sheet.touch("touchMove", (x - 160, y), (x + 160, y))
    sheet.touch("touchEnd")
    assert sheet.page.evaluate("time.span()") < 0.6 * before


def test_hostile_names_run_nothing_and_are_shown_as_text(opened: Opened) -> None:
    """That nothing was said, asked for or opened is what the fixture judges."""
    run = hostile((*HOSTILE, LONG))
    sheet = opened(run, other=run.plan)
    made = (
        "iframe, img, object, embed, link:not([rel=icon]), base, meta[http-equiv=refresh], a:not(.skip), form[action]"
    )
    for view in VIEWS:
        section = sheet.show(view)
        assert section.locator(made).count() == 0
        assert section.locator("bdi, canvas, svg").count() > 0
    assert sheet.page.locator("script").count() == 2
    assert sheet.page.locator(made).count() == 0
    assert sheet.page.evaluate("Object.keys(Object.prototype).length") == 0
    shown = sheet.page.evaluate("[...Array(app.data.count).keys()].map(app.data.name)")
    assert len(shown) == len(HOSTILE) + 1
    for name, told in zip(HOSTILE, shown, strict=False):
        if name.isprintable():
            assert told == name


def test_a_hostile_name_is_found_and_stands_in_the_panel(opened: Opened) -> None:
    sheet = opened(hostile(HOSTILE))
    for name in (name for name in HOSTILE if name.isprintable() and name.strip()):
        sheet.page.fill("#query", name)
        sheet.page.press("#query", "Enter")
        assert name.strip().lower() in sheet.selected.lower()
        select = "(name) => app.select([...Array(app.data.count).keys()].find((k) => app.data.name(k) === name))"
        sheet.page.evaluate(select, name)
        assert sheet.page.locator("#panel h2").text_content() == sheet.page.evaluate(
            "(name) => format.name(name, 400)", name
        )


def test_pictures_of_hostile_graphs_run_nothing(browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: said.append(request.url) if request.url != page.url else None)
    pictures = [drawing.svg(one(name), nr.device("h200")) for name in HOSTILE]
    page.set_content(f"<!doctype html><meta charset=utf-8>{''.join(pictures)}")
    assert page.locator("svg").count() == len(HOSTILE)
    assert page.locator("script, foreignObject, image, a, iframe").count() == 0
    assert said == []
    page.close()
