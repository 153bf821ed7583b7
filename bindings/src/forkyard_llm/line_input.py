"""Read what somebody types, with editing and a history that the next chat has, too, where there is a readline."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from .errors import UsageError

__all__ = ["line_editing", "typed"]

_LINES = 1000


@contextlib.contextmanager
def line_editing(history: Path) -> Iterator[None]:
    """Have `typed` edit lines, with the history in a file that only its owner reads; what fails there is no error."""
    try:
        import readline  # not everywhere
    except ImportError:
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(history)
    readline.set_history_length(_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            history.parent.mkdir(parents=True, exist_ok=True)
            # Before anything is in it: readline keeps the mode of a file that is there.
            descriptor = os.open(history, os.O_WRONLY | os.O_CREAT, 0o600)
            os.fchmod(descriptor, 0o600)
            os.close(descriptor)
            readline.write_history_file(history)
            history.chmod(0o600)


def typed(prompt: str, more: str, style: str = "") -> str:
    """What is typed: a line, or several of which all but the last end in a backslash.

    Raises EOFError at the end, UsageError for bytes that are no text in the terminal's encoding.
    `prompt` and `more` stand before the first line and the others, with the escape sequence `style`.
    """
    lines = [_line(prompt, style)]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(_line(more, style))
    return "\n".join(lines)


def _line(prompt: str, style: str) -> str:
    try:
        return _read(prompt, style)
    except UnicodeDecodeError as error:
        msg = f"this line is no text in {error.encoding}, which the locale names: {error.reason}"
        raise UsageError(msg) from error


def _read(prompt: str, style: str) -> str:
    if not sys.stdout.isatty():
        # Answers go there, and nothing else.
        sys.stderr.write(prompt)
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n")
    # Between these two characters readline counts nothing as text.
    return input(f"\001{style}\002{prompt}\001\033[0m\002" if style else prompt)
