"""What is under ``patches/``: stack.toml, the series of each engine, the patches and the whole files they add."""

from __future__ import annotations

import difflib
import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from forkyard.errors import PatchError, RecipeError
from forkyard.recipes.model import IsoDate, Line, RelativePaths, SeriesName, locate, to_tuple
from forkyard.recipes.toml_positions import positions
from forkyard.recipes.validation import problems

Lines = Annotated[tuple[Line, ...], BeforeValidator(to_tuple)]


def _to_pairs(table: object) -> object:
    """A TOML table as pairs: what a stack.toml says is compared and kept in sets."""
    return tuple(table.items()) if isinstance(table, dict) else table


class StackFile(BaseModel):
    """What a stack.toml may say."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    title: Line
    intent: str = Field(min_length=1, description="One paragraph: why the stack exists.")
    engines: Annotated[tuple[SeriesName, ...], BeforeValidator(to_tuple), Field(min_length=1)]
    requires: Lines = ()
    conflicts: Lines = ()
    capability: Line | None = Field(
        default=None, description="What the bindings report when the stack is in a payload."
    )
    headers: RelativePaths = Field(
        default=(), description="Headers of the stack's own C API, by their path in the engines' trees."
    )
    libraries: Lines = Field(
        default=(), description="CMake library targets that its patches add, which the wheel carries as well."
    )
    test: Lines = ()
    test_variants: Annotated[tuple[tuple[SeriesName, Line], ...], BeforeValidator(_to_pairs)] = Field(
        default=(),
        alias="test-variants",
        description="Engine -> the variant whose payload the tests need, where no usual one will do.",
    )
    measure: str = ""
    answers: Lines = ()
    since: IsoDate
    order: int = Field(default=100, description="Stacks apply in this order, then by name.")


@dataclass(frozen=True)
class WholeFile:
    """A file of ours a stack may add to a tree."""

    path: str
    """Below ``patches/<stack>/src``."""
    sha256: str


@dataclass(frozen=True)
class Patch:
    """One patch of a series, unread beyond its bytes."""

    name: str
    path: Path
    data: bytes

    @property
    def sha256(self) -> str:
        """Digest of the file as it lies in the repository."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Series:
    """The ordered patches of one stack for one engine, at one pin."""

    stack: str
    engine: str
    patches: tuple[Patch, ...]


@dataclass(frozen=True)
class Stack:
    """The patches of one feature."""

    name: str
    folder: Path
    about: StackFile
    limit: int | None = None
    """Only so many patches of its series; ``None`` for all. Whole files are those its patches add."""

    def first(self, count: int) -> Stack:
        """The stack with the first ``count`` patches of its series alone."""
        return replace(self, limit=count)

    @property
    def src(self) -> Path:
        """Folder of whole files of ours."""
        return self.folder / "src"

    def series(self, engine: str) -> Series:
        """The stack's realisation for an engine, as a recipe's ``series`` names it; empty where it has none.

        Raises:
            PatchError: the series names a file that is not there, or a file is in no series.
        """
        folder = self.folder / engine
        if engine not in self.about.engines:
            return Series(self.name, engine, ())
        listing = folder / "series"
        try:
            # An editor's byte order mark is no part of the first name.
            lines = listing.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            msg = f"the series of stack {self.name} for {engine} is not UTF-8 text"
            step = "save it as UTF-8; a shell or an editor may have made UTF-16 of it"
            raise PatchError(msg, where=str(listing), why=str(error), next_step=step) from None
        except OSError as error:
            msg = f"stack {self.name} has no series for {engine}"
            raise PatchError(
                msg,
                where=str(listing),
                why=error.strerror,
                next_step="list the patches in it, one a line, or take the engine out of stack.toml",
            ) from None
        names = [line.split("#", 1)[0].strip() for line in lines]
        patches: list[Patch] = []
        for number, name in enumerate(names, start=1):
            if not name:
                continue
            path = folder / name
            if "/" in name or not path.is_file():
                near = difflib.get_close_matches(name, [file.name for file in folder.glob("*.patch")], n=1)
                msg = f"the series names {name}, which is not there"
                raise PatchError(
                    msg, where=f"{listing}:{number}", next_step=f"did you mean {near[0]}?" if near else None
                )
            if any(patch.name == name for patch in patches):
                msg = f"the series names {name} twice"
                raise PatchError(msg, where=f"{listing}:{number}", next_step="delete one of the lines")
            patches.append(Patch(name, path, path.read_bytes()))
        unlisted = sorted({file.name for file in folder.glob("*.patch")} - {patch.name for patch in patches})
        if unlisted:
            msg = f"{unlisted[0]} is in no series"
            raise PatchError(
                msg,
                where=str(folder),
                why="a patch that is not listed would be left out silently",
                next_step=f"add it to {listing} or delete it",
            )
        return Series(self.name, engine, tuple(patches[: self.limit]))

    def whole_file(self, path: str) -> bytes:
        """Content of a whole file of ours.

        Raises:
            PatchError: there is none of that name.
        """
        try:
            return (self.src / path).read_bytes()
        except OSError as error:
            msg = f"stack {self.name} has no file {path}"
            raise PatchError(msg, where=str(self.src / path), why=error.strerror) from None


def stack_names(root: Path) -> list[str]:
    """Names of all stacks, sorted."""
    return sorted(path.parent.name for path in (root / "patches").glob("*/stack.toml"))


def load_stack(root: Path, name: str) -> Stack:
    """Read one stack.

    Raises:
        RecipeError: there is none of that name, or its stack.toml is wrong; names the line.
    """
    path = root / "patches" / name / "stack.toml"
    if not path.is_file():
        known = stack_names(root)
        near = difflib.get_close_matches(name, known, n=1)
        msg = f"there is no stack {name!r}"
        raise RecipeError(
            msg,
            where=str(root / "patches"),
            why=f"known stacks: {', '.join(known) or 'none'}",
            next_step=f"did you mean {near[0]!r}?" if near else None,
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        msg = "the file is not UTF-8 text"
        step = "save it as UTF-8; a shell or an editor may have made UTF-16 of it"
        raise RecipeError(msg, where=str(path), why=str(error), next_step=step) from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        msg = "the file is not valid TOML"
        raise RecipeError(msg, where=str(path), why=str(error)) from None
    try:
        about = StackFile.model_validate(data)
    except ValidationError as error:
        first = problems(error, data, StackFile.model_json_schema())[0]
        raise RecipeError(first.message, where=locate(path, positions(text), first.key), next_step=first.hint) from None
    return Stack(name, path.parent, about)


def load_stacks(root: Path, names: Sequence[str], engine: str) -> list[Stack]:
    """The named stacks in the order they apply, each checked against the others.

    Raises:
        RecipeError: an unknown stack, a requirement that is not chosen, a conflict, or no series for ``engine``.
    """
    stacks = sorted(
        (load_stack(root, name) for name in dict.fromkeys(names)), key=lambda stack: (stack.about.order, stack.name)
    )
    chosen = {stack.name for stack in stacks}
    for stack in stacks:
        where = str(stack.folder / "stack.toml")
        if engine not in stack.about.engines:
            msg = f"stack {stack.name!r} has nothing for {engine}"
            raise RecipeError(
                msg,
                where=where,
                why=f"it is for {', '.join(stack.about.engines)}",
                next_step="take it out of the recipe's stacks",
            )
        for needed in stack.about.requires:
            if needed not in chosen:
                msg = f"stack {stack.name!r} needs stack {needed!r}"
                raise RecipeError(msg, where=where, next_step=f"add {needed!r} to the recipe's stacks")
        for other in stack.about.conflicts:
            if other in chosen:
                msg = f"stacks {stack.name!r} and {other!r} cannot be built together"
                raise RecipeError(msg, where=where, next_step="take one of them out of the recipe's stacks")
    return stacks
