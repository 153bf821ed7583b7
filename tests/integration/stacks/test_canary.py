"""``forkyard canary`` on the toy: what a nightly job is told when upstream moves, and that the project is only read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from ..toy import VARIANT, Toy, git
from .test_verify import TEST, test_of

CANARY = ("canary", "toy", "--variant", VARIANT)


def upstream(toy: Toy, path: str, old: str, new: str) -> str:
    """Let upstream commit a change without moving the recipe's pin; the new commit."""
    file = toy.engine / path
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    git(toy.engine, "commit", "--quiet", "--all", "--message", f"{path} : another {new.split()[0]}")
    return toy.commit


def digest(root: Path) -> str:
    """Everything below the project's folder, its state apart."""
    whole = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file() and ".forkyard" not in path.parts:
            whole.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()


def canary(toy: Toy, *arguments: str, status: int) -> dict[str, Any]:
    """Run it; the facts of its one recipe."""
    before = digest(toy.root)
    answer = toy.run(*CANARY, *arguments)
    assert answer.status == status, f"exit {answer.status}\n{answer.stdout}\n{answer.stderr}"
    assert digest(toy.root) == before
    assert list((toy.cache / "scratch").iterdir()) == []
    (recipe,) = answer.json["recipes"]
    assert answer.json["ok"] == (status == 0)
    assert isinstance(recipe, dict)
    return recipe


@pytest.fixture
def stacked(toy: Toy) -> Toy:
    """One stack with a test; the recipe's source is the engine's repository, which moves on."""
    toy.stack("a", {"a-one": [("src/part3.cpp", "value + 3", "value + 13")]}, test=[TEST])
    toy.write_test(TEST, test_of(("a-one", 3, 17)))
    return toy


def test_upstream_did_not_move(stacked: Toy) -> None:
    recipe = canary(stacked, status=0)
    assert recipe["state"] == "good"
    assert recipe["rebase"]["from"] == recipe["rebase"]["to"]
    assert recipe["result"]["tests"]["passed"] == 1


def test_upstream_moved_and_all_holds(stacked: Toy, tmp_path: Path) -> None:
    commit = upstream(stacked, "src/part1.cpp", "+ 1;", "+ 1 + 0;")
    recipe = canary(stacked, "--report-dir", str(tmp_path / "report"), status=0)
    assert (recipe["state"], recipe["rebase"]["to"]["commit"]) == ("good", commit)
    assert recipe["result"]["tests"]["passed"] == 1
    for name in ("report.md", "report.html"):
        text = (tmp_path / "report" / name).read_text()
        assert "all good" in text
        assert commit[:12] in text
    assert json.loads((tmp_path / "report" / "report.json").read_text())["ok"] is True
    assert (tmp_path / "report" / "toy" / "report.html").is_file()


def test_a_patch_that_merges_and_does_not_build(stacked: Toy) -> None:
    """Upstream defines what the patch defines, at another place of the file: the text fits, the sense does not."""
    stacked.stack("a", {"a-one": [("src/part1.cpp", "+ 1;\n}\n", "+ 1;\n}\n\nint toy_new() { return 2; }\n")]})
    upstream(stacked, "src/part1.cpp", '#include "parts.h"\n', '#include "parts.h"\nint toy_new() { return 1; }\n')
    recipe = canary(stacked, status=12)
    assert (recipe["state"], recipe["result"]["stage"]) == ("bad", "build")
    assert "redefinition" in recipe["problem"]["why"]


def test_a_patch_that_builds_and_fails_its_test(stacked: Toy) -> None:
    stacked.write_test(TEST, test_of(("a-one", 1, 99)))
    upstream(stacked, "src/part1.cpp", "+ 1;", "+ 2;")
    recipe = canary(stacked, status=12)
    assert (recipe["state"], recipe["result"]["stage"]) == ("bad", "test")
    assert recipe["result"]["tests"]["failed"] == 1


def test_nothing_that_tests_it_is_not_good(stacked: Toy) -> None:
    stacked.stack("a", {"a-one": [("src/part3.cpp", "value + 3", "value + 13")]}, test=[])
    assert canary(stacked, status=12)["state"] == "no test"
    assert canary(stacked, "--no-tests", status=0)["state"] == "good"


def test_a_conflict(stacked: Toy, tmp_path: Path) -> None:
    commit = upstream(stacked, "src/part3.cpp", "value + 3", "value + 33")
    recipe = canary(stacked, "--report-dir", str(tmp_path), status=13)
    assert (recipe["state"], recipe["result"]) == ("conflicts", None)
    (patch,) = recipe["rebase"]["patches"]
    assert [conflict["path"] for conflict in patch["conflicts"]] == ["src/part3.cpp"]
    assert [culprit["commit"] for culprit in patch["culprits"]] == [commit]
    assert "src/part3.cpp" in (tmp_path / "toy" / "report.md").read_text()


def test_a_source_that_is_not_there(stacked: Toy) -> None:
    recipe = canary(stacked, "--source", "file:///nowhere/at/all", status=5)
    assert recipe["state"] == "error"
    assert "nowhere" in json.dumps(recipe["error"])


def test_a_source_of_several_recipes(stacked: Toy) -> None:
    (stacked.root / "recipes" / "two.toml").write_text(stacked.recipe.read_text().replace('"toy"', '"two"', 1))
    answer = stacked.run("canary", "--source", str(stacked.engine))
    assert answer.status == 2
    assert "one recipe" in answer.json["what"]
