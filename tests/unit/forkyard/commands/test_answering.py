from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from forkyard.commands.answering import answers
from forkyard.console import Console
from forkyard.errors import EXIT_INTERRUPTED


def fails_with(error: BaseException, while_handling: BaseException | None = None) -> click.Command:
    @click.command()
    @answers
    def command(console: Console) -> None:
        if while_handling is None:
            raise error
        try:
            raise while_handling
        finally:
            raise error

    return command


def test_an_interruption_that_closes_a_file_twice_is_one() -> None:
    """``shutil.rmtree`` does this when Ctrl-C comes right after it closed a folder."""
    interrupted = fails_with(OSError(errno.EBADF, "Bad file descriptor"), KeyboardInterrupt())
    assert CliRunner().invoke(interrupted, []).exit_code == EXIT_INTERRUPTED
    alone = fails_with(OSError(errno.EBADF, "Bad file descriptor"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        CliRunner().invoke(alone, [], catch_exceptions=False)


def test_errors_of_storage_are_explained() -> None:
    done = CliRunner().invoke(fails_with(OSError(errno.ENOSPC, "No space left on device", "x")), [])
    assert done.exit_code == 10


@pytest.mark.parametrize("words", ["--help", "--version", "stack --help"])
def test_help_that_cannot_be_written(words: str) -> None:
    # Without a buffer of Python's own another write would fail.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "forkyard", *words.split()]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=env)
    assert done.returncode == 10
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
