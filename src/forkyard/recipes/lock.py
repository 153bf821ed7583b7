"""What a recipe resolved to, written down, so that the same recipe cannot become something else unnoticed.

A lock holds the object ids before and after patching with the recipe's default stacks, and the sha256 of
everything that went in. It is written beside the recipe in one canonical form: same lock, same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from forkyard.errors import RecipeError, StorageError
from forkyard.recipes.load import read_table
from forkyard.recipes.model import CommitId, Family, Line, Name, Recipe, RelativePath, Sha256, Table, to_tuple


def _distinct_sources(sources: tuple[LockedSource, ...]) -> tuple[LockedSource, ...]:
    keys = [(s.kind, s.location) for s in sources]
    if len(set(keys)) != len(keys):
        msg = "the same source is locked twice"
        raise ValueError(msg)
    return sources


class LockedFile(Table):
    """A patch or a whole file of a stack: its path in the stack's folder, and its sha256."""

    path: RelativePath
    sha256: Sha256


LockedFiles = Annotated[tuple[LockedFile, ...], BeforeValidator(to_tuple)]


class LockedStack(Table):
    """A stack as it was applied."""

    name: Name
    patches: LockedFiles = Field(default=(), description="In the order of the series.")
    files: LockedFiles = Field(default=(), description="Sorted by path.")


class LockedSource(Table):
    """A source and what is known of its bytes. `location` is a URL, or PROJECT==VERSION for a registry."""

    kind: Literal["git", "registry", "local"]
    location: Line
    sha256: Sha256 | None = None


class Lock(Table):
    """What a recipe resolved to with its default stacks."""

    schema_: Literal[1] = Field(alias="schema")
    recipe: Name
    family: Family
    base_commit: CommitId
    base_tree: CommitId
    patched_commit: CommitId
    patched_tree: CommitId
    sources: Annotated[tuple[LockedSource, ...], BeforeValidator(to_tuple), AfterValidator(_distinct_sources)] = ()
    stacks: Annotated[tuple[LockedStack, ...], BeforeValidator(to_tuple)] = ()


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was locked; ``str()`` is a sentence."""

    key: str
    locked: str | None
    found: str | None

    def __str__(self) -> str:
        if self.locked is None:
            return f"{self.key} is not in the lock (found {self.found})"
        if self.found is None:
            return f"{self.key} is locked ({self.locked}) but not there any more"
        return f"{self.key} is locked as {self.locked}, found {self.found}"


def render(lock: Lock) -> str:
    """Return *lock* as TOML text in its one canonical form."""
    lines = [
        "# Written by forkyard; do not edit. A recipe whose inputs change needs a new lock.",
        "",
        "schema = 1",
    ]
    for key in ("recipe", "family", "base_commit", "base_tree", "patched_commit", "patched_tree"):
        lines.append(f"{key.replace('_', '-')} = {_string(getattr(lock, key))}")
    for source in lock.sources:
        lines += [
            "",
            "[[sources]]",
            f"kind = {_string(source.kind)}",
            f"location = {_string(source.location)}",
        ]
        if source.sha256 is not None:
            lines.append(f"sha256 = {_string(source.sha256)}")
    for stack in lock.stacks:
        lines += ["", "[[stacks]]", f"name = {_string(stack.name)}"]
        lines += _files("patches", stack.patches)
        lines += _files("files", tuple(sorted(stack.files, key=lambda f: f.path)))
    return "\n".join(lines) + "\n"


def read_lock(path: Path) -> Lock:
    """Read the lock at *path*; raises :class:`RecipeError` if it is missing or not a lock."""
    if not path.exists():
        raise RecipeError(
            "there is no lock for the recipe", where=str(path), next_step="write one with `forkyard lock`"
        )
    return read_table(Lock, path)


def write_lock(lock: Lock, path: Path) -> bool:
    """Write *lock* to *path* in one step; return False, leaving the file alone, if it says the same already.

    Raises :class:`StorageError` if the file cannot be written.
    """
    data = render(lock).encode("utf-8")
    temporary: Path | None = None
    try:
        if path.exists() and path.read_bytes() == data:
            return False
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise StorageError("the lock cannot be written", where=str(path), why=error.strerror) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return True


def verify(lock: Lock, resolved: Lock) -> list[Difference]:
    """Return how *resolved*, just found, differs from *lock*, written earlier; empty if it does not."""
    locked, found = _facts(lock), _facts(resolved)
    return [
        Difference(key, locked.get(key), found.get(key))
        for key in dict.fromkeys([*locked, *found])
        if locked.get(key) != found.get(key)
    ]


@dataclass(frozen=True)
class Changed:
    """A file of a stack that is not what the lock says."""

    stack: str
    path: str
    """Below the project's folder."""
    recipe: str
    """As commands are told it: a name, or a path for a recipe of somebody's own."""
    line_ends: bool
    """Whether only its line ends differ."""

    @property
    def why(self) -> str:
        """What is known of it."""
        if self.line_ends:
            return "only its line ends differ: git (core.autocrlf) or an editor converted them"
        return "its sha256 is another: it was changed, damaged or cut off since the lock was written"


def way_on(changed: Sequence[Changed]) -> str:
    """How to go on with files of one recipe that are not what its lock says, whichever is right."""
    files = " ".join(shlex.quote(one.path) for one in changed)
    back = f"put {'it' if len(changed) == 1 else 'them'} back: rm {files} && git checkout -- {files}"
    if all(one.line_ends for one in changed):
        return back
    return f"if it was meant: forkyard lock {shlex.quote(changed[0].recipe)}; else {back}"


def changed_since_lock(recipe: Recipe, root: Path) -> tuple[Changed, ...]:
    """Patches and whole files that are there and are not what the recipe's lock says; none without a lock.

    Raises:
        RecipeError: the lock cannot be read.
    """
    path = recipe.lock_path()
    if not path.is_file():
        return ()
    ref = recipe.name if recipe.path.parent.resolve() == (root / "recipes").resolve() else str(recipe.path)
    found = []
    for stack in read_lock(path).stacks:
        for file in (*stack.patches, *stack.files):
            place = f"patches/{stack.name}/{file.path}"
            with contextlib.suppress(OSError):
                data = (root / place).read_bytes()
                if hashlib.sha256(data).hexdigest() != file.sha256:
                    plain = hashlib.sha256(data.replace(b"\r\n", b"\n")).hexdigest()
                    found.append(Changed(stack.name, place, ref, plain == file.sha256))
    return tuple(found)


def _facts(lock: Lock) -> dict[str, str]:
    facts = {
        "the recipe's name": lock.recipe,
        "the engine family": lock.family,
        "the pin's commit": lock.base_commit,
        "the pin's tree": lock.base_tree,
        "the patched commit": lock.patched_commit,
        "the patched tree": lock.patched_tree,
        "the order of the stacks": ", ".join(s.name for s in lock.stacks) or "none",
    }
    for source in lock.sources:
        facts[f"source {source.kind} {source.location}"] = source.sha256 or "without a hash"
    for stack in lock.stacks:
        facts[f"the series of stack {stack.name}"] = ", ".join(p.path for p in stack.patches) or "empty"
        for patch in stack.patches:
            facts[f"patch {stack.name}/{patch.path}"] = f"sha256 {patch.sha256}"
        for file in stack.files:
            facts[f"file {stack.name}/{file.path}"] = f"sha256 {file.sha256}"
    return facts


def _files(key: str, files: tuple[LockedFile, ...]) -> list[str]:
    if not files:
        return [f"{key} = []"]
    entries = [f"    {{ path = {_string(f.path)}, sha256 = {_string(f.sha256)} }}," for f in files]
    return [f"{key} = [", *entries, "]"]


def _string(value: str) -> str:
    # JSON's string syntax is TOML's, except that JSON leaves DEL bare.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
