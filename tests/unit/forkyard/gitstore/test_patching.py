from __future__ import annotations

from typing import Any

import pytest

from forkyard.errors import PatchError
from forkyard.gitstore import Author, Store
from forkyard.gitstore.patching import (
    apply_onto,
    entries_at,
    export_each,
    read_foreign_mail,
    refuse_conflict,
    split_mails,
    steps,
)

AUTHOR = Author("A", "a@b", "2026-01-02T00:00:00Z")
LINES = "".join(f"line {number}\n" for number in range(40))
NEW = LINES.replace("line 20\n", "twenty\n")


def diff_of(forge: Any, old: Any, new: Any) -> bytes:
    diff = forge.store.mail_info(forge.patch(old, new))[2]
    assert isinstance(diff, bytes)
    return diff


@pytest.fixture
def diff(forge: Any) -> bytes:
    """Line 20 of ``f`` becomes another; both states are in the store."""
    return diff_of(forge, {"f": LINES.encode()}, {"f": NEW.encode()})


def test_exactly(store: Store, forge: Any, diff: bytes) -> None:
    done = apply_onto(store, forge.tree({"f": LINES.encode()}), diff)
    assert (done.tree, done.exact, done.guessed) == (forge.tree({"f": NEW.encode()}), True, False)
    assert apply_onto(store, forge.tree({}), b"\n").exact


@pytest.mark.parametrize(
    ("there", "result"),
    [
        ("more\n" + LINES, "more\n" + NEW),
        (LINES.replace("line 17\n", "seventeen\n"), NEW.replace("line 17\n", "seventeen\n")),
    ],
)
def test_as_a_merge_with_what_it_was_made_on(store: Store, forge: Any, diff: bytes, there: str, result: str) -> None:
    done = apply_onto(store, forge.tree({"f": there.encode()}), diff)
    assert (done.tree, done.exact, done.guessed) == (forge.tree({"f": result.encode()}), False, False)


def test_a_merge_finds_the_right_one_of_two_alike_places(store: Store, forge: Any) -> None:
    """At an offset the nearest place that looks right is taken; what the diff was made on knows better."""
    block = "begin\nsame 1\nsame 2\nsame 3\nvalue\nsame 4\nsame 5\nsame 6\nend\n"
    old = block + "between\n" * 3 + block
    new = block + "between\n" * 3 + block.replace("value", "changed")
    there = block.replace("begin", "begin\n" + "new\n" * 12) + "between\n" * 3 + block
    done = apply_onto(
        store, forge.tree({"f": there.encode()}), diff_of(forge, {"f": old.encode()}, {"f": new.encode()})
    )
    assert done.tree == forge.tree({"f": (there[: -len(block)] + block.replace("value", "changed")).encode()})


def elsewhere(diff: bytes) -> bytes:
    """The diff as made on a file nobody here has."""
    head, mark, rest = diff.partition(b"\nindex ")
    return head + mark + b"1" * 40 + rest[40:]


def test_without_what_it_was_made_on_an_offset_is_a_guess_and_said_so(store: Store, forge: Any, diff: bytes) -> None:
    done = apply_onto(store, forge.tree({"f": b"more\n" + LINES.encode()}), elsewhere(diff))
    assert (done.tree, done.exact, done.guessed) == (forge.tree({"f": b"more\n" + NEW.encode()}), False, True)
    assert apply_onto(store, forge.tree({"f": LINES.encode()}), elsewhere(diff)).exact


def test_fuzz_is_never_applied(store: Store, forge: Any, diff: bytes) -> None:
    there = forge.tree({"f": LINES.replace("line 17\n", "seventeen\n").encode()})
    done = apply_onto(store, there, elsewhere(diff))
    assert done.tree is None
    assert done.lacking
    assert done.conflicts == (("f", 18),)


def test_a_conflict_names_file_and_hunk(store: Store, forge: Any, diff: bytes) -> None:
    done = apply_onto(store, forge.tree({"f": LINES.replace("line 20\n", "other\n").encode()}), diff)
    assert (done.tree, done.conflicts) == (None, (("f", 18),))
    error = refuse_conflict("x", "x.patch", diff, done, "do it by hand")
    assert error.what == "x does not apply"
    assert str(error.why) == "f: @@ -18,7 +18,7 @@ line 16"
    assert error.next_step == "do it by hand"


@pytest.mark.parametrize("there", [{}, {"g": b"x"}, {"f": ("120000", b"x")}, {"f/x": b"x"}])
def test_files_that_are_not_there(store: Store, forge: Any, diff: bytes, there: Any) -> None:
    done = apply_onto(store, forge.tree(there), diff)
    assert done.tree is None
    assert "f" in str(refuse_conflict("x", "w", diff, done, "n").why)


@pytest.mark.parametrize("junk", [b"diff --git a/f b/f\n@@ nothing\n", b"--- a/f\n+++ b/f\n@@ -1 +1 @@\n-x\n"])
def test_what_is_no_diff(store: Store, forge: Any, junk: bytes) -> None:
    done = apply_onto(store, forge.tree({"f": b"y\n"}), junk)
    assert done.tree is None
    assert refuse_conflict("x", "w", junk, done, "n").why


def test_each_step_of_a_chain(store: Store, forge: Any) -> None:
    states: list[dict[str, Any]] = [
        {},
        {"a b": b"1", "link": ("120000", b"x")},
        {"a b": b"2", "\u00fc": ("100755", b"u")},
        {"a b": b"2", "\u00fc": ("100755", b"u")},
    ]
    found = steps(store, [forge.tree(state) for state in states])
    assert [[(entry.path, entry.mode) for entry in step.added] for step in found] == [
        [("a b", "100644"), ("link", "120000")],
        [("\u00fc", "100755")],
        [],
    ]
    assert [step.changed for step in found] == [{"a b", "link"}, {"a b", "link", "\u00fc"}, set()]
    assert steps(store, []) == steps(store, [forge.tree({})]) == []


def test_entries_of_some_paths(store: Store, forge: Any) -> None:
    tree = forge.tree({"a b": b"1", "d/x": ("100755", b"1"), "*": b"2"})
    found = entries_at(store, tree, ["a b", "d/x", "nosuch", "*"])
    assert {path: entry.mode for path, entry in found.items()} == {"a b": "100644", "d/x": "100755", "*": "100644"}
    assert entries_at(store, tree, []) == {}


def test_exports_come_in_order_with_their_files_left_out(store: Store, forge: Any) -> None:
    parent = base = store.commit(forge.tree({}), None, AUTHOR, b"base\n")
    links = []
    for number in range(5):
        files = {f"f{other}": b"x\n" for other in range(number + 1)}
        commit = store.commit(forge.tree(files), parent, AUTHOR, b"part : %d\n" % number)
        links.append((parent, commit, [f"f{number}"] if number in (1, 2) else []))
        parent = commit
    found = export_each(store, links)
    assert found == [store.export(commit, exclude=paths) for _, commit, paths in links]
    assert [b"+++ b/f" in data for data in found] == [True, False, False, True, True]
    assert export_each(store, []) == []
    assert base != parent


# -- mails of other people -----------------------------------------------------------------------------


def mail(subject: str, body: str = "", diff: str = "") -> bytes:
    head = "From 1111111111111111111111111111111111111111 Mon Sep 17 00:00:00 2001\n"
    head += f"From: J <j@example.org>\nDate: Fri, 2 Jan 2026 03:04:05 +0200\nSubject: {subject}\n\n{body}---\n"
    return (head + " f | 2 +-\n\n" + diff + "-- \n2.39.5\n\n").encode()


def test_an_mbox_is_split(store: Store) -> None:
    mails = [mail("[PATCH 1/2] one", "From here on\n>From there\n"), mail("[PATCH 2/2] two")]
    assert [part.rstrip() for part in split_mails(store, b"".join(mails))] == [part.rstrip() for part in mails]
    lone = mail("one").split(b"\n", 1)[1]
    assert [part.rstrip() for part in split_mails(store, lone)] == [lone.rstrip()]


@pytest.mark.parametrize(
    ("subject", "kept"),
    [
        ("[PATCH] part : x", "part : x"),
        ("[PATCH v2 3/7] part : x", "part : x"),
        ("[RFC PATCH] part : x", "part : x"),
        ("[part] x", "[part] x"),
        ("[PATCH] [part] x", "[part] x"),
        ("=?UTF-8?q?part=20=3A=20=C3=BC?=", "part : \u00fc"),
    ],
)
def test_the_subject_of_a_mail(store: Store, subject: str, kept: str) -> None:
    found = read_foreign_mail(store, mail(subject, "body\n"))
    assert found.message.decode().split("\n")[0] == kept
    assert b"body" in found.message
    assert found.author == Author("J", "j@example.org", "Fri, 2 Jan 2026 03:04:05 +0200")


def test_what_is_no_mail(store: Store) -> None:
    with pytest.raises(PatchError):
        read_foreign_mail(store, b"hello\n")
