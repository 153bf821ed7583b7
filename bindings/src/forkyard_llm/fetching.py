"""Show how a model's download comes along: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from .models import Progress as Report

__all__ = ["shown_progress"]

# Between two lines where there is no terminal: a share of the total, and seconds.
_STEP = 0.1
_PAUSE_S = 2.0


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
    """One line at the start of each thing being done, and after every tenth if that takes long."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[str, tuple[float, float]] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        share = done / total if total else 0.0
        now = time.monotonic()
        if what in self._shown:
            last_share, last_time = self._shown[what]
            if share < last_share + _STEP or now < last_time + _PAUSE_S:
                return
        self._shown[what] = (share, now)
        amount = f" {done / 1e6:.0f} of {total / 1e6:.0f} MB" if total else ""
        self._console.print(f"{what}{amount}", soft_wrap=True)
