"""A stack as it was at a revision of the project: which revision is meant, and its files read from there."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from forkyard.cache import Cache
from forkyard.errors import ForkyardError, RecipeError, UsageError
from forkyard.gitstore.project import ProjectRepository
from forkyard.places import expanded
from forkyard.recipes import GitSource, LocalSource, Recipe, Source, load_known_pins, load_recipe, recipe_names
from forkyard.scratch import owned_folder
from forkyard.stacks import Stack, load_stacks
from forkyard.stacks.model import load_stack

WORKTREE = "worktree"
"""The word for the files as they lie there now."""
_READ = ["recipes", "patches"]
# A commit, the beginning of one, a ref, or `latest`; not what git writes after @, as in HEAD@{1} or @~2.
_TARGET = re.compile(r"^[0-9A-Za-z][0-9A-Za-z._/+-]*$")


@dataclass(frozen=True)
class Wanted:
    """What a word of the command line names."""

    word: str
    commit: str | None = None
    """Commit of the project; ``None`` for the work tree."""
    target: str | None = None
    """Upstream commit to carry the patches to; ``None`` for the recipe's pin at that revision."""

    @property
    def label(self) -> str:
        """For people: the word, and the commit it stands for if that is not the same."""
        if self.commit is None:
            return self.word
        if self.commit.startswith(self.word) and len(self.word) >= 7:
            return self.commit[:12]
        return f"{self.word} ({self.commit[:12]})"


def read_word(word: str, project: ProjectRepository, *, usual: Wanted | None = None) -> Wanted:
    """What ``REV``, ``worktree``, ``REV@COMMIT`` or ``@COMMIT`` means.

    A revision of the project that really has an ``@`` in its name comes first.

    Args:
        usual: whose files ``@COMMIT`` carries; the work tree's without it.

    Raises:
        UsageError: there is no such revision, or no repository to have it.
    """
    if word == WORKTREE:
        return Wanted(word)
    head, at, target = word.rpartition("@")
    carried = bool(at) and _TARGET.match(target) is not None
    if carried and head in ("", WORKTREE):
        return Wanted(word, usual.commit if usual and not head else None, target)
    commit = project.find_revision(word)
    if commit is not None:
        return Wanted(word, commit)
    if carried and (commit := project.find_revision(head)) is not None:
        return Wanted(word, commit, target)
    return Wanted(word, project.revision(head if carried else word))


@dataclass(frozen=True)
class ProjectAt:
    """The project's recipes and patches at a revision; made by :meth:`open`."""

    wanted: Wanted
    root: Path
    """Holds ``recipes`` and ``patches`` as they were."""
    now: Path
    """The project folder: paths in recipes start there."""

    @classmethod
    @contextlib.contextmanager
    def open(cls, wanted: Wanted, project: ProjectRepository, cache: Cache) -> Iterator[ProjectAt]:
        """Have the files at hand for the length of the block.

        Raises:
            UsageError, SourceError, StorageError: see :meth:`ProjectRepository.export_folders`.
        """
        if wanted.commit is None:
            yield cls(wanted, project.path, project.path)
            return
        cache.prepare()
        with owned_folder(cache.scratch, "revision-") as folder:
            project.export_folders(wanted.commit, _READ, folder)
            yield cls(wanted, folder, project.path)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Have errors inside the block name the revision, and files as git names them at a revision.

        Raises:
            RecipeError: a file is no text.
            ForkyardError: any other, of its own class.
        """
        try:
            yield
        except ForkyardError as error:
            if self.wanted.commit is None:
                raise
            # git's failure is made of other things; what it means here is that of its class.
            kind = next(kind for kind in type(error).__mro__ if kind.__module__ == ForkyardError.__module__)
            raise kind(
                f"at {self.wanted.label}: {self._told(error.what)}",
                where=self._told(error.where),
                why=self._told(error.why),
                next_step=self._told(error.next_step),
            ) from error
        except UnicodeError as error:
            msg = f"a file of the project at {self.wanted.label} is not UTF-8"
            raise RecipeError(msg, where=str(self.now / "patches"), why=str(error)) from error

    def _told(self, text: str | None) -> str:
        name = f"{(self.wanted.commit or '')[:12]}:"
        return (text or "").replace(f"{self.root}/", name).replace(str(self.root), name)

    def stack(self, name: str) -> Stack | None:
        """The stack; ``None`` if there was none of that name.

        Raises:
            RecipeError: it is there but not as a stack must be; names the revision.
        """
        folder = self.root / "patches" / name
        if not (folder / "stack.toml").is_file():
            if folder.is_dir() and any(path.is_file() for path in folder.rglob("*")):
                msg = f"{name} was no stack at {self.wanted.label}"
                raise RecipeError(
                    msg,
                    where=str(folder) if self.wanted.commit is None else self._told(str(folder)),
                    why="it has no stack.toml",
                    next_step="compare with a revision that has one",
                )
            return None
        with self.explained():
            return load_stack(self.root, name)

    def recipe(self, engine: str, stack: str, name: str | None = None) -> Recipe:
        """The recipe whose pin a stack's series stands on.

        Args:
            name: of the recipe, or its path; without it the one called like the engine, else the only one of the
                engine, else the only one that names the stack.

        Raises:
            RecipeError: there is none, it is not valid, or it is for another engine; names the revision.
            UsageError: several could be meant.
        """
        with self.explained():
            if name is not None:
                recipe = self._named(name)
                if recipe.series != engine:
                    msg = f"recipe {recipe.name!r} is for {recipe.series}, not for {engine}"
                    raise RecipeError(msg, where=recipe.location_of("family"))
                return self._rooted(recipe)
            names = recipe_names(self.root)
            if engine in names:
                return self._rooted(load_recipe(engine, self.root))
            found = [recipe for recipe in (load_recipe(one, self.root) for one in names) if recipe.series == engine]
            if len(found) > 1:
                found = [recipe for recipe in found if stack in recipe.stacks] or found
            if len(found) == 1:
                return self._rooted(found[0])
            if not found:
                msg = f"there was no recipe for {engine}" if self.wanted.commit else f"there is no recipe for {engine}"
                raise RecipeError(msg, where=str(self.root / "recipes"), why=f"there are: {', '.join(names) or 'none'}")
            msg = f"several recipes are for {engine}"
            raise UsageError(
                msg, why=", ".join(recipe.name for recipe in found), next_step="choose one of them with --recipe"
            )

    def series_of(self, name: str) -> str:
        """The engine of a recipe, as stacks name it.

        Args:
            name: of the recipe, or its path.

        Raises:
            RecipeError: there is none, or it is not valid; names the revision.
        """
        with self.explained():
            return self._named(name).series

    def _named(self, name: str) -> Recipe:
        """A recipe by name or path; one given by path is read at the revision if it is in the project."""
        place: str | Path = name
        if "/" in name or name.endswith(".toml"):
            path = Path(name).absolute()
            place = self.root / path.relative_to(self.now) if path.is_relative_to(self.now) else path
        return load_recipe(place, self.root)

    def _rooted(self, recipe: Recipe) -> Recipe:
        """The recipe with sources that can be reached from where its file lies now, and those known for its pin.

        A pin of long ago may since have become known to be somewhere else.
        """
        if not recipe.path.is_relative_to(self.root):
            return recipe
        folder = self.now / recipe.folder.relative_to(self.root)
        sources: list[Source] = []
        for source in recipe.sources:
            if isinstance(source, LocalSource):
                sources.append(source.model_copy(update={"path": _absolute(folder, source.path)}))
            elif isinstance(source, GitSource) and "://" not in source.url and ":" not in source.url.split("/")[0]:
                sources.append(source.model_copy(update={"url": _absolute(folder, source.url)}))
            else:
                sources.append(source)
        pin = recipe.pin
        for known in load_known_pins(self.now, recipe.family):
            if known.commit == pin.commit and known.source not in sources:
                listing = known.source.absent
                if listing and not (recipe.folder / listing).exists() and self.root != self.now:
                    (recipe.folder / listing).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self.now / "recipes" / listing, recipe.folder / listing)
                sources.append(known.source)
                pin = pin.model_copy(update={"tree": pin.tree or known.tree, "date": pin.date or known.date})
        return recipe.model_copy(update={"sources": tuple(sources), "pin": pin})

    def before(self, stack: Stack, recipe: Recipe) -> tuple[list[Stack], list[Stack]]:
        """The recipe's stacks, and those a stack outside the recipe may require, each in the order they apply.

        Raises:
            RecipeError: one of them is not valid; names the revision.
        """
        with self.explained():
            if stack.name in recipe.stacks:
                usual = load_stacks(self.root, recipe.stacks, recipe.series)
                return usual, usual
            needed: dict[str, Stack] = {}
            todo = list(stack.about.requires)
            while todo:
                name = todo.pop()
                if name not in needed:
                    needed[name] = load_stack(self.root, name)
                    todo += needed[name].about.requires
            known = sorted(needed.values(), key=lambda one: (one.about.order, one.name))
            return [], known

    def files(self, stack: Stack) -> dict[str, tuple[str, bool]]:
        """Whole files of ours: path below ``src`` -> sha256, and whether it is executable."""
        with self.explained():
            return {
                path.relative_to(stack.src).as_posix(): (
                    hashlib.sha256(path.read_bytes()).hexdigest(),
                    bool(path.stat().st_mode & 0o100),
                )
                for path in sorted(stack.src.rglob("*"))
                if path.is_file()
            }


def _absolute(folder: Path, path: str) -> str:
    return str((folder / expanded(path)).resolve())
