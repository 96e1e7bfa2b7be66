from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tree import HOMES, MODULES, ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that holds the wheel; what nanort depends on is borrowed from the one that runs this test."""
    source, dist, clean = (tmp_path_factory.mktemp(name) for name in ("source", "dist", "clean"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name, home in HOMES.items():
        shutil.copytree(home, source / name)
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", dist, source], check=True)
    venv.create(clean, with_pip=True)
    python = clean / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--no-deps", "--no-index", *dist.glob("*.whl")], check=True)
    (site_packages(clean) / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return clean


def site_packages(environment: Path) -> Path:
    """Where an environment keeps what is installed in it."""
    return next(environment.glob("lib/python*/site-packages"))


def test_wheel_holds_every_module_under_nanort(installed: Path) -> None:
    folder = site_packages(installed)
    found = {path.relative_to(folder).as_posix() for path in folder.glob("nanort/**/*.py")}
    assert found == {
        name.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py")
        for name, path in MODULES.items()
    }
    assert (folder / "nanort" / "py.typed").exists()


def test_wheel_brings_nothing_else(installed: Path) -> None:
    folder = site_packages(installed)
    assert not [name for name in HOMES if name != "nanort" and (folder / name).exists()]


def test_wheel_imports_from_elsewhere(installed: Path, tmp_path: Path) -> None:
    names = ["nanort", *(f"nanort.{name}" for name in HOMES if name != "nanort")]
    code = f"import {', '.join(names)}; print(*(m.__file__ for m in ({', '.join(names)},)), sep='\\n')"
    python = installed / "bin" / "python"
    printed = subprocess.run([python, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert all(Path(line).is_relative_to(installed) for line in printed.splitlines())
