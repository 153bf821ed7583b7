"""Read recipe, variants and absent-entries files; a mistake is named with file, line and the nearest name."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from forkyard.errors import RecipeError
from forkyard.recipes.model import KeyPath, Recipe, RegistrySource, Table, locate
from forkyard.recipes.suggest import did_you_mean
from forkyard.recipes.toml_positions import positions
from forkyard.recipes.validation import Problem, problems
from forkyard.recipes.variants import Variants, inconsistencies

VARIANTS_FILE = "variants.toml"
_LARGEST_FILE = 1 << 20
_TABLE = TypeVar("_TABLE", bound=Table)
_MODES = {"100644": "blob", "100755": "blob", "120000": "blob", "160000": "commit"}


@dataclass(frozen=True)
class AbsentEntry:
    """An entry of the pin's tree that a partial source lacks or has in another form."""

    mode: str
    """Git file mode, six octal digits."""
    type: str
    """``blob``, or ``commit`` for a submodule."""
    id: str
    """Object id, 40 hexadecimal digits."""
    path: str
    """Path from the top of the tree."""


def recipe_names(root: Path) -> list[str]:
    """Return the names of the recipes in *root*'s ``recipes`` folder, sorted."""
    files = (root / "recipes").glob("*.toml")
    return sorted(
        f.stem for f in files if f.name != VARIANTS_FILE and not f.name.endswith((".lock.toml", ".pins.toml"))
    )


def load_recipe(ref: str | Path, root: Path, *, stacks: Collection[str] | None = None) -> Recipe:
    """Read one recipe.

    Args:
        ref: a recipe's name in *root*'s ``recipes`` folder, or the path of a recipe file anywhere.
        root: the project's folder.
        stacks: the names of the stacks there are; None leaves the recipe's stacks unchecked.

    Raises:
        RecipeError: there is no such recipe, or it is not valid.
    """
    path = _recipe_path(ref, root)
    text, data = _read(path)
    lines = positions(text)
    recipe = _validate(Recipe, data, path, lines)
    recipe._path = path  # the model is frozen for its users; its reader says once where it comes from
    recipe._lines = lines
    if path.absolute() == (root / "recipes" / f"{recipe.name}.toml").absolute():
        recipe._word = recipe.name
    found = []
    if path.parent == root / "recipes" and recipe.name != path.stem:
        found.append(Problem(("name",), f"the file is called {path.name}, the recipe {recipe.name!r}", None))
    if stacks is not None:
        found += [
            Problem(("stacks", i), f"there is no stack {stack!r}", _from_known(stack, stacks))
            for i, stack in enumerate(recipe.stacks)
            if stack not in stacks
        ]
    _refuse(found, path, lines)
    return recipe


def load_variants(root: Path, extra: Path | None = None) -> Variants:
    """Read *root*'s variants file, and *extra*, a user's own, which may add to it but not redefine anything.

    Raises :class:`RecipeError` if a file is not valid or the two contradict each other.
    """
    merged: dict[str, Any] = {}
    places: dict[KeyPath, tuple[Path, int]] = {}
    paths = [root / "recipes" / VARIANTS_FILE] + ([] if extra is None else [extra])
    for path in paths:
        text, data = _read(path)
        lines = positions(text)
        _validate(Variants, data, path, lines)
        _merge(merged, data, path, lines, places)
    variants = Variants.model_validate(merged)
    variants._path = paths[-1]
    variants._places = places
    found = inconsistencies(variants)
    if found:
        raise _error(found, paths[-1], lambda key: variants.location_of(*key))
    return variants


def load_absent(recipe: Recipe, source: RegistrySource) -> tuple[AbsentEntry, ...]:
    """Return the entries listed in *source*'s ``absent`` file, sorted by path; none if it names no file.

    Raises :class:`RecipeError` naming the line that is not ``mode<TAB>type<TAB>id<TAB>path``.
    """
    if source.absent is None:
        return ()
    path = recipe.folder / source.absent
    entries: dict[str, AbsentEntry] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line or line.startswith("#"):
            continue
        fields = line.split("\t")
        why = _absent_mistake(fields)
        if why is None and fields[3] in entries:
            why = f"{fields[3]} is listed twice"
        if why is not None:
            raise RecipeError(
                "a line does not describe an entry of a git tree",
                where=f"{path}:{number}",
                why=why,
                next_step="write mode, type, object id and path as `git ls-tree -r` does, separated by tabs",
            )
        entries[fields[3]] = AbsentEntry(*fields)
    return tuple(entries[key] for key in sorted(entries))


def read_table(model: type[_TABLE], path: Path) -> _TABLE:
    """Read the TOML file *path* as *model*; raises :class:`RecipeError` naming the line of a mistake."""
    text, data = _read(path)
    return _validate(model, data, path, positions(text))


def _absent_mistake(fields: list[str]) -> str | None:
    if len(fields) != 4:
        return f"{len(fields)} fields instead of 4"
    mode, kind, object_id, path = fields
    if _MODES.get(mode) != kind:
        return f"no entry has mode {mode!r} and type {kind!r}"
    if not re.fullmatch(r"[0-9a-f]{40}", object_id):
        return f"{object_id!r} is not an object id"
    if not path or path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")):
        return f"{path!r} is not a path in a tree"
    return None


def _recipe_path(ref: str | Path, root: Path) -> Path:
    text = str(ref)
    if isinstance(ref, Path) or "/" in text or text.endswith(".toml"):
        return Path(ref)
    names = recipe_names(root)
    if text not in names:
        raise RecipeError(
            f"there is no recipe {text!r}",
            where=str(root / "recipes"),
            why=f"known recipes: {', '.join(names) or 'none'}",
            next_step=did_you_mean(text, names) or "name one of those, or give the path of a recipe file",
        )
    return root / "recipes" / f"{text}.toml"


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise RecipeError("the file is too large to be written by hand", where=str(path), why="over 1 MiB")
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        why = error.strerror or str(error)
        raise RecipeError("the file cannot be read", where=str(path), why=why) from None
    except UnicodeDecodeError as error:
        why = f"byte {error.start} is not UTF-8"
        raise RecipeError("the file is not text", where=str(path), why=why) from None
    except ValueError as error:  # a NUL in the path
        raise RecipeError("the path names no file", where=repr(str(path)), why=str(error)) from None


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    text = _text(path)
    try:
        return text, tomllib.loads(text)
    except RecursionError:
        raise RecipeError("tables or arrays are nested too deeply", where=str(path)) from None
    except ValueError as error:  # TOMLDecodeError, and an integer of thousands of digits
        line = re.search(r"at line (\d+)", str(error))
        where = f"{path}:{line.group(1)}" if line else str(path)
        raise RecipeError(
            "the file is not valid TOML",
            where=where,
            why=str(error),
            next_step="see https://toml.io for the format",
        ) from None


def _validate(model: type[_TABLE], data: dict[str, Any], path: Path, lines: Mapping[KeyPath, int]) -> _TABLE:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        found = problems(error, data, model.model_json_schema())
    raise _error(found, path, lambda key: locate(path, lines, key))


def _merge(
    merged: dict[str, Any],
    data: Mapping[str, Any],
    path: Path,
    lines: Mapping[KeyPath, int],
    places: dict[KeyPath, tuple[Path, int]],
) -> None:
    twice = []
    for section, entries in data.items():
        if section == "schema":
            merged[section] = entries
            continue
        known = merged.setdefault(section, {})
        for name, entry in entries.items():
            if name in known:
                first_path, first_line = places.get((section, name), (path, 1))
                twice.append(
                    Problem((section, name), f"{name!r} is defined in {first_path}:{first_line} already", None)
                )
            known[name] = entry
    _refuse(twice, path, lines)
    places.update({key: (path, line) for key, line in lines.items() if key not in places})


def _from_known(name: str, known: Collection[str]) -> str:
    return did_you_mean(name, known) or f"known: {', '.join(sorted(known)) or 'none'}"


def _refuse(found: list[Problem], path: Path, lines: Mapping[KeyPath, int]) -> None:
    if found:
        raise _error(found, path, lambda key: locate(path, lines, key))


def _line(location: str) -> int:
    _, _, line = location.rpartition(":")
    return int(line) if line.isdecimal() else 0


def _error(found: list[Problem], path: Path, location: Callable[[KeyPath], str]) -> RecipeError:
    found = sorted(found, key=lambda p: (_line(location(p.key)), p.message))
    first = found[0]
    if len(found) == 1:
        return RecipeError(first.message, where=location(first.key), next_step=first.hint)
    listed = [f"{location(p.key)}: {p.message}" + (f" ({p.hint})" if p.hint else "") for p in found]
    return RecipeError(
        f"{path.name} has {len(found)} mistakes", where=location(first.key), why="\n         ".join(listed)
    )
