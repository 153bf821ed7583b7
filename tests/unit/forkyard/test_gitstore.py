from __future__ import annotations

import os
import shutil
import stat
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkyard.errors import ForkyardError, PatchError, SourceError, ToolchainError
from forkyard.gitstore import Author, Entry, GitFailure, Store, blob_id

# Computed by hand with hashlib: any other value means that the machine leaked into the bytes.
TINY_TREE = "5c248d88edb6346d1a15af5347d35ccd12ae0a50"
TINY_COMMIT = "72472e13f120a58d1c45664352a7910d14ffcef3"

FILES: dict[str, Any] = {
    "plain.txt": b"one\ntwo\n",
    "dos.bat": b"@echo off\r\nrem\r\n",
    "run.sh": ("100755", b"#!/bin/sh\n"),
    "link": ("120000", b"sub/deep.c"),
    "sub/deep.c": b"int x;\n",
    "sub/with space.txt": b"s\n",
    "sub/\u00fcnic\u00f6de \u6f22.txt": b"u\n",
    'sub/"quoted".txt': b"q\n",
    "empty": b"",
    "no-final-newline": b"end",
    "$Id$.c": b"/* $Id$ */\n",
    ".gitattributes": b"* text=auto eol=crlf\n*.bat text eol=lf\n*.c ident filter=evil\n",
    ".gitignore": b"*\n",
}

HOSTILE_CONFIG = """\
[core]
    autocrlf = true
    eol = crlf
    safecrlf = true
    abbrev = 5
    quotePath = false
    attributesFile = {folder}/attributes
    hooksPath = {folder}/hooks
    fileMode = false
[commit]
    gpgsign = true
[format]
    signature = evil
    subjectPrefix = EVIL
    numbered = true
    attach = true
    headers = "X-Evil: 1"
    signOff = true
    from = Evil <evil@example.org>
    useAutoBase = true
    noprefix = true
    thread = deep
    encodeEmailHeaders = false
    notes = true
[diff]
    noprefix = true
    mnemonicPrefix = true
    algorithm = patience
    context = 1
    interHunkContext = 9
    renames = copies
    suppressBlankEmpty = true
    external = false
    indentHeuristic = false
    orderFile = {folder}/order
[apply]
    whitespace = fix
    ignoreWhitespace = change
[i18n]
    commitEncoding = ISO-8859-1
    logOutputEncoding = ISO-8859-1
[mailinfo]
    scissors = true
[user]
    name = Evil
    email = evil@example.org
[init]
    templateDir = {folder}/template
    defaultObjectFormat = sha256
[filter "evil"]
    clean = tr a-z A-Z
    smudge = tr a-z A-Z
    required = true
"""


def hostile_environment(folder: Path) -> dict[str, str]:
    """A user's git set up as unhelpfully as git allows."""
    for name in ("hooks", "template/hooks", "template/info"):
        (folder / name).mkdir(parents=True)
    (folder / "attributes").write_text("* text eol=crlf ident\n")
    (folder / "template" / "info" / "attributes").write_text("* filter=evil\n")
    (folder / "order").write_text("z*\n")
    for name in ("hooks", "template/hooks"):
        hook = folder / name / "reference-transaction"
        hook.write_text("#!/bin/sh\nexit 1\n")
        hook.chmod(0o755)
    (folder / "config").write_text(HOSTILE_CONFIG.format(folder=folder))
    return {
        "GIT_CONFIG_GLOBAL": str(folder / "config"),
        "GIT_CONFIG_SYSTEM": str(folder / "config"),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.autocrlf",
        "GIT_CONFIG_VALUE_0": "true",
        "GIT_CONFIG_PARAMETERS": "'diff.noprefix'='true'",
        "GIT_DIR": "/nonexistent",
        "GIT_WORK_TREE": "/nonexistent",
        "GIT_INDEX_FILE": "/nonexistent",
        "GIT_OBJECT_DIRECTORY": "/nonexistent",
        "GIT_AUTHOR_DATE": "2001-01-01T00:00:00Z",
        "GIT_AUTHOR_NAME": "Evil",
        "GIT_COMMITTER_DATE": "2001-01-01T00:00:00Z",
        "GIT_COMMITTER_NAME": "Evil",
        "GIT_DIFF_OPTS": "--unified=0",
        "GIT_EXTERNAL_DIFF": "false",
        "GIT_DEFAULT_HASH": "sha256",
        "GIT_TEMPLATE_DIR": str(folder / "template"),
        "GIT_LITERAL_PATHSPECS": "1",
        "GIT_NAMESPACE": "evil",
        "GIT_TRACE": "1",
        "LC_ALL": "C",
        "LANGUAGE": "de",
        "TZ": "Asia/Kathmandu",
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
    }


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the worst git settings and environment around everything that follows."""
    for name, value in hostile_environment(tmp_path / "hostile").items():
        monkeypatch.setenv(name, value)


def content(value: Any) -> bytes:
    data = value[1] if isinstance(value, tuple) else value
    assert isinstance(data, bytes)
    return data


def write_files(folder: Path, files: dict[str, Any]) -> None:
    for path, value in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = value[0] if isinstance(value, tuple) else "100644"
        if mode == "120000":
            target.symlink_to(content(value).decode())
        else:
            target.write_bytes(content(value))
            target.chmod(0o755 if mode == "100755" else 0o644)


def check_files(folder: Path, files: dict[str, Any]) -> None:
    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or p.is_file())
    assert found == sorted(files)
    for path, value in files.items():
        target = folder / path
        mode = value[0] if isinstance(value, tuple) else "100644"
        if mode == "120000":
            assert os.readlink(target) == content(value).decode()
        else:
            assert not target.is_symlink()
            assert target.read_bytes() == content(value), path
            assert bool(target.stat().st_mode & stat.S_IXUSR) == (mode == "100755"), path


# -- identity ------------------------------------------------------------------------------------------


def tiny_commit(store: Store, forge: Any) -> tuple[str, str]:
    tree = forge.tree({"a.txt": b"one\n", "d/run": ("100755", b"#!/bin/sh\n"), "l": ("120000", b"a.txt")})
    author = Author("J\u00fcrgen \u4f60", "j@example.org", "2026-01-02T03:04:05+02:00")
    return tree, store.commit(tree, None, author, "gr\u00fc\u00dfe\n\nbody\n".encode())


def test_a_commit_id_is_the_same_on_every_machine(store: Store, forge: Any) -> None:
    assert tiny_commit(store, forge) == (TINY_TREE, TINY_COMMIT)


def test_a_commit_id_does_not_depend_on_the_users_git(
    hostile: None, tmp_path: Path, forge_of: Callable[[Store], Any]
) -> None:
    fresh = Store(tmp_path / "fresh.git")
    fresh.ensure()
    assert tiny_commit(fresh, forge_of(fresh)) == (TINY_TREE, TINY_COMMIT)
    fresh.pin_object(TINY_COMMIT, "x")
    assert not (fresh.path / "hooks" / "reference-transaction").exists()


def test_an_export_does_not_depend_on_the_users_git(
    tmp_path: Path, forge: Any, forge_of: Callable[[Store], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [b"line %d\n" % number for number in range(60)]
    old = {"z.c": b"".join(lines), "moved-away": b"".join(lines[:30])}
    lines[5], lines[14], lines[40] = b"changed\n", b"too\n", b"\n"
    new = {"z.c": b"".join(lines), "moved-here": old["moved-away"]}
    message = "sujet: gr\u00fc\u00dfe\n\n---8<--- not scissors\n\nUpstream-Status: Pending\n".encode()
    expected = forge.patch(old, new, message)
    assert expected.count(b"\n@@ ") >= 3
    for name, value in hostile_environment(tmp_path / "hostile").items():
        monkeypatch.setenv(name, value)
    fresh = Store(tmp_path / "fresh.git")
    fresh.ensure()
    assert forge_of(fresh).patch(old, new, message) == expected


def test_blob_id_is_gits(forge: Any, store: Store) -> None:
    for data in (b"", b"x\r\n", bytes(range(256)) * 99):
        assert store.entries(forge.tree({"a": data}))[0].oid == blob_id(data)


def test_the_commit_date_is_in_utc(store: Store, forge: Any) -> None:
    tree = forge.tree({"a": b""})
    commit = store.commit(tree, None, Author("a", "a@b", "2026-01-01T01:00:00+02:00"), b"x\n")
    assert store.commit_date(commit) == "2025-12-31"


def test_ensure_mends_a_half_made_store(tmp_path: Path) -> None:
    made = Store(tmp_path / "s.git")
    made.path.mkdir()
    (made.path / "objects").mkdir()
    (made.path / "config.lock").write_text("")
    made.ensure()
    made.ensure()
    assert made.has(made.write_tree([]), "tree")


# -- trees from folders --------------------------------------------------------------------------------


def test_a_folder_becomes_its_tree_byte_for_byte(hostile: None, tmp_path: Path, forge_of: Any) -> None:
    folder = tmp_path / "folder"
    write_files(folder, FILES)
    fresh = Store(tmp_path / "fresh.git")
    fresh.ensure()
    entries = fresh.add_folder(folder)
    assert [entry.path for entry in entries] == sorted(FILES)
    assert {entry.path: entry.oid for entry in entries} == {path: blob_id(content(v)) for path, v in FILES.items()}
    assert fresh.write_tree(entries) == forge_of(fresh).tree(FILES)
    assert fresh.missing_blobs(fresh.write_tree(entries)) == []


def test_skipped_paths_are_files_or_folders(tmp_path: Path, store: Store) -> None:
    write_files(tmp_path / "f", {"a": b"", "b/c": b"", "b/d": b"", "bb/e": b""})
    assert [entry.path for entry in store.add_folder(tmp_path / "f", skip=["b/", "a"])] == ["bb/e"]


def test_a_link_to_a_folder_is_a_link(tmp_path: Path, store: Store) -> None:
    write_files(tmp_path / "f", {"d/x": b"", "l": ("120000", b"d")})
    assert [(entry.mode, entry.path) for entry in store.add_folder(tmp_path / "f")] == [
        ("100644", "d/x"),
        ("120000", "l"),
    ]


@pytest.mark.parametrize("name", ['"x"', "x\r", "\\x", '"', "-x", " x ", "\tx", "#x"])
def test_odd_file_names(tmp_path: Path, store: Store, name: str) -> None:
    write_files(tmp_path / "f", {name: b"odd", "x": b"even"})
    found = {entry.path: entry.oid for entry in store.add_folder(tmp_path / "f")}
    assert found == {name: blob_id(b"odd"), "x": blob_id(b"even")}


def test_a_name_with_a_line_break_is_refused(tmp_path: Path, store: Store) -> None:
    write_files(tmp_path / "f", {"a\nb": b""})
    with pytest.raises(SourceError, match="line break"):
        store.add_folder(tmp_path / "f")


def test_an_absent_entry_completes_a_partial_folder(tmp_path: Path, store: Store, forge: Any) -> None:
    whole = forge.tree({"a": b"1", "b/c": b"2", "z": ("100755", b"3")})
    other = Store(tmp_path / "other.git")
    other.ensure()
    write_files(tmp_path / "f", {"a": b"1", "z": ("100755", b"3")})
    absent = Entry("100644", "blob", blob_id(b"2"), "b/c")
    tree = other.write_tree([*other.add_folder(tmp_path / "f"), absent])
    assert tree == whole
    assert other.missing_blobs(tree) == [absent]
    assert other.without(tree, ["b/c"]) == store.without(whole, ["b/c"])
    assert [entry.path for entry in other.entries(other.without(tree, ["b/c"]))] == ["a", "z"]


def test_reading_files_of_a_tree(store: Store, forge: Any) -> None:
    tree = forge.tree(FILES)
    assert store.read_file(tree, "dos.bat") == FILES["dos.bat"]
    assert store.read_file(tree, "nowhere") is None


# -- check-outs ----------------------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path: Path) -> tuple[Path, Path]:
    """A folder and its index."""
    (tmp_path / "trees").mkdir()
    return tmp_path / "trees" / "w", tmp_path / "trees" / ".w.index"


def times(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.lstat().st_mtime_ns for p in folder.rglob("*") if not p.is_dir()}


def age(folder: Path) -> dict[str, int]:
    """Move every file into the past, so that writing one again is seen."""
    for number, path in enumerate(sorted(folder.rglob("*"))):
        os.utime(path, ns=(10**18 + number, 10**18 + number), follow_symlinks=False)
    return times(folder)


def test_attributes_and_settings_change_no_byte(
    hostile: None, tmp_path: Path, forge_of: Any, work: tuple[Path, Path]
) -> None:
    fresh = Store(tmp_path / "fresh.git")
    fresh.ensure()
    tree = forge_of(fresh).tree(FILES)
    fresh.check_out(tree, *work)
    check_files(work[0], FILES)
    assert fresh.verify_checkout(tree, work[0]) == len(FILES)


def test_an_update_touches_only_what_differs(store: Store, forge: Any, work: tuple[Path, Path]) -> None:
    folder, index = work
    store.check_out(forge.tree(FILES), folder, index)
    # A second check-out records the new times in the index; from then on nothing may be written.
    age(folder)
    store.check_out(forge.tree(FILES), folder, index)
    before = times(folder)
    changed = {**FILES, "plain.txt": b"one\n2\n", "new/file": b"n"}
    del changed["empty"]
    store.check_out(forge.tree(changed), folder, index)
    check_files(folder, changed)
    after = times(folder)
    assert {path for path in after if after[path] != before.get(path)} == {"plain.txt", "new/file"}


def test_checking_out_again_writes_nothing(store: Store, forge: Any, work: tuple[Path, Path]) -> None:
    store.check_out(forge.tree(FILES), *work)
    before = times(work[0])
    store.check_out(forge.tree(FILES), *work)
    assert times(work[0]) == before


def tamper_content(folder: Path) -> None:
    (folder / "plain.txt").write_bytes(b"one\ntWo\n")


def tamper_same_time(folder: Path) -> None:
    info = (folder / "plain.txt").stat()
    (folder / "plain.txt").write_bytes(b"one\ntWo\n")
    os.utime(folder / "plain.txt", ns=(info.st_atime_ns, info.st_mtime_ns))


def tamper_mode(folder: Path) -> None:
    (folder / "run.sh").chmod(0o644)
    (folder / "plain.txt").chmod(0o755)


def tamper_missing(folder: Path) -> None:
    (folder / "plain.txt").unlink()
    shutil.rmtree(folder / "sub")


def tamper_link_target(folder: Path) -> None:
    (folder / "link").unlink()
    (folder / "link").symlink_to("plain.txt")


def tamper_file_for_link(folder: Path) -> None:
    (folder / "link").unlink()
    (folder / "link").write_bytes(b"sub/deep.c")


def tamper_link_for_file(folder: Path) -> None:
    outside = folder.parent / "outside.txt"
    outside.write_bytes(content(FILES["plain.txt"]))
    (folder / "plain.txt").unlink()
    (folder / "plain.txt").symlink_to(outside)


def tamper_link_for_folder(folder: Path) -> None:
    outside = folder.parent / "outside"
    shutil.copytree(folder / "sub", outside)
    shutil.rmtree(folder / "sub")
    (folder / "sub").symlink_to(outside)


def tamper_folder_for_file(folder: Path) -> None:
    (folder / "plain.txt").unlink()
    (folder / "plain.txt").mkdir()
    (folder / "plain.txt" / "x").write_text("x")


def tamper_file_for_folder(folder: Path) -> None:
    shutil.rmtree(folder / "sub")
    (folder / "sub").write_text("x")


def tamper_strays(folder: Path) -> None:
    (folder / "stray").write_text("x")
    (folder / "sub" / "CMakeCache.txt").write_text("x")
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "x.o").write_text("x")
    (folder / "hang").symlink_to("/nonexistent")
    subprocess.run(["git", "init", "-q", str(folder / "nested")], check=True, timeout=1800)
    (folder / "nested" / "x").write_text("x")


TAMPERINGS = [
    tamper_content,
    tamper_same_time,
    tamper_mode,
    tamper_missing,
    tamper_link_target,
    tamper_file_for_link,
    tamper_link_for_file,
    tamper_link_for_folder,
    tamper_folder_for_file,
    tamper_file_for_folder,
    tamper_strays,
]


@pytest.mark.parametrize("tamper", TAMPERINGS)
@pytest.mark.parametrize("index_lost", [False, True])
def test_whatever_was_done_to_the_folder_is_put_right(
    store: Store, forge: Any, work: tuple[Path, Path], tamper: Callable[[Path], None], index_lost: bool
) -> None:
    folder, index = work
    tree = forge.tree(FILES)
    store.check_out(tree, folder, index)
    tamper(folder)
    if index_lost:
        index.unlink()
    store.check_out(tree, folder, index)
    check_files(folder, FILES)
    for outside in folder.parent.glob("outside*"):
        for path in [outside] if outside.is_file() else outside.rglob("*.c"):
            assert path.exists(), "what a link led to must not be touched"


def test_kept_paths_survive(store: Store, forge: Any, work: tuple[Path, Path]) -> None:
    folder, index = work
    tree = forge.tree({"sub/a": b"a"})
    store.check_out(tree, folder, index)
    for name in ("sub/made.cpp", "sub/other.cpp", "made.cpp"):
        (folder / name).write_text("x")
    store.check_out(tree, folder, index, keep=["sub/made.cpp"])
    assert sorted(path.name for path in folder.rglob("*.cpp")) == ["made.cpp"]
    assert (folder / "sub" / "made.cpp").exists()
    store.check_out(tree, folder, index)
    assert list(folder.rglob("*.cpp")) == []


@pytest.mark.parametrize("kept_bytes", [0, 1, 11, 12, 40, 100, -1, -20])
def test_a_torn_index_and_a_left_lock_do_no_harm(
    store: Store, forge: Any, work: tuple[Path, Path], kept_bytes: int
) -> None:
    folder, index = work
    store.check_out(forge.tree(FILES), folder, index)
    index.write_bytes(index.read_bytes()[:kept_bytes])
    index.with_name(index.name + ".lock").write_bytes(b"left")
    tamper_content(folder)
    changed = {**FILES, "empty": b"no more"}
    store.check_out(forge.tree(changed), folder, index)
    check_files(folder, changed)
    assert not index.with_name(index.name + ".lock").exists()


def test_an_index_with_a_flipped_byte_does_no_harm(store: Store, forge: Any, work: tuple[Path, Path]) -> None:
    folder, index = work
    tree = forge.tree(FILES)
    store.check_out(tree, folder, index)
    whole = index.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 25)):
        index.write_bytes(whole[:position] + bytes([whole[position] ^ 0x41]) + whole[position + 1 :])
        store.check_out(tree, folder, index)
        check_files(folder, FILES)


@pytest.mark.parametrize("path", ["plain.txt", "run.sh", "sub/deep.c", "empty", "sub/\u00fcnic\u00f6de \u6f22.txt"])
def test_a_flipped_byte_in_a_checked_out_file_is_named_with_both_ids(
    store: Store, forge: Any, work: tuple[Path, Path], path: str
) -> None:
    tree = forge.tree(FILES)
    store.check_out(tree, *work)
    data = bytearray((work[0] / path).read_bytes() or b"\0")
    data[len(data) // 2] ^= 1
    (work[0] / path).write_bytes(data)
    with pytest.raises(SourceError) as caught:
        store.verify_checkout(tree, work[0])
    assert path in caught.value.what
    assert blob_id(content(FILES[path])) in str(caught.value.why)
    assert blob_id(bytes(data)) in str(caught.value.why)


def test_a_missing_or_replaced_file_is_named(store: Store, forge: Any, work: tuple[Path, Path]) -> None:
    tree = forge.tree(FILES)
    store.check_out(tree, *work)
    tamper_link_for_file(work[0])
    with pytest.raises(SourceError, match=r"plain\.txt"):
        store.verify_checkout(tree, work[0])
    (work[0] / "plain.txt").unlink()
    with pytest.raises(SourceError) as caught:
        store.verify_checkout(tree, work[0])
    assert "No such file" in str(caught.value.why)


def loose_object(store: Store, oid: str) -> Path:
    return store.path / "objects" / oid[:2] / oid[2:]


def damage_object(store: Store, oid: str) -> None:
    """Flip one byte of an object's content; its wrapping stays sound."""
    path = loose_object(store, oid)
    data = bytearray(zlib.decompress(path.read_bytes()))
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(zlib.compress(bytes(data)))


def test_a_damaged_blob_in_the_store_never_reaches_a_folder_unseen(
    store: Store, forge: Any, work: tuple[Path, Path]
) -> None:
    tree = forge.tree(FILES)
    damage_object(store, blob_id(content(FILES["plain.txt"])))

    def make() -> None:
        store.check_out(tree, *work)
        store.verify_checkout(tree, work[0])

    with pytest.raises(SourceError) as caught:
        make()
    assert blob_id(content(FILES["plain.txt"])) in caught.value.describe()
    assert "forkyard clean sources" in caught.value.describe()


@pytest.mark.parametrize("kind", ["tree", "commit"])
def test_a_damaged_tree_or_commit_is_an_error_for_people(store: Store, forge: Any, kind: str) -> None:
    tree, commit = tiny_commit(store, forge)
    oid = tree if kind == "tree" else commit
    path = loose_object(store, oid)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(ForkyardError) as caught:
        store.entries(store.tree_of(commit))
    assert oid in caught.value.describe()


# -- fetching ------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path) -> Store:
    other = Store(tmp_path / "elsewhere.git")
    other.ensure()
    other.allow_any_fetch()
    return other


def test_one_commit_is_fetched_without_history(store: Store, elsewhere: Store, forge_of: Any) -> None:
    forge = forge_of(elsewhere)
    author = Author("a", "a@b", "2026-01-01T00:00:00Z")
    first = elsewhere.commit(forge.tree({"a": b"1"}), None, author, b"one\n")
    second = elsewhere.commit(forge.tree(FILES), first, author, b"two\n")
    store.fetch(str(elsewhere.path), second)
    assert store.has(second, "commit")
    assert not store.has(first)
    assert store.missing_blobs(store.tree_of(second)) == []
    assert store.commit_count(second) == 0, "a shallow count would be wrong"
    assert elsewhere.commit_count(second) == 2


def test_lock_files_of_a_killed_git_do_no_harm(store: Store, elsewhere: Store, forge_of: Any) -> None:
    author = Author("a", "a@b", "2026-01-01T00:00:00Z")
    commit = elsewhere.commit(forge_of(elsewhere).tree(FILES), None, author, b"x\n")
    (store.path / "shallow.lock").write_text("left")
    (store.path / "refs" / "forkyard" / "pins").mkdir(parents=True)
    (store.path / "refs" / "forkyard" / "pins" / f"{commit}.lock").write_text("left")
    store.fetch(str(elsewhere.path), commit)
    store.pin_object(commit, f"pins/{commit}")
    assert (store.path / "refs" / "forkyard" / "pins" / commit).read_text().strip() == commit


def test_a_commit_that_is_not_there(store: Store, elsewhere: Store) -> None:
    with pytest.raises(GitFailure) as caught:
        store.fetch(str(elsewhere.path), "1" * 40)
    assert not caught.value.corrupt


def test_a_damaged_object_is_not_fetched(tmp_path: Path, store: Store, elsewhere: Store, forge_of: Any) -> None:
    author = Author("a", "a@b", "2026-01-01T00:00:00Z")
    commit = elsewhere.commit(forge_of(elsewhere).tree(FILES), None, author, b"x\n")
    damage_object(elsewhere, blob_id(content(FILES["plain.txt"])))
    with pytest.raises(GitFailure) as caught:
        store.fetch(str(elsewhere.path), commit)
    assert caught.value.corrupt
    assert blob_id(content(FILES["plain.txt"])) in caught.value.text
    good = Store(tmp_path / "good.git")
    good.ensure()
    good.allow_any_fetch()
    assert good.commit(forge_of(good).tree(FILES), None, author, b"x\n") == commit
    store.fetch(str(good.path), commit)
    assert store.missing_blobs(store.tree_of(commit)) == [], "what a bad source left must not stand in a good one's way"


@pytest.mark.parametrize("location", ["ext::sh -c false", "--upload-pack=false", "/nonexistent"])
def test_hostile_and_wrong_locations(store: Store, location: str) -> None:
    with pytest.raises(GitFailure):
        store.fetch(location, "1" * 40)


def test_without_git_the_doctor_is_recommended(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError) as caught:
        store.tree_of("HEAD")
    assert "doctor" in str(caught.value.next_step)


# -- mails ---------------------------------------------------------------------------------------------


def test_a_mail_gives_back_author_message_and_diff(store: Store, forge: Any) -> None:
    author = Author("J\u00fcrgen \u201cJ.\u201d O'Neil, jr", "j@example.org", "2026-01-02T03:04:05+02:00")
    message = ("a very long subject " * 9 + "\u00fcber\n\nbody\n\nUpstream-Status: Pending\n").encode()
    patch = forge.patch({"a": b"1\n"}, {"a": b"2\n"}, message, author)
    assert b"\nSubject: " in patch
    found, text, diff = store.mail_info(patch)
    assert (found.name, found.email) == (author.name, author.email)
    assert text.rstrip() == message.rstrip()
    assert diff.startswith(b"diff --git a/a b/a\n") or b"\ndiff --git a/a b/a\n" in diff


@pytest.mark.parametrize("data", [b"", b"hello\n", b"From: a <a@b>\n\n", b"diff --git a/a b/a\n", bytes(range(256))])
def test_what_is_no_mail_is_refused(store: Store, data: bytes) -> None:
    with pytest.raises(PatchError, match="format-patch"):
        store.mail_info(data)
