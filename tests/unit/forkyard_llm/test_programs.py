"""How the engine's own programs are started. That they end with this process is for test_serve.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from forkyard_llm import programs
from forkyard_llm.errors import UsageError


def test_what_is_ours_and_what_no_argument_can_be() -> None:
    programs.refuse(["-c", "5", "--models"], programs.MODEL_OPTIONS)
    for word in ("-m", "--model=x", "-hf", "--docker-repo"):
        with pytest.raises(UsageError, match=r"is set by forkyard-llm itself; use its option -m before `--`"):
            programs.refuse([word], programs.MODEL_OPTIONS)
    with pytest.raises(UsageError, match="NUL"):
        programs.refuse(["a\0"], {})


def test_a_bound_command_becomes_the_program(tmp_path: Path) -> None:
    (tmp_path / "program").write_text(f"#!{sys.executable}\nimport os, sys\nprint(os.getppid(), sys.argv[1:])\n")
    (tmp_path / "program").chmod(0o755)
    command = programs.bound([str(tmp_path / "program"), "a b", ""])
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split(" ", 1)[1] == "['a b', '']\n"


@pytest.mark.parametrize("given", [["-t", "3"], ["--threads", "3"], ["--threads=3"]])
def test_a_program_gets_the_default_threads_unless_the_caller_gives_a_number(
    monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    monkeypatch.delenv("LLAMA_ARG_THREADS", raising=False)
    monkeypatch.setattr(programs, "default_threads", lambda: 5)
    assert programs.threads(["-c", "512"]) == ["-t", "5"]
    assert programs.threads(given) == []
    monkeypatch.setenv("LLAMA_ARG_THREADS", "2")
    assert programs.threads([]) == []
