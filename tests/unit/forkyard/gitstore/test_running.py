"""Running git: what ends it, and that nobody waits for a git that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forkyard.gitstore import GitFailure, Store

ASK = (
    "import sys; from pathlib import Path; from forkyard.gitstore import Store; Store(Path(sys.argv[1])).has('x' * 40)"
)


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git that says when it has begun and then takes a minute."""
    folder = tmp_path / "bin"
    folder.mkdir()
    began = f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/began; exec sleep 60"
    # GitPython asks for the version when it is imported.
    (folder / "git").write_text(f'#!/bin/sh\ncase "$1" in version) echo git version 2.39.5;; *) {began};; esac\n')
    (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path / "began"


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_an_interrupted_forkyard_ends_at_once_and_so_does_its_git(slow: Path, tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ASK, str(tmp_path)], stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 60
    while not slow.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # Python itself must have come back from starting it; a terminal's Ctrl-C reaches git as well.
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=1800)
    assert b"KeyboardInterrupt" in said
    assert gone(int(slow.read_text()))


def test_a_git_that_takes_too_long_is_ended(slow: Path, tmp_path: Path) -> None:
    with pytest.raises(GitFailure, match="more than 1 s"):
        Store(tmp_path)._git("gc", timeout_s=1.0)
    assert gone(int(slow.read_text()))
