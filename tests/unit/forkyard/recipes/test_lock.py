from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkyard.errors import RecipeError, StorageError
from forkyard.recipes.lock import Lock, read_lock, render, verify, write_lock


def lock(**changes: Any) -> Lock:
    data: dict[str, Any] = {
        "schema": 1,
        "recipe": "mine",
        "family": "llama.cpp",
        "base-commit": "1" * 40,
        "base-tree": "2" * 40,
        "patched-commit": "3" * 40,
        "patched-tree": "4" * 40,
        "sources": [
            {"kind": "registry", "location": "engine==1.0", "sha256": "5" * 64},
            {"kind": "git", "location": "https://example.org/engine"},
        ],
        "stacks": [
            {
                "name": "fixes",
                "patches": [{"path": "b.patch", "sha256": "6" * 64}, {"path": "a.patch", "sha256": "7" * 64}],
                "files": [{"path": "z.c", "sha256": "8" * 64}, {"path": "a.c", "sha256": "9" * 64}],
            },
            {"name": "empty"},
        ],
    }
    return Lock.model_validate({**data, **changes})


def test_a_lock_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.lock.toml"
    assert write_lock(lock(), path) is True
    read = read_lock(path)
    assert render(read) == render(lock()) == path.read_text()
    assert [patch.path for patch in read.stacks[0].patches] == ["b.patch", "a.patch"]
    assert [file.path for file in read.stacks[0].files] == ["a.c", "z.c"]
    assert verify(lock(), read) == []


def test_an_unchanged_lock_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.lock.toml"
    write_lock(lock(), path)
    before = path.stat().st_mtime_ns
    assert write_lock(lock(), path) is False
    assert path.stat().st_mtime_ns == before
    assert [p.name for p in tmp_path.iterdir()] == ["mine.lock.toml"]


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        write_lock(lock(), tmp_path / "none" / "mine.lock.toml")


def test_a_missing_lock_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="forkyard lock"):
        read_lock(tmp_path / "mine.lock.toml")


def test_a_damaged_lock_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.lock.toml"
    path.write_text(render(lock()).replace("4" * 40, "zz"))
    with pytest.raises(RecipeError) as caught:
        read_lock(path)
    assert caught.value.where == f"{path}:9"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patched-tree": "a" * 40}, ["the patched tree is locked as 4444", "found aaaa"]),
        ({"sources": []}, ["source registry engine==1.0 is locked (5555", "not there any more"]),
        ({"stacks": [{"name": "fixes"}]}, ["order of the stacks", "patch fixes/b.patch is locked"]),
        (
            {"sources": [{"kind": "local", "location": "../x"}]},
            ["source local ../x is not in the lock (found without a hash)"],
        ),
    ],
)
def test_a_difference_is_a_sentence(changes: dict[str, Any], words: list[str]) -> None:
    text = "\n".join(str(difference) for difference in verify(lock(), lock(**changes)))
    for word in words:
        assert word in text


def test_another_order_of_patches_is_a_difference() -> None:
    other = lock().model_dump(by_alias=True)
    patches = other["stacks"][0]["patches"]
    other["stacks"][0]["patches"] = patches[::-1]
    found = verify(lock(), Lock.model_validate(other))
    assert [difference.key for difference in found] == ["the series of stack fixes"]


@given(location=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1))
def test_any_location_survives(location: str) -> None:
    written = lock(sources=[{"kind": "local", "location": location}])
    assert Lock.model_validate(tomllib.loads(render(written))).sources == written.sources
