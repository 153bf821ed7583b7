from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forkyard.cache import Cache
from forkyard.verifying import records as module
from forkyard.verifying.records import Failure, Problem, Records, Result, Tally

FULL = Result(
    "bad",
    "test",
    "t" * 40,
    "c" * 40,
    Problem("1 of its 2 tests fails", "log: x", "why", "next"),
    Tally(1, 1, 3, 4, (Failure("tests/a.py::test", "assert 0"),)),
    "w" * 64,
    12,
    "a 1/2 a-1",
    {"apply": 0.25, "build": 2.0},
)


@pytest.fixture
def keys(project: Any, cache: Cache) -> Any:
    def make(level: str = "test") -> dict[str, str]:
        records = Records(cache, project.root, level)  # type: ignore[arg-type]
        return {unit.name: records.key(unit) for unit in project.plan().units}

    return make


@pytest.mark.parametrize("result", [FULL, Result("good", "apply"), Result("no test", "test", tests=Tally())])
def test_a_result_comes_back_as_it_was(project: Any, cache: Cache, result: Result) -> None:
    project.stack("a")
    (unit,) = project.plan().units
    records = Records(cache, project.root, "test")
    key = records.key(unit)
    assert records.read(key) is None
    records.write(key, unit, result)
    assert records.read(key) == result


def test_what_is_damaged_or_anothers_is_no_record(project: Any, cache: Cache) -> None:
    project.stack("a")
    (unit,) = project.plan().units
    records = Records(cache, project.root, "test")
    key = records.key(unit)
    records.write(key, unit, FULL)
    path = cache.root / "verified" / f"{key}.json"
    document = json.loads(path.read_bytes())
    damaged: list[Any] = [
        path.read_bytes()[:-5], b"", b"[]", b"null", b'"x"', b"\xff\xfe",
        {**document, "schema": 2}, {**document, "key": "other"}, {**document, "result": None},
        {**document, "result": {}}, {**document, "result": {**document["result"], "state": "fine"}},
        {**document, "result": {**document["result"], "stage": "eaten"}},
        {**document, "result": {**document["result"], "new": 1}},
        {**document, "result": {**document["result"], "tests": {"passed": 1}}},
        {**document, "result": {**document["result"], "problem": "p"}},
    ]  # fmt: skip
    for data in damaged:
        path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        assert records.read(key) is None, data
    path.write_bytes(json.dumps(document).encode())
    assert records.read(key) == FULL


def test_the_key_changes_with_tests_patches_and_runner(
    project: Any, keys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = project.root / "tests" / "a.py"
    test.parent.mkdir()
    test.write_text("one")
    folder = project.stack("a", 2, test=["tests/a.py"])
    one, two = "a 1/2 a-1", "a 2/2 a-2"
    before = keys()
    assert keys() == before
    assert before[one] != before[two]
    test.write_text("two")
    tested = keys()
    assert all(before[name] != tested[name] for name in before)
    patch = folder / "llama.cpp" / "a-2.patch"
    patch.write_bytes(patch.read_bytes() + b"\n")
    patched = keys()
    assert (patched[one] == tested[one], patched[two] == tested[two]) == (True, False)
    monkeypatch.setattr(module, "runner", lambda: {"pytest": "another"})
    assert all(keys()[name] != patched[name] for name in before)


def test_levels_have_records_of_their_own_and_tests_matter_only_to_theirs(project: Any, keys: Any) -> None:
    test: Path = project.root / "tests" / "a.py"
    test.parent.mkdir()
    project.stack("a", test=["tests/a.py"])
    before = {level: keys(level) for level in ("apply", "build", "test")}
    assert len({tuple(found.values()) for found in before.values()}) == 3
    test.write_text("there now")
    assert {level: keys(level) == found for level, found in before.items()} == {
        "apply": True, "build": True, "test": False,
    }  # fmt: skip
