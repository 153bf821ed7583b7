from __future__ import annotations

import importlib
import pkgutil
import tomllib
from pathlib import Path

import pytest
from packaging.version import Version

import forkyard

PACKAGES = ["forkyard.abi", "forkyard.gates", "forkyard.recipes", "forkyard.sources", "forkyard.stacks"]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(forkyard.__path__, "forkyard.")
    if not module.name.endswith("__main__")
)


def test_the_version_is_the_projects(repository: Path) -> None:
    declared = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["version"]
    assert Version(forkyard.__version__) == Version(declared)


@pytest.mark.parametrize("name", PACKAGES)
def test_exports_exist_once(name: str) -> None:
    package = importlib.import_module(name)
    assert len(set(package.__all__)) == len(package.__all__)
    for export in package.__all__:
        assert getattr(package, export) is not None


@pytest.mark.parametrize("name", MODULES)
def test_every_module_can_be_imported_and_says_what_it_is_for(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    assert module.__doc__.splitlines()[0].strip()
