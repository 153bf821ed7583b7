from __future__ import annotations

import os
import pwd
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import CliRunner

from forkyard.cache import Cache
from forkyard.cli import main
from forkyard.doctor import examine
from forkyard.errors import StorageError, UsageError
from forkyard.places import _TAKEN_APART, check_output, check_own, checked, expanded, settle
from forkyard.workshop import find_root


@pytest.fixture
def nobody_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user id without an entry in the password database, and no home in the environment."""

    def unknown(uid: int) -> NoReturn:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "FORKYARD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


# -- the home folder -----------------------------------------------------------------------------------


@pytest.mark.parametrize("home", [None, "", "relative/home", "~"])
def test_a_home_that_is_no_absolute_path_is_asked_of_the_system(
    monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    monkeypatch.delenv("FORKYARD_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    theirs = pwd.getpwuid(os.getuid()).pw_dir
    settle()
    assert os.environ["HOME"] == theirs
    assert Cache.default().root == Path(theirs, ".cache", "forkyard")


@pytest.mark.usefixtures("nobody_known")
def test_a_user_nobody_knows_has_no_cache_but_a_reason() -> None:
    settle()
    assert os.environ["HOME"] == "/"
    assert Cache.default().root == Path("/.cache/forkyard")


def test_a_home_that_is_given_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FORKYARD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert Cache.default().root == tmp_path / ".cache" / "forkyard"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Cache.default().root == tmp_path / "xdg" / "forkyard"


# -- FORKYARD_CACHE ------------------------------------------------------------------------------------


def test_the_folder_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    for value, folder in {"": ".cache/forkyard", "here": "here", "~/mine": "mine", "./~x": "~x"}.items():
        monkeypatch.setenv("FORKYARD_CACHE", value)
        assert Cache.default().root == tmp_path / folder


def test_a_home_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORKYARD_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(UsageError, match="~nobody-of-this-name is no user's home folder"):
        Cache.default()
    with pytest.raises(UsageError):
        expanded("~nobody-of-this-name/cache")


# -- the current folder --------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["status"], ["doctor"], ["plan", "avx2"], ["clean"], ["stack", "lint"]])
def test_a_current_folder_that_was_deleted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repository: Path, words: list[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.setenv("FORKYARD_ROOT", str(repository))
    monkeypatch.setenv("FORKYARD_CACHE", str(tmp_path / "cache"))
    gone.rmdir()
    answer = CliRunner().invoke(main, words)
    assert answer.exit_code == 2
    assert "the current folder is not there any more" in answer.stderr
    assert "cd" in answer.stderr


def test_a_current_folder_nobody_may_look_into(
    tmp_path: Path, repository: Path, as_nobody: Callable[[Callable[[], None]], int]
) -> None:
    """It is not the project; the one forkyard runs from is found all the same."""
    closed = tmp_path / "closed"
    closed.mkdir()
    before = os.getcwd()
    os.chdir(closed)
    try:
        closed.chmod(0)

        def attempt() -> None:
            assert find_root(closed) == repository

        assert as_nobody(attempt) == 0
    finally:
        os.chdir(before)
        closed.chmod(0o755)


# -- temporary files -----------------------------------------------------------------------------------


def test_no_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "missing")])
    with pytest.raises(StorageError, match="no folder for temporary files") as caught:
        Cache(tmp_path / "cache").prepare()
    assert "TMPDIR" in (caught.value.next_step or "")


def test_a_folder_for_temporary_files_that_programs_take_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / 'quote"d'))
    (tmp_path / 'quote"d').mkdir()
    with pytest.raises(StorageError, match="the path of the folder for temporary files") as caught:
        Cache(tmp_path / "cache").prepare()
    assert "TMPDIR" in (caught.value.next_step or "")


# -- characters ----------------------------------------------------------------------------------------

REFUSED = [
    ":",
    ";",
    "\\",
    "$",
    '"',
    "'",
    "[",
    "]",
    "*",
    "?",
    "{",
    "}",
    "|",
    "<",
    ">",
    "\n",
    "\r",
    "\t",
    "\x7f",
    "\udcff",
    "\u2028",
]
TAKEN = [
    " ",
    "#",
    "%",
    "=",
    ",",
    "`",
    "(",
    ")",
    "&",
    "!",
    "~",
    "@",
    "^",
    "+",
    "-",
    ".",
    "é",
    "日",
    "\N{NO-BREAK SPACE}",
]


@pytest.mark.parametrize("char", REFUSED)
def test_a_character_that_some_program_takes_apart(tmp_path: Path, char: str) -> None:
    cache = Cache(tmp_path / f"run 12{char}30" / "cache")
    with pytest.raises(StorageError) as caught:
        cache.prepare()
    error = caught.value
    assert "cache folder" in error.what
    assert (char if char in error.what else ascii(char).strip("'")) in error.what
    assert error.where
    assert error.why
    assert "FORKYARD_CACHE" in (error.next_step or "")
    error.describe().encode()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("char", TAKEN)
def test_a_character_that_arrives_whole(tmp_path: Path, char: str) -> None:
    for name in (f"{char}ab", f"a{char}b", f"ab{char}"):
        assert checked(tmp_path / name / "x", "cache folder", "") == tmp_path / name / "x"


def test_the_document_lists_every_character(repository: Path) -> None:
    text = (repository / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    section = text.partition("## Folders")[2].partition("\n## ")[0]
    refused, _, taken = section.partition("All others work")
    for char in _TAKEN_APART:
        shown = "\\|" if char == "|" else char
        assert f"`{shown}`" in refused, char
        assert f"`{shown}`" not in taken, char


def test_a_link_to_a_folder_that_programs_take_apart(tmp_path: Path) -> None:
    (tmp_path / "run 12:30").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run 12:30")
    with pytest.raises(StorageError, match="holds :") as caught:
        Cache(tmp_path / "link" / "cache").prepare()
    assert caught.value.where == str(tmp_path / "run 12:30" / "cache")


def test_an_output_folder_that_cannot_be_written(
    tmp_path: Path, as_nobody: Callable[[Callable[[], None]], int]
) -> None:
    check_output(tmp_path)
    check_output(tmp_path / "not" / "yet")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="output folder") as caught:
        check_output(tmp_path / "file" / "out")
    assert caught.value.where == str(tmp_path / "file")

    def attempt() -> None:
        with pytest.raises(StorageError, match="output folder") as caught:
            check_output(Path("/proc/1/x"))
        assert "--out" in (caught.value.next_step or "")

    assert as_nobody(attempt) == 0


def test_an_environment_of_its_own_that_programs_take_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Cache
) -> None:
    check_own()
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "a;b" / ".nox" / "forkyard"))
    with pytest.raises(StorageError, match="environment that forkyard runs from") as caught:
        check_own()
    assert "move the project" in (caught.value.next_step or "")
    (check,) = (check for check in examine(cache) if check.name == "python")
    assert check.state == "missing"
