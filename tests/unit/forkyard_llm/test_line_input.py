"""Reading what somebody types: the history file. How it looks is for the tests with a terminal."""

from __future__ import annotations

import io
import stat
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm.errors import UsageError
from forkyard_llm.line_input import line_editing, typed


def test_the_history_is_for_its_owner_alone_and_is_there_again(tmp_path: Path) -> None:
    readline = pytest.importorskip("readline")
    history = tmp_path / "cache" / "chat-history"
    readline.clear_history()
    with line_editing(history):
        readline.add_history("first")
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    history.chmod(0o644)
    readline.clear_history()
    with line_editing(history):
        assert readline.get_history_item(1) == "first"
        readline.add_history("second")
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert history.read_text().splitlines()[-2:] == ["first", "second"]
    readline.clear_history()


def test_a_history_that_cannot_be_kept_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with line_editing(tmp_path / "file" / "chat-history"):
        pass
    monkeypatch.setitem(sys.modules, "readline", None)
    with line_editing(tmp_path / "chat-history"):
        pass
    assert not (tmp_path / "chat-history").exists()


def test_a_line_goes_on_after_a_backslash(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\\\ntwo\nthree"))
    assert typed("> ", ". ") == "one\ntwo"
    assert typed("> ", ". ") == "three"
    with pytest.raises(EOFError):
        typed("> ", ". ")
    # Standard output, which is no terminal here, is for answers.
    assert capsys.readouterr() == ("", "> . > > ")


def test_bytes_that_are_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        return b"\xff".decode()

    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(readline=fail))
    with pytest.raises(UsageError, match="no text in utf-8"):
        typed("> ", ". ")
