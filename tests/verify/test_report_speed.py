"""The report of 100,000 launches in a real browser: how soon it can be used, and how smoothly it moves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from browser.runs import large
from browser.sheet import VIEWS, Sheet, chromium
from nanort import report

COUNT = 100_000
WRITTEN = 5.0  # seconds of one core
INTERACTIVE, FRAMES, TRIALS = 3.0, 30.0, 20  # seconds, a second; other work on the machine may spoil a trial or more
PANNED = """async (milliseconds) => {
  time.set(0.2 * time.whole, 0.6 * time.whole);
  const [began, from] = [performance.now(), time.from];
  let frames = 0;
  for (let now = began; now - began < milliseconds; now = await new Promise(requestAnimationFrame)) {
    time.pan(time.span() * 0.004 * (frames % 200 < 100 ? 1 : -1));
    frames++;
  }
  if (time.from === from) throw new Error("nothing moved");
  return (1000 * (frames - 1)) / (performance.now() - began);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("report") / "large.html"
    run = large(COUNT)
    began = time.perf_counter()
    report.write(run, found)
    print(f"{COUNT:,} launches: {found.stat().st_size / 1e6:.1f} MB written in {time.perf_counter() - began:.1f} s")
    return found


def test_it_is_written_in_five_seconds(tmp_path: Path) -> None:
    run = large(COUNT)
    began = time.process_time()
    report.write(run, tmp_path / "large.html")
    took = time.process_time() - began
    print(f"written in {took:.1f} s of one core")
    assert took <= WRITTEN


def test_it_can_be_used_in_under_three_seconds(browser: Browser, path: Path) -> None:
    best = float("inf")
    for _ in range(TRIALS):
        sheet = Sheet.open(browser, path)
        best = min(best, sheet.page.evaluate("performance.now()") / 1000)  # since the page was asked for
        assert sheet.page.evaluate("app.data.count") == COUNT
        sheet.page.close()
        if best < INTERACTIVE:
            break
    print(f"interactive after {best:.2f} s")
    assert best < INTERACTIVE


def test_it_pans_at_thirty_frames_a_second(browser: Browser, path: Path) -> None:
    sheet = Sheet.open(browser, path)
    best = 0.0
    for _ in range(TRIALS):
        best = max(best, sheet.page.evaluate(PANNED, 1500))
        if best >= FRAMES:
            break
    print(f"{best:.0f} frames a second")
    assert best >= FRAMES


def test_every_view_opens_without_a_word(browser: Browser, path: Path) -> None:
    sheet = Sheet.open(browser, path)
    for view in VIEWS:
        section = sheet.show(view)
        assert section.inner_text().strip() or section.locator("canvas").count()
    assert sheet.noise == []
