"""From files to commits: a stack's series where its patches are exact, and other people's mails on top of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from forkyard.errors import ForkyardError, PatchError, RecipeError, UsageError
from forkyard.gitstore import Store
from forkyard.gitstore.history import CommitFacts, commits
from forkyard.gitstore.patching import Mail, apply_onto, refuse_conflict
from forkyard.nextsteps import command
from forkyard.recipes import Recipe, load_recipe, recipe_names
from forkyard.sources import Obtained
from forkyard.stacks.applying import AppliedPatch, PatchedTree, apply_stacks, read_mail
from forkyard.stacks.combining import home_of
from forkyard.stacks.model import Patch, Stack, load_stack, load_stacks, stack_names
from forkyard.stacks.patchfile import check_hunks, parse_trailers


@dataclass(frozen=True)
class Home:
    """The place where a stack's patches are exact, and what stands around it."""

    recipe: Recipe
    stack: Stack
    before: tuple[Stack, ...]
    """Applied before it, in order."""
    after: tuple[Stack, ...]
    """The recipe's stacks that are applied after it, in order; their patches are made on it."""
    named: str | None = None
    """See :func:`recipe_option`."""

    @property
    def series(self) -> str:
        """The engine, by the name of its folder in the stack."""
        return self.recipe.series

    def command(self, verb: str, **options: str | Path | bool | None) -> str:
        """The command line of ``forkyard stack`` that does something with the stack here."""
        return command("stack", verb, self.stack.name, engine=self.recipe.family, recipe=self.named, **options)


def recipe_for(root: Path, engine: str, ref: str | None = None) -> Recipe:
    """The recipe an engine's patches are kept on: the named one, else the engine's own, else its only one.

    Args:
        engine: a family, or the name under which stacks keep the patches of another pin of one.
        ref: a recipe of it.

    Raises:
        UsageError: the engine has several recipes, or the named one is another engine's.
        RecipeError: there is none.
    """
    names = stack_names(root)
    if ref is not None:
        recipe = load_recipe(ref, root, stacks=names)
        if engine not in (recipe.family, recipe.series):
            msg = f"recipe {recipe.name} is not for {engine}"
            raise UsageError(msg, where=str(recipe.path), next_step=f"give a recipe of {engine} with --recipe")
        return recipe
    known = [load_recipe(name, root, stacks=names) for name in recipe_names(root)]
    found = [recipe for recipe in known if recipe.series == engine]
    own = [recipe for recipe in found if recipe.name == engine] or found
    if len(own) == 1:
        return own[0]
    if own:
        msg = f"there are several recipes for {engine}"
        raise UsageError(msg, why=", ".join(recipe.name for recipe in own), next_step="choose one with --recipe")
    msg = f"there is no recipe for {engine}"
    raise RecipeError(msg, where=str(root / "recipes"), next_step="write one; docs/recipes.md says how")


def recipe_option(root: Path, recipe: Recipe) -> str | None:
    """What ``--recipe`` has to say for :func:`recipe_for` to find a recipe again; ``None`` if it does so unasked."""
    try:
        unasked = recipe_for(root, recipe.family)
    except ForkyardError:
        return recipe.word
    return None if unasked.path.absolute() == recipe.path.absolute() else recipe.word


def home(root: Path, recipe: Recipe, name: str) -> Home:
    """Where the patches of a stack are exact for a recipe's engine.

    Raises:
        RecipeError: there is no such stack, or it has nothing for the engine.
    """
    stack = load_stack(root, name)
    if recipe.series not in stack.about.engines:
        msg = f"stack {name!r} is not for {recipe.series}"
        raise RecipeError(
            msg,
            where=str(stack.folder / "stack.toml"),
            why=f"it is for {', '.join(stack.about.engines)}",
            next_step=f"add {recipe.series!r} to its engines and make an empty {recipe.series}/series beside it",
        )
    named = recipe_option(root, recipe)
    usual = load_stacks(root, recipe.stacks, recipe.series)
    names = [one.name for one in usual]
    if name in names:
        place = names.index(name)
        return Home(recipe, stack, tuple(usual[:place]), tuple(usual[place + 1 :]), named)
    known = [load_stack(root, one) for one in stack_names(root)]
    known = [one for one in known if recipe.series in one.about.engines]
    known.sort(key=lambda one: (one.about.order, one.name))
    return Home(recipe, stack, tuple(home_of(stack, usual, known)), (), named)


@dataclass(frozen=True)
class Imported:
    """A series as commits."""

    base: str
    """The commit it is made on."""
    base_tree: str
    commits: tuple[CommitFacts, ...]
    names: tuple[str, ...]
    """Patch file of each commit."""
    exact: bool = True
    """Whether every patch applied exactly where it says."""
    notes: tuple[str, ...] = ()

    @property
    def tip(self) -> str:
        """The commit after the last patch."""
        return self.commits[-1].commit if self.commits else self.base

    @property
    def tree(self) -> str:
        """Tree of :attr:`tip`."""
        return self.commits[-1].tree if self.commits else self.base_tree


def apply_home(store: Store, place: Home, obtained: Obtained) -> PatchedTree:
    """What the stack is made on.

    Raises:
        PatchError: a stack before it does not apply exactly.
    """
    return apply_stacks(store, place.series, obtained.commit, obtained.date, obtained.tree, place.before)


def import_series(store: Store, place: Home, obtained: Obtained) -> Imported:
    """A stack's series as commits, exactly.

    Raises:
        PatchError: a patch is malformed, does not apply, or applies anywhere but exactly where it says.
    """
    stacks = [*place.before, place.stack]
    done = apply_stacks(store, place.series, obtained.commit, obtained.date, obtained.tree, stacks)
    own = [patch for patch in done.patches if patch.stack == place.stack.name]
    earlier = done.patches[: len(done.patches) - len(own)]
    base, tree = (earlier[-1].commit, earlier[-1].tree) if earlier else (done.base, obtained.tree)
    return Imported(base, tree, _facts(store, base, own), tuple(patch.name for patch in own))


def _facts(store: Store, base: str, own: Sequence[AppliedPatch]) -> tuple[CommitFacts, ...]:
    return tuple(commits(store, f"{base}..{own[-1].commit}")) if own else ()


def import_loosely(store: Store, place: Home, obtained: Obtained) -> Imported:
    """A stack's series as commits, where it may have come out of place: each patch exactly, else as a three-way merge.

    Raises:
        PatchError: a stack before it does not apply exactly, a patch is malformed, or it conflicts.
    """
    try:
        return import_series(store, place, obtained)
    except PatchError as error:
        under = apply_home(store, place, obtained)
        problem = error.what
    chain = _Loose(store, under.commit, under.tree)
    for patch in place.stack.series(place.series).patches:
        chain.add_patch(place.stack, patch)
    facts = tuple(commits(store, f"{under.commit}..{chain.commit}")) if chain.commit != under.commit else ()
    names = tuple(patch.name for patch in place.stack.series(place.series).patches)
    return Imported(under.commit, under.tree, facts, names, exact=False, notes=(problem, *chain.notes))


class _Loose:
    """Commits made one after the other from diffs that need not be exact."""

    def __init__(self, store: Store, commit: str, tree: str) -> None:
        self._store, self.commit, self.tree = store, commit, tree
        self.notes: list[str] = []

    def add_patch(self, stack: Stack, patch: Patch) -> None:
        """Add a patch of ours with the whole files it declares."""
        label, where = f"{stack.name}/{patch.name}", str(patch.path)
        author, message, diff = read_mail(self._store, patch.data, label, where)
        files = parse_trailers(message.decode("utf-8", "replace"), where).adds_files
        tree = self._apply(label, where, diff, "rebase the stack, or put back what its patches were made on")
        with self._store.index(tree) as index:
            for file in files:
                if self._store.index_has(index, file.target):
                    msg = f"{label} would overwrite {file.target}"
                    raise PatchError(msg, where=where, next_step="choose another path in its Adds-Files trailer")
                executable = bool((stack.src / file.source).stat().st_mode & 0o100)
                self._store.add_file(index, file.target, stack.whole_file(file.source), executable=executable)
            self.tree = self._store.write_index(index) if files else tree
        self.commit = self._store.commit(self.tree, self.commit, author, message)

    def add_mail(self, label: str, where: str, mail: Mail) -> None:
        """Add somebody else's patch."""
        self.tree = self._apply(label, where, mail.diff, "apply it by hand: `forkyard stack edit`, then `git am -3`")
        self.commit = self._store.commit(self.tree, self.commit, mail.author, mail.message)

    def _apply(self, label: str, where: str, diff: bytes, next_step: str) -> str:
        check_hunks(diff, where)
        outcome = apply_onto(self._store, self.tree, diff)
        if outcome.tree is None:
            raise refuse_conflict(label, where, diff, outcome, next_step)
        if outcome.guessed:
            self.notes.append(f"{label}: found at an offset, without what it was made on: look at the result")
        elif not outcome.exact:
            self.notes.append(f"{label}: merged with what it was made on")
        return outcome.tree


def import_mails(store: Store, start: Imported, mails: Sequence[tuple[str, str, Mail]]) -> Imported:
    """Commits for patches of other people, on top of a series.

    Args:
        mails: a name for messages, the file it is from, and the patch.

    Raises:
        PatchError: one does not apply; names file and hunk.
    """
    chain = _Loose(store, start.tip, start.tree)
    for label, where, mail in mails:
        chain.add_mail(label, where, mail)
    facts = tuple(commits(store, f"{start.base}..{chain.commit}")) if chain.commit != start.base else ()
    return replace(start, commits=facts, notes=(*start.notes, *chain.notes))
