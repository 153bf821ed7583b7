"""The child that runs tests, on real pytest: what ran, what did not, and who is to blame."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkyard.cache import Cache
from forkyard.console import Silent
from forkyard.errors import BuildError, ToolchainError
from forkyard.verifying import testing
from forkyard.verifying.records import Result
from forkyard.verifying.testing import check_pytest, run_tests

MARKED = """\
import pytest
@pytest.mark.patch("a-1")
def test_one(): pass
@pytest.mark.patch("a-1", "a-2")
def test_both(): pass
@pytest.mark.patch()
def test_any(): pass
def test_whole(): pass
"""


@pytest.fixture
def tested(project: Any, cache: Cache, repository: Path, tmp_path: Path) -> Callable[..., Result]:
    """Run a test file as that of a stack of two patches, on the beginning or on all of it."""
    folder = project.root / "tests"
    folder.mkdir()
    shutil.copy(repository / "tests" / "conftest.py", folder)
    project.stack("a", 2, test=["tests/test_a.py"])

    def go(text: str, count: int = 2) -> Result:
        (folder / "test_a.py").write_text(text)
        scratch = tmp_path / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        unit = project.plan().units[count - 1]
        so_far = Result("good", "build", "t", "c")
        return run_tests(unit, tmp_path / "x.whl", project.root, cache, scratch, Silent(), so_far)

    return go


@pytest.mark.parametrize(("count", "passed", "deselected"), [(1, 2, 2), (2, 4, 0)])
def test_marks_choose(tested: Any, count: int, passed: int, deselected: int) -> None:
    result = tested(MARKED, count)
    assert (result.state, result.tests.passed, result.tests.deselected) == ("good", passed, deselected)
    assert (result.tree, result.commit, result.stage) == ("t", "c", "test")


def test_what_counts_as_executed(tested: Any) -> None:
    result = tested(
        "import pytest\n"
        "def test_fine(): pass\n"
        "@pytest.mark.skip\ndef test_skipped(): pass\n"
        "def test_skips_itself(): pytest.skip()\n"
        "@pytest.mark.xfail\ndef test_expected(): assert 0\n"
        "@pytest.mark.xfail(run=False)\ndef test_not_run(): assert 0\n"
    )
    assert result.state == "good"
    assert (result.tests.passed, result.tests.skipped, result.tests.failed) == (3, 2, 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "import pytest\n@pytest.mark.skip\ndef test_x(): pass\n",
        "import pytest\npytest.skip(allow_module_level=True)\n",
    ],
)
def test_nothing_executed_is_no_pass(tested: Any, text: str) -> None:
    result = tested(text)
    assert (result.state, result.tests.executed, result.problem) == ("no test", 0, None)


def test_only_tests_of_other_patches(tested: Any) -> None:
    assert tested('import pytest\n@pytest.mark.patch("a-2")\ndef test_x(): pass\n', 1).state == "no test"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def test_bad():\n    assert 1 == 2\ndef test_good(): pass\n", ["test_a.py::test_bad", "assert 1 == 2"]),
        (
            "import pytest\n@pytest.fixture\ndef x(): raise OSError('gone')\ndef test_bad(x): pass\n",
            ["test_bad", "gone"],
        ),
        (
            "import pytest\n@pytest.fixture\ndef x():\n    yield\n    assert 0, 'late'\ndef test_bad(x): pass\n",
            ["late"],
        ),
        ("import nowhere_to_be_found\n", ["nowhere_to_be_found"]),
        ("import pytest\n@pytest.mark.patch('a-3')\ndef test_x(): pass\n", ["no patch of any stack"]),
        ("import os\ndef test_x(): os.abort()\n", ["killed by signal 6"]),
        ("import pytest\npytest.exit('enough', 3)\n", ["enough"]),
        ("import os\ndef test_x(): os._exit(0)\n", ["exit status 0"]),
    ],
)
def test_what_is_bad_says_why(tested: Any, text: str, words: list[str]) -> None:
    result = tested(text)
    assert (result.state, result.stage) == ("bad", "test")
    if result.tests is not None:
        assert result.tests.failed == len(result.tests.failures)
    for word in words:
        assert word in result.problem.why


def test_a_conftest_that_does_not_know_the_options(tested: Any, project: Any) -> None:
    (project.root / "tests" / "conftest.py").write_text("")
    assert "unrecognized arguments" in tested("def test_x(): pass\n").problem.why


def test_the_engine_and_the_cache_are_named(tested: Any, cache: Cache, tmp_path: Path) -> None:
    result = tested(
        "import os\n"
        "def test_x(tmp_path):\n"
        f"    assert os.environ['FORKYARD_PAYLOAD_LLAMA_CPP'] == {str(tmp_path / 'x.whl')!r}\n"
        "    assert os.environ['FORKYARD_TEST_VARIANT'] == 'avx2'\n"
        f"    assert os.environ['FORKYARD_CACHE'] == {str(cache.root)!r}\n"
        f"    assert str(tmp_path).startswith({str(tmp_path / 'scratch')!r})\n"
    )
    assert result.state == "good", result.problem


def test_tests_that_never_end(tested: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing, "TEST_TIMEOUT_S", 3.0)
    with pytest.raises(BuildError, match="did not end"):
        tested("import time\ndef test_x(): time.sleep(60)\n")


def test_without_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    check_pytest()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ToolchainError, match="not installed") as caught:
        check_pytest()
    assert "--no-tests" in str(caught.value.next_step)
