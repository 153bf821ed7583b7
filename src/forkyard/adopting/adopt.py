"""``stack from-branch``: fetch a fork's branch, find its base, put it in a line, carry it to the pin, write a stack."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from forkyard.adopting.base import Base, find_base
from forkyard.adopting.dropping import Reduced, Twins, find_twins, reduce_line
from forkyard.adopting.fork import Location, fetch_fork, locate
from forkyard.adopting.keeping import add_report, fork_behind, keep, publish, refuse_if_touched, work_folder
from forkyard.adopting.linearising import Line, Lineariser, Link, OwnCommits, own_commits
from forkyard.adopting.outcome import CONFLICTS, DRY, NOTHING, PARTLY, WRITTEN, Adoption, Wish
from forkyard.adopting.report import document, markdown
from forkyard.adopting.series import (
    Draft,
    drafts_of,
    export_series,
    make_chain,
    patch_names,
    rest_of,
    settle,
    squashed,
)
from forkyard.cache import Cache
from forkyard.console import Reporter
from forkyard.errors import UsageError
from forkyard.gitstore import Store
from forkyard.gitstore.forks import cut_off
from forkyard.gitstore.history import CommitFacts, commits, is_ancestor
from forkyard.journal import Changes, commit_changes, finish_changes, project_lock
from forkyard.locks import hold
from forkyard.recipes import Recipe
from forkyard.sources import Obtained, obtain
from forkyard.stacks import PatchedTree, Stack, load_stacks
from forkyard.stacks.applying import apply_stacks, base_commit
from forkyard.stacks.authoring import LONGEST_NAME, NewStack, check_name, new_stack
from forkyard.stacks.exporting import Exported
from forkyard.stacks.importing import recipe_for
from forkyard.stacks.model import StackFile
from forkyard.stacks.writing import series_changes


@dataclass
class _Work:
    """What every step needs."""

    root: Path
    cache: Cache
    reporter: Reporter
    wish: Wish
    recipe: Recipe
    location: Location
    name: str
    engine_store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.engine_store = Store(self.cache.store(self.recipe.family))

    @contextmanager
    def locked(self, what: str) -> Iterator[None]:
        path = self.cache.locks / f"store-{what}.lock"
        with hold(path, waiting=lambda who: self.reporter.note(f"waiting for the object store (held by {who})")):
            yield


@dataclass(frozen=True)
class _Lined:
    """A branch as a chain of commits on its base, in the engine's store."""

    tip: CommitFacts
    shallow: bool
    base: Base
    own: OwnCommits
    twins: Twins
    reduced: Reduced
    drafts: tuple[Draft, ...]
    pin_has: frozenset[str]
    """Of the upstream commits that drafts name, those in the pin's history."""
    start: str
    """The commit the chain starts at."""
    end: str
    history: Store
    """Holds the fork's commits, and upstream's as far as the fork has them."""


def adopt(root: Path, cache: Cache, reporter: Reporter, wish: Wish) -> Adoption:
    """Turn a branch of somebody's fork into a stack.

    Raises:
        UsageError: repository, branch, name or base are not there, or the branch has nothing of its own.
        SourceError: it cannot be told what the fork is made on, or the fork is damaged.
        NetworkError: it cannot be reached.
        PatchError: a commit cannot be a patch.
    """
    recipe = recipe_for(root, wish.engine, wish.recipe)
    location = locate(wish.repository)
    name = _name(root, wish, location)
    if location.remote and wish.offline:
        msg = "the fork is on the network, and --offline says not to use it"
        raise UsageError(msg, where=location.shown, next_step="give a clone on this disk")
    refuse_if_taken(root, name)
    cache.prepare()
    obtained = obtain(recipe, cache, reporter, offline=wish.offline)
    work = _Work(root, cache, reporter, wish, recipe, location, name)
    with work.locked(f"{recipe.family}.forks"):
        lined = _into_a_line(work)
    return _home(work, obtained, lined)


def _name(root: Path, wish: Wish, location: Location) -> str:
    if wish.name is not None:
        check_name(wish.name)
        return wish.name
    words = PurePosixPath(wish.branch).name
    if words in ("main", "master", "HEAD") or re.fullmatch("[0-9a-f]{7,40}", words):
        words = re.split(r"[/:]", location.word.rstrip("/"))[-1].removesuffix(".git").removesuffix(".bundle")
    name = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
    name = re.sub(r"^[^a-z]+", "", name)[:LONGEST_NAME].rstrip("-")
    try:
        check_name(name)
    except UsageError as error:
        msg = f"no name for the stack can be made from {wish.branch!r}"
        raise UsageError(msg, why=error.what, next_step="give one with --name") from None
    return name


def refuse_if_taken(root: Path, name: str) -> None:
    """An existing stack is never overwritten.

    Raises:
        UsageError: there is one of that name.
    """
    folder = root / "patches" / name
    if folder.exists():
        msg = f"there is a stack {name!r} already"
        raise UsageError(msg, where=str(folder), next_step="choose another name with --name, or delete it first")


def _into_a_line(work: _Work) -> _Lined:
    wish, reporter = work.wish, work.reporter
    fork = fetch_fork(work.cache, work.recipe.family, work.location, wish.branch, reporter)
    base = find_base(
        fork, work.recipe, work.root, reporter, base=wish.base, upstream=wish.upstream, offline=wish.offline
    )
    store = fork.store
    tip = commits(store, "--no-walk", fork.tip)[0]
    own = own_commits(store, fork.tip, base.commit)
    if not own.plain and tip.tree == base.tree:
        msg = f"{wish.branch} has nothing of its own"
        raise UsageError(
            msg,
            where=work.location.shown,
            why=f"it is upstream's {base.commit[:12]} ({base.how})"
            if fork.tip == base.commit
            else f"it has the files of upstream's {base.commit[:12]}",
            next_step="name the branch with the fork's work",
        )
    with reporter.step(f"comparing {len(own.plain)} commits with upstream's"):
        twins = find_twins(store, own.plain, [*own.plain, *own.merges], base.upstream)
    in_base = {one: theirs for one, theirs in twins.upstream.items() if is_ancestor(store, theirs, base.commit)}
    reduced, drafts = _reduce(work, store, base, own, twins, in_base, tip)
    start = base_commit(store, work.recipe.series, base.commit, base.date, base.tree)
    chain = make_chain(store, start, drafts)
    pin = work.recipe.pin.commit
    named = {draft.upstream for draft in drafts if draft.upstream is not None}
    known = store.has(pin, "commit")
    pin_has = frozenset(one for one in named if known and is_ancestor(store, one, pin))
    end = chain[-1].commit if chain else start
    store.allow_any_fetch()
    with work.locked(work.recipe.family), reporter.step("taking the line into the engine's store"):
        engine_store = work.engine_store
        if engine_store.has(base.tree, "tree") and not engine_store.missing_blobs(base.tree):
            # Most of it is there already; git finds that out by commits, so there has to be one.
            same = base_commit(engine_store, work.recipe.series, base.commit, base.date, base.tree)
            engine_store.pin_object(same, f"bases/{same}")
        engine_store.take(store.path, end)
    return _Lined(tip, fork.shallow, base, own, twins, reduced, tuple(drafts), pin_has, start, end, store)


def _reduce(
    work: _Work,
    store: Store,
    base: Base,
    own: OwnCommits,
    twins: Twins,
    in_base: dict[str, str],
    tip: CommitFacts,
) -> tuple[Reduced, list[Draft]]:
    name = work.name
    if work.wish.squash:
        whole = Line(tuple(Link(one, one.tree) for one in own.plain), (), tip.tree)
        draft = [squashed(store, name, own.plain, tip)] if tip.tree != base.tree else []
        return Reduced(whole, {}, ()), draft
    lineariser = Lineariser(store, base.tree, own)
    with work.reporter.step(f"putting {len(own.plain)} commits into a line", "commits") as step:
        # The first pass shows its progress; the others know most merges already.
        lineariser.line(in_base, step.update)
        reduced = reduce_line(store, lineariser, twins, in_base, tip.tree)
    backports = {one: theirs for one, theirs in twins.upstream.items() if one not in in_base}
    with work.reporter.step("writing messages", "commits") as step:
        drafts = drafts_of(
            store,
            reduced.line,
            upstream=backports,
            against=twins.against,
            note_origin=work.wish.note_origin,
            progress=step.update,
        )
    rest = rest_of(store, name, reduced.line, tip, own.merges)
    return reduced, [*drafts, *([rest] if rest is not None else [])]


def _home(work: _Work, obtained: Obtained, lined: _Lined) -> Adoption:
    """Carry the line to where the stack's patches are exact, and write what can be written."""
    wish, store, recipe = work.wish, work.engine_store, work.recipe
    with work.locked(recipe.family):
        before = load_stacks(work.root, recipe.stacks, recipe.series) if wish.add_to_recipe else []
        home = apply_stacks(store, recipe.series, obtained.commit, obtained.date, obtained.tree, before)
        with work.reporter.step(f"carrying {len(lined.drafts)} patches to the pin", "patches") as step:
            settled = settle(store, lined.base.tree, home.tree, lined.drafts, lined.pin_has.__contains__, step.update)
        staying = [one for one in settled if not one.gone]
        clean = next((number for number, one in enumerate(staying) if not one.clean), len(staying))
        ready = staying[:clean] if clean == len(staying) or wish.partial else []
        with work.reporter.step(f"exporting {len(ready)} patches"):
            exported = export_series(
                store, home.commit, [(one.draft.letter, one.tree) for one in ready], whole_files=True
            )
        mails: Sequence[tuple[str, bytes]] = []
        if clean < len(staying):
            whole = export_series(
                store, lined.start, [(one.letter, one.tree) for one in lined.drafts], whole_files=False
            )
            mails = [(patch.name, patch.data) for patch in whole.patches]
    complete = clean == len(staying)
    state = (NOTHING if not staying else WRITTEN) if complete else (PARTLY if ready else CONFLICTS)
    if wish.dry_run and state in (WRITTEN, PARTLY):
        state = DRY
    names = tuple(patch_names([one.draft.letter for one in staying]))
    done = Adoption(
        wish, work.root, work.name, recipe, obtained, work.location, lined.tip, lined.shallow, lined.base, lined.own,
        lined.twins, lined.reduced, lined.drafts, tuple(settled), home.commit, state, names,
        len(exported.patches), notes=exported.notes,
    )  # fmt: skip
    if wish.dry_run or state == NOTHING:
        return done
    return _write(work, done, exported, mails, lined, home, before)


def _write(
    work: _Work,
    done: Adoption,
    exported: Exported,
    mails: Sequence[tuple[str, bytes]],
    lined: _Lined,
    home: PatchedTree,
    before: Sequence[Stack],
) -> Adoption:
    root, name = work.root, work.name
    folder = work_folder(root, name)
    with project_lock(root, waiting=lambda who: work.reporter.note(f"waiting for the project (held by {who})")):
        # Whoever was waited for may have been killed.
        finish_changes(root, work.reporter)
        refuse_if_taken(root, name)
        new = None
        if mails:
            refuse_if_touched(folder, name)
            with work.reporter.step(f"laying the series out in work/{folder.name}"):
                new = keep(
                    folder,
                    name,
                    [work.engine_store, lined.history],
                    tip=lined.end,
                    base=lined.start,
                    home=home.commit,
                    mails=mails,
                    upstream=_upstream(done, lined, home),
                )
            done = replace(done, folder=folder)
        if exported.patches:
            changes = _changes(root, done, exported, before)
            done = replace(done, written=tuple(commit_changes(root, changes)))
        if new is not None:
            add_report(new, markdown(done), json.dumps(document(done), indent=2, sort_keys=True) + "\n")
            publish(new, folder)
    return done


def _upstream(done: Adoption, lined: _Lined, home: PatchedTree) -> dict[str, str]:
    """Commits of ours that hold upstream's trees, and upstream's own where the fork's store has all before them."""
    found = {lined.start: lined.base.commit, home.base: done.pin.commit}
    whole = not cut_off(lined.history)
    return {ours: theirs for ours, theirs in found.items() if whole and lined.history.has(theirs, "commit")}


def _changes(root: Path, done: Adoption, exported: Exported, before: Sequence[Stack]) -> Changes:
    """The files of the new stack."""
    wish, place = done.wish, done.location
    branch, url, word, commit = wish.branch, place.url, place.word, done.tip.commit
    if (behind := fork_behind(place.folder)) is not None:
        # A person resolved what clashed; the stack comes from the fork all the same.
        branch, word, commit = behind["branch"], behind["repository"], behind["commit"]
        url = word if word.startswith("https://") else None
    # In a recipe it goes last: the patches of the others are exact where they are.
    last = max((stack.about.order for stack in before), default=0)
    about = NewStack(
        done.name,
        (done.recipe.series,),
        f"To finish: what {done.name} does, in one line",
        f"To finish: why it exists and who misses what without it. It was made from {len(exported.patches)} changes on "
        f"branch {branch} of {url or word.rstrip('/').rpartition('/')[2]} "
        f"at {commit[:12]}.",
        order=max(100, last + 10) if wish.add_to_recipe else None,
        answers=(url,) if url else (),
    )
    changes = new_stack(root, about, to_recipe=wish.add_to_recipe, recipe=done.recipe)
    text = changes.writes[f"patches/{done.name}/stack.toml"].decode()
    stack = Stack(done.name, root / "patches" / done.name, StackFile.model_validate(tomllib.loads(text)))
    series_changes(changes, root, stack, done.recipe.series, exported)
    return changes
