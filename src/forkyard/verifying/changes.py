"""What a change touches: the units whose key is another one than it was before the change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from forkyard.cache import Cache
from forkyard.errors import ForkyardError
from forkyard.gitstore.baseline import default_base
from forkyard.gitstore.project import ProjectRepository
from forkyard.recipes import Recipe, load_recipe, load_variants
from forkyard.scratch import owned_folder
from forkyard.stacks import stack_names
from forkyard.toolchain import Toolchain
from forkyard.verifying.records import Level, Records
from forkyard.verifying.units import plan_units

_FOLDERS = ["patches", "recipes", "tests", "wheels"]


@dataclass(frozen=True)
class Baseline:
    """The revision a change is measured from."""

    commit: str
    paths: tuple[str, ...]
    """What differs from it, as git sees it."""

    @classmethod
    def find(cls, root: Path, name: str | None) -> Baseline:
        """The named revision, else where the present branch left the default one.

        Raises:
            UsageError: the project is in no repository, or has no such revision.
        """
        repository = ProjectRepository(root)
        commit = repository.revision(default_base(repository) if name is None else name)
        return cls(commit, tuple(repository.changed_since(commit)))

    @property
    def nothing(self) -> bool:
        """Whether nothing differs that a unit could be made of."""
        return not any(path.startswith(tuple(f"{folder}/" for folder in _FOLDERS)) for path in self.paths)


def keys_before(
    baseline: Baseline,
    recipe: Recipe,
    variant: str | None,
    root: Path,
    cache: Cache,
    toolchain: Toolchain,
    level: Level,
) -> set[str] | str:
    """Keys of all units as they were at a revision; why there are none to compare with, if it could not be planned.

    Both are computed by the forkyard that runs now: a change of forkyard itself touches nothing here.
    """
    with owned_folder(cache.scratch, "baseline-") as before:
        try:
            ProjectRepository(root).export_folders(baseline.commit, _FOLDERS, before)
            inside = recipe.path.parent.resolve() == (root / "recipes").resolve()
            old = load_recipe(recipe.name, before, stacks=stack_names(before)) if inside else recipe
            planned = plan_units(old, load_variants(before), variant, before, toolchain)
        except ForkyardError as error:
            return error.what
        records = Records(cache, before, level)
        return {records.key(unit) for unit in planned.units}
