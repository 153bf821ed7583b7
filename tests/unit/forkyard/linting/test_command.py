from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from forkyard.commands.lint import lint


@pytest.fixture
def run(lab: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command on the lab's project; returns exit status and standard output."""
    monkeypatch.setenv("FORKYARD_ROOT", str(lab.root))
    monkeypatch.setenv("FORKYARD_CACHE", str(lab.cache.root))

    def command(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(lint, list(words))
        return result.exit_code, result.stdout

    return command


def test_nothing_to_find(lab: Any, run: Any) -> None:
    lab.stack(lab.edit("notes.txt", b"notes", b"memos"))
    status, text = run("--quiet")
    assert status == 0
    assert "0 errors, 0 warnings in 1 patch of 1 stack" in text


def test_warnings_alone_end_well(lab: Any, run: Any) -> None:
    lab.stack(lab.edit("src/a.cpp", b"return 1", b"return  1+1"))
    status, text = run("--quiet", "part", "--engine", "llama.cpp")
    assert status == 0
    assert "warning: clang-format" in text


def test_an_error_is_an_exit_code(lab: Any, run: Any) -> None:
    lab.stack(lab.edit("notes.txt", b"notes", b"\xc2\xbd"))
    status, text = run("--quiet", "--json")
    assert status == 12
    assert json.loads(text)["findings"][0]["rule"] == "ascii"


def test_a_stack_nobody_knows(lab: Any, run: Any) -> None:
    status, text = run("--quiet", "--json", "nothing")
    assert status == 3
    assert json.loads(text)["error"] == "recipe"


def test_an_engine_nobody_knows(run: Any) -> None:
    assert run("--engine", "whisper.cpp")[0] == 2
