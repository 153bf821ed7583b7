"""Show how a model's download comes along: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from .models import Progress as Report

__all__ = ["shown_progress"]

_STEP = 0.1  # of the total, between two lines where there is no terminal


@contextlib.contextmanager
def shown_progress(console: Console) -> Iterator[Report]:
    """A progress callback for `models.get` that shows on `console`; nothing if it is never called."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bars(progress)


class _Bars:
    """One bar for each thing being done."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total or None)
        self._progress.update(self._tasks[what], completed=done, total=total or None)


class _Lines:
    """One line at the start of each thing being done and after every tenth of it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[str, float] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        share = done / total if total else 0.0
        last = self._shown.get(what)
        if last is not None and share < last + _STEP:
            return
        self._shown[what] = share
        amount = f" {done / 1e6:.0f} of {total / 1e6:.0f} MB" if total else ""
        self._console.print(f"{what}{amount}", soft_wrap=True)
