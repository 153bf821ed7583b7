"""Moving the pin in a recipe's own file: the values change, every comment and blank line stays."""

from __future__ import annotations

import re
from collections.abc import MutableMapping, MutableSequence, Sequence
from dataclasses import asdict
from typing import Any

import tomlkit

from forkyard.errors import RecipeError
from forkyard.gitstore import OBJECT_ID
from forkyard.rebasing.replaying import Base
from forkyard.recipes import Recipe, RegistrySource

_SOURCE = re.compile(r"^[ \t]*\[\[[ \t]*[\"']?sources[\"']?[ \t]*\]\]")


def moved_recipe(recipe: Recipe, target: Recipe, base: Base) -> tuple[bytes, list[str]]:
    """The recipe's file with the target's pin and registry source.

    Args:
        base: the pin as it was obtained.

    Returns:
        the file, and what a person should know about the move.

    Raises:
        RecipeError: the file has no ``[pin]`` table that could be changed.
    """
    assert OBJECT_ID.match(base.commit)
    # Not as text: line ends would be made those of this machine.
    document = tomlkit.parse(recipe.path.read_bytes().decode("utf-8"))
    pin = document.get("pin")
    if not isinstance(pin, MutableMapping):
        msg = "the recipe's pin cannot be changed by a program"
        raise RecipeError(msg, where=recipe.location_of("pin"), next_step="write it as a `[pin]` table")
    notes = []
    # A key that is not there is not added: it would land below the comments of what follows.
    pin.update({key: value for key, value in asdict(base).items() if key in pin})
    if pin.get("build-number"):
        pin["build-number"] = 0
        notes.append("build-number was set to 0: upstream's count at the new pin is not known here")
    sources = document.get("sources")
    gone: list[int] = []
    if isinstance(sources, MutableSequence):
        gone, said = _move_sources(sources, target)
        notes += said
    return _without_sources(tomlkit.dumps(document), gone).encode(), notes


def _without_sources(text: str, numbers: Sequence[int]) -> str:
    """A recipe's text less some of its sources, each with the comment right above it.

    Args:
        numbers: from the last to the first.
    """
    for number in numbers:
        lines = text.splitlines(keepends=True)
        headers = [place for place, line in enumerate(lines) if _SOURCE.match(line)]
        document = tomlkit.parse(text)
        sources = document["sources"]
        if len(headers) != len(sources):
            # Written as one line, or a text holds what looks like a header.
            del sources[number]
            text = tomlkit.dumps(document)
            continue
        start = _with_comment(lines, headers[number])
        tables = (place for place in range(headers[number] + 1, len(lines)) if lines[place].lstrip().startswith("["))
        following = next(tables, None)
        end = len(lines) if following is None else _with_comment(lines, following)
        text = "".join([*lines[:start], *lines[end:]])
    return text


def _with_comment(lines: Sequence[str], header: int) -> int:
    """Where a table begins: at the first line of the comment right above its header."""
    while header > 0 and lines[header - 1].lstrip().startswith("#"):
        header -= 1
    return header


def _move_sources(sources: MutableSequence[Any], target: Recipe) -> tuple[list[int], list[str]]:
    """Have the registry sources be the target's; returns those to delete, the last one first, and notes."""
    gone = []
    fresh = next((source for source in target.sources if isinstance(source, RegistrySource)), None)
    notes = []
    for number in reversed(range(len(sources))):
        table = sources[number]
        if table.get("kind") != "registry":
            continue
        if fresh is None:
            notes.append(
                f"its registry source {table.get('project')} {table.get('version')} has another commit and went"
            )
            gone.append(number)
            continue
        values: dict[str, str | list[str] | None] = {
            "project": fresh.project,
            "version": fresh.version,
            "sha256": fresh.sha256,
            "store": fresh.store,
            "folder": fresh.folder,
            "absent": fresh.absent,
            "drop": list(fresh.drop) or None,
        }
        for key, value in values.items():
            if value is None:
                table.pop(key, None)
            else:
                table[key] = value
        fresh = None
    if fresh is not None:
        notes.append(f"the new commit can be had from {fresh.project} {fresh.version}, which the recipe does not name")
    if len(sources) == len(gone):
        notes.append("no source is left in the recipe: add one that has the new commit")
    return gone, notes
