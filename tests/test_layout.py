"""Who may import whom. Reads the sources, so that an import inside a function counts as well."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nanort as nr
from tree import HOMES, MODULES, ROOT, SOURCES

VOCABULARY = [
    "errors", "printable", "bounded", "caller", "drafts", "compiled", "clock", "driver", "devices", "partition",
    "demand", "layout", "operators", "values", "edges", "inference", "nodes", "eager", "layered", "drawing", "graph",
    "batchflow", "nanobatch",
]  # fmt: skip
STAGES = ["timeline", "costs", "simulation", "scheduling", "programs", "runtime"]
ABOVE = [
    "kernels", "ops", "graphs", "report", "checkpoints", "serving", "bench", "chaos", "http", "compare", "doctor",
    "interrupts", "demo", "occupancy", "options", "commands", "trace_files", "trace_commands", "cli", "__main__",
]  # fmt: skip
FACADE = "nanort"
ROOMS = [*(f"nanort.{name}" for name in VOCABULARY + STAGES), FACADE, *(f"nanort.{name}" for name in ABOVE)]
"""Every room of the house: a module imports from its own and from those before it."""

LATE = {
    "cuda", "dask", "gguf", "jinja2", "networkx", "numba", "openai", "ortools", "pandas", "perfetto",
    "prometheus_client", "pyarrow", "rich", "safetensors", "starlette", "tokenizers", "transformers", "triton",
    "typer", "uvicorn",
}  # fmt: skip
"""What ``import nanort`` leaves to the functions that need it."""

FORBIDDEN = {
    "cloudpickle", "dill", "eval", "exec", "marshal", "os.system", "pickle", "shelve", "torch.load", "yaml.load",
}  # fmt: skip
"""What runs code that came as data."""


class AtRunTime(ast.NodeTransformer):
    """A source without what only type checkers read."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if dotted(node.test).endswith("TYPE_CHECKING") else self.generic_visit(node)


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(AtRunTime().visit(ast.parse(path.read_text(encoding="utf-8"))))


def dotted(node: ast.AST) -> str:
    """``torch.load`` for that expression; the empty string at the root of what is no chain of names."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def imports(path: Path) -> set[str]:
    """The dotted names that a source imports: ``nanort.ops`` for ``from nanort import ops``."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update(f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)
    return found


def room(name: str) -> str:
    """The room of a dotted name of ours: ``nanort.ops`` for ``nanort.ops.norm``, the facade for ``nanort.Graph``."""
    home = ".".join(name.split(".")[:2])
    return home if home in MODULES else FACADE


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_only_from_rooms_before_its_own(name: str) -> None:
    ours = {imported for imported in imports(MODULES[name]) if imported.split(".")[0] == "nanort"}
    allowed = ROOMS[: ROOMS.index(room(name)) + 1]
    assert {imported for imported in ours if room(imported) not in allowed} == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_absolute_and_of_the_installed_package(path: Path) -> None:
    """From the root of the repository, a bare ``import ops`` would load a second copy of it."""
    wrong = {"", *HOMES} - {"nanort"}
    assert {imported for imported in imports(path) if imported.split(".")[0] in wrong} == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sources_run_no_code_that_came_as_data(path: Path) -> None:
    """What is shipped executes no text at all; tests that run the project's own documents say so to the linter."""
    forbidden = FORBIDDEN if path in MODULES.values() else FORBIDDEN - {"exec"}
    used = {dotted(node) for node in nodes(path)} | imports(path) | {name.split(".")[0] for name in imports(path)}
    shells = [node for node in nodes(path) if isinstance(node, ast.keyword) and node.arg == "shell"]
    assert (used & forbidden, shells) == (set(), [])


def test_public_names_are_sorted() -> None:
    assert nr.__all__ == sorted(set(nr.__all__))


@pytest.mark.parametrize("name", nr.__all__)
def test_public_name_is_documented(name: str) -> None:
    documentation = getattr(nr, name).__doc__
    assert documentation
    assert not documentation.startswith(f"{name}("), "a dataclass without a docstring gets its signature as one"


def test_import_leaves_heavy_packages_for_later() -> None:
    code = "import sys, torch; before = set(sys.modules); import nanort; print(*sys.modules.keys() - before)"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    loaded = {name.split(".")[0] for name in printed.split()}
    assert "nanort" in loaded
    assert loaded & LATE == set()
