"""What code that measures for long says meanwhile; forkyard's console is one such reporter, `Console` here another."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console as RichConsole
from rich.text import Text

__all__ = ["Console", "Reporter", "Silent", "Step"]

_EVERY_S = 15.0


class Step(Protocol):
    """One piece of long work that is under way."""

    def update(self, done: int, total: int | None = None, detail: str = "") -> None:
        """Report how far it is; `total` may become known late."""


class Reporter(Protocol):
    """What hears of progress, notes and warnings."""

    def step(self, title: str, unit: str = "") -> contextlib.AbstractContextManager[Step]:
        """Open a piece of work; `unit` is a plural noun."""

    def note(self, text: str) -> None:
        """Say something once."""

    def warn(self, text: str) -> None:
        """Say something the user should look at."""


class Silent:
    """A reporter that says nothing."""

    @contextlib.contextmanager
    def step(self, title: str, unit: str = "") -> Iterator[Step]:
        """See `Reporter`."""
        yield self

    def update(self, done: int, total: int | None = None, detail: str = "") -> None:
        """See `Step`."""

    def note(self, text: str) -> None:
        """See `Reporter`."""

    def warn(self, text: str) -> None:
        """See `Reporter`."""


class Console:
    """Says it on standard error: a line that changes on a terminal, a line now and then elsewhere."""

    def __init__(self, console: RichConsole) -> None:
        self._console = console

    @contextlib.contextmanager
    def step(self, title: str, unit: str = "") -> Iterator[Step]:
        """See `Reporter`."""
        if self._console.is_terminal:
            with self._console.status(Text(title)) as status:
                yield _Step(title, unit, lambda text: status.update(Text(text)), 0.0)
        else:
            self.note(f"{title} ...")
            yield _Step(title, unit, self.note, _EVERY_S)

    def note(self, text: str) -> None:
        """See `Reporter`."""
        self._console.print(Text(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        """See `Reporter`."""
        self._console.print(Text(f"warning: {text}", style="yellow"), soft_wrap=True)


class _Step:
    def __init__(self, title: str, unit: str, say: object, every_s: float) -> None:
        assert callable(say)
        self._title, self._unit, self._say, self._every_s = title, unit, say, every_s
        self._started = self._said = time.monotonic()

    def update(self, done: int, total: int | None = None, detail: str = "") -> None:
        """See `Step`."""
        now = time.monotonic()
        if now - self._said < self._every_s:
            return
        self._said = now
        amount = f"{done}/{total}" if total else str(done)
        spent = int(now - self._started)
        self._say(f"  {self._title}: {amount} {self._unit} in {spent // 60} min {spent % 60} s {detail}".rstrip())
