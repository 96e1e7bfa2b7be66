from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from tree import MODULES, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
INSIDE = r"(?:(?!^```).)*"
PRINTED = re.compile(rf"^```python\n({INSIDE})^```\n{INSIDE}^```text\n({INSIDE})^```$", re.MULTILINE | re.DOTALL)
"""A block of Python, and the block after it where that one shows what it prints."""


def shown_as(path: Path) -> str:
    """How docs/design.md names a module: its path, or its folder's where the module is a package."""
    name = path.relative_to(ROOT).as_posix()
    return name.removesuffix("__init__.py")


def test_the_house_has_a_sentence_for_every_module_and_for_no_other() -> None:
    named = re.findall(r"^- `([\w/.]+)`: [^\n]+\.$", DESIGN, re.MULTILINE)
    assert sorted(named) == sorted(map(shown_as, MODULES.values()))


SHOWN = [
    pytest.param(path, code, text, id=f"{path.name}-{number}")
    for path in DOCUMENTS
    for number, (code, text) in enumerate(PRINTED.findall(path.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize(("path", "code", "text"), SHOWN)
def test_documents_show_what_their_code_prints(
    path: Path, code: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, path.name, "exec"), {"__name__": "__main__"})  # noqa: S102  # the project's own
    if pytestconfig.getoption("update_examples"):
        path.write_text(path.read_text(encoding="utf-8").replace(text, printed.getvalue()), encoding="utf-8")
    else:
        assert text == printed.getvalue()


def test_readme_shows_output() -> None:
    assert PRINTED.search(README)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    linked = {path.parent / target for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text)}
    named = {ROOT / name for name in re.findall(r"`((?:benchmarks|docs|examples|tests)/[\w/.]*)`", text)}
    assert sorted(str(target) for target in linked | named if not target.exists()) == []
