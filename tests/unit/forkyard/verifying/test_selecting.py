from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forkyard.errors import RecipeError
from forkyard.verifying.selecting import TestFiles, payload_variable

NAME = "tests/integration/fixes/test_a.py"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path in (
        "tests/conftest.py",
        "tests/integration/conftest.py",
        NAME,
        "tests/integration/fixes/models.py",
        "tests/integration/other/test_b.py",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        (NAME, True),
        ("tests/integration/fixes/models.py", True),
        ("tests/integration/fixes/data/new.bin", True),
        ("tests/integration/conftest.py", True),
        ("tests/conftest.py", True),
        ("tests/integration/__init__.py", True),
        ("tests/integration/fixes/__pycache__/test_a.pyc", False),
        ("tests/integration/other/test_b.py", False),
        ("src/a.py", False),
    ],
)
def test_what_a_test_is_made_of(root: Path, path: str, counts: bool) -> None:
    before = TestFiles(root).digest([NAME])
    assert TestFiles(root).digest([NAME]) == before
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text("changed")
    assert (TestFiles(root).digest([NAME]) != before) == counts


def test_a_test_that_is_not_there_counts_as_such(root: Path) -> None:
    before = TestFiles(root).digest(["tests/integration/fixes/test_new.py"])
    (root / "tests/integration/fixes/test_new.py").write_text("")
    assert TestFiles(root).digest(["tests/integration/fixes/test_new.py"]) != before
    assert TestFiles(root).digest([]) != before


@pytest.mark.parametrize("name", ["-p", "--co", "/etc/test.py", "../test.py", "tests/../../x.py"])
def test_tests_outside_the_project_are_refused(project: Any, name: str) -> None:
    project.stack("a", test=[name])
    with pytest.raises(RecipeError, match="outside the project") as caught:
        project.plan()
    assert str(caught.value.where).endswith("stack.toml")


def test_the_variable_of_an_engine() -> None:
    assert payload_variable("llama.cpp") == "FORKYARD_PAYLOAD_LLAMA_CPP"
    assert payload_variable("ik_llama.cpp") == "FORKYARD_PAYLOAD_IK_LLAMA_CPP"
