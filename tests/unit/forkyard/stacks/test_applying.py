from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkyard.errors import PatchError
from forkyard.gitstore import Author, Store
from forkyard.stacks.applying import PatchedTree, apply_stacks, base_commit
from forkyard.stacks.model import load_stacks

PIN = "1" * 40
DATE = "2026-01-05"
STATUS = b"Upstream-Status: Pending\n"
# A tiny tree and series: any other ids mean that something of the machine got into the commits.
KNOWN_TREE = "9136a2c58747cdd0efd99811d12f4d33008afdf1"
KNOWN_COMMIT = "d23887539a389ed3c745496579a9117f42c43f71"

LINES = [b"line %d\n" % number for number in range(40)]
OLD: dict[str, Any] = {"a.c": b"".join(LINES), "b.txt": b"b\n"}


def edited(**changes: bytes) -> dict[str, Any]:
    lines = list(LINES)
    for name, text in changes.items():
        lines[int(name.removeprefix("n"))] = text
    return {**OLD, "a.c": b"".join(lines)}


@pytest.fixture
def apply(project_root: Path, add_stack: Callable[..., Path], store: Store, forge: Any) -> Callable[..., PatchedTree]:
    """Apply one series to a base: ``apply([patch, ...], base=..., files=...)``."""

    def run(patches: list[bytes], *, base: Any = None, files: Any = None, name: str = "part") -> PatchedTree:
        named = {f"{number}.patch": data for number, data in enumerate(patches)}
        add_stack(project_root, name, patches=named, files=files)
        stacks = load_stacks(project_root, [name], "llama.cpp")
        return apply_stacks(store, "llama.cpp", PIN, DATE, forge.tree(OLD if base is None else base), stacks)

    return run


def content(store: Store, done: PatchedTree, path: str) -> bytes | None:
    return store.read_file(done.tree, path)


def test_a_series_gives_known_ids(apply: Any, forge: Any, store: Store) -> None:
    first = forge.patch(OLD, edited(n5=b"five\n"), b"part : five\n\n" + STATUS)
    second = forge.patch(edited(n5=b"five\n"), edited(n5=b"five\n", n20=b"twenty\n"), b"part : twenty\n\n" + STATUS)
    done = apply([first, second])
    assert (done.tree, done.commit) == (KNOWN_TREE, KNOWN_COMMIT)
    assert done.tree == forge.tree(edited(n5=b"five\n", n20=b"twenty\n"))
    assert done.base == base_commit(store, "llama.cpp", PIN, DATE, forge.tree(OLD))
    assert [(patch.name, patch.subject) for patch in done.patches] == [
        ("0.patch", "part : five"),
        ("1.patch", "part : twenty"),
    ]
    assert done.patches[-1].commit == done.commit


def test_the_base_depends_on_every_fact_of_the_pin(store: Store, forge: Any) -> None:
    tree, other = forge.tree(OLD), forge.tree({})
    ids = {
        base_commit(store, *facts)
        for facts in [
            ("llama.cpp", PIN, DATE, tree),
            ("ik_llama.cpp", PIN, DATE, tree),
            ("llama.cpp", "2" * 40, DATE, tree),
            ("llama.cpp", PIN, "2026-01-06", tree),
            ("llama.cpp", PIN, DATE, other),
        ]
    }
    assert len(ids) == 5


def test_an_offset_is_refused(apply: Any, forge: Any) -> None:
    patch = forge.patch(OLD, edited(n5=b"five\n"))
    with pytest.raises(PatchError, match="not apply exactly") as caught:
        apply([patch], base={**OLD, "a.c": b"one more\n" + OLD["a.c"]})
    assert "@@" in str(caught.value.why)
    assert "refresh" in str(caught.value.next_step)


@pytest.mark.parametrize("place", [3, 5, 7])
def test_wrong_context_is_refused(apply: Any, forge: Any, place: int) -> None:
    patch = forge.patch(OLD, edited(n5=b"five\n"))
    with pytest.raises(PatchError, match="does not apply") as caught:
        apply([patch], base=edited(**{f"n{place}": b"other\n"}))
    assert "a.c" in str(caught.value.why)


def test_blank_differences_in_the_context_are_refused(apply: Any, forge: Any) -> None:
    patch = forge.patch(OLD, edited(n5=b"five\n"))
    with pytest.raises(PatchError):
        apply([patch], base=edited(n4=b"line  4\n"))


def test_another_change_in_the_same_file_is_refused_by_its_object_id(apply: Any, forge: Any) -> None:
    patch = forge.patch(OLD, edited(n5=b"five\n"))
    with pytest.raises(PatchError, match="not apply exactly") as caught:
        apply([patch], base=edited(n30=b"elsewhere\n"))
    assert "index " in str(caught.value.why)


def test_an_under_counting_hunk_is_refused(apply: Any, forge: Any) -> None:
    patch = forge.patch(OLD, {**OLD, "b.txt": b"b\nc\nd\n"})
    assert b"@@ -1 +1,3 @@" in patch
    with pytest.raises(PatchError, match="header counts"):
        apply([patch.replace(b"@@ -1 +1,3 @@", b"@@ -1 +1,2 @@")])


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (b"\n@@ -3,7 +3,7 @@ line 1\n", b"\n@@ -3,7 +3,7 @@\n"),
        (b"Date: Fri, 2 Jan 2026", b"Date: Thu, 2 Jan 2026"),
        (b"\nindex ", b"\nindex 0"),
        (b"From 0000", b"From 1111"),
        (b"--- a/a.c", b"--- x/a.c"),
    ],
)
def test_hand_edited_patches_are_refused(apply: Any, forge: Any, wrong: bytes, right: bytes) -> None:
    patch = forge.patch(OLD, edited(n5=b"five\n"))
    assert wrong in patch
    with pytest.raises(PatchError):
        apply([patch.replace(wrong, right, 1)])


@pytest.mark.parametrize("date", [b"Date: yesterday", b"Date: ", b"Date: Fri, 99 Foo 2026 99:99:99"])
def test_an_impossible_date_is_a_patch_error(apply: Any, forge: Any, date: bytes) -> None:
    patch = re.sub(rb"Date: [^\n]*", date, forge.patch(OLD, edited(n5=b"five\n")), count=1)
    with pytest.raises(PatchError):
        apply([patch])


def test_trailing_bytes_are_refused(apply: Any, forge: Any) -> None:
    with pytest.raises(PatchError):
        apply([forge.patch(OLD, edited(n5=b"five\n")) + b"-- \n2.39.5\n"])


KINDS: dict[str, tuple[Any, Any]] = {
    "dos line ends": ({"f": b"one\r\ntwo\r\n"}, {"f": b"one\r\n2\r\n"}),
    "mixed line ends": ({"f": b"one\r\ntwo\n"}, {"f": b"one\ntwo\r\n"}),
    "no final newline added": ({"f": b"one\n"}, {"f": b"one"}),
    "no final newline removed": ({"f": b"one"}, {"f": b"one\n"}),
    "no final newline kept": ({"f": b"one\ntwo"}, {"f": b"1\ntwo"}),
    "binary": ({"f": bytes(range(256)) * 8}, {"f": bytes(range(255, -1, -1)) * 9}),
    "new binary": ({"x": b""}, {"x": b"", "f": b"\0\1\2"}),
    "mode": ({"f": b"x\n"}, {"f": ("100755", b"x\n")}),
    "mode and content": ({"f": ("100755", b"x\n")}, {"f": b"y\n"}),
    "rename": ({"f": b"x\n" * 50}, {"g": b"x\n" * 50}),
    "new": ({"x": b""}, {"x": b"", "d/f": b"new\n"}),
    "new empty": ({"x": b""}, {"x": b"", "f": b""}),
    "deleted": ({"x": b"", "f": b"gone\n"}, {"x": b""}),
    "symbolic link": ({"f": b"x\n"}, {"f": ("120000", b"target")}),
    "link target": ({"f": ("120000", b"a")}, {"f": ("120000", b"b")}),
    "spaces": ({"a b/c d.txt": b"1\n"}, {"a b/c d.txt": b"2\n"}),
    "unicode": ({"\u00fc/\u6f22.txt": "gr\u00fc\u00df\n".encode()}, {"\u00fc/\u6f22.txt": "\u4f60\u597d\n".encode()}),
    "latin-1": ({"f": b"\xe4\n"}, {"f": b"\xf6\n"}),
    "quotes": ({'a"b': b"1\n"}, {'a"b': b"2\n"}),
    "trailing blanks": ({"f": b"a\n"}, {"f": b"a  \n\t\n"}),
    "lines like headers": ({"f": b"-- a\n++ b\n"}, {"f": b"++ b\n@@ -1 +1 @@\ndiff --git a/f b/f\n"}),
    "form feeds": ({"f": b"a\x0cb\n"}, {"f": b"a\x0bb\n"}),
    "from line": ({"f": b"x\n"}, {"f": b"From me\n>From you\n"}),
    "several files": ({"f": b"1\n", "g": b"1\n", "h": b"1\n"}, {"f": b"2\n", "g": b"2\n", "i": b"1\n"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_change_comes_out_as_it_went_in(apply: Any, forge: Any, kind: str) -> None:
    old, new = KINDS[kind]
    done = apply([forge.patch(old, new)], base=old)
    assert done.tree == forge.tree(new)


MESSAGES: dict[str, str] = {
    "plain": "part : change\n\nUpstream-Status: Pending\n",
    "long": "part : " + "a long subject " * 12 + "\n\nUpstream-Status: Pending\n",
    "unicode": "part : \u00fc\u4f60 \u201cquoted\u201d\n\nGr\u00fc\u00dfe.\n\nUpstream-Status: Pending\n",
    "brackets": "[part] change [PATCH 1/2]\n\nUpstream-Status: Pending\n",
    "paragraphs": "part : change\n\none\n  two\n\n\tthree\n\nUpstream-Status: Pending\nRetire-When: a: b\n",
    "scissors": "part : change\n\n-- >8 --\n\nUpstream-Status: Pending\n",
    "folded": "part : " + "w" * 200 + "\n\nUpstream-Status: Pending\n",
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_messages_come_out_as_they_went_in(apply: Any, forge: Any, kind: str) -> None:
    message = MESSAGES[kind]
    done = apply([forge.patch(OLD, edited(n1=b"x\n"), message.encode())])
    assert done.patches[0].subject == message.splitlines()[0].strip()


@pytest.mark.parametrize(
    "name", ["J\u00fcrgen \u4f60", "A. B", 'Quo "ted" Name', "O'Neil (jr)", "Comma, Name", "\u0391\u03b2"]
)
def test_authors_come_out_as_they_went_in(apply: Any, forge: Any, name: str) -> None:
    author = Author(name, "a@example.org", "2026-01-02T03:04:05-0730")
    patch = forge.patch(OLD, edited(n1=b"x\n"), author=author)
    assert apply([patch]).tree == forge.tree(edited(n1=b"x\n"))


# -- whole files of ours -------------------------------------------------------------------------------


def adds(*values: str) -> bytes:
    return b"part : add\n\n" + STATUS + "".join(f"Adds-Files: {value}\n" for value in values).encode()


def test_whole_files_are_added_by_their_patch(apply: Any, forge: Any, store: Store) -> None:
    patch = forge.patch(OLD, edited(n1=b"#include\n"), adds("ours.c -> src/ours.c", "deep/o.h -> o.h"))
    done = apply([patch], files={"ours.c": b"int ours;\r\n", "deep/o.h": b"h", "unused.c": b""})
    assert done.tree == forge.tree({**edited(n1=b"#include\n"), "src/ours.c": b"int ours;\r\n", "o.h": b"h"})
    assert [file.path for file in done.files["part"]] == ["src/ours.c", "o.h"]
    assert content(store, done, "unused.c") is None


def test_a_patch_may_add_whole_files_and_nothing_else(apply: Any, forge: Any, store: Store) -> None:
    author = Author("A", "a@b", "2026-01-02T00:00:00Z")
    parent = store.commit(forge.tree(OLD), None, author, b"base\n")
    commit = store.commit(forge.tree({**OLD, "ours.c": b"c"}), parent, author, adds("ours.c"))
    head = store.export(commit, exclude=["ours.c"])
    assert b"diff --git" not in head
    first = forge.patch(OLD, edited(n2=b"y\n"))
    done = apply([first, head], files={"ours.c": b"c"})
    assert content(store, done, "ours.c") == b"c"


def test_an_executable_whole_file_stays_executable(apply: Any, forge: Any, store: Store, project_root: Path) -> None:
    patch = forge.patch(OLD, edited(n1=b"x\n"), adds("run.sh"))
    folder = project_root / "patches" / "part"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "run.sh").write_text("x")
    (folder / "src" / "run.sh").chmod(0o755)
    (folder / "llama.cpp").mkdir()
    (folder / "llama.cpp" / "a.patch").write_bytes(patch)
    (folder / "llama.cpp" / "series").write_text("a.patch\n")
    (folder / "stack.toml").write_text('title = "t"\nintent = "i"\nengines = ["llama.cpp"]\nsince = "2026-01-01"\n')
    stacks = load_stacks(project_root, ["part"], "llama.cpp")
    done = apply_stacks(store, "llama.cpp", PIN, DATE, forge.tree(OLD), stacks)
    assert {entry.path: entry.mode for entry in store.entries(done.tree)}["run.sh"] == "100755"


@pytest.mark.parametrize("target", ["b.txt", "b.txt/inside", "dir"])
def test_a_whole_file_never_overwrites(apply: Any, forge: Any, target: str) -> None:
    old = {**OLD, "dir/x": b""}
    patch = forge.patch(old, {**edited(n1=b"x\n"), "dir/x": b""}, adds(f"ours.c -> {target}"))
    with pytest.raises(PatchError, match="overwrite"):
        apply([patch], base=old, files={"ours.c": b"c"})


def test_a_whole_file_that_is_not_there(apply: Any, forge: Any) -> None:
    patch = forge.patch(OLD, edited(n1=b"x\n"), adds("missing.c"))
    with pytest.raises(PatchError, match=r"no file missing\.c"):
        apply([patch], files={"other.c": b""})


def test_a_patch_that_adds_an_undeclared_new_file_in_its_diff_is_ordinary(apply: Any, forge: Any) -> None:
    done = apply([forge.patch(OLD, {**OLD, "new.c": b"n\n"})])
    assert done.files["part"] == ()


# -- the repository's own ------------------------------------------------------------------------------


def test_the_repositorys_patches_are_well_formed(repository: Path, store: Store) -> None:
    from forkyard.stacks.model import load_stack, stack_names
    from forkyard.stacks.patchfile import check_hunks, parse_trailers

    names = stack_names(repository)
    assert names
    for name in names:
        stack = load_stack(repository, name)
        for family in stack.about.engines:
            series = stack.series(family)
            assert series.patches
            for patch in series.patches:
                author, message, diff = store.mail_info(patch.data)
                assert "forkyard" in author.email or author.email.count("@") == 1
                assert parse_trailers(message.decode(), patch.name).upstream_status
                assert check_hunks(diff, patch.name) > 0
                for file in parse_trailers(message.decode(), patch.name).adds_files:
                    assert stack.whole_file(file.source)


def rebuild(diff: bytes) -> dict[str, tuple[list[bytes], list[bytes]]]:
    """Old and new lines of each file, as far as its hunks show them; the rest is made up to put hunks in place."""
    files: dict[str, tuple[list[bytes], list[bytes]]] = {}
    old: list[bytes] = []
    new: list[bytes] = []
    for line in diff.splitlines(keepends=True):
        if line.startswith(b"diff --git "):
            old, new = files.setdefault(line.split(b" b/", 1)[1].strip().decode(), ([], []))
        elif match := re.match(rb"@@ -(\d+)", line):
            filler = [b"%%%d\n" % number for number in range(len(old), int(match[1]) - 1)]
            old += filler
            new += filler
            # What stands after the second @@ is the last line above that looks like a function.
            heading = line.split(b"@@", 2)[2].strip()
            if heading and filler:
                old[-1] = new[-1] = heading + b"\n"
        elif line[:1] in b" -" and not line.startswith(b"--- "):
            old.append(line[1:])
        if line[:1] in b" +" and not line.startswith(b"+++ ") and not line.startswith(b"@@"):
            new.append(line[1:])
    return files


def test_the_repositorys_patches_apply_and_export_to_themselves_on_a_made_up_base(
    repository: Path, store: Store, forge: Any
) -> None:
    """Everything but the object ids of upstream's files is compared: those need upstream's tree."""
    from forkyard.stacks.model import load_stack, stack_names

    ids = re.compile(rb"^index [0-9a-f]{40}\.\.[0-9a-f]{40}", re.MULTILINE)
    for name in stack_names(repository):
        stack = load_stack(repository, name)
        for family in stack.about.engines:
            for patch in stack.series(family).patches:
                author, message, diff = store.mail_info(patch.data)
                files = rebuild(diff)
                old = {path: b"".join(lines) for path, (lines, _) in files.items()}
                parent = store.commit(forge.tree(old), None, author, b"base\n")
                with store.index(forge.tree(old)) as index:
                    store.apply_diff(index, diff)
                    commit = store.commit(store.write_index(index), parent, author, message)
                assert ids.sub(b"index", store.export(commit)) == ids.sub(b"index", patch.data), patch.path
