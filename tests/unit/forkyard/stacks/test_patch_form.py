"""Patch files that were converted, coloured, cut, or are none: named as that, with the file and what to do."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkyard.errors import ForkyardError, PatchError
from forkyard.gitstore import Author, Store
from forkyard.stacks import apply_stacks, load_stacks
from forkyard.stacks.foreign import read_patches
from forkyard.stacks.patchfile import as_git_wrote, check_form

FILES = {"a.c": b"1\n2\n3\n", "deep/b.c": b"1\n2\n3\n"}
MESSAGE = b"part : change it\n\nBecause.\n\nUpstream-Status: Pending\n"
Patch = Callable[..., bytes]


@pytest.fixture
def patch(forge: Any) -> bytes:
    """A patch of two files."""
    made = forge.patch(FILES, {"a.c": b"1\ntwo\n3\n", "deep/b.c": b"1\n2\nthree\n"}, MESSAGE)
    assert isinstance(made, bytes)
    return made


def crlf(data: bytes) -> bytes:
    return data.replace(b"\n", b"\r\n")


def colour(data: bytes) -> bytes:
    return data.replace(b"\ndiff --git", b"\n\x1b[1mdiff --git")


def no_prefix(data: bytes) -> bytes:
    for name in (b"a.c", b"deep/b.c"):
        data = data.replace(b"a/" + name + b" b/" + name, name + b" " + name)
        data = data.replace(b"--- a/" + name, b"--- " + name).replace(b"+++ b/" + name, b"+++ " + name)
    return data


def mnemonic(data: bytes) -> bytes:
    return data.replace(b" a/", b" i/").replace(b" b/", b" w/")


def last_change_gone(data: bytes) -> bytes:
    head, mark, section = data.rpartition(b"diff --git")
    return head + mark + section.partition(b"@@")[0]


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "is empty"),
    "blank": (lambda data: b"\n\n", "is empty"),
    "crlf": (crlf, "line ends of Windows"),
    "bom": (lambda data: b"\xef\xbb\xbf" + data, "byte order mark"),
    "utf-16": (lambda data: data.decode().encode("utf-16"), "UTF-16"),
    "utf-16 without a mark": (lambda data: data.decode().encode("utf-16-le"), "UTF-16"),
    "colours": (colour, "colour codes"),
    "no prefix": (no_prefix, r"no a/ and b/"),
    "mnemonic": (mnemonic, r"do not begin with a/ and b/"),
    "page": (lambda data: b"<!DOCTYPE html>\n<html></html>\n", "web page"),
    "lfs": (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS"),
    "cut in a line": (lambda data: data[:-3], "cut off"),
    "change gone": (last_change_gone, "cut off"),
    "header alone": (lambda data: data[: data.rindex(b"index ")], "cut off"),
    "garbage": (lambda data: b"hello\n", "not a patch"),
    "no headers": (lambda data: b"diff" + data.partition(b"\ndiff")[2], "not a patch"),
}


def apply(store: Store, forge: Any, root: Path) -> None:
    tree = forge.tree(FILES)
    commit = store.commit(tree, None, Author("a", "a@b", "2026-01-05T00:00:00Z"), b"pin\n")
    apply_stacks(store, "llama.cpp", commit, "2026-01-05", tree, load_stacks(root, ["part"], "llama.cpp"))


@pytest.mark.parametrize("how", DAMAGE)
def test_what_became_of_a_patch_is_said_with_its_file(
    store: Store, forge: Any, project_root: Path, add_stack: Any, patch: bytes, how: str
) -> None:
    damage, words = DAMAGE[how]
    folder = add_stack(project_root, "part", patches={"a.patch": damage(patch)})
    with pytest.raises(PatchError, match=words) as caught:
        apply(store, forge, project_root)
    assert caught.value.where == str(folder / "llama.cpp" / "a.patch")
    assert caught.value.next_step
    assert "mail-" not in str(caught.value), "a folder of ours that is gone by then says nothing"


def test_a_whole_patch_passes(store: Store, forge: Any, project_root: Path, add_stack: Any, patch: bytes) -> None:
    add_stack(project_root, "part", patches={"a.patch": patch})
    apply(store, forge, project_root)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"e": b""}),
        ({"e": b""}, {}),
        ({"m": b"1\n"}, {"m": ("100755", b"1\n")}),
        ({"b": bytes(range(256))}, {"b": bytes(range(255, -1, -1))}),
        ({"b": bytes(range(256))}, {}),
        ({"l": ("120000", b"x")}, {"l": ("120000", b"y")}),
        ({"x": b"no line feed"}, {"x": b"none either"}),
        ({"dos": b"1\r\n"}, {"dos": b"2\r\n"}),
        ({'sp ace"q\u00fc': b"1\n"}, {'sp ace"q\u00fc': b"2\n"}),
        ({"esc": b"1\n"}, {"esc": b"\x1b[1mdiff\n"}),
    ],
)
def test_every_kind_of_change_passes(forge: Any, before: dict[str, Any], after: dict[str, Any]) -> None:
    check_form(forge.patch({**FILES, **before}, {**FILES, **after}, MESSAGE), "x")


# -- other people's patches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["crlf", "bom", "utf-16"])
def test_what_is_exactly_undone_is_imported(store: Store, tmp_path: Path, patch: bytes, how: str) -> None:
    (tmp_path / "x.patch").write_bytes(DAMAGE[how][0](patch))
    ((_, _, mail),), notes = read_patches(store, [tmp_path / "x.patch"])
    (tmp_path / "y.patch").write_bytes(patch)
    ((_, _, plain),), _ = read_patches(store, [tmp_path / "y.patch"])
    assert mail == plain
    assert any("was undone" in note for note in notes)


@pytest.mark.parametrize(
    "how", ["colours", "no prefix", "page", "lfs", "empty", "utf-16 without a mark", "change gone"]
)
def test_what_is_not_is_named(store: Store, tmp_path: Path, patch: bytes, how: str) -> None:
    damage, words = DAMAGE[how]
    (tmp_path / "x.patch").write_bytes(damage(patch))
    with pytest.raises(PatchError, match=words) as caught:
        read_patches(store, [tmp_path / "x.patch"])
    assert caught.value.where == str(tmp_path / "x.patch")


def test_a_patch_of_a_file_with_such_line_ends_is_left_as_it_is(forge: Any) -> None:
    made = forge.patch({"dos": b"1\r\n2\r\n"}, {"dos": b"1\r\n3\r\n"}, MESSAGE)
    assert as_git_wrote(made) == (made, None)
    text = "\u00fc".encode("utf-16")
    assert as_git_wrote(text) == (text, None), "nobody knows what became of other characters on the way"


def test_a_plain_diff_without_prefixes(store: Store, tmp_path: Path) -> None:
    (tmp_path / "x.diff").write_text("--- src/a.c\t2026-01-01\n+++ src/a.c\t2026-01-02\n@@ -1 +1 @@\n-1\n+2\n")
    with pytest.raises(PatchError, match="-p0"):
        read_patches(store, [tmp_path / "x.diff"], author="A <a@b>")


def test_the_advice_for_line_ends_helps(tmp_path: Path, patch: bytes) -> None:
    """A clone that git made with core.autocrlf before the project had attributes."""

    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.autocrlf=true", "-c", "core.safecrlf=false")
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, timeout=1800)

    file = tmp_path / "x.patch"
    git("init", "--quiet")
    file.write_bytes(patch)
    git("add", ".")
    git("commit", "--quiet", "--message", "all")
    file.unlink()
    git("checkout", "--", ".")
    assert file.read_bytes() == crlf(patch)
    (tmp_path / ".gitattributes").write_text("* -text\n")
    with pytest.raises(PatchError) as caught:
        check_form(file.read_bytes(), str(file))
    assert f"delete it, then `git checkout -- {file}`" in str(caught.value.next_step)
    file.unlink()
    git("checkout", "--", str(file))
    assert file.read_bytes() == patch


@pytest.mark.parametrize("name", ["stack.toml", "llama.cpp/series"])
def test_the_files_around_patches(
    store: Store, forge: Any, project_root: Path, add_stack: Any, patch: bytes, name: str
) -> None:
    """Line ends and a mark do no harm to what is read as text; another encoding is named."""
    folder = add_stack(project_root, "part", patches={"a.patch": patch})
    text = (folder / name).read_bytes()
    (folder / name).write_bytes(b"\xef\xbb\xbf" + crlf(text))
    apply(store, forge, project_root)
    (folder / name).write_bytes(text.decode().encode("utf-16"))
    with pytest.raises(ForkyardError, match="not UTF-8") as caught:
        apply(store, forge, project_root)
    assert caught.value.where == str(folder / name)
