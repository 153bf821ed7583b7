"""``forkyard stack new | edit | refresh | export | import``: patches as commits, and commits as patches."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from forkyard.cache import Cache
from forkyard.commands.answering import answers, sources
from forkyard.console import Console, Reporter
from forkyard.errors import EXIT_FINDINGS, UsageError
from forkyard.gitstore import Store
from forkyard.journal import commit_changes, finish_changes, project_lock
from forkyard.locking import lock_recipe, warn_changed
from forkyard.locks import hold
from forkyard.nextsteps import command
from forkyard.places import expanded
from forkyard.recipes import FAMILIES, Recipe, load_recipe
from forkyard.sources import obtain
from forkyard.stacks import editing as edits
from forkyard.stacks.authoring import NewStack, new_stack
from forkyard.stacks.foreign import read_patches
from forkyard.stacks.handing import give_branch, write_mails
from forkyard.stacks.importing import home, import_loosely, import_mails, import_series, recipe_for
from forkyard.stacks.rewriting import Ground, Rewrite, plan_rewrite, reexport, write
from forkyard.stacks.rewriting import refresh as refresh_edit
from forkyard.workshop import find_root

_F = TypeVar("_F", bound=Callable[..., Any])


def _chosen(function: _F) -> _F:
    """The words that choose one stack's series."""
    for decorate in (
        click.argument("name", metavar="STACK"),
        click.option("--engine", type=click.Choice(FAMILIES), required=True, help="The engine whose series it is."),
        click.option("--recipe", help="The recipe it is made on (default: the engine's own)."),
    ):
        function = decorate(function)
    return sources(function)


_path = click.option(
    "--path", type=click.Path(path_type=Path), help="The edit's folder (default: work/STACK-ENGINE in the project)."
)
_only = click.option("--only", is_flag=True, help="Write this series alone, whatever becomes of stacks after it.")
_lock = click.option("--lock", "locks", is_flag=True, help="Renew the locks that become out of date with it.")


@contextlib.contextmanager
def _locked(root: Path, reporter: Reporter) -> Iterator[None]:
    with project_lock(root, waiting=lambda who: reporter.note(f"waiting for another forkyard here ({who})")):
        # Whoever was waited for may have been killed.
        finish_changes(root, reporter)
        yield


@contextlib.contextmanager
def _ground(
    root: Path, reporter: Reporter, name: str, engine: str, recipe: str | None, source: str | None, *, offline: bool
) -> Iterator[Ground]:
    """A stack at its home, nobody else at the object store for the length of the block."""
    cache = Cache.default()
    place = home(root, recipe_for(root, engine, recipe), name)
    warn_changed([place.recipe], root, reporter)
    obtained = obtain(place.recipe, cache, reporter, source=source, offline=offline)
    with hold(
        cache.locks / f"store-{place.recipe.family}.lock",
        waiting=lambda who: reporter.note(f"waiting for the object store (held by {who})"),
    ):
        yield Ground(root, cache, Store(cache.store(place.recipe.family)), place, obtained)


@click.command()
@click.argument("name", metavar="STACK")
@click.option(
    "--engine", "engines", type=click.Choice(FAMILIES), multiple=True, required=True, help="May be given twice."
)
@click.option("--title", required=True, help="One line.")
@click.option("--intent", required=True, help="One paragraph: why the stack exists.")
@click.option("--requires", multiple=True, help="A stack it is made on; may be given again.")
@click.option("--order", type=int, help="Stacks are applied in this order, then by name (default: 100).")
@click.option("--answers", "issues", multiple=True, help="URL of public work it answers; may be given again.")
@click.option("--add-to-recipe", is_flag=True, help="Put it into its engines' recipes, whose locks then need renewal.")
@answers
def new(
    console: Console,
    name: str,
    engines: tuple[str, ...],
    title: str,
    intent: str,
    requires: tuple[str, ...],
    order: int | None,
    issues: tuple[str, ...],
    add_to_recipe: bool,
) -> None:
    """Begin STACK: its description and an empty series for each engine."""
    root = find_root()
    made = NewStack(name, tuple(dict.fromkeys(engines)), title, intent, requires, order, issues)
    with _locked(root, console):
        written = commit_changes(root, new_stack(root, made, to_recipe=add_to_recipe))
    follow = [command("stack", "edit", name, engine=engine) for engine in made.engines]
    lines = [*(f"wrote {path}" for path in written), "", f"Finish patches/{name}/stack.toml, then:"]
    lines += [f"  {line}" for line in follow]
    console.result({"stack": name, "written": written, "next": follow}, "\n".join(lines))


@click.command()
@_chosen
@_path
@click.option("--fresh", is_flag=True, help="Throw away an edit that is there, with everything done in it.")
@click.option("--join", is_flag=True, help="If edit and series both changed, take each patch from where it changed.")
@answers
def edit(
    console: Console,
    name: str,
    engine: str,
    recipe: str | None,
    source: str | None,
    offline: bool,
    path: Path | None,
    fresh: bool,
    join: bool,
) -> None:
    """Make a git repository with STACK's patches as commits, to work on; `stack refresh` writes them back."""
    root = find_root()
    place = _folder(root, path, name, engine, recipe)
    with (
        _locked(root, console),
        _ground(root, console, name, engine, recipe, source, offline=offline) as ground,
        console.step(f"turning {name} into commits"),
    ):
        imported = import_loosely(ground.store, ground.place, ground.obtained)
        done = edits.edit(ground.place, ground.obtained, ground.store, place, imported, fresh=fresh, together=join)
    _notes(console, imported.notes)
    elsewhere = place if path else None
    said = {
        "made": f"{done.path} has {done.patches} commits on branch {done.branch}",
        "as it was": f"{done.path} is there already and was left as it is (--fresh throws it away)",
        "updated": f"{done.path} had nothing of its own and now has the series as it is in the project",
        "both changed": f"{done.path} was changed, and so was the series or what it is made on; nothing was touched",
        "joined": f"{done.path} now has both its own changes and the project's; what it had is {edits.BEFORE_JOIN}",
    }[done.state]
    follow = [
        f"cd {shlex.quote(str(done.path))}",
        "# commit, amend, git rebase -i: one commit is one patch",
        ground.place.command("refresh", path=elsewhere),
    ]
    if done.state == "both changed":
        follow = [ground.place.command("edit", join=True, path=elsewhere)]
    console.result(
        {
            "path": str(done.path),
            "state": done.state.replace(" ", "-"),
            "branch": done.branch,
            "base": done.base,
            "tip": done.tip,
            "patches": done.patches,
            "notes": list(imported.notes),
            "next": [line for line in follow if not line.startswith("#")],
        },
        "\n".join([said, *(f"  {line}" for line in follow)]),
    )


def _folder(root: Path, path: Path | None, name: str, engine: str, recipe: str | None) -> Path:
    if path is not None:
        return expanded(path).absolute()
    return edits.place_of(root, name, recipe_for(root, engine, recipe).series)


@click.command()
@_chosen
@_path
@click.option("--fold", is_flag=True, help="Put later edits of whole files of ours into the commit that adds them.")
@_only
@_lock
@answers
def refresh(
    console: Console,
    name: str,
    engine: str,
    recipe: str | None,
    source: str | None,
    offline: bool,
    path: Path | None,
    fold: bool,
    only: bool,
    locks: bool,
) -> None:
    """Write the commits of STACK's edit back: patches, series and whole files, and the stacks made on it."""
    root = find_root()
    place = _folder(root, path, name, engine, recipe)
    with _locked(root, console), _ground(root, console, name, engine, recipe, source, offline=offline) as ground:
        edits.read_work(place, ground.place)
        with console.step(f"writing {name} back"):
            done = refresh_edit(ground, place, folded=fold, only=only)
    _report(console, ground, done, locks=locks, offline=offline)


@click.command()
@_chosen
@click.option("--check", is_flag=True, help="Only compare; ends with 12 if a patch would be written differently.")
@click.option(
    "--to", "folder", type=click.Path(path_type=Path), help="Write complete mails for `git am` into this new folder."
)
@_only
@_lock
@answers
def export(
    console: Console,
    name: str,
    engine: str,
    recipe: str | None,
    source: str | None,
    offline: bool,
    check: bool,
    folder: Path | None,
    only: bool,
    locks: bool,
) -> int:
    """Turn STACK into commits and write them again: nothing changes unless its patches are out of place."""
    if check and folder is not None:
        msg = "--check and --to exclude each other"
        raise UsageError(msg)
    root = find_root()
    with contextlib.ExitStack() as held:
        if not check and folder is None:
            held.enter_context(_locked(root, console))
        ground = held.enter_context(_ground(root, console, name, engine, recipe, source, offline=offline))
        with console.step(f"exporting {name}"):
            imported = import_loosely(ground.store, ground.place, ground.obtained)
            exported = reexport(ground, imported)
        _notes(console, imported.notes)
        if folder is not None:
            files = [str(path) for path in write_mails(ground.store, exported, expanded(folder).absolute())]
            said = f"wrote {len(files)} mails; `git am --keep-non-patch {folder}/*` takes them"
            console.result({"files": files, "notes": list(imported.notes)}, said)
            return 0
        if check:
            plan = plan_rewrite(ground, imported, exported, only=True)
            different = [patch.name for patch in plan.patches if patch.status != ("unchanged",)]
            first = different[0] if different else (plan.paths[0] if plan.paths else None)
            console.result(
                {"same": first is None, "first_difference": first, "differences": list(plan.paths)},
                f"{name}: {len(exported.patches)} patches, export changes nothing"
                if first is None
                else f"{name}: {first} is the first that would be written differently, of {len(plan.paths)} files",
            )
            return EXIT_FINDINGS if first is not None else 0
        plan = plan_rewrite(ground, imported, exported, only=only)
        write(ground, plan)
    _report(console, ground, plan, locks=locks, offline=offline)
    return 0


@click.command(name="import")
@_chosen
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE_OR_FOLDER]...")
@click.option("--author", help="Who wrote patches that do not say so: 'A Person <a@example.org>'.")
@click.option("--into", type=click.Path(path_type=Path), help="A clone to make a branch in.")
@click.option("--branch", help="The branch to make in the clone (default: forkyard/STACK).")
@click.option("--force", is_flag=True, help="Move the branch if the clone has it.")
@_only
@_lock
@answers
def import_(
    console: Console,
    name: str,
    engine: str,
    recipe: str | None,
    source: str | None,
    offline: bool,
    files: tuple[Path, ...],
    author: str | None,
    into: Path | None,
    branch: str | None,
    force: bool,
    only: bool,
    locks: bool,
) -> None:
    """Turn STACK's series into commits; or append mails, mailboxes and folders of patches to it.

    Without FILES the commits are made in the object store and shown, and with --into put into a clone of yours as a
    branch. With FILES they are applied on top of the series, exactly or as three-way merges, and written to it.
    """
    if files and into is not None:
        msg = "--into shows the series as it is; import the files first"
        raise UsageError(msg)
    root = find_root()
    if files:
        with _locked(root, console), _ground(root, console, name, engine, recipe, source, offline=offline) as ground:
            with console.step(f"importing into {name}"):
                mails, left_out = read_patches(ground.store, files, author=author)
                start = import_series(ground.store, ground.place, ground.obtained)
                grown = import_mails(ground.store, start, mails)
                exported = reexport(ground, start, grown.commits)
                plan = plan_rewrite(ground, start, exported, only=only)
            write(ground, plan)
        _notes(console, (*left_out, *grown.notes))
        _report(console, ground, plan, locks=locks, offline=offline)
        return
    with _ground(root, console, name, engine, recipe, source, offline=offline) as ground:
        with console.step(f"turning {name} into commits"):
            imported = import_series(ground.store, ground.place, ground.obtained)
        rows = [
            {"commit": one.commit, "name": patch, "subject": one.subject}
            for patch, one in zip(imported.names, imported.commits, strict=True)
        ]
        document: dict[str, Any] = {"base": imported.base, "tip": imported.tip, "commits": rows}
        lines = [f"{row['commit']} {row['name']}: {row['subject']}" for row in rows]
        if into is not None:
            chosen = branch or edits.branch_of(name)
            folder = expanded(into).absolute()
            given = give_branch(ground.store, folder, chosen, ground.obtained.commit, imported, force=force)
            document |= {
                "into": str(folder),
                "branch": given.branch,
                "tip": given.tip,
                "standing_on": given.standing_on,
            }
            ground_text = f"upstream's {given.standing_on[:12]}" if given.standing_on else "a commit of the pin's tree"
            lines.append(f"{folder} has them as branch {given.branch}, on {ground_text}")
    console.result(document, "\n".join(lines) or f"{name} has no patches for {engine}")


def _notes(console: Console, notes: tuple[str, ...]) -> None:
    for note in notes:
        console.note(note)


def _report(console: Console, ground: Ground, done: Rewrite, *, locks: bool, offline: bool) -> None:
    """Say what a rewrite did, and renew or name the locks it made out of date."""
    root, name, own = ground.root, ground.place.stack.name, ground.place.recipe
    renewed: list[str] = []
    stale = [load_recipe(one, root) for one in done.stale]
    unsure: list[Recipe] = []
    if own.path not in [one.path for one in stale] and name in own.stacks and own.lock_path().is_file():
        # A recipe given by its path is in nobody's list. One of the project may have been left by an earlier run that
        # was ended between the series and the lock.
        (stale if done.paths and own.word != own.name else unsure).append(own)
    for recipe in [*stale, *unsure] if locks else ():
        if lock_recipe(recipe, root, ground.cache, console, check_only=False, offline=offline):
            renewed.append(recipe.name)
    outdated = [] if locks else stale
    follow = [command("lock", recipe.word) for recipe in outdated]
    if not done.paths:
        text = [f"{name} is as it was; nothing was written"]
    else:
        text = [
            f"{', '.join(patch.status):<20} {patch.name}" + (f" (was: {patch.was})" if patch.was else "")
            for patch in done.patches
        ]
        text += [f"{'written again':<20} {one.stack}/{patch}" for one in done.followers for patch in one.patches]
        text += [f"checked: {engine} still applies" for engine in done.checked_engines]
        text += [f"renewed the lock of {recipe}" for recipe in renewed]
        text += [
            f"the lock of {recipe.name} is out of date now: run `{line}`"
            for recipe, line in zip(outdated, follow, strict=True)
        ]
    text += [f"note: {note}" for note in done.notes]
    console.result({"stack": name, **done.as_json(), "renewed_locks": renewed, "next": follow}, "\n".join(text))
