"""Ranges of commits in a store, compared by git."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from forkyard.gitstore import Author, GitFailure, Store
from forkyard.gitstore.comparing import Change, changes_of, range_diff

AUTHOR = Author("A. Person", "a@example.org", "2026-01-02T03:04:05+02:00")
ONE = b"1\n2\n3\n4\n5\n6\n7\n8\n9\n"


def chain(forge: Any, base: Mapping[str, Any], *steps: tuple[str, Mapping[str, Any]]) -> list[str]:
    """Commits with these files, one after the other; the base first."""
    made = [forge.store.commit(forge.tree(base), None, AUTHOR, b"base\n")]
    for message, files in steps:
        made.append(forge.store.commit(forge.tree(files), made[-1], AUTHOR, message.encode()))
    return made


def signs(output: bytes) -> list[str]:
    return [line.split()[2] for line in output.decode().splitlines() if not line.startswith("    ")]


def test_two_ranges(forge: Any) -> None:
    files = {"a": ONE}
    old = chain(forge, files, ("one\n", {"a": ONE + b"x\n"}), ("two\n", {"a": ONE + b"x\n", "b": ONE}))
    new = chain(forge, files, ("one\n", {"a": ONE + b"y\n"}), ("two\n", {"a": ONE + b"y\n", "b": ONE}))
    said = range_diff(forge.store, (old[0], old[2]), (new[0], new[2]), creation_factor=100)
    assert signs(said) == ["!", "="]
    assert old[1].encode() in said
    assert b"    -+x\n    ++y\n" in said


def test_bases_that_share_nothing(forge: Any) -> None:
    old = chain(forge, {"a": ONE}, ("one\n", {"a": b"0\n" + ONE}))
    new = chain(forge, {"a": ONE + b"end\n", "other": b""}, ("one\n", {"a": b"0\n" + ONE + b"end\n", "other": b""}))
    assert signs(range_diff(forge.store, (old[0], old[1]), (new[0], new[1]))) == ["="]


def test_an_empty_range(forge: Any) -> None:
    made = chain(forge, {"a": ONE}, ("one\n", {"a": b"0\n"}), ("two\n", {"a": b"00\n"}))
    full, empty = (made[0], made[2]), (made[0], made[0])
    assert signs(range_diff(forge.store, empty, full)) == [">", ">"]
    assert signs(range_diff(forge.store, full, empty)) == ["<", "<"]
    assert range_diff(forge.store, empty, empty) == b""
    other = chain(forge, {"z": ONE}, ("x\n", {"z": b""}))
    assert signs(range_diff(forge.store, (other[0], other[0]), full)) == [">", ">"]
    assert signs(range_diff(forge.store, full, (made[2], made[2]))) == ["<", "<"]


def test_the_creation_factor(forge: Any) -> None:
    old = chain(forge, {"a": ONE}, ("one\n", {"a": ONE + b"x\n"}))
    new = chain(forge, {"a": ONE}, ("one\n", {"a": ONE + b"y\n"}))
    ranges = (old[0], old[1]), (new[0], new[1])
    assert signs(range_diff(forge.store, *ranges, creation_factor=1000)) == ["!"]
    assert signs(range_diff(forge.store, *ranges, creation_factor=0)) == ["<", ">"]


def test_no_setting_of_the_user_matters(forge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = chain(forge, {"a": ONE}, ("one\n", {"a": ONE + b"x\n", "ü": b"1\n"}))
    new = chain(forge, {"a": ONE}, ("one\n", {"a": ONE + b"y\n", "ü": b"1\n"}))
    ranges = (old[0], old[1]), (new[0], new[1])
    said = range_diff(forge.store, *ranges, creation_factor=1000)
    (tmp_path / ".gitconfig").write_text(
        "[diff]\n\tnoprefix = true\n\tcontext = 0\n\talgorithm = histogram\n[core]\n\tabbrev = 7\n\tquotePath = true\n"
        "[color]\n\tui = always\n[log]\n\tshowSignature = true\n[i18n]\n\tlogOutputEncoding = latin1\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / ".gitconfig"))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    monkeypatch.setenv("GIT_DIFF_OPTS", "--unified=0")
    assert range_diff(forge.store, *ranges, creation_factor=1000) == said
    assert "## ü (new) ##".encode() in said


def test_a_missing_commit(forge: Any) -> None:
    made = chain(forge, {"a": ONE}, ("one\n", {"a": b""}))
    with pytest.raises(GitFailure):
        range_diff(forge.store, (made[0], made[1]), (made[0], "1" * 40))
    with pytest.raises(GitFailure):
        changes_of(forge.store, ["1" * 40])


def facts(store: Store, commit: str) -> list[tuple[str, str, str, bool]]:
    return [(one.path, one.status, one.mode, one.binary) for one in changes_of(store, [commit])[commit]]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": ONE}, {"a": b"x"}, [("a", "M", "100644", False)]),
        ({"a": ONE}, {}, [("a", "D", "000000", False)]),
        ({"a": ONE}, {"b": ONE}, [("a", "D", "000000", False), ("b", "A", "100644", False)]),
        ({"a": ONE}, {"a": ("100755", ONE)}, [("a", "M", "100755", False)]),
        ({"a": ONE}, {"a": ("120000", b"b")}, [("a", "T", "120000", False)]),
        ({}, {'ü ä\t\n"': b"\0x", "b": b""}, [("b", "A", "100644", False), ('ü ä\t\n"', "A", "100644", True)]),
        ({"a": ONE}, {"a": ONE}, []),
    ],
)
def test_what_a_commit_does(
    forge: Any, old: Mapping[str, Any], new: Mapping[str, Any], expected: Sequence[tuple[str, str, str, bool]]
) -> None:
    made = chain(forge, old, ("one\n", new))
    assert facts(forge.store, made[1]) == list(expected)


def test_many_commits_at_once(forge: Any) -> None:
    made = chain(forge, {"a": ONE}, ("one\n", {"a": b"\0"}), ("same\n", {"a": b"\0"}), ("two\n", {"b": b"\0"}))
    found = changes_of(forge.store, made[1:])
    assert [len(found[commit]) for commit in made[1:]] == [1, 0, 2]
    assert found[made[1]][0] == Change("a", "M", "100644", forge.store.write_blob(b"\0"), True)
    assert changes_of(forge.store, []) == {}
