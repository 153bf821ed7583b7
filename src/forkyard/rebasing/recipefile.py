"""Moving the pin in a recipe's own file: the values change, every comment and blank line stays."""

from __future__ import annotations

from collections.abc import MutableMapping, MutableSequence
from dataclasses import asdict
from typing import Any

import tomlkit

from forkyard.errors import RecipeError
from forkyard.gitstore import OBJECT_ID
from forkyard.rebasing.replaying import Base
from forkyard.recipes import Recipe, RegistrySource


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
    if isinstance(sources, MutableSequence):
        notes += _move_sources(sources, target)
    return tomlkit.dumps(document).encode(), notes


def _move_sources(sources: MutableSequence[Any], target: Recipe) -> list[str]:
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
            del sources[number]
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
    if not len(sources):
        notes.append("no source is left in the recipe: add one that has the new commit")
    return notes
