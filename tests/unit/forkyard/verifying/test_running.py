from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkyard.cache import Cache
from forkyard.console import Silent
from forkyard.errors import SourceError
from forkyard.recipes import load_recipe
from forkyard.verifying import running
from forkyard.verifying.records import Problem, Result, Tally
from forkyard.verifying.report import as_json, as_text
from forkyard.verifying.running import Options, Verified, verify
from forkyard.workshop import Workshop

BROKEN = Result("bad", "build", problem=Problem("building failed", "log: x", "error: valeu", "look"))
TORN = Result("bad", "apply", problem=Problem("a-2.patch does not apply"))
FAILED = Result("bad", "test", problem=Problem("1 of its 3 tests fails"), tests=Tally(2, 1))
FINE = Result("good", "test", tests=Tally(3))
NOTHING = Result("no test", "test", tests=Tally(deselected=3))


class FakeBench:
    """Stands in for building: answers by the unit's name."""

    answers: dict[str, Result | Exception]
    tried: list[str]

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def remember(self, *_: Any) -> None:
        pass

    def attempt(self, unit: Any, *, keep_open: Any = ()) -> Result:
        assert len(keep_open) == 2
        type(self).tried.append(unit.name)
        answer = type(self).answers.get(unit.name, FINE)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> type[FakeBench]:
    FakeBench.answers, FakeBench.tried = {}, []
    monkeypatch.setattr(running, "Bench", FakeBench)
    return FakeBench


@pytest.fixture
def run(project: Any, cache: Cache, bench: type[FakeBench], tmp_path: Path) -> Callable[..., Verified]:
    """Verify the project; the facts of its recipe."""
    shop = Workshop(project.root, cache, tmp_path / "out", project.variants, project.toolchain)

    def go(*stacks: str, **options: Any) -> Verified:
        bench.tried.clear()
        chosen = Options(stacks=stacks, variant="avx2", **options)
        verification = verify(shop, [load_recipe("mine", project.root)], chosen, Silent())
        document, text = as_json(verification), as_text(verification)
        assert document["ok"] == verification.ok == text.splitlines()[-1].startswith("all is well")
        for bad in verification.recipes[0].first_bad:
            assert f"first bad patch of {bad.stack}: {bad.patch}" in text
        return verification.recipes[0]

    return go


def states(verified: Verified) -> dict[str, str]:
    return {outcome.unit.name: outcome.state for outcome in verified.outcomes}


def test_what_was_good_is_not_tried_again(project: Any, run: Any, bench: Any) -> None:
    project.stack("a", 3)
    assert run().ok
    assert bench.tried == ["a 1/3 a-1", "a 2/3 a-2", "a 3/3 a-3"]
    again = run()
    assert bench.tried == []
    assert all(outcome.cached and outcome.state == "good" for outcome in again.outcomes)


@pytest.mark.parametrize("bad", [BROKEN, TORN, FAILED])
def test_after_the_first_bad_patch_nothing_is_claimed(project: Any, run: Any, bench: Any, bad: Result) -> None:
    project.stack("a", 5)
    assert run().ok
    bench.answers["a 2/5 a-2"] = bad
    (project.root / "patches/a/llama.cpp/a-2.patch").write_bytes(b"Subject: x\n\nUpstream-Status: Pending\n")
    found = run()
    assert not found.ok
    assert states(found) == {
        "a 1/5 a-1": "good", "a 2/5 a-2": "bad", "a 3/5 a-3": "not run", "a 4/5 a-4": "not run", "a 5/5 a-5": "good",
    }  # fmt: skip
    (first,) = found.first_bad
    assert (first.patch, first.number, first.of, first.stage) == ("a-2.patch", 2, 5, bad.stage)
    # Even what was good before the change, whose records are there, is not brought up again.
    assert bench.tried == ["a 2/5 a-2", "a 5/5 a-5"]


def test_a_whole_series_is_run_even_after_a_bad_patch(project: Any, run: Any, bench: Any) -> None:
    """Others stand on it, and a later patch may have mended it."""
    project.stack("a", 1, test=["tests/a.py"])
    project.stack("b", 3, test=["tests/b.py"])
    bench.answers = {"b 1/3 b-1": FAILED}
    found = states(run())
    assert (found["b 2/3 b-2"], found["b 3/3 b-3"]) == ("not run", "good")


def test_a_whole_series_that_is_bad_is_not_a_second_first(project: Any, run: Any, bench: Any) -> None:
    project.stack("a", 3)
    bench.answers = {"a 1/3 a-1": FAILED, "a 3/3 a-3": FAILED}
    found = run()
    assert [bad.patch for bad in found.first_bad] == ["a-1.patch"]
    assert [outcome.error for outcome in found.outcomes] == [True, False, True]


def test_each_series_has_its_own_first_bad_patch(project: Any, run: Any, bench: Any) -> None:
    project.stack("a", 2)
    project.stack("b", 2)
    bench.answers = {"a 1/2 a-1": FAILED, "b 2/2 b-2": FAILED}
    assert [bad.patch for bad in run().first_bad] == ["a-1.patch", "b-2.patch"]


def test_a_series_whose_ground_is_bad_is_blocked(project: Any, run: Any, bench: Any) -> None:
    project.stack("a", 1)
    project.stack("b", 3)
    bench.answers = {"a 1/1 a-1": BROKEN, "b 3/3 b-3": BROKEN}
    found = run()
    assert [bad.stack for bad in found.first_bad] == ["a"]
    assert [(one.stack, one.by) for one in found.blocked] == [("b", "a 1/1 a-1")]
    assert (states(found)["b 1/3 b-1"], states(found)["b 2/3 b-2"]) == ("not run", "not run")


def test_a_ground_whose_tests_fail_can_be_stood_on(project: Any, run: Any, bench: Any) -> None:
    project.stack("a", 1)
    project.stack("b", 2)
    bench.answers = {"a 1/1 a-1": FAILED, "b 1/2 b-1": BROKEN}
    found = run()
    assert [bad.patch for bad in found.first_bad] == ["a-1.patch", "b-1.patch"]
    assert found.blocked == []


@pytest.mark.parametrize(("ground", "blamed"), [(BROKEN, []), (FINE, ["b-1.patch"])])
def test_an_unknown_ground_is_looked_into(
    project: Any, run: Any, bench: Any, ground: Result, blamed: list[str]
) -> None:
    project.stack("a", 2)
    project.stack("b", 3)
    bench.answers = {"b 1/3 b-1": BROKEN, "base a": ground, "b 3/3 b-3": BROKEN}
    found = run("b")
    assert bench.tried[:2] == ["b 1/3 b-1", "base a"]
    assert [bad.patch for bad in found.first_bad] == blamed
    assert [one.stack for one in found.blocked] == ([] if blamed else ["b"])
    assert states(found)["b 2/3 b-2"] == "not run"


def test_a_ground_is_not_looked_into_for_a_failing_test(project: Any, run: Any, bench: Any) -> None:
    project.stack("a", 2)
    project.stack("b", 2)
    bench.answers = {"b 1/2 b-1": FAILED}
    assert [bad.patch for bad in run("b").first_bad] == ["b-1.patch"]
    assert "base a" not in bench.tried


def test_stopping_at_the_first(project: Any, run: Any, bench: Any) -> None:
    project.stack("a", 2)
    project.stack("b", 2)
    bench.answers = {"a 1/2 a-1": BROKEN}
    found = run(first=True)
    assert bench.tried == ["a 1/2 a-1"]
    assert set(list(states(found).values())[1:]) == {"not run"}


def test_failures_are_tried_again_unless_they_are_believed(project: Any, run: Any, bench: Any) -> None:
    project.stack("a", 1)
    bench.answers = {"a 1/1 a-1": FAILED}
    assert not run().ok
    assert not run(cached_failures=True).ok
    assert bench.tried == []
    bench.answers = {}
    assert run().ok
    assert bench.tried == ["a 1/1 a-1"]


def test_no_test_is_a_note_for_a_beginning_and_an_error_for_the_whole(project: Any, run: Any, bench: Any) -> None:
    project.stack("a", 2, test=["tests/a.py"])
    bench.answers = {"a 1/2 a-1": NOTHING, "a 2/2 a-2": NOTHING}
    found = run()
    assert [(outcome.state, outcome.error) for outcome in found.outcomes] == [("no test", False), ("no test", True)]
    assert not found.ok
    assert found.first_bad == []
    bench.answers.pop("a 2/2 a-2")
    assert run().ok
    # What was an error is tried again, what was a note is not.
    assert bench.tried == ["a 2/2 a-2"]


def test_a_stack_that_names_no_test_is_a_note(project: Any, run: Any, bench: Any) -> None:
    project.stack("a", 1)
    bench.answers = {"a 1/1 a-1": Result("no test", "build")}
    (outcome,) = run().outcomes
    assert (outcome.state, outcome.error, outcome.reason) == ("no test", False, "stack.toml names no test")


def test_what_is_nobodys_fault_ends_the_run_and_keeps_what_was_found(project: Any, run: Any, bench: Any) -> None:
    project.stack("a", 3)
    bench.answers = {"a 2/3 a-2": SourceError("the pin is gone")}
    with pytest.raises(SourceError):
        run()
    assert bench.tried == ["a 1/3 a-1", "a 2/3 a-2"]
    bench.answers = {}
    assert run().ok
    assert bench.tried == ["a 2/3 a-2", "a 3/3 a-3"]


def test_another_run_that_was_quicker(
    project: Any, run: Any, bench: Any, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While we waited for the lock somebody verified the unit."""
    project.stack("a", 1)
    run()
    (record,) = (cache.root / "verified").glob("*.json")
    text = record.read_text()
    record.unlink()
    real = running.hold

    def hold(path: Path, **options: Any) -> Any:
        record.write_text(text)
        return real(path, **options)

    monkeypatch.setattr(running, "hold", hold)
    (outcome,) = run().outcomes
    assert outcome.cached
    assert bench.tried == []
