from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forkyard.errors import ToolchainError
from forkyard.gitstore import Entry, GitFailure, Store
from forkyard.gitstore.merging import MARKER_SIZE, edit_tree, has_markers, merge_texts, merge_trees

LINES = "".join(f"line {number}\n" for number in range(30)).encode()


def edited(*changes: tuple[int, str]) -> bytes:
    lines = LINES.splitlines(keepends=True)
    for number, text in changes:
        lines[number] = text.encode()
    return b"".join(lines)


def merged(forge: Any, before: Any, upstream: Any, patch: Any) -> Any:
    return merge_trees(forge.store, forge.tree(before), forge.tree(upstream), forge.tree(patch))


@pytest.mark.parametrize(
    ("before", "upstream", "patch", "result"),
    [
        (
            {"f": LINES},
            {"f": edited((2, "two\n"))},
            {"f": edited((20, "x\n"))},
            {"f": edited((2, "two\n"), (20, "x\n"))},
        ),
        ({"f": LINES}, {"f": LINES, "u": b"u"}, {"f": LINES, "p": b"p"}, {"f": LINES, "u": b"u", "p": b"p"}),
        ({"f": LINES}, {"moved/f": LINES}, {"f": edited((3, "x\n"))}, {"moved/f": edited((3, "x\n"))}),
        ({"f": LINES}, {"f": ("100755", LINES)}, {"f": edited((3, "x\n"))}, {"f": ("100755", edited((3, "x\n")))}),
        ({"f": LINES, "g": b"g"}, {"f": LINES}, {"f": edited((1, "x\n")), "g": b"g"}, {"f": edited((1, "x\n"))}),
        ({"f": LINES}, {"f": edited((2, "same\n"))}, {"f": edited((2, "same\n"))}, {"f": edited((2, "same\n"))}),
        ({"f": b"\0a"}, {"f": b"\0a", "x": b""}, {"f": b"\0b"}, {"f": b"\0b", "x": b""}),
        ({"f": LINES}, {"f": LINES}, {"f": edited((1, "x\n"))}, {"f": edited((1, "x\n"))}),
        ({"f": LINES}, {"f": edited((1, "x\n"))}, {"f": LINES}, {"f": edited((1, "x\n"))}),
        ({}, {"a": b"a"}, {"b": b"b"}, {"a": b"a", "b": b"b"}),
    ],
)
def test_changes_that_do_not_touch_merge(forge: Any, before: Any, upstream: Any, patch: Any, result: Any) -> None:
    merge = merged(forge, before, upstream, patch)
    assert merge.conflicts == ()
    assert merge.tree == forge.tree(result)


@pytest.mark.parametrize(
    ("before", "upstream", "patch", "kind", "textual"),
    [
        ({"f": LINES}, {"f": edited((2, "u\n"))}, {"f": edited((2, "p\n"))}, "contents", True),
        ({"f": LINES}, {}, {"f": edited((2, "p\n"))}, "modify/delete", False),
        ({"f": LINES}, {"f": edited((2, "u\n"))}, {}, "modify/delete", False),
        ({}, {"f": b"u\n"}, {"f": b"p\n"}, "contents", True),
        ({"f": b"\0a"}, {"f": b"\0b"}, {"f": b"\0c"}, "binary", False),
        (
            {"a b/\u00fc": LINES},
            {"a b/\u00fc": edited((2, "u\n"))},
            {"a b/\u00fc": edited((2, "p\n"))},
            "contents",
            True,
        ),
    ],
)
def test_conflicts_are_named(forge: Any, before: Any, upstream: Any, patch: Any, kind: str, textual: bool) -> None:
    (conflict,) = merged(forge, before, upstream, patch).conflicts
    assert (conflict.kind, conflict.textual) == (kind, textual)
    assert conflict.path in {**before, **upstream, **patch}
    sides = [conflict.before, conflict.upstream, conflict.patch]
    assert [side is not None for side in sides] == [conflict.path in files for files in (before, upstream, patch)]
    for side, files in zip(sides, (before, upstream, patch), strict=True):
        if side is not None:
            assert forge.store._git("cat-file", "blob", side.oid) == files[conflict.path]


def test_every_conflict_is_told_and_no_other(forge: Any) -> None:
    before = dict.fromkeys("abcd", LINES)
    upstream = {"a": edited((2, "u\n")), "b": edited((2, "u\n")), "c": LINES, "d": edited((3, "u\n"))}
    patch = {"a": edited((2, "p\n")), "b": edited((20, "p\n")), "c": edited((2, "p\n")), "d": edited((3, "p\n"))}
    assert [conflict.path for conflict in merged(forge, before, upstream, patch).conflicts] == ["a", "d"]


def test_a_merge_is_the_same_everywhere_and_needs_no_configuration(
    forge: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "gitconfig").write_text("[merge]\n conflictStyle = zdiff3\n renames = false\n[user]\n name = x\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    merge = merged(forge, {"f": LINES}, {"moved/f": LINES}, {"f": edited((3, "x\n"))})
    assert merge.tree == forge.tree({"moved/f": edited((3, "x\n"))})


def test_a_missing_object_is_an_error(forge: Any, store: Store) -> None:
    entry = Entry("100644", "blob", "1" * 40, "f")
    lost = store.write_tree([entry])
    with pytest.raises(GitFailure):
        merge_trees(store, lost, forge.tree({"f": b"u\n"}), forge.tree({"f": b"p\n"}))


def test_an_old_git_is_named(forge: Any, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = store._attempt

    def old(*words: str, **options: Any) -> Any:
        return (
            (129, b"", "usage: git merge-tree <base> <a> <b>")
            if words[0] == "merge-tree"
            else attempt(*words, **options)
        )

    monkeypatch.setattr(store, "_attempt", old)
    with pytest.raises(ToolchainError, match=r"2\.38"):
        merged(forge, {"f": LINES}, {"f": edited((2, "u\n"))}, {"f": edited((20, "p\n"))})


# -- one file ------------------------------------------------------------------------------------------


def test_a_text_conflict_shows_all_three(store: Store) -> None:
    found = merge_texts(store, LINES, edited((2, "u\n")), edited((2, "p\n")))
    assert found.conflicts == 1
    for mark, name in (("<", "upstream"), ("|", "before"), (">", "patch")):
        assert f"{mark * MARKER_SIZE} {name}\n".encode() in found.data
    assert b"\nu\n" in found.data
    assert b"\nline 2\n" in found.data
    assert b"\np\n" in found.data
    assert has_markers(found.data)


def test_the_patch_may_be_favoured(store: Store) -> None:
    found = merge_texts(store, LINES, edited((2, "u\n"), (9, "u9\n")), edited((2, "p\n")), favour="patch")
    assert (found.conflicts, found.data) == (0, edited((2, "p\n"), (9, "u9\n")))


def test_binary_files_are_not_merged(store: Store) -> None:
    assert merge_texts(store, b"\0a", b"\0b", b"\0c").binary
    assert merge_texts(store, b"\0a", b"\0b", b"\0c").conflicts == 1
    assert merge_texts(store, b"\0a", b"\0b", b"\0c", favour="patch").data == b"\0c"


@pytest.mark.parametrize(
    "data", [b"", b"<<<<<<< x\n", b"=" * 40 + b"\n", b"<" * 16 + b" x\n", b"x" + b"<" * 15 + b" x\n"]
)
def test_what_is_no_marker(data: bytes) -> None:
    assert not has_markers(data)


@given(st.binary(max_size=60), st.binary(max_size=60))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_an_unchanged_side_gives_the_other(store: Store, before: bytes, changed: bytes) -> None:
    for sides in ((before, changed), (changed, before)):
        found = merge_texts(store, before, *sides)
        assert (found.conflicts, found.data) == (0, changed)


def test_editing_a_tree(forge: Any, store: Store) -> None:
    tree = forge.tree({"a": b"a", "d/b": b"b", "d/c": b"c"})
    entry = next(entry for entry in store.entries(tree) if entry.path == "a")
    executable = Entry("100755", "blob", entry.oid, "x")
    found = edit_tree(store, tree, [("d/b", None), ("new/a b", executable), ("d/c", entry)])
    assert found == forge.tree({"a": b"a", "d/c": b"a", "new/a b": ("100755", b"a")})
    assert edit_tree(store, tree, []) == tree
    assert edit_tree(store, tree, [("nosuch", None)]) == tree
