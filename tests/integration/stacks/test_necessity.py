"""``forkyard rebase --dry-run --test``: is a patch still needed? Upstream is built without it and its tests are run."""

from __future__ import annotations

from typing import Any

import pytest

from ..toy import VARIANT, Toy
from .test_canary import digest, upstream
from .test_verify import TEST, test_of


@pytest.fixture
def stacked(toy: Toy) -> Toy:
    """Three patches with a test each, on the variant the tests of the toy ask for."""
    toy.stack(
        "a",
        {
            "a-three": [("src/part3.cpp", "value + 3", "value + 13")],
            "a-two": [("src/part2.cpp", "+ 2;", "+ 12;")],
            "a-untested": [("src/part1.cpp", "+ 1;", "+ 11;")],
        },
        test=[TEST],
    )
    toy.write_test(TEST, test_of(("a-three", 3, 17), ("a-two", 2, 24), ("", 3, 17), (None, 2, 99)))
    return toy


def verdicts(toy: Toy, *arguments: str, status: int = 0) -> dict[str, dict[str, Any]]:
    """Run it; the facts of each patch by name."""
    before = digest(toy.root)
    answer = toy.run("rebase", "toy", "--to", "latest", "--variant", VARIANT, *arguments)
    assert answer.status == status, f"exit {answer.status}\n{answer.stdout}\n{answer.stderr}"
    assert digest(toy.root) == before
    return {patch["patch"].removesuffix(".patch"): patch for patch in answer.json["patches"]}


def test_needed_merged_modified_and_unknown(stacked: Toy) -> None:
    """Upstream does in its own way what the second patch does; nothing marks the third one's tests."""
    upstream(stacked, "src/parts.h", "value * 3", "value * 3 + 10")
    found = verdicts(stacked, "--dry-run", "--test")
    assert found["a-three"]["verdict"] == "needed", found["a-three"]["evidence"]
    assert "1 of its 1 tests fail" in " ".join(found["a-three"]["evidence"])
    assert found["a-two"]["verdict"] == "merged-modified"
    assert "pass without it" in " ".join(found["a-two"]["evidence"])
    assert found["a-untested"]["verdict"] == "unknown"
    assert "no test is marked with it" in found["a-untested"]["evidence"]


def test_without_building_it_is_unknown(stacked: Toy) -> None:
    upstream(stacked, "src/part1.cpp", "toy_scale(value)", "toy_scale((value))")
    stacked.stack("a", {"a-three": [("src/part3.cpp", "value + 3", "value + 13")]}, on="HEAD~1", test=[TEST])
    found = verdicts(stacked, "--dry-run")
    assert found["a-three"]["verdict"] == "unknown"
    assert "were not run" in " ".join(found["a-three"]["evidence"])


def test_it_goes_with_a_dry_run_only(stacked: Toy) -> None:
    answer = stacked.run("rebase", "toy", "--to", "latest", "--test")
    assert answer.status == 2
    assert "--dry-run" in answer.json["next"]
