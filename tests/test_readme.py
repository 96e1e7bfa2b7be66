from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tree import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
COMMAND = str(Path(sys.executable).with_name("nanort"))


def blocks(*languages: str) -> list[str]:
    """The README's fenced blocks in these languages."""
    return [
        code
        for language, code in re.findall(r"^```(\w+).*?\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
        if language in languages
    ]


@pytest.mark.parametrize("code", blocks("python"))
def test_python_block_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})  # noqa: S102  # the project's own


LINES = [
    line.partition("#")[0].strip() for code in blocks("sh", "bash", "shell", "console") for line in code.splitlines()
]


@pytest.mark.parametrize("line", [line for line in LINES if line])
def test_shell_line_names_what_exists(line: str) -> None:
    program, *arguments = line.removeprefix("$ ").split()
    match name := Path(program).name:
        case "make":
            assert TARGETS.issuperset(arguments)
        case "nanort":
            subprocess.run([COMMAND, *arguments[:1], "--help"], check=True, capture_output=True)
        case "python" | "pytest":
            assert (ROOT / next(argument for argument in arguments if not argument.startswith("-"))).exists()
        case _:
            assert name in {"git", "cd", "pip"} or line == ". .venv/bin/activate"
