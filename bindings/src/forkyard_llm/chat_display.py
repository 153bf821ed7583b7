"""Show an answer while it is made: Markdown on a terminal, with reasoning dim before it; the text alone elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

__all__ = ["Display", "PlainDisplay", "TerminalDisplay", "finished_blocks"]

_REFRESHES_PER_SECOND = 12
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
# What a terminal would obey: all controls but tabs and ends of lines.
_CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}")


class Display(Protocol):
    """What shows one answer; a context manager around it."""

    def reasoning(self, text: str) -> None:
        """Show more of what the model thinks."""

    def content(self, text: str) -> None:
        """Show more of what it answers."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class PlainDisplay:
    """Gives the text to `write` as it comes; reasoning is no part of it."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def reasoning(self, text: str) -> None:
        """Show nothing."""

    def content(self, text: str) -> None:
        """Write it."""
        self._write(text)

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._write("\n")


class TerminalDisplay:
    """Renders Markdown: blocks that are complete once and for good, the last one again whenever it grows.

    So nothing that has scrolled away needs to be drawn again.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=_REFRESHES_PER_SECOND, vertical_overflow="ellipsis")
        self._waiting = console.status("", spinner="dots")
        self._text = ""
        self._thinking = False

    def reasoning(self, text: str) -> None:
        """Show it dim."""
        self._waiting.stop()
        self._thinking = True
        self._console.print(Text(text.translate(_CONTROLS), style="dim"), end="", soft_wrap=True)

    def content(self, text: str) -> None:
        """Render it."""
        self._end_reasoning()
        self._text += text.translate(_CONTROLS)
        if not self._text.strip():
            return
        if not self._live.is_started:
            self._waiting.stop()
            self._live.start()
        done = finished_blocks(self._text)
        if done:
            self._console.print(_Block(self._text[:done]))
            self._console.print()
            self._text = self._text[done:]
        self._live.update(_Block(self._text))

    def __enter__(self) -> TerminalDisplay:
        self._waiting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._waiting.stop()
        self._end_reasoning()
        self._live.stop()
        self._console.print()

    def _end_reasoning(self) -> None:
        if self._thinking:
            self._console.print("\n")
            self._thinking = False


class _Block:
    """Markdown without the empty lines that stand around some of its elements and not around others."""

    def __init__(self, text: str) -> None:
        self._markdown = Markdown(text)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._markdown, options, pad=False)
        filled = [number for number, line in enumerate(lines) if not all(map(_is_empty, line))]
        for line in lines[filled[0] : filled[-1] + 1] if filled else ():
            yield from line
            yield Segment.line()


def _is_empty(segment: Segment) -> bool:
    # A line of code may have nothing but its background.
    return not segment.text.strip() and (segment.style is None or segment.style.bgcolor is None)


def finished_blocks(text: str) -> int:
    """How many characters of Markdown will look the same whatever follows: up to its last block, if that has begun.

    A line that is indented may belong to the item of a list before it; a fence is open until it is closed.
    """
    done = position = 0
    fence = ""
    blank = False
    for line in text.split("\n"):
        if blank and not fence and line and not line[0].isspace():
            done = position
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and line.strip() == mark[1] and mark[1].startswith(fence):
            fence = ""
        blank = not line.strip()
        position += len(line) + 1
    return done
