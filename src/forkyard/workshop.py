"""What the command line and the nox sessions do, as functions: plan, build, status, clean, lock."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forkyard.building import Built, build, kept_wheel
from forkyard.cache import Cache, explained, folder_size
from forkyard.console import Reporter
from forkyard.errors import RecipeError, UsageError
from forkyard.gitstore.work import call_in
from forkyard.journal import recover
from forkyard.locks import hold_folder
from forkyard.plan import Plan, make_plan
from forkyard.pure import build_bindings
from forkyard.recipes import (
    BEST,
    Choice,
    Recipe,
    Variants,
    best,
    load_recipe,
    load_variants,
    recipe_names,
    supported,
    unsupported,
)
from forkyard.scratch import sweep
from forkyard.sources import recorded
from forkyard.stacks import stack_names
from forkyard.toolchain import Toolchain, detect, native_features

_NAME_ONE = "name a variant to build one for another machine: `forkyard variants` lists them"


def find_root(start: Path | None = None) -> Path:
    """The project folder: ``FORKYARD_ROOT``, else the nearest one around ``start``, else the one forkyard runs from.

    Raises:
        UsageError: there is none.
    """
    found = project_around(start)
    if found is not None:
        return found
    msg = "this is not a forkyard project"
    raise UsageError(
        msg,
        where=str(start or Path.cwd()),
        why="no folder here or above holds recipes/variants.toml",
        next_step="run it in a clone of the project, or set FORKYARD_ROOT",
    )


def project_around(start: Path | None = None) -> Path | None:
    """The folder :func:`find_root` finds; ``None`` if there is none."""
    chosen = os.environ.get("FORKYARD_ROOT")
    candidates = [Path(chosen)] if chosen else [*_upwards(start or Path.cwd()), Path(__file__).resolve().parents[2]]
    for candidate in candidates:
        # Not Path.is_file(): a folder that may not be looked into is not the project, and no error.
        if os.path.isfile(candidate / "recipes" / "variants.toml"):
            return candidate.resolve()
    return None


def _upwards(start: Path) -> Iterator[Path]:
    yield start
    yield from start.parents


@dataclass(frozen=True)
class Workshop:
    """A project folder, a cache, and the compiler of this machine."""

    root: Path
    cache: Cache
    out: Path
    variants: Variants
    toolchain: Toolchain

    @classmethod
    def open(cls, root: Path | None = None, out: Path | None = None, variants_file: Path | None = None) -> Workshop:
        """Read the variants and find the compiler.

        Raises:
            RecipeError, ToolchainError, UsageError: as said there.
        """
        found = root or find_root()
        # A change of several files that was cut off is finished before anybody reads them.
        recover(found)
        cache = Cache.default()
        return cls(found, cache, out or found / "dist", load_variants(found, variants_file), detect(cache))

    def recipe(self, ref: str) -> Recipe:
        """A recipe by name or path, its stacks checked."""
        return load_recipe(ref, self.root, stacks=stack_names(self.root))

    def plans(
        self,
        variant: str,
        refs: Sequence[str],
        stacks: Sequence[str] | None = None,
        architectures: Sequence[str] = (),
    ) -> tuple[list[Plan], list[str]]:
        """Plans for recipes built as ``variant``, all of the project's without ``refs``; ``best`` chooses for each.

        Returns:
            the plans, and why engines were left out (only when none was named).

        Raises:
            RecipeError: a name leads nowhere, or a named engine does not have the variant.
        """
        if variant not in self.variants.variants and variant in recipe_names(self.root):
            msg = f"{variant} is a recipe; the variant comes before it"
            raise UsageError(msg, next_step=f"say `{BEST} {variant}`, or another variant of `forkyard variants`")
        if variant != BEST:
            self.variants.get(variant)
        left_out: list[str] = []
        plans = []
        for ref in refs or recipe_names(self.root):
            recipe = self.recipe(ref)
            if not refs and recipe.series != recipe.family:
                # Another pin of an engine that the project has a recipe for: of use to those who want that pin.
                continue
            chosen = variant
            if variant == BEST:
                choice = self.best(recipe.family)
                if isinstance(choice, str):
                    if refs:
                        msg = f"{recipe.name} cannot be built for this machine"
                        raise RecipeError(msg, where=str(recipe.path), why=choice, next_step=_NAME_ONE)
                    left_out.append(choice)
                    continue
                chosen = choice.variant
            elif not refs and variant not in supported(self.variants, recipe.family):
                why = unsupported(self.variants, variant, recipe.family)
                left_out.append(f"{recipe.name} has no {variant}: {why}")
                continue
            plans.append(
                make_plan(
                    recipe,
                    self.variants,
                    chosen,
                    self.root,
                    self.toolchain,
                    stacks=stacks,
                    architectures=architectures,
                )
            )
        if not plans and left_out and variant == BEST:
            msg = "no engine can be built for this machine"
            raise RecipeError(msg, why="; ".join(left_out), next_step=_NAME_ONE)
        return plans, left_out

    def best(self, family: str) -> Choice | str:
        """The best variant of an engine for this machine, or why there is none.

        Raises:
            ToolchainError: the compiler does not know this machine.
        """
        return best(self.variants, family, self.host_features)

    @functools.cached_property
    def host_features(self) -> tuple[str, ...]:
        """This machine's CPU features as far as the compiler knows them: what it may be told to use."""
        return native_features(self.toolchain)

    def build(
        self,
        plans: Sequence[Plan],
        reporter: Reporter,
        *,
        source: str | None = None,
        offline: bool = False,
        jobs: int | None = None,
        use_ccache: bool = True,
        locked: bool = False,
    ) -> list[Built]:
        """Build every plan, and the bindings they are used through.

        Raises:
            ForkyardError: the first failure; what was finished before it stays.
        """
        built = []
        for plan in plans:
            built.append(
                build(
                    plan,
                    self.cache,
                    self.out,
                    self.root,
                    reporter,
                    source=source,
                    offline=offline,
                    jobs=jobs,
                    use_ccache=use_ccache,
                    locked=locked,
                )
            )
        build_bindings(self.root, self.cache, self.out, reporter)
        return built

    def status(self) -> dict[str, Any]:
        """What is in the output folder and the cache."""
        rows = []
        for name in recipe_names(self.root):
            recipe = self.recipe(name)
            for variant in supported(self.variants, recipe.family):
                plan = make_plan(recipe, self.variants, variant, self.root, self.toolchain)
                kept = kept_wheel(plan.key, self.cache)
                older = (
                    sorted(path.name for path in self.out.glob(f"{plan.package}-*.whl")) if self.out.is_dir() else []
                )
                if kept is not None and kept.name in older:
                    state = "current"
                elif kept is not None:
                    state = "built, not in the output folder"
                elif older:
                    state = "out of date"
                else:
                    state = "not built"
                rows.append({"recipe": name, "variant": variant, "state": state, "key": plan.key, "wheels": older})
        sources = []
        for name in recipe_names(self.root):
            recipe = self.recipe(name)
            found = recorded(recipe, self.cache)
            sources.append(
                {
                    "recipe": name,
                    "pin": recipe.pin.commit,
                    "have": found is not None,
                    "from": f"{found.kind}: {found.location}" if found else None,
                }
            )
        return {
            "root": str(self.root),
            "out": str(self.out),
            "cache": str(self.cache.root),
            "toolchain": self.toolchain.as_json(),
            "payloads": rows,
            "sources": sources,
        }


# What `clean` may take away, by the name of its option, with what that costs.
_PARTS: dict[str, tuple[tuple[str, ...], str]] = {
    "builds": (("build",), "the next build of each variant compiles everything (ccache helps)"),
    "wheels": (("wheels",), "the next build packs again"),
    "sources": (("store", "trees", "downloads", "toolkits"), "the next build fetches and checks out again"),
    "ccache": (("ccache", "ccache-backends"), "the next compile is a cold one"),
    "logs": (("logs", "scratch"), "nothing"),
}


def clean(cache: Cache, parts: Sequence[str], *, dry_run: bool, reporter: Reporter) -> list[dict[str, Any]]:
    """Delete parts of the cache, waiting for builds that are under way.

    Args:
        parts: of ``builds``, ``wheels``, ``sources``, ``ccache``, ``logs``; none means builds, wheels and logs.
        dry_run: only say what would go.

    Returns:
        a row for each part: name, folders, bytes, what deleting it costs.
    """
    unknown = sorted(set(parts) - set(_PARTS))
    if unknown:
        msg = f"there is nothing called {unknown[0]!r} to clean"
        raise UsageError(msg, next_step=f"choose from {', '.join(_PARTS)}")
    rows: list[dict[str, Any]] = []
    for name in parts or ("builds", "wheels", "logs"):
        folders, cost = _PARTS[name]
        paths = [cache.root / folder for folder in folders]
        rows.append(
            {
                "part": name,
                "folders": [str(path) for path in paths],
                "bytes": sum(map(folder_size, paths)),
                "costs": cost,
            }
        )
    if dry_run or not cache.root.exists():
        return rows
    with hold_folder(cache.locks, timeout_s=3600, waiting=lambda who: reporter.note(f"waiting for {who}")):
        for path in (Path(folder) for row in rows for folder in row["folders"]):
            with explained(f"delete {path}"):
                for borrower in [one for store in path.glob("*.git") for one in call_in(store)]:
                    reporter.note(f"upstream's history is no longer at hand in {borrower}; the work there is complete")
                if path == cache.scratch:
                    # Not all work that is under way holds a lock; but all of it owns its folder.
                    sweep(path)
                    continue
                # Renamed first, so that a killed clean leaves no half-deleted folder under its own name.
                doomed = path.with_name(f".{path.name}.deleted")
                if doomed.exists():
                    shutil.rmtree(doomed)
                if path.exists():
                    path.rename(doomed)
                    shutil.rmtree(doomed)
    return rows
