"""The one place that prints for people: results on standard output, progress and notes on standard error."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol

import click
from rich.console import Console as RichConsole
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as RichTask
from rich.text import Text

from forkyard.errors import ForkyardError

_PLAIN_EVERY_S = 15.0


class Step(Protocol):
    """One piece of long work that is under way."""

    def update(self, done: int, total: int | None = None, detail: str = "") -> None:
        """Report how far it is; ``total`` may become known late."""


class Reporter(Protocol):
    """What code that works for long needs of the console."""

    def step(self, title: str, unit: str = "") -> contextlib.AbstractContextManager[Step]:
        """Open a piece of work; ``unit`` is ``bytes`` or a plural noun."""

    def note(self, text: str) -> None:
        """Say something once."""

    def warn(self, text: str) -> None:
        """Say something the user should look at."""


class Silent:
    """A reporter that says nothing: for libraries and tests."""

    @contextlib.contextmanager
    def step(self, title: str, unit: str = "") -> Iterator[Step]:
        """See :class:`Reporter`."""
        yield self

    def update(self, done: int, total: int | None = None, detail: str = "") -> None:
        """See :class:`Step`."""

    def note(self, text: str) -> None:
        """See :class:`Reporter`."""

    def warn(self, text: str) -> None:
        """See :class:`Reporter`."""


class _Amount(ProgressColumn):
    """done/total in the step's own unit."""

    def render(self, task: RichTask) -> Text:
        unit = task.fields.get("unit", "")
        done, total = int(task.completed), task.total
        if not done and total is None:
            return Text("")
        if unit == "bytes":
            return Text(f"{decimal(done)}/{decimal(int(total)) if total else '?'}")
        return Text(f"{done}/{int(total) if total else '?'} {unit}".rstrip())


class Console:
    """Printing for the command line.

    Args:
        as_json: results are one JSON document on standard output.
        quiet: no progress and no notes; warnings and errors stay.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        _prepare_streams()
        self._err = RichConsole(stderr=True, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def step(self, title: str, unit: str = "") -> Iterator[Step]:
        """See :class:`Reporter`: a live line on a terminal, a line now and then elsewhere."""
        if self.quiet:
            yield Silent()
        elif self._err.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                _Amount(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[detail]}", style="dim"),
            )
            with Progress(*columns, console=self._err, transient=True) as progress:
                task = progress.add_task(title, total=None, unit=unit, detail="")
                started = time.monotonic()
                yield _Live(progress, task)
            self.note(f"{title}: done in {_seconds(time.monotonic() - started)}")
        else:
            plain = _Plain(self, title, unit)
            yield plain
            plain.finish()

    def note(self, text: str) -> None:
        """See :class:`Reporter`."""
        if not self.quiet:
            self._err.print(Text(text))

    def warn(self, text: str) -> None:
        """See :class:`Reporter`."""
        self._err.print(Text("warning: " + text, style="yellow"))

    def result(self, document: Any, text: str | Text) -> None:
        """The answer of a command: ``text`` for people, in colour on a terminal, ``document`` with ``--json``."""
        if self.as_json:
            _print_json(document)
        elif isinstance(text, Text):
            out = RichConsole(highlight=False, soft_wrap=True)
            if out.is_terminal and not out.no_color:
                out.print(text)
            else:
                # rich would make blanks of tabs.
                sys.stdout.write(text.plain.rstrip("\n") + "\n")
        elif text:
            sys.stdout.write(text.rstrip("\n") + "\n")
        sys.stdout.flush()

    def failure(self, error: ForkyardError) -> None:
        """An error: for people on standard error, with ``--json`` as the document on standard output."""
        # Not on an output that takes no more: then this is the error.
        try:
            if self.as_json:
                _print_json(error.as_json())
                return
            sys.stdout.flush()
        except OSError:
            # Python would try to write the rest once more at its end, and end with a code of its own.
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        self._err.print(Text("error: ", style="bold red").append(Text(error.describe(), style="")))


def _prepare_streams() -> None:
    """Make standard output and error take any text, whatever the locale, and exist.

    A name that the terminal's encoding lacks, or that is not UTF-8, is shown with escapes.
    """
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed: the next file opened would get its number, and what is printed
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w"))
        elif name != "stdin" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _print_json(document: Any) -> None:
    """Print JSON as UTF-8, whatever the locale makes of text; characters beyond ASCII are escaped."""
    click.echo((json.dumps(document, indent=2, sort_keys=True) + "\n").encode(), nl=False)


class _Live:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def update(self, done: int, total: int | None = None, detail: str = "") -> None:
        self._progress.update(self._task, completed=done, total=total, detail=detail)


class _Plain:
    """Progress for logs: the start, a line every quarter of a minute, the end."""

    def __init__(self, console: Console, title: str, unit: str) -> None:
        self._console, self._title, self._unit = console, title, unit
        self._started = self._last = time.monotonic()
        console.note(f"{title} ...")

    def update(self, done: int, total: int | None = None, detail: str = "") -> None:
        now = time.monotonic()
        if now - self._last < _PLAIN_EVERY_S:
            return
        self._last = now
        spent = now - self._started
        amount = (
            f"{decimal(done)}/{decimal(total) if total else '?'}"
            if self._unit == "bytes"
            else f"{done}/{total or '?'} {self._unit}"
        )
        left = f", about {_seconds(spent / done * (total - done))} left" if total and done else ""
        self._console.note(f"  {self._title}: {amount} in {_seconds(spent)}{left}")

    def finish(self) -> None:
        self._console.note(f"{self._title}: done in {_seconds(time.monotonic() - self._started)}")


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 60 else f"{int(value) // 60} min {int(value) % 60:02d} s"
