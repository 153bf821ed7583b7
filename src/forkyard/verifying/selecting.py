"""Which tests belong to a unit, and a digest of everything those tests are made of."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from forkyard.errors import RecipeError
from forkyard.stacks import Stack

_PASSED_BY = ("__pycache__", ".pytest_cache")


@dataclass(frozen=True)
class Selection:
    """What of some test files is run."""

    files: tuple[str, ...] = ()
    """Test files as stack.toml names them, relative to the project; none if no stack names any."""
    patches: tuple[str, ...] = ()
    """Names of the patches in the engine, without ``.patch``: tests marked with others are left out."""
    complete: bool = True
    """Whether tests that are about no patch in particular run, too."""
    about: str | None = None
    """Only tests that name this patch."""


def select(tested: Sequence[Stack], patches: Sequence[str], *, complete: bool) -> Selection:
    """The tests of some stacks, for an engine that has some patches.

    Args:
        patches: their file names.

    Raises:
        RecipeError: a stack names a file that is not below the project.
    """
    files: list[str] = []
    for stack in tested:
        for name in stack.about.test:
            path = PurePosixPath(name.partition("::")[0])
            if name.startswith("-") or path.is_absolute() or ".." in path.parts:
                msg = f"stack {stack.name} names a test outside the project"
                raise RecipeError(
                    msg, where=str(stack.folder / "stack.toml"), why=repr(name), next_step="name a file below tests/"
                )
            files.append(name)
    names = tuple(name.removesuffix(".patch") for name in patches)
    return Selection(tuple(dict.fromkeys(files)), names, complete)


class TestFiles:
    """Digests of test files, each folder read once."""

    __test__ = False

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[Path, str] = {}

    def digest(self, files: Sequence[str]) -> str:
        """sha256 over the folders of the named files and every conftest.py and __init__.py on the way to them."""
        whole = hashlib.sha256()
        for name in sorted(set(files)):
            path = self._root / name.partition("::")[0]
            whole.update(f"{name}\0{'there' if path.is_file() else 'missing'}\0".encode())
            whole.update(self._folder(path.parent).encode())
            above = path.parent
            while above != self._root and self._root in above.parents:
                above = above.parent
                for special in ("conftest.py", "__init__.py"):
                    if (file := above / special).is_file():
                        whole.update(file.relative_to(self._root).as_posix().encode() + b"\0")
                        whole.update(hashlib.sha256(file.read_bytes()).digest())
        return whole.hexdigest()

    def _folder(self, folder: Path) -> str:
        if folder not in self._folders:
            whole = hashlib.sha256()
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not any(part in _PASSED_BY for part in path.relative_to(folder).parts):
                    whole.update(path.relative_to(folder).as_posix().encode() + b"\0")
                    whole.update(hashlib.sha256(path.read_bytes()).digest())
            self._folders[folder] = whole.hexdigest()
        return self._folders[folder]


def payload_variable(family: str) -> str:
    """Name of the environment variable that tells tests the wheel of the engine they are to run."""
    return "FORKYARD_PAYLOAD_" + re.sub(r"[^A-Z0-9]", "_", family.upper())
