"""The project's source files, and the names that their modules are imported by."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
BESIDE = ("benchmarks", "examples", "tests")  # not shipped
HOMES = {init.parent.name: init.parent for init in sorted(ROOT.glob("*/__init__.py")) if init.parent.name not in BESIDE}
"""The folders that are shipped: nanort itself, and those imported as its subpackages."""


def module_name(path: Path) -> str:
    """The name that a source file is imported by: ops/norm.py is nanort.ops.norm."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("nanort", *parts) if parts[0] != "nanort" else parts).removesuffix(".__init__")


MODULES = {module_name(path): path for home in HOMES.values() for path in sorted(home.rglob("*.py"))}
SOURCES = [*MODULES.values(), *(path for folder in BESIDE for path in sorted((ROOT / folder).rglob("*.py")))]
