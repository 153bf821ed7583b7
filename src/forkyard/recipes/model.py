"""What a recipe file may say: the engine, its pin, where the pin can be had from, and how it is built.

The models are frozen and strict: an unknown key, a wrong type or an impossible value is an error, never a
default. TOML keys are kebab-case, attributes are snake_case. Reading a file and naming the line of a mistake
is :mod:`forkyard.recipes.load`'s work; the models here hold values only.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    field_validator,
    model_validator,
)

FAMILIES: tuple[str, ...] = ("llama.cpp", "ik_llama.cpp")
"""The engines forkyard knows: one binding adapter and one column of ISA options each."""

Family: TypeAlias = Literal["llama.cpp", "ik_llama.cpp"]


def family_of(series: str) -> str:
    """The engine family of a series: a family has one of its own name, and may have ``FAMILY-WORD`` for other pins.

    Raises:
        ValueError: the name begins with no family.
    """
    for family in FAMILIES:
        if series == family or series.startswith(f"{family}-"):
            return family
    msg = f"{series!r} is no engine: {' or '.join(FAMILIES)}, with a hyphen and a word behind it for another pin"
    raise ValueError(msg)


def _series(name: str) -> str:
    family_of(name)
    return name


KeyPath: TypeAlias = tuple[str | int, ...]
"""A place in a TOML file: table names, keys and array indexes from the top: ``("sources", 0, "url")``."""


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def to_tuple(value: object) -> object:
    """Return *value* as a tuple if it is a list, and unchanged if not: a validator's first step."""
    # Strict mode takes no list for a tuple, yet TOML has only lists and a frozen model must not hold one.
    return tuple(value) if isinstance(value, list) else value


def unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return *values*; raises ValueError if one of them is there twice."""
    repeated = sorted({str(v) for v in values if values.count(v) > 1})
    if repeated:
        msg = f"listed more than once: {', '.join(repeated)}"
        raise ValueError(msg)
    return values


def _relative(value: str) -> str:
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or "\\" in value or str(path) != value or value == ".":
        msg = "must be a plain relative path with '/' between its parts and no '..'"
        raise ValueError(msg)
    return value


def _iso_date(value: object) -> object:
    # TOML writes a date bare or in quotes; both mean the same to the person who writes it.
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return value.isoformat()
    return value


def _real_date(value: str) -> str:
    try:
        datetime.date.fromisoformat(value)
    except ValueError as error:
        msg = f"is not a day of the calendar ({error})"
        raise ValueError(msg) from None
    return value


def _no_control_characters(value: str) -> str:
    if any(ord(c) < 32 or ord(c) == 127 for c in value):
        msg = "must be one line of printable text"
        raise ValueError(msg)
    return value


Line: TypeAlias = Annotated[str, StringConstraints(min_length=1), AfterValidator(_no_control_characters)]
Name: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
SeriesName: TypeAlias = Annotated[Name, AfterValidator(_series)]
CommitId: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
Sha256: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
IsoDate: TypeAlias = Annotated[
    str,
    BeforeValidator(_iso_date),
    StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"),
    AfterValidator(_real_date),
]
RelativePath: TypeAlias = Annotated[Line, AfterValidator(_relative)]
Lines: TypeAlias = Annotated[tuple[Line, ...], BeforeValidator(to_tuple)]
Names: TypeAlias = Annotated[tuple[Name, ...], BeforeValidator(to_tuple), AfterValidator(unique)]
RelativePaths: TypeAlias = Annotated[tuple[RelativePath, ...], BeforeValidator(to_tuple), AfterValidator(unique)]
InstructionSet: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Z0-9][A-Z0-9_]*$")]
OptionName: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
OptionValue: TypeAlias = bool | int | Annotated[str, AfterValidator(_no_control_characters)]
Options: TypeAlias = dict[OptionName, OptionValue]


class Table(BaseModel):
    """A TOML table with kebab-case keys: nothing unknown, nothing converted, nothing changed later."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, alias_generator=_kebab)


class Pin(Table):
    """The upstream commit a recipe builds."""

    commit: CommitId = Field(description="Commit id, 40 hexadecimal digits.")
    tree: CommitId | None = Field(
        default=None,
        description="Tree id of that commit. What a source delivers is checked against it; needed when"
        " a source is a plain folder, which carries no commit.",
    )
    date: IsoDate | None = Field(default=None, description="Commit date, YYYY-MM-DD. Taken from the commit if absent.")
    build_number: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(
        default=0, description="Upstream's own count of commits (its tags are b<count>); 0 if not known."
    )


class GitSource(Table):
    """A git repository that holds the pin."""

    kind: Literal["git"]
    url: Line = Field(description="https, ssh or file URL, or a path; a relative path starts at the recipe's folder.")

    @field_validator("url")
    @classmethod
    def _is_a_location(cls, url: str) -> str:
        # "-x" would be read by git as an option, "ext::" runs a command: neither names a repository.
        scheme, separator, _ = url.partition("://")
        if url.startswith("-") or "::" in url or (separator and scheme not in {"https", "ssh", "file"}):
            msg = "must be an https, ssh or file URL or a path"
            raise ValueError(msg)
        return url


class RegistrySource(Table):
    """A package registry's source archive that vendors the pin, as a git object store or a plain folder."""

    kind: Literal["registry"]
    project: Name = Field(description="Name of the package.")
    version: Annotated[str, StringConstraints(pattern=r"^[0-9][0-9A-Za-z.!+_-]*$")] = Field(
        description="Exact version of the package."
    )
    sha256: Sha256 = Field(description="sha256 of its source archive.")
    store: RelativePath | None = Field(
        default=None, description="Path in the archive of a git object store that holds the pin."
    )
    folder: RelativePath | None = Field(default=None, description="Path in the archive of the pin's files.")
    drop: RelativePaths = Field(default=(), description="Paths under `folder` that are not part of the pin's tree.")
    absent: RelativePath | None = Field(
        default=None,
        description="File beside the recipe listing the entries of the pin's tree that `folder` lacks or has"
        " in another form: mode, type, object id and path, separated by tabs.",
    )

    @model_validator(mode="after")
    def _one_place(self) -> RegistrySource:
        if (self.store is None) == (self.folder is None):
            msg = "a registry source names exactly one of `store` and `folder`"
            raise ValueError(msg)
        if self.folder is None and (self.drop or self.absent):
            msg = "`drop` and `absent` describe a `folder`; a `store` is complete or refused"
            raise ValueError(msg)
        return self


class LocalSource(Table):
    """A clone on this machine."""

    kind: Literal["local"]
    path: Line = Field(description="Path of the clone; a relative path starts at the recipe's folder.")


Source: TypeAlias = Annotated[GitSource | RegistrySource | LocalSource, Field(discriminator="kind")]


class Guarded(Table):
    """Instructions beyond the variant that a library holds but runs only after asking the CPU."""

    library: Name = Field(description="CMake target of the library.")
    instruction_sets: Annotated[
        tuple[InstructionSet, ...], BeforeValidator(to_tuple), AfterValidator(unique), Field(min_length=1)
    ] = Field(description="Names of the instruction sets, as under [features].")
    why: Line = Field(description="Which code it is and how it asks.")


class Build(Table):
    """How the engine is built, whatever the variant."""

    tools: Names = Field(description="CMake targets of the command line tools the wheel carries.")
    tool_names: dict[Name, Name] = Field(
        default_factory=dict,
        description="CMake target of a tool that a variant adds -> what this pin calls it, where that differs.",
    )
    libraries: Names = Field(description="CMake library targets the wheel always carries, used by a tool or not.")
    headers: RelativePaths = Field(description="Headers that make up the C API, in the engine's tree.")
    include_dirs: RelativePaths = Field(default=(), description="Folders those headers include from.")
    defines: Lines = Field(default=(), description="Preprocessor definitions for parsing them, NAME or NAME=VALUE.")
    options: Options = Field(default_factory=dict, description="CMake options; each must exist in the engine.")
    c_flags: Lines = Field(default=(), description="Flags for every C compile.")
    cxx_flags: Lines = Field(default=(), description="Flags for every C++ compile.")
    cpu_target: Name = Field(description="CMake target that is compiled with the variant's instruction sets.")
    cpu_score_target: Name | None = Field(
        default=None,
        description="Object library linked into a loadable CPU target, compiled with the names of the ISA options that "
        "are ON: by it the engine judges which of several a CPU can run.",
    )
    guarded: Annotated[tuple[Guarded, ...], BeforeValidator(to_tuple)] = Field(
        default=(), description="What the ISA gate lets pass because the code itself checks the CPU first."
    )
    licenses: RelativePaths = Field(default=(), description="Licence files to carry, in the engine's tree.")

    @field_validator("tools", "libraries", "headers")
    @classmethod
    def _not_empty(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if not values:
            msg = "must name at least one"
            raise ValueError(msg)
        return values

    @field_validator("defines")
    @classmethod
    def _definition(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            name = value.partition("=")[0]
            if not (name.isascii() and name.isidentifier()):
                msg = f"{value!r} is not a NAME or NAME=VALUE"
                raise ValueError(msg)
        return values


class Recipe(Table):
    """Engine + pin + sources + default stacks + build options.

    ``path`` and :meth:`location_of` tell where it was read from.
    """

    schema_: Literal[1] = Field(alias="schema", description="Version of this file format.")
    name: Name = Field(description="Name of the recipe; a recipe in the project's folder is called as its file is.")
    family: Family = Field(description="The engine family.")
    series_: SeriesName | None = Field(
        default=None,
        alias="series",
        description="Where stacks hold the patches for its pin, `patches/<stack>/<series>`; the family's name if "
        "absent. A recipe that names its own is built only where it is named.",
    )
    title: Line = Field(description="One line for people.")
    pin: Pin
    sources: Annotated[tuple[Source, ...], BeforeValidator(to_tuple), Field(min_length=1)] = Field(
        description="Places the pin can be had from, tried in order. None is trusted: object ids decide."
    )
    stacks: Names = Field(default=(), description="Stacks of patches applied by default.")
    essential: Names = Field(
        default=(),
        description="Those of `stacks` without which what the sources deliver cannot be built: other stacks are never "
        "verified without them.",
    )
    build: Build

    _path: Path = PrivateAttr(default_factory=lambda: Path("<recipe>"))
    _word: str | None = PrivateAttr(default=None)
    _lines: Mapping[KeyPath, int] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _folder_needs_tree(self) -> Recipe:
        if self.pin.tree is None and any(isinstance(s, RegistrySource) and s.folder for s in self.sources):
            msg = "a source with `folder` carries no commit: `pin.tree` is needed to check what it delivers"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _essential_are_applied(self) -> Recipe:
        if missing := [name for name in self.essential if name not in self.stacks]:
            msg = f"`essential` names {missing[0]!r}, which is not in `stacks`"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _series_of_the_family(self) -> Recipe:
        if family_of(self.series) != self.family:
            msg = f"`series` is {self.series!r}, and the family {self.family!r}"
            raise ValueError(msg)
        return self

    @property
    def series(self) -> str:
        """The name under which stacks hold the patches for its pin."""
        return self.series_ or self.family

    @property
    def path(self) -> Path:
        """The file the recipe was read from."""
        return self._path

    @property
    def word(self) -> str:
        """What names it in a command: its name if it is the project's, else the absolute path of its file."""
        return self._word or str(self._path.absolute())

    @property
    def folder(self) -> Path:
        """The folder of that file: relative paths in the recipe start here."""
        return self._path.parent

    def location_of(self, *key: str | int) -> str:
        """Return ``file:line`` of *key*, or of the nearest enclosing table that is written in the file."""
        return locate(self._path, self._lines, key)

    def lock_path(self) -> Path:
        """Return where this recipe's lock file belongs: ``<recipe>.lock.toml`` beside it."""
        return self._path.with_suffix(".lock.toml")


def locate(path: Path, lines: Mapping[KeyPath, int], key: Iterable[str | int]) -> str:
    """Return ``path:line`` for *key* or its nearest enclosing table, and just ``path`` when none is known."""
    place = tuple(key)
    while place:
        if place in lines:
            return f"{path}:{lines[place]}"
        place = place[:-1]
    return f"{path}:1" if lines else str(path)
