from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from browser.sheet import Sheet, chromium
from nanort import report
from nanort.timeline.events import Timeline

Opened = Callable[..., Sheet]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Opened]:
    """Opens reports of timelines; at the end none may have said a word, or asked for anything but itself."""
    sheets: list[Sheet] = []

    def open_(timeline: Timeline, *, other: Timeline | None = None, **how: Any) -> Sheet:
        path = tmp_path / f"{len(sheets)}.html"
        report.write(timeline, path, other=other)
        sheets.append(Sheet.open(browser, path, **how))
        return sheets[-1]

    yield open_
    for sheet in sheets:
        assert sheet.noise == []
        assert {url.split("#")[0] for url in sheet.requests} == {sheet.page.url.split("#")[0]}
        sheet.page.close()
