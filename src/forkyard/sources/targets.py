"""Other commits than a recipe's pin: finding the one that is meant, having it in the store, and the way to it."""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from forkyard.cache import Cache, write_atomic
from forkyard.console import Reporter
from forkyard.errors import NetworkError, RecipeError, UsageError
from forkyard.gitstore import OBJECT_ID, GitFailure, Store
from forkyard.gitstore.history import is_ancestor
from forkyard.gitstore.naming import Name, SeveralCommits, commit_elsewhere, described, named_commit
from forkyard.locks import hold
from forkyard.network import without_secrets
from forkyard.places import expanded
from forkyard.recipes import (
    FAMILIES,
    GitSource,
    KnownPin,
    LocalSource,
    Pin,
    Recipe,
    RegistrySource,
    Source,
    load_known_pins,
)
from forkyard.sources.obtaining import Obtained, obtain

LATEST = "latest"
# The folder that ik_llama.cpp was begun for.
_ONLY_IN_IK = "ggml/src/iqk"
_PREFIX = re.compile(r"^[0-9a-f]{7,40}$")


def target_recipe(
    recipe: Recipe,
    to: str,
    root: Path,
    cache: Cache,
    reporter: Reporter,
    *,
    source: str | None = None,
    offline: bool = False,
) -> Recipe:
    """The recipe with another pin: a commit id or its beginning, a ref, either with steps (``X~2``), or ``latest``.

    ``latest`` is the head of the given source, else of upstream, else, where upstream cannot be reached, the newest of
    the recipe's own pin and those known in ``recipes/<family>.pins.toml``.

    Raises:
        RecipeError: the words name no commit.
        NetworkError: only the network could tell.
    """
    known = load_known_pins(root, recipe.family)
    name = Name.read(to)
    if name.word == LATEST:
        commit = _latest(recipe, known, cache, reporter, source=source, offline=offline)
        to = f"{commit}{name.steps}"
    elif OBJECT_ID.match(to):
        commit = to
    if name.steps or not OBJECT_ID.match(to):
        commit = _named(recipe, to, known, cache, reporter, source=source, offline=offline)
    for family in FAMILIES:
        if family != recipe.family and any(pin.commit == commit for pin in load_known_pins(root, family)):
            msg = f"{commit[:12]} is a commit of {family}, and {recipe.name} is for {recipe.family}"
            raise UsageError(msg, next_step=f"name a commit of {recipe.family}")
    return with_pin(recipe, commit, known)


def with_pin(recipe: Recipe, commit: str, known: Sequence[KnownPin]) -> Recipe:
    """The recipe with the pin ``commit``; its registry source is the one known to carry that commit, or none."""
    if commit == recipe.pin.commit:
        return recipe
    pin = next((one for one in known if one.commit == commit), None)
    sources: list[Source] = [source for source in recipe.sources if not isinstance(source, RegistrySource)]
    if pin is not None:
        sources.append(pin.source)
    new = Pin.model_validate(
        {"commit": commit, "tree": pin.tree if pin else None, "date": pin.date if pin else None, "build-number": 0}
    )
    return recipe.model_copy(update={"pin": new, "sources": tuple(sources)})


def obtain_target(
    target: Recipe, cache: Cache, reporter: Reporter, *, source: str | None = None, offline: bool = False
) -> Obtained:
    """Have a target's commit in the store.

    Raises:
        RecipeError: nobody is known to have it.
        ForkyardError: see :func:`forkyard.sources.obtain`.
    """
    if source is None and not target.sources:
        msg = f"no source is known to have {target.pin.commit}"
        raise RecipeError(
            msg,
            where=target.location_of("sources"),
            next_step="give a clone, URL or archive with --source, or add the commit to recipes/*.pins.toml",
        )
    return obtain(target, cache, reporter, source=source, offline=offline)


def refuse_other_engine(store: Store, recipe: Recipe, pinned: str, target: Obtained) -> None:
    """See that a target is a commit of the recipe's engine and not of the other one: they share history and file names.

    Args:
        pinned: tree of the recipe's pin.

    Raises:
        UsageError: it is the other engine's.
    """
    marked = {tree: store.has(f"{tree}:{_ONLY_IN_IK}") for tree in (pinned, target.tree)}
    if marked[pinned] == marked[target.tree]:
        return
    has, other = ("has", "ik_llama.cpp") if marked[target.tree] else ("has no", "llama.cpp")
    msg = f"{target.commit[:12]} is no commit of {recipe.family}, but of {other} or something else"
    raise UsageError(
        msg,
        where=target.location,
        why=f"its tree {has} folder {_ONLY_IN_IK}, unlike the pin's",
        next_step=f"name a commit of {recipe.family}",
    )


def connect_history(
    old: Recipe,
    new: Recipe,
    cache: Cache,
    reporter: Reporter,
    *,
    source: str | None = None,
    offline: bool = False,
) -> bool:
    """Try to have every commit between two pins, so that a conflict can be traced to the commit that caused it.

    Registry packages carry single commits; then this is only possible with a clone or the network, and its absence
    is not an error.

    Returns:
        whether the store knows how one leads to the other.
    """
    store = Store(cache.store(old.family))
    with hold(cache.locks / f"store-{old.family}.lock"):
        if _connected(store, old.pin.commit, new.pin.commit):
            return True
        newer, older = (new, old) if (new.pin.date or "9") >= (old.pin.date or "9") else (old, new)
        since = _day_before(older.pin.date or store.commit_date(older.pin.commit))
        for location in _locations(old, source, offline=offline):
            asked = hashlib.sha256(f"{location}\0{newer.pin.commit}\0{since}".encode()).hexdigest()
            mark = store.path / "forkyard-history" / asked
            if mark.exists():
                # All it has of this is here.
                continue
            with reporter.step(f"fetching history since {since} from {without_secrets(location)}", "objects") as step:
                try:
                    store.fetch(
                        location,
                        newer.pin.commit,
                        history=since,
                        progress=lambda done, total: step.update(done, total),
                    )
                except GitFailure as error:
                    reporter.note(f"no history from {without_secrets(location)}: {error.complaint.brief}")
                    continue
            write_atomic(mark, b"")
            if _connected(store, old.pin.commit, new.pin.commit):
                return True
    return False


def _connected(store: Store, one: str, other: str) -> bool:
    if not (store.has(one, "commit") and store.has(other, "commit")):
        return False
    return is_ancestor(store, one, other) or is_ancestor(store, other, one)


def _day_before(date: str) -> str:
    return (datetime.date.fromisoformat(date) - datetime.timedelta(days=1)).isoformat()


def _locations(recipe: Recipe, source: str | None, *, offline: bool) -> Iterator[str]:
    """Where a repository may be: the given one alone, else those of the recipe."""
    if source is not None:
        if expanded(source).is_dir():
            yield str(expanded(source).absolute())
        elif "://" in source and not (offline and not source.startswith("file://")):
            yield source
        return
    for one in recipe.sources:
        if isinstance(one, LocalSource):
            yield str((recipe.folder / expanded(one.path)).resolve())
        elif isinstance(one, GitSource):
            remote = "://" in one.url and not one.url.startswith("file://")
            if not (remote and offline):
                yield one.url if "://" in one.url else str((recipe.folder / expanded(one.url)).resolve())


def _latest(
    recipe: Recipe,
    known: Sequence[KnownPin],
    cache: Cache,
    reporter: Reporter,
    *,
    source: str | None,
    offline: bool,
) -> str:
    store = _store(recipe, cache)
    problems: list[str] = []
    steps: list[str] = []
    for location in _locations(recipe, source, offline=offline):
        try:
            commit = named_commit(store, location)
        except GitFailure as error:
            problems.append(f"{without_secrets(location)}: {error.complaint.brief}")
            steps += [error.complaint.next_step] if error.complaint.next_step else []
            continue
        if commit is not None:
            return commit
        problems.append(f"{without_secrets(location)}: it has no HEAD")
    if source is None:
        for problem in problems:
            reporter.note(f"not reachable: {problem}")
        # Whoever cannot look has the recipe's own pin for the newest, unless a package carries a newer one.
        newest, date = recipe.pin.commit, recipe.pin.date or ""
        if known and known[0].date > date:
            newest, date = known[0].commit, known[0].date
        reporter.note(f"the newest known commit of {recipe.name} is {newest[:12]} of {date or 'an unknown date'}")
        return newest
    msg = f"the newest commit of {recipe.name} cannot be told"
    raise NetworkError(
        msg,
        where=recipe.location_of("sources"),
        why="; ".join(problems) or "no source is a repository",
        next_step="\n         ".join([*dict.fromkeys(steps), "give a clone with --source, or a commit with --to"]),
    )


def _named(
    recipe: Recipe,
    to: str,
    known: Sequence[KnownPin],
    cache: Cache,
    reporter: Reporter,
    *,
    source: str | None,
    offline: bool,
) -> str:
    if _PREFIX.match(to):
        found = sorted({pin.commit for pin in known if pin.commit.startswith(to)} | _own(recipe, to))
        if len(found) == 1:
            return found[0]
        if found:
            msg = f"{to} is the beginning of several commits"
            raise RecipeError(msg, why=", ".join(found), next_step="give more digits")
    store = _store(recipe, cache)
    problems: list[str] = []
    steps: list[str] = []
    for location in _locations(recipe, source, offline=offline):
        try:
            commit = named_commit(store, location, to)
        except GitFailure as error:
            problems.append(f"{without_secrets(location)}: {error.complaint.brief}")
            steps += [error.complaint.next_step] if error.complaint.next_step else []
            continue
        if commit is not None:
            return commit
    # Only history tells; it is kept where whole histories are, for the next time.
    whole = Store(cache.store(recipe.family).with_name(f"{recipe.family}.forks.git"))
    for location in _locations(recipe, source, offline=offline) if _worth_history(to) else ():
        shown = without_secrets(location)
        with (
            hold(cache.locks / f"store-{recipe.family}.forks.lock"),
            reporter.step(f"looking for {to} in {shown}", "objects") as step,
        ):
            try:
                commit = commit_elsewhere(whole, location, to, progress=lambda done, total: step.update(done, total))
            except GitFailure as error:
                problems.append(f"{shown}: {error.complaint.brief}")
                steps += [error.complaint.next_step] if error.complaint.next_step else []
                continue
            except SeveralCommits as error:
                msg = f"{to} is the beginning of several commits"
                raise RecipeError(
                    msg, where=shown, why=described(whole, error.candidates), next_step="give more digits"
                ) from None
        if commit is not None:
            return commit
        problems.append(f"{shown} has no such branch, tag or commit")
    msg = f"{to!r} names no commit of {recipe.name}"
    listed = ", ".join(f"{pin.commit[:12]} ({pin.date})" for pin in known)
    raise RecipeError(
        msg,
        why="\n         ".join([*dict.fromkeys(problems), *([f"known: {listed}"] if listed else [])]) or None,
        next_step="\n         ".join(
            [*dict.fromkeys(steps), "give all 40 digits, a name of the repository given with --source, or `latest`"]
        ),
    )


def _worth_history(to: str) -> bool:
    """Whether a name may mean a commit that no ref is at."""
    name = Name.read(to)
    return bool(name.steps or re.fullmatch(r"[0-9a-f]{4,39}", name.word)) and name.word.isprintable()


def _own(recipe: Recipe, to: str) -> set[str]:
    return {recipe.pin.commit} if recipe.pin.commit.startswith(to) else set()


def _store(recipe: Recipe, cache: Cache) -> Store:
    cache.prepare()
    store = Store(cache.store(recipe.family))
    with hold(cache.locks / f"store-{recipe.family}.lock"):
        store.ensure()
    return store
