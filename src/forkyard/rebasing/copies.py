"""A copy of the project as it is after a rebase, to build and test in while the project itself stays as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

from forkyard.cache import Cache, explained
from forkyard.gitstore import Store
from forkyard.rebasing.finishing import lay_out
from forkyard.rebasing.session import Rebased

# Tests find the project from where they lie, so they cannot be links.
_COPIED = ("tests",)
_OWN = ("recipes", "patches")


def copy_project(root: Path, cache: Cache, rebased: Rebased, folder: Path) -> Path:
    """Make ``folder`` a project like ``root`` with the rebase done; what a rebase does not touch is linked.

    Returns:
        the recipe's file in it.

    Raises:
        PatchError: the rebased series does not apply exactly.
        StorageError: no space or permission.
    """
    recipe = rebased.recipe
    store = Store(cache.store(recipe.family))
    facts = (recipe, rebased.target, rebased.state, rebased.replay, rebased.stacks)
    with explained("copy the project"):
        folder.mkdir(parents=True)
        lay_out(store, root, cache, *facts, folder)
        for path in root.iterdir():
            if path.name.startswith(".") or path.name in _OWN:
                continue
            if path.name in _COPIED:
                shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                (folder / path.name).symlink_to(path)
    return folder / "recipes" / f"{recipe.name}.toml"
