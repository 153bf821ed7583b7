"""What every command shares: ``--json``, ``--quiet``, errors as messages and exit codes, and common options."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from forkyard.cache import Cache, storage_error
from forkyard.console import Console
from forkyard.errors import EXIT_INTERRUPTED, ForkyardError, NetworkError, PatchError, SourceError
from forkyard.journal import recover
from forkyard.places import settle
from forkyard.workshop import project_around

_F = TypeVar("_F", bound=Callable[..., Any])


def answers(function: _F) -> _F:
    """Give a command ``--json`` and ``--quiet``, and turn its errors into messages and exit codes.

    Before anything else a change of the project that was cut off is finished: no command reads half a change.
    """
    return _answering(function, recovering=True)


def answers_anyway(function: _F) -> _F:
    """:func:`answers` for a command that must work where a change waits that cannot be finished: it reads no patches
    and no recipes, or is there to say so.
    """
    return _answering(function, recovering=False)


def _answering(function: _F, *, recovering: bool) -> _F:
    @functools.wraps(function)
    def wrapped(*args: Any, as_json: bool, quiet: bool, **options: Any) -> None:
        console = Console(as_json=as_json, quiet=quiet)
        try:
            settle()
            if recovering and (root := project_around()) is not None:
                recover(root, console)
            status = function(console, *args, **options)
        except ForkyardError as error:
            shown = error
            if isinstance(error, SourceError | PatchError | NetworkError):
                # git does not say that a disk is full in words one could rely on.
                shown = Cache.default().out_of_room("go on", error.what) or error
            console.failure(shown)
            sys.exit(shown.exit_code)
        except KeyboardInterrupt:
            _interrupted(console)
        except OSError as error:
            if isinstance(error.__context__, KeyboardInterrupt):
                # Ctrl-C between the closing of a file and the note that it is closed: it is closed once more.
                _interrupted(console)
            known = storage_error(error, "go on")
            if known is None:
                raise
            console.failure(known)
            sys.exit(known.exit_code)
        sys.exit(status or 0)

    for option in (
        click.option("--json", "as_json", is_flag=True, help="Answer with one JSON document on standard output."),
        click.option("--quiet", is_flag=True, help="No progress and no notes."),
    ):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]


def _interrupted(console: Console) -> NoReturn:
    console.warn("interrupted; running the same command again continues")
    sys.exit(EXIT_INTERRUPTED)


def choices(function: _F) -> _F:
    """The arguments that choose what is planned or built."""
    for decorate in (
        click.argument("recipes", nargs=-1),
        click.option("--variants-file", type=click.Path(path_type=Path), help="A file with variants of your own."),
        click.option(
            "--architectures", help="Comma-separated GPU architectures instead of the variant's, say 89 for CUDA."
        ),
        click.option("--stacks", help="Comma-separated stacks instead of the recipe's; `none` for unpatched upstream."),
        click.option("--out", type=click.Path(path_type=Path), help="Output folder (default: dist in the project)."),
    ):
        function = decorate(function)
    return function


def stack_names_of(text: str | None) -> list[str] | None:
    """The stacks a ``--stacks`` option names; ``None`` without the option, none for ``none``."""
    if text is None:
        return None
    return [] if text == "none" else words_of(text)


def words_of(text: str | None) -> list[str]:
    """What an option names that takes words separated by commas."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def sources(function: _F) -> _F:
    """The options that say where a pin may come from."""
    for decorate in (
        click.option("--source", help="Use only this source: git, registry, local, a URL, a clone or an archive."),
        click.option("--offline", is_flag=True, help="Touch no network."),
    ):
        function = decorate(function)
    return function
