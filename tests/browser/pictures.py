"""Pictures of a real run for the documentation: ``python -m browser.pictures FOLDER`` in tests/ writes them.

A small decoder with random weights takes a step on this machine, while pages of its cache move to the host and back: on
its GPU if there is one, else on its cores. What it shows is in the report of that run.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from playwright.sync_api import Browser

import nanort as nr
from browser.sheet import Sheet, chromium
from nanort import graphs, report

CONFIG = replace(graphs.CONFIGS["tiny"], layers=4, hidden=768, ffn=2048, heads=12, kv_heads=4, head_dim=64, vocab=8192)
REQUESTS, CONTEXT, PAGE, SWAPPED = 128, 64, 16, 512
STEPS = 20
SIZE = (1360, 880)
PAGES = 1 + REQUESTS * CONTEXT // PAGE + SWAPPED
TITLE = "a step of a small decoder, pages of its cache moving beside it"
SHOWN = (
    ("timeline", "light"), ("timeline", "dark"), ("critical", "light"), ("idle", "light"), ("overlap", "dark"),
    ("bounds", "dark"), ("graph", "light"), ("roofline", "dark"),
)  # fmt: skip
LONGEST_THAT_WAITED = """() => {
  const took = (index) => (app.data.waitsOf(index).length ? app.data.end[index] - app.data.start[index] : -1);
  app.select([...Array(app.data.count).keys()].reduce((a, b) => (took(b) > took(a) ? b : a)));
}"""


def graph() -> nr.Graph:
    """A decode step during which pages leave for the host, and as many come from it."""
    return graphs.offload(
        CONFIG,
        nr.Layout(decode=REQUESTS, kv_tokens=REQUESTS * CONTEXT),
        swap_out=SWAPPED,
        swap_in=SWAPPED,
        pages=PAGES,
        page_size=PAGE,
        requests=REQUESTS,
        table_width=CONTEXT // PAGE,
    )


def tensors(of: nr.Graph) -> dict[str, dict[str, torch.Tensor]]:
    """Random weights, caches and rows, by kind; every request is at its last token."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(REQUESTS)
    table = 1 + torch.arange(REQUESTS * CONTEXT // PAGE).view(REQUESTS, -1)
    swapped = PAGES - SWAPPED + torch.arange(SWAPPED)
    host = {
        "tokens": rows,
        "positions": torch.full((REQUESTS,), CONTEXT - 1),
        "slots": table[:, -1] * PAGE + PAGE - 1,
        "requests": rows,
        "pages": table,
        "last": rows,
        "swap_out": swapped,
        "swap_in": swapped,
    }
    found: dict[str, dict[str, torch.Tensor]] = {"input": {}, "constant": {}, "state": {}}
    for root in of.roots:
        if root.kind in found:
            noise = torch.randn(root.shape, generator=generator) if root.dtype.is_floating_point else torch.empty(0)
            given = host[root.name] if root.name in host else 0.02 * noise
            found[root.kind][root.name] = given.reshape(root.shape).to(root.dtype)
    return found


def run() -> nr.Timeline:
    """A step as it was measured, with its plan: of several the one that other work on the machine disturbed least."""
    whole, device = graph(), nr.Device.current()
    given = tensors(whole)
    profile = None  # a GPU's model needs none for a good plan
    if device.kind == "cpu":
        profile = nr.profile(nr.nano_batch(whole, 2), given["input"] | given["constant"] | given["state"])
    schedule = nr.co_schedule(whole, device, nano_batches=[2], profile=profile, guard=False)
    with nr.Executor(schedule, constants=given["constant"], states=given["state"]) as executor:
        found = []
        for _ in range(STEPS):
            executor(**given["input"])
            found.append(executor.timeline)
    return min(found, key=lambda timeline: timeline.makespan)


def take(browser: Browser, page: Path, folder: Path) -> None:
    """Pictures of the views of a report, each in a theme; in the lanes the longest node that waited is selected."""
    for view, theme in SHOWN:
        sheet = Sheet.open(browser, page, theme=theme, view=view)
        sheet.page.set_viewport_size({"width": SIZE[0], "height": SIZE[1]})
        if view == "timeline":
            sheet.page.evaluate(LONGEST_THAT_WAITED)
        sheet.page.screenshot(path=folder / f"{view}-{theme}.png")
        sheet.page.close()


def main() -> None:
    """Writes all pictures to the folder that is named, and that of a graph."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    nr.nano_batch(graph(), 2).save_svg(folder / "graph.svg")
    with TemporaryDirectory() as scratch, chromium() as browser:
        page = Path(scratch) / "run.html"
        report.write(run(), page, title=TITLE)
        take(browser, page, folder)


if __name__ == "__main__":
    main()
