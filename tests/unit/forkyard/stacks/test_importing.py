from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkyard.errors import PatchError, RecipeError, UsageError
from forkyard.gitstore import Author, Store
from forkyard.sources import Obtained
from forkyard.stacks.foreign import parse_author, read_patches
from forkyard.stacks.importing import Home, home, import_loosely, import_mails, import_series, recipe_for
from forkyard.stacks.model import load_stack

Add = Callable[..., Path]
LINES = "".join(f"line {number}\n" for number in range(40))
OLD: dict[str, Any] = {"a.c": LINES.encode(), "b.c": b"b\n"}
STATUS = "Upstream-Status: Pending\n"
ABOUT = 'title = "t"\nintent = "i"\nengines = ["llama.cpp"]\nsince = "2026-01-01"\n'
AUTHOR = Author("A. Person", "a@example.org", "2026-01-02T03:04:05+02:00")


def edited(*changes: tuple[int, str], **files: bytes) -> dict[str, Any]:
    lines = LINES.splitlines(keepends=True)
    for number, text in changes:
        lines[number] = text
    return {**OLD, **files, "a.c": "".join(lines).encode()}


ONE = edited((5, "five\n"))
TWO = edited((5, "five\n"), (20, "twenty\n"))


def pin(forge: Any, files: Any) -> Obtained:
    return Obtained("1" * 40, forge.tree(files), "2026-01-05", 0, "local", "here", ())


@pytest.fixture
def place(project_root: Path, add_stack: Add, forge: Any) -> Home:
    """A stack of two patches that the recipe does not name."""
    patches = {
        "one.patch": forge.patch(OLD, ONE, f"part : one\n\n{STATUS}".encode()),
        "two.patch": forge.patch(ONE, TWO, f"part : two\n\n{STATUS}".encode()),
    }
    add_stack(project_root, "part", patches=patches)
    return home(project_root, recipe_for(project_root, "llama.cpp"), "part")


# -- where a stack is at home --------------------------------------------------------------------------


def recipes(root: Path, **stacks: list[str]) -> None:
    """Copies of the recipe under other names, with these stacks."""
    text = (root / "recipes" / "mine.toml").read_text()
    for name, names in stacks.items():
        shown = "[" + ", ".join(f'"{one}"' for one in names) + "]"
        written = text.replace('name = "mine"', f'name = "{name}"').replace("stacks = []", f"stacks = {shown}")
        (root / "recipes" / f"{name}.toml").write_text(written)


def test_the_recipe_of_an_engine(project_root: Path) -> None:
    assert recipe_for(project_root, "llama.cpp").name == "mine"
    with pytest.raises(RecipeError, match="no recipe for ik_llama.cpp"):
        recipe_for(project_root, "ik_llama.cpp")
    recipes(project_root, other=[])
    with pytest.raises(UsageError, match="several recipes") as caught:
        recipe_for(project_root, "llama.cpp")
    assert caught.value.why == "mine, other"
    assert recipe_for(project_root, "llama.cpp", "other").name == "other"
    recipes(project_root, **{"llama.cpp": []})
    assert recipe_for(project_root, "llama.cpp").name == "llama.cpp"
    with pytest.raises(UsageError, match="not for ik_llama.cpp"):
        recipe_for(project_root, "ik_llama.cpp", "other")


def test_another_pin_has_patches_of_its_own(project_root: Path, add_stack: Add, forge: Any) -> None:
    """Its folder is the series', and what is asked of the engine goes to the engine's own recipe as before."""
    about = ABOUT.replace('["llama.cpp"]', '["llama.cpp", "llama.cpp-old"]')
    folder = add_stack(project_root, "part", about=about, patches={})
    (folder / "llama.cpp-old").mkdir()
    (folder / "llama.cpp-old" / "one.patch").write_bytes(forge.patch(OLD, ONE, f"part : one\n\n{STATUS}".encode()))
    (folder / "llama.cpp-old" / "series").write_text("one.patch\n")
    recipes(project_root, old=["part"])
    path = project_root / "recipes" / "old.toml"
    path.write_text(path.read_text().replace("title = ", 'series = "llama.cpp-old"\ntitle = ', 1))
    assert recipe_for(project_root, "llama.cpp").name == "mine"
    assert recipe_for(project_root, "llama.cpp-old").name == "old"
    there = home(project_root, recipe_for(project_root, "llama.cpp", "old"), "part")
    assert [patch.name for patch in there.stack.series(there.series).patches] == ["one.patch"]
    assert there.command("edit") == "forkyard stack edit part --engine llama.cpp --recipe old"
    imported = import_series(forge.store, there, pin(forge, OLD))
    assert (imported.names, imported.exact) == (("one.patch",), True)
    own = home(project_root, recipe_for(project_root, "llama.cpp"), "part")
    assert own.stack.series(own.series).patches == ()
    with pytest.raises(RecipeError) as caught:
        home(
            project_root, recipe_for(project_root, "llama.cpp", "old"), add_stack(project_root, "new", about=ABOUT).name
        )
    assert "llama.cpp-old/series" in str(caught.value.next_step)


def test_what_stands_before_and_after(project_root: Path, add_stack: Add) -> None:
    for name, order, more in (("a", 1, ""), ("b", 2, ""), ("c", 3, ""), ("free", 9, 'requires = ["b"]\n')):
        add_stack(project_root, name, about=f"{ABOUT}order = {order}\n{more}")
    recipes(project_root, full=["c", "a", "b"])
    recipe = recipe_for(project_root, "llama.cpp", "full")

    def around(name: str) -> tuple[list[str], list[str]]:
        found = home(project_root, recipe, name)
        return [one.name for one in found.before], [one.name for one in found.after]

    assert around("a") == ([], ["b", "c"])
    assert around("b") == (["a"], ["c"])
    assert around("c") == (["a", "b"], [])
    assert around("free") == (["b"], [])


def test_a_stack_of_another_engine(project_root: Path, add_stack: Add) -> None:
    add_stack(project_root, "x", about=ABOUT.replace("llama.cpp", "ik_llama.cpp"), family="ik_llama.cpp")
    with pytest.raises(RecipeError, match="'x' is not for llama.cpp") as caught:
        home(project_root, recipe_for(project_root, "llama.cpp"), "x")
    assert "series" in str(caught.value.next_step)


# -- our own series ------------------------------------------------------------------------------------


def test_a_series_becomes_commits(store: Store, forge: Any, place: Home) -> None:
    found = import_series(store, place, pin(forge, OLD))
    assert found.names == ("one.patch", "two.patch")
    assert [one.subject for one in found.commits] == ["part : one", "part : two"]
    assert (found.base_tree, found.tree) == (forge.tree(OLD), forge.tree(TWO))
    assert found.commits[0].parents == (found.base,)
    assert found.tip == found.commits[1].commit
    assert found.exact


def test_an_empty_series_is_its_base(store: Store, forge: Any, project_root: Path, add_stack: Add) -> None:
    add_stack(project_root, "none-yet")
    found = import_series(store, home(project_root, recipe_for(project_root, "llama.cpp"), "none-yet"), pin(forge, OLD))
    assert (found.commits, found.tip, found.tree) == ((), found.base, found.base_tree)


def test_a_series_out_of_place_is_merged(store: Store, forge: Any, place: Home) -> None:
    moved = {**OLD, "a.c": b"more\n" + LINES.encode()}
    with pytest.raises(PatchError):
        import_series(store, place, pin(forge, moved))
    found = import_loosely(store, place, pin(forge, moved))
    assert not found.exact
    assert found.tree == forge.tree({**TWO, "a.c": b"more\n" + TWO["a.c"]})
    assert found.names == ("one.patch", "two.patch")
    assert any("part/one.patch: merged with what it was made on" in note for note in found.notes)


def test_whole_files_come_along_when_a_series_is_out_of_place(
    store: Store, forge: Any, project_root: Path, add_stack: Add
) -> None:
    message = f"part : add\n\n{STATUS}Adds-Files: ours.c -> src/ours.c\n".encode()
    folder = add_stack(
        project_root, "adds", patches={"x.patch": forge.patch(OLD, ONE, message)}, files={"ours.c": b"ours\n"}
    )
    (folder / "src" / "ours.c").chmod(0o755)
    place = home(project_root, recipe_for(project_root, "llama.cpp"), "adds")
    moved = b"more\n" + LINES.encode()
    found = import_loosely(store, place, pin(forge, {**OLD, "a.c": moved}))
    assert found.tree == forge.tree({**OLD, "a.c": b"more\n" + ONE["a.c"], "src/ours.c": ("100755", b"ours\n")})
    with pytest.raises(PatchError, match="would overwrite"):
        import_loosely(store, place, pin(forge, {**OLD, "a.c": moved, "src/ours.c": b""}))


def test_a_series_that_conflicts_is_named(store: Store, forge: Any, place: Home) -> None:
    with pytest.raises(PatchError, match="part/two.patch does not apply") as caught:
        import_loosely(store, place, pin(forge, edited((20, "other\n"))))
    assert "a.c: @@ -18,7 +18,7 @@" in str(caught.value.why)


def test_what_stands_before_has_to_be_exact(store: Store, forge: Any, project_root: Path, add_stack: Add) -> None:
    add_stack(project_root, "a", patches={"x.patch": forge.patch(OLD, ONE)})
    add_stack(project_root, "b", about=f'{ABOUT}requires = ["a"]\n')
    place = home(project_root, recipe_for(project_root, "llama.cpp"), "b")
    with pytest.raises(PatchError, match="a/x.patch"):
        import_loosely(store, place, pin(forge, {**OLD, "a.c": b"more\n" + LINES.encode()}))


# -- other people's patches ----------------------------------------------------------------------------


def mbox(forge: Any, *states: Any) -> bytes:
    """Mails that lead from each state to the next, numbered as people send them."""
    mails = b""
    for number, (old, new) in enumerate(itertools.pairwise(states), start=1):
        data = forge.patch(old, new, b"part : number %d\n\nFrom here on.\n" % number)
        mails += data.replace(b"Subject: part", b"Subject: [PATCH v2 %d/2] part" % number).replace(
            b"From 0000000000", b"From 1111111111"
        )
    return mails


def labels(found: list[tuple[str, str, Any]]) -> list[str]:
    return [label for label, _, _ in found]


def test_an_mbox_on_top_of_a_series(store: Store, forge: Any, place: Home, tmp_path: Path) -> None:
    three, four = {**TWO, "b.c": b"c\n"}, {**TWO, "b.c": b"d\n"}
    path = tmp_path / "all.mbox"
    path.write_bytes(mbox(forge, TWO, three, four))
    mails, notes = read_patches(store, [path])
    assert labels(mails) == ["all.mbox (mail 1)", "all.mbox (mail 2)"]
    assert notes == []
    found = import_mails(store, import_series(store, place, pin(forge, OLD)), mails)
    assert [one.subject for one in found.commits] == ["part : one", "part : two", "part : number 1", "part : number 2"]
    assert found.tree == forge.tree(four)
    assert found.commits[2].author == AUTHOR


def test_a_mail_made_on_plain_upstream_is_merged(store: Store, forge: Any, place: Home, tmp_path: Path) -> None:
    path = tmp_path / "x.patch"
    path.write_bytes(forge.patch(OLD, edited((12, "twelve\n")), b"part : theirs\n"))
    mails, _ = read_patches(store, [path])
    found = import_mails(store, import_series(store, place, pin(forge, OLD)), mails)
    assert found.tree == forge.tree(edited((5, "five\n"), (12, "twelve\n"), (20, "twenty\n")))


def test_a_mail_that_conflicts_is_named(store: Store, forge: Any, place: Home, tmp_path: Path) -> None:
    path = tmp_path / "x.patch"
    path.write_bytes(forge.patch(OLD, edited((5, "theirs\n")), b"part : theirs\n"))
    mails, _ = read_patches(store, [path])
    with pytest.raises(PatchError, match="x.patch does not apply") as caught:
        import_mails(store, import_series(store, place, pin(forge, OLD)), mails)
    assert (caught.value.where, "a.c: @@ -3,7 +3,7 @@" in str(caught.value.why)) == (str(path), True)


def test_an_under_counting_hunk_is_refused(store: Store, forge: Any, place: Home, tmp_path: Path) -> None:
    path = tmp_path / "x.patch"
    path.write_bytes(forge.patch(TWO, {**TWO, "b.c": b"b\nc\nd\n"}).replace(b"@@ -1 +1,3 @@", b"@@ -1 +1,2 @@"))
    mails, _ = read_patches(store, [path])
    with pytest.raises(PatchError, match="header counts"):
        import_mails(store, import_series(store, place, pin(forge, OLD)), mails)


def test_a_folder_is_read_in_the_order_of_its_numbers(store: Store, forge: Any, tmp_path: Path) -> None:
    for name in ("10-x.patch", "9-x.patch", "0-cover.patch", "README.md"):
        (tmp_path / name).write_bytes(forge.patch(OLD, ONE))
    cover = b"From 1 Mon Sep 17 00:00:00 2001\nFrom: a <a@b>\nDate: x\nSubject: [PATCH 0/2] both\n\nwords\n"
    (tmp_path / "0-cover.patch").write_bytes(cover)
    found, notes = read_patches(store, [tmp_path])
    assert labels(found) == ["9-x.patch", "10-x.patch"]
    assert notes == ["0-cover.patch: a cover letter, left out"]


def plain(forge: Any, header: str) -> bytes:
    diff = forge.store.mail_info(forge.patch(OLD, ONE))[2]
    return header.encode() + bytes(diff)


@pytest.mark.parametrize(
    ("header", "author", "message", "date"),
    [
        ("", "P <p@q>", "my fix\n", None),
        ("fix it\n\nBecause.\n\n", "P <p@q>", "fix it\n\nBecause.\n", None),
        (
            "Description: fix it\n At last.\nAuthor: J <j@x>\nLast-Update: 2026-01-02\n\n---\n",
            "J <j@x>",
            "fix it\n\n At last.\n",
            "2026-01-02T00:00:00+00:00",
        ),
        ("From: nobody in particular\nSubject: x\n\n", None, None, None),
    ],
)
def test_a_plain_diff_with_words_above(
    store: Store, forge: Any, tmp_path: Path, header: str, author: str | None, message: str | None, date: str | None
) -> None:
    folder = tmp_path / "quilt"
    folder.mkdir()
    (folder / "my-fix.patch").write_bytes(plain(forge, header))
    (folder / "series").write_text("# mine\nmy-fix.patch\n")
    if author is None:
        with pytest.raises((PatchError, UsageError)):
            read_patches(store, [folder])
        return
    ((_, _, mail),) = read_patches(store, [folder], author=author)[0]
    assert f"{mail.author.name} <{mail.author.email}>" == author
    assert mail.message.decode().replace("At last.", "At last.").split() == str(message).split()
    assert date is None or mail.author.date == date


@pytest.mark.parametrize("line", ["x.patch -p0", "gone.patch", "x.patch -R"])
def test_a_quilt_series_that_cannot_be_followed(store: Store, forge: Any, tmp_path: Path, line: str) -> None:
    (tmp_path / "x.patch").write_bytes(forge.patch(OLD, ONE))
    (tmp_path / "series").write_text(f"x.patch\n{line}\n")
    with pytest.raises(UsageError) as caught:
        read_patches(store, [tmp_path])
    assert caught.value.where == f"{tmp_path / 'series'}:2"


@pytest.mark.parametrize("content", [b"", b"hello\n", bytes(range(256)), b"From: a <a@b>\nSubject: x\n\nno date\n"])
def test_what_is_no_patch(store: Store, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.patch").write_bytes(content)
    with pytest.raises(PatchError, match="not a patch"):
        read_patches(store, [tmp_path / "x.patch"])


def test_nothing_to_read(store: Store, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nosuch"):
        with pytest.raises(UsageError):
            read_patches(store, [path])


def test_who_wrote_it() -> None:
    assert parse_author(" A. Person, jr <a@b> ") == ("A. Person, jr", "a@b")
    for text in ("", "a@b", "<a@b>", "A <a b>", "A <a@b> <c@d>", "A\nB"):
        with pytest.raises(UsageError):
            parse_author(text)


def test_the_stack_itself_is_left_as_it_is(place: Home) -> None:
    assert load_stack(place.stack.folder.parents[1], "part").series("llama.cpp").patches[0].data
