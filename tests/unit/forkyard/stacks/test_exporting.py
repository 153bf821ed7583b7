from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forkyard.errors import PatchError
from forkyard.gitstore import Author, GitFailure, Store
from forkyard.gitstore.history import CommitFacts, commits
from forkyard.stacks.applying import Chain
from forkyard.stacks.exporting import Exported, OldPatch, export_commits, match_names, with_trailers

Files = Mapping[str, Any]
AUTHOR = Author("A. Person", "a@example.org", "2026-01-02T03:04:05+02:00")
STATUS = "Upstream-Status: Pending\n"
LINES = "".join(f"line {number}\n" for number in range(40)).encode()
OLD: Files = {"a.c": LINES, "b.txt": b"b\n"}
NEW: Files = {"a.c": LINES.replace(b"line 5\n", b"five\n"), "b.txt": b"b\n"}

# Each example runs a dozen gits.
few = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, forge_of: Any) -> Any:
    """A forge whose store all examples of a property share."""
    store = Store(tmp_path_factory.mktemp("store") / "engine.git")
    store.ensure()
    return forge_of(store)


def chain(
    forge: Any, states: Sequence[Files], messages: Sequence[str | bytes], author: Author = AUTHOR
) -> tuple[str, list[CommitFacts]]:
    """Commits that lead from each state to the next."""
    store = forge.store
    base = tip = store.commit(forge.tree(states[0]), None, AUTHOR, b"base\n")
    for state, message in zip(states[1:], messages, strict=True):
        data = message if isinstance(message, bytes) else message.encode()
        tip = store.commit(forge.tree(state), tip, author, data)
    return base, commits(store, f"{base}..{tip}") if tip != base else []


def names(count: int) -> list[str]:
    return [f"{number}.patch" for number in range(count)]


def again(store: Store, base: str, exported: Exported) -> tuple[list[CommitFacts], Exported]:
    """Apply the patches as an import does, and export the commits that come of it."""
    with Chain.on(store, base, store.tree_of(base)) as applied:
        for patch in exported.patches:
            applied.add(patch.data, label=patch.name, where=patch.name, whole_file=lambda path: exported.files[path])
        applied.check_exports()
        made = commits(store, f"{base}..{applied.commit}") if exported.patches else []
    inline = {
        patch.name: set(store_paths(store, one.tree)) - {file.target for file in patch.adds}
        for patch, one in zip(exported.patches, made, strict=True)
    }
    return made, export_commits(store, base, made, list(exported.names), inline=inline)


def store_paths(store: Store, tree: str) -> list[str]:
    return [entry.path for entry in store.entries(tree)]


def one(forge: Any, message: str | bytes, old: Files = OLD, new: Files = NEW, **options: Any) -> Exported:
    base, made = chain(forge, [old, new], [message], options.pop("author", AUTHOR))
    return export_commits(forge.store, base, made, ["x.patch"], **options)


def message_of(store: Store, exported: Exported, number: int = 0) -> str:
    commit = exported.patches[number].commit
    return commits(store, "--max-count=1", commit)[0].message.strip("\n")


# -- any change ----------------------------------------------------------------------------------------

paths = st.sampled_from(
    [
        "a",
        "dir/b.c",
        "dir/deeper/c",
        "a b/c d.txt",
        "\u00fc/\u6f22.txt",
        'quo"te',
        "tab\there",
        "-dash",
        "x.patch",
        ".hid",
    ]
)
lines = st.sampled_from(
    [
        "",
        "a",
        "b\r",
        "-- ",
        "--- a/f",
        "+++ b/f",
        "@@ -1 +1 @@",
        "diff --git a/f b/f",
        "From me",
        "\\ x",
        "\u4f60\x0c",
        "\t",
    ]
)
text = st.lists(lines, max_size=8).flatmap(
    lambda found: st.sampled_from(["\n".join(found).encode(), ("\n".join(found) + "\n").encode()])
)
content = st.one_of(text, st.binary(max_size=40), st.sampled_from([b"", b"\0\1\2" * 9, b"latin \xe4\n", b"a\r\nb\r\n"]))
entries = st.one_of(
    content,
    st.tuples(st.just("100755"), content),
    st.tuples(st.just("120000"), st.sampled_from([b"a", b"../x", b"no/where"])),
)


def parts(path: str) -> list[str]:
    pieces = path.split("/")
    return ["/".join(pieces[:count]) for count in range(1, len(pieces))]


states = st.dictionaries(paths, entries, max_size=5)


@given(st.lists(states, min_size=1, max_size=4))
@few
def test_any_series_comes_out_as_it_went_in(ground: Any, found: list[Files]) -> None:
    """CRLF, no final newline, binary, renames, modes, links, unicode, spaces, empty commits and empty series."""
    store = ground.store
    base, made = chain(ground, found, [f"part : change {number}\n\n{STATUS}" for number in range(len(found) - 1)])
    exported = export_commits(store, base, made, names(len(made)))
    assert [patch.tree for patch in exported.patches] == [commit.tree for commit in made]
    reimported, twice = again(store, base, exported)
    assert [commit.tree for commit in reimported] == [commit.tree for commit in made]
    assert [commit.author for commit in reimported] == [commit.author for commit in made]
    assert [patch.data for patch in twice.patches] == [patch.data for patch in exported.patches]
    assert twice.files == exported.files
    assert twice.notes == ()


KINDS: dict[str, tuple[Files, Files]] = {
    "rename": ({"f": b"x\n" * 50}, {"g": b"x\n" * 50}),
    "rename and replace": ({"f": b"x\n" * 50}, {"f": b"y\n", "g": b"x\n" * 50}),
    "swap": ({"f": b"x\n" * 50, "g": b"y\n" * 50}, {"g": b"x\n" * 50, "f": b"y\n" * 50}),
    "file to folder": ({"f": b"x\n"}, {"f/g": b"x\n"}),
    "folder to file": ({"f/g": b"x\n"}, {"f": b"x\n"}),
    "file to link": ({"f": b"x\n"}, {"f": ("120000", b"x\n")}),
    "case": ({"File": b"x\n"}, {"file": b"x\n"}),
    "empty": (OLD, OLD),
    "everything gone": (OLD, {}),
    "from nothing": ({}, OLD),
    "only a mode": ({"f": b"x\n"}, {"f": ("100755", b"x\n")}),
    "no newline to newline": ({"f": b"x"}, {"f": b"x\n"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_change(ground: Any, kind: str) -> None:
    old, new = KINDS[kind]
    exported = one(ground, f"part : change\n\n{STATUS}", old, new)
    base = ground.store.commit(ground.tree(old), None, AUTHOR, b"base\n")
    made, twice = again(ground.store, base, exported)
    assert made[0].tree == ground.tree(new)
    assert twice.patches[0].data == exported.patches[0].data


def test_an_empty_series(ground: Any) -> None:
    base = ground.store.commit(ground.tree(OLD), None, AUTHOR, b"base\n")
    assert export_commits(ground.store, base, [], []) == Exported(())


# -- any message ---------------------------------------------------------------------------------------

message_lines = st.sampled_from(
    ["", "word", "two  blanks", "trailing ", "\ttab", "\u00fc\u4f60", "w" * 200, "long " * 40, "* item", "#hash",
     "[tag] x", "-- >8 --", "scissors -- 8< -- cut", "---", "--- a/f", "diff --git a/x b/x", "Index: x", "From me",
     ">From you", "From: A <a@b>", "Subject: other", "Date: now", "+++ x", "@@ -1 +1 @@", "crlf\r", "-- ", "a: b",
     "=?UTF-8?q?x?=", "\u2028", "nbsp\xa0", "Upstream-Status: Pending", "Re: x", "[PATCH 1/2] y", "\\", "^", "."]
)  # fmt: skip


@given(st.lists(message_lines, min_size=1, max_size=6))
@settings(few, max_examples=50)
def test_a_message_is_kept_or_refused(ground: Any, found: list[str]) -> None:
    message = "\n".join(found)
    try:
        exported = one(ground, message)
    except PatchError as error:
        assert error.why or error.where
        return
    back = message_of(ground.store, exported)
    # Blanks may differ, and trailers may follow; a word never goes.
    assert back.split()[: len(message.split())] == message.split()
    author, text, _ = ground.store.mail_info(exported.patches[0].data)
    assert text.decode().strip("\n") == back
    assert author.name == AUTHOR.name


@pytest.mark.parametrize(
    "line",
    ["---", "--- a/f", "diff --git a/x b/x", "Index: x"],
)
def test_a_line_that_would_cut_the_message_is_refused(ground: Any, line: str) -> None:
    with pytest.raises(PatchError, match=r"x\.patch cannot be a patch file") as caught:
        one(ground, f"part : x\n\nbefore\n{line}\nafter\n\n{STATUS}")
    assert "message" in str(caught.value.next_step)
    assert "'part : x'" in str(caught.value.where)


@pytest.mark.parametrize(
    "line", ["From: B <b@example.org>", "Subject: another", "Date: Fri, 2 Jan 2026 00:00:00 +0000"]
)
def test_a_body_that_begins_like_a_mail_is_refused(ground: Any, line: str) -> None:
    with pytest.raises(PatchError, match="cannot be a patch file"):
        one(ground, f"part : x\n\n{line}\n\ntext\n\n{STATUS}")


@pytest.mark.parametrize("line", ["From me", ">From you", "-- >8 --", "  ---", "> diff --git a b", "[PATCH 1/2]"])
def test_lines_that_only_look_dangerous_are_kept(ground: Any, line: str) -> None:
    exported = one(ground, f"part : x\n\nbefore\n{line}\nafter\n\n{STATUS}")
    assert f"\n{line}\n" in message_of(ground.store, exported)
    assert exported.notes == ()


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ("part : x  \n\nbody  \n\n" + STATUS, "part : x"),
        ("part : x\ny\nz\n\n" + STATUS, "part : x y z"),
        ("\n\n  part :   x\n\n" + STATUS, "part : x"),
        ("part : x\r\n\r\nbody\r\n\r\n" + STATUS.replace("\n", "\r\n"), "part : x"),
        ("part : " + "a very long subject " * 30 + "\n\n" + STATUS, ("part : " + "a very long subject " * 30).strip()),
        ("part : " + "\u00fc" * 300 + "\n\n" + STATUS, "part : " + "\u00fc" * 300),
    ],
)
def test_white_space_is_put_in_order_and_nothing_else(ground: Any, message: str, kept: str) -> None:
    exported = one(ground, message)
    assert message_of(ground.store, exported).split("\n")[0] == kept == exported.patches[0].subject
    assert "Upstream-Status: Pending" in message_of(ground.store, exported)


def test_blanks_at_line_ends_go_with_a_note(ground: Any) -> None:
    exported = one(ground, f"part : x\n\nbody  \n\n{STATUS}")
    assert "\nbody\n" in message_of(ground.store, exported)
    assert exported.notes == ("x.patch: white space in its message was put in order",)


@pytest.mark.parametrize("message", ["", "\n\n", " \n"])
def test_no_message_is_refused(ground: Any, message: str) -> None:
    with pytest.raises(PatchError):
        one(ground, message)


def test_a_message_that_is_not_utf8_is_refused(ground: Any) -> None:
    store = ground.store
    base, made = chain(ground, [OLD, NEW], [f"part : x\n\n{STATUS}"])
    raw = store._git("cat-file", "commit", made[0].commit).replace(b"part : x", b"part : \xe4")
    oid = store._line("hash-object", "-t", "commit", "-w", "--stdin", stdin=raw)
    with pytest.raises(PatchError) as caught:
        export_commits(store, base, commits(store, f"{base}..{oid}"), ["x.patch"])
    assert "its message is not UTF-8" in str(caught.value.why)


def test_a_message_in_another_declared_encoding_becomes_utf8(ground: Any) -> None:
    store = ground.store
    base, made = chain(ground, [OLD, NEW], [f"part : x\n\n{STATUS}"])
    raw = store._git("cat-file", "commit", made[0].commit).replace(b"part : x", b"part : \xe4")
    raw = raw.replace(b"\n\n", b"\nencoding ISO-8859-1\n\n", 1)
    oid = store._line("hash-object", "-t", "commit", "-w", "--stdin", stdin=raw)
    exported = export_commits(store, base, commits(store, f"{base}..{oid}"), ["x.patch"])
    assert exported.patches[0].subject == "part : \u00e4"


# -- any author ----------------------------------------------------------------------------------------


@given(
    st.text(st.characters(blacklist_characters="<>\n\0", blacklist_categories=("Cs", "Cc")), min_size=1, max_size=20)
)
@few
def test_an_author_is_kept_or_refused(ground: Any, name: str) -> None:
    store = ground.store
    try:
        base, made = chain(ground, [OLD, NEW], [f"part : x\n\n{STATUS}"], Author(name, "a@b.example", AUTHOR.date))
    except GitFailure as error:
        # git takes no name of nothing but punctuation.
        assert "ident" in error.text or "disallowed" in error.text
        return
    try:
        exported = export_commits(store, base, made, ["x.patch"])
    except PatchError as error:
        assert "author" in str(error.why) or "well-formed" in str(error.why) or "mail" in error.describe()
        return
    assert commits(store, "--max-count=1", exported.patches[0].commit)[0].author == made[0].author


def test_an_author_that_is_not_utf8_is_refused(ground: Any) -> None:
    base, made = chain(ground, [OLD, NEW], [f"part : x\n\n{STATUS}"])
    author = Author(b"J\xfcrgen".decode("utf-8", "surrogateescape"), "a@b", AUTHOR.date)
    latin = [CommitFacts(made[0].commit, made[0].tree, made[0].parents, author, made[0].message)]
    with pytest.raises(PatchError) as caught:
        export_commits(ground.store, base, latin, ["x.patch"])
    assert "author's name is not UTF-8" in str(caught.value.why)


@pytest.mark.parametrize("date", ["1970-01-01T00:00:01Z", "2026-12-31T23:59:59-1130", "2026-02-28T00:00:00+14:00"])
def test_dates_come_out_as_they_went_in(ground: Any, date: str) -> None:
    exported = one(ground, f"part : x\n\n{STATUS}", author=Author("A", "a@b", date))
    _, made = chain(ground, [OLD, NEW], [f"part : x\n\n{STATUS}"], Author("A", "a@b", date))
    found = commits(ground.store, "--max-count=1", exported.patches[0].commit)[0]
    assert found.author == made[0].author


# -- trailers and whole files --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("subject", "subject\n\nX: y\n"),
        ("subject: like a trailer", "subject: like a trailer\n\nX: y\n"),
        ("subject\n\nbody", "subject\n\nbody\n\nX: y\n"),
        ("subject\n\nbody\n\nA: b", "subject\n\nbody\n\nA: b\nX: y\n"),
        (
            "subject\n\nUpstream-Status: Pending\n(and a remark)",
            "subject\n\nUpstream-Status: Pending\n(and a remark)\nX: y\n",
        ),
        ("subject\n\nNot: one\nbut text", "subject\n\nNot: one\nbut text\n\nX: y\n"),
    ],
)
def test_trailers_join_the_last_paragraph_if_it_is_one_of_trailers(message: str, expected: str) -> None:
    assert with_trailers(message, ["X: y"]) == expected


def test_a_status_is_added_where_it_is_missing(ground: Any) -> None:
    exported = one(ground, "part : x\n\nUpstream-Status: Pending, I think\n\nlast words\n")
    assert message_of(ground.store, exported).endswith("last words\n\nUpstream-Status: Pending")
    assert exported.notes == ("x.patch: added `Upstream-Status: Pending`",)


def test_a_wrong_status_is_refused(ground: Any) -> None:
    with pytest.raises(PatchError, match="where it stands upstream"):
        one(ground, "part : x\n\nUpstream-Status: Perhaps\n")


def test_new_files_become_whole_files(ground: Any) -> None:
    new = {**NEW, "src/ours.c": b"int ours;\r\n", "run.sh": ("100755", b"#!/bin/sh\n")}
    exported = one(ground, f"part : add\n\n{STATUS}", new=new)
    assert exported.files == {"src/ours.c": (b"int ours;\r\n", False), "run.sh": (b"#!/bin/sh\n", True)}
    data = exported.patches[0].data
    assert b"int ours" not in data
    assert b"Adds-Files: run.sh\nAdds-Files: src/ours.c\n" in data
    assert b"+five" in data


def test_a_declared_file_keeps_the_name_it_has_among_ours(ground: Any) -> None:
    message = f"part : add\n\n{STATUS}Adds-Files: engine/ours.c -> src/ours.c\n"
    exported = one(ground, message, new={**NEW, "src/ours.c": b"c"})
    assert exported.files == {"engine/ours.c": (b"c", False)}
    assert exported.notes == ()


def test_new_files_stay_in_the_diff_where_they_are_wanted_there(ground: Any) -> None:
    new = {**NEW, "ours.c": b"int ours;\n", "other.c": b"int other;\n"}
    message = f"part : add\n\n{STATUS}"
    assert b"+int ours;" in one(ground, message, new=new, whole_files=False).patches[0].data
    mixed = one(ground, message, new=new, inline={"x.patch": ["ours.c"]})
    assert list(mixed.files) == ["other.c"]
    assert b"+int ours;" in mixed.patches[0].data


@pytest.mark.parametrize("path", ["a -> b", "a\tb", " a", "\u0085"])
def test_names_that_no_trailer_can_hold_stay_in_the_diff(ground: Any, path: str) -> None:
    exported = one(ground, f"part : add\n\n{STATUS}", new={**NEW, path: b"x\n"})
    assert exported.files == {}
    assert b"+x\n" in exported.patches[0].data


def test_a_whole_file_that_is_edited_later_has_the_edit_in_a_patch(ground: Any) -> None:
    found = [OLD, {**OLD, "o.c": b"1\n"}, {**OLD, "o.c": b"2\n"}, {**OLD, "p.c": b"2\n"}]
    base, made = chain(ground, found, [f"part : {number}\n\n{STATUS}" for number in range(3)])
    exported = export_commits(ground.store, base, made, names(3))
    assert exported.files == {"o.c": (b"1\n", False), "p.c": (b"2\n", False)}
    assert b"-1\n+2\n" in exported.patches[1].data
    _, twice = again(ground.store, base, exported)
    assert [patch.data for patch in twice.patches] == [patch.data for patch in exported.patches]


def test_a_file_that_is_declared_and_not_added_is_refused(ground: Any) -> None:
    with pytest.raises(PatchError, match=r"says that it adds gone\.c, which it does not"):
        one(ground, f"part : add\n\n{STATUS}Adds-Files: gone.c\n")


def test_one_source_with_two_contents_is_refused(ground: Any) -> None:
    message = f"part : add\n\n{STATUS}Adds-Files: s.c -> a/s.c\nAdds-Files: s.c -> b/s.c\n"
    with pytest.raises(PatchError, match="a second time with other content"):
        one(ground, message, new={**NEW, "a/s.c": b"1", "b/s.c": b"2"})


@pytest.mark.parametrize("again", [{"o": b"2"}, {"o/deeper": b"2"}, {"o": ("100755", b"1")}])
def test_a_file_that_comes_back_as_another_stays_in_the_diff(ground: Any, again: Files) -> None:
    base, made = chain(ground, [{}, {"o": b"1"}, {}, again], [f"part : {number}\n\n{STATUS}" for number in range(3)])
    exported = export_commits(ground.store, base, made, names(3))
    assert exported.files == {"o": (b"1", False)}
    assert b"new file mode" in exported.patches[2].data


def test_a_file_that_comes_back_as_it_was_is_the_same_whole_file(ground: Any) -> None:
    states = [{}, {"o": b"1"}, {}, {"o": b"1"}]
    base, made = chain(ground, states, [f"part : {number}\n\n{STATUS}" for number in range(3)])
    exported = export_commits(ground.store, base, made, names(3))
    assert exported.files == {"o": (b"1", False)}
    assert b"Adds-Files: o\n" in exported.patches[2].data


def test_one_bad_commit_of_many_is_named(ground: Any) -> None:
    found = [{**OLD, "n": b"%d\n" % number} for number in range(4)]
    base, made = chain(ground, found, [f"a\n\n{STATUS}", f"b\n\n---\n\n{STATUS}", f"c\n\n{STATUS}"])
    with pytest.raises(PatchError, match=r"1\.patch cannot be a patch file"):
        export_commits(ground.store, base, made, names(3))


# -- names ---------------------------------------------------------------------------------------------


def facts(subject: str, email: str = "a@b", date: str = "d") -> CommitFacts:
    return CommitFacts("", "", (), Author("A", email, date), subject + "\n")


def test_a_patch_keeps_its_name_through_amending_and_rewording() -> None:
    old = [OldPatch("one.patch", "first", "a@b", "1"), OldPatch("two.patch", "second", "a@b", "2")]
    assert match_names(old, [facts("second", date="9"), facts("reworded", date="1")]) == ["two.patch", "one.patch"]


def test_a_new_commit_gets_a_name_nobody_has() -> None:
    old = [OldPatch("fix-it.patch", "first", "a@b", "1")]
    found = match_names(old, [facts("first"), facts("fix it"), facts("Fix: it!"), facts("other")], ["other.patch"])
    assert found == ["fix-it.patch", "fix-it-2.patch", "fix-it-3.patch", "other-2.patch"]


def test_two_patches_with_one_subject_keep_their_order() -> None:
    old = [OldPatch("a.patch", "same", "a@b", "1"), OldPatch("b.patch", "same", "a@b", "2")]
    assert match_names(old, [facts("same", date="1"), facts("same", date="2")]) == ["a.patch", "b.patch"]


def test_commits_of_one_second_are_not_taken_for_each_other() -> None:
    old = [OldPatch("a.patch", "one", "a@b", "1"), OldPatch("b.patch", "two", "a@b", "1")]
    assert match_names(old, [facts("two", date="1"), facts("three", date="1")]) == ["b.patch", "three.patch"]
    lone = [OldPatch("a.patch", "one", "a@b", "1")]
    assert match_names(lone, [facts("x", date="1"), facts("y", date="1")]) == ["x.patch", "y.patch"]
