"""Pins of an engine that can be had without its upstream repository: ``recipes/<family>.pins.toml``.

A rebase moves a recipe from one commit to another. Where upstream cannot be reached these are the commits to go to, and
where a recipe's registry source comes from after the move.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from forkyard.recipes.load import read_table
from forkyard.recipes.model import CommitId, IsoDate, Line, RegistrySource, Table, to_tuple


class KnownPin(Table):
    """An upstream commit and the package that carries it."""

    commit: CommitId = Field(description="Commit id, 40 hexadecimal digits.")
    tree: CommitId = Field(description="Tree id of that commit.")
    date: IsoDate = Field(description="Commit date, YYYY-MM-DD.")
    note: Line = Field(description="What this commit is to us.")
    source: RegistrySource = Field(description="The package, as in a recipe's sources.")


class KnownPins(Table):
    """The pins file of an engine family."""

    schema_: Literal[1] = Field(alias="schema", description="Version of this file format.")
    pins: Annotated[tuple[KnownPin, ...], BeforeValidator(to_tuple)] = Field(
        default=(), description="Newest first, by date."
    )

    @field_validator("pins")
    @classmethod
    def _ordered(cls, pins: tuple[KnownPin, ...]) -> tuple[KnownPin, ...]:
        if [pin.date for pin in pins] != sorted((pin.date for pin in pins), reverse=True):
            msg = "pins are listed newest first"
            raise ValueError(msg)
        if len({pin.commit for pin in pins}) != len(pins):
            msg = "a commit is listed twice"
            raise ValueError(msg)
        return pins


def load_known_pins(root: Path, family: str) -> tuple[KnownPin, ...]:
    """The known pins of an engine family, newest first; none if there is no file.

    Raises:
        RecipeError: the file is not valid; names the line.
    """
    path = root / "recipes" / f"{family}.pins.toml"
    return read_table(KnownPins, path).pins if path.is_file() else ()
