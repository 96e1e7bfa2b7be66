"""A report open in Chromium, and all that it complained of."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest
from playwright.sync_api import Browser, CDPSession, Dialog, Locator, Page, sync_playwright

SIZE = {"width": 1280, "height": 800}
VIEWS = ("timeline", "critical", "idle", "overlap", "bounds", "diff", "roofline", "graph")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's browser, without a window; the test is skipped where there is none."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("there is no chromium here: `make test` installs it where it is root on Debian")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@dataclass
class Sheet:
    """One page; whatever a good one does not do is written down.

    Attributes:
        page: as Playwright has it.
        noise: what its script said or raised, and the dialogs that it opened.
        requests: every address that it asked for.
    """

    page: Page
    noise: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @staticmethod
    def open(browser: Browser, path: Path, *, theme: str = "light", view: str = "") -> Sheet:
        """The file at ``path``, ready to be used; ``theme`` is what the system prefers."""
        page = browser.new_page(viewport=SIZE, color_scheme=theme)
        sheet = Sheet(page)
        page.on("console", lambda message: sheet.noise.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: sheet.noise.append(f"error: {error}"))
        page.on("dialog", sheet._refuse)
        page.on("request", lambda request: sheet.requests.append(request.url))
        page.goto(f"{path.as_uri()}{'#' * bool(view)}{view}")
        page.wait_for_selector("html[data-ready=true]", timeout=60_000)
        return sheet

    def _refuse(self, dialog: Dialog) -> None:
        self.noise.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def show(self, view: str) -> Locator:
        """The section of a view, brought to the front by a click on its tab."""
        self.page.click(f"#tab-{view}")
        section = self.page.locator(f"#view-{view}")
        section.wait_for(state="visible")
        return section

    @property
    def selected(self) -> str:
        """The name of the selected activity; empty for none."""
        return str(self.page.evaluate("app.selected < 0 ? '' : app.data.name(app.selected)"))

    @cached_property
    def _hand(self) -> CDPSession:
        return self.page.context.new_cdp_session(self.page)

    def touch(self, kind: str, *places: tuple[float, float]) -> None:
        """Fingers on the screen: ``"touchStart"``, ``"touchMove"`` or ``"touchEnd"``."""
        points = [{"x": x, "y": y, "id": finger} for finger, (x, y) in enumerate(places)]
        self._hand.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def drawn(self, selector: str) -> int:
        """How many colours a canvas shows."""
        count = self.page.locator(selector).first.evaluate(
            """(canvas) => new Set(new Uint32Array(
                canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size"""
        )
        return int(count)
