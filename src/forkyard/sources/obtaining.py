"""Trying a recipe's sources in order until one delivers exactly the pin.

No source is trusted. A commit arrives through git, which names every object by its content; a plain folder is
hashed file by file into a tree whose id must be the pin's. What was obtained is recorded beside the store, so
that the next run needs neither network nor hashing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from forkyard.archives import unpack_below
from forkyard.cache import Cache, publish, write_atomic
from forkyard.console import Reporter
from forkyard.errors import ForkyardError, NetworkError, RecipeError, SourceError
from forkyard.gitstore import Entry, GitFailure, Store
from forkyard.locks import hold
from forkyard.network import sha256_of, without_secrets
from forkyard.places import expanded
from forkyard.recipes import GitSource, LocalSource, Recipe, RegistrySource, Source, load_absent
from forkyard.scratch import owned_folder
from forkyard.sources.registry import fetch_package

KINDS = ("git", "registry", "local")


@dataclass(frozen=True)
class Obtained:
    """A pin whose tree is in the store and has been checked."""

    commit: str
    tree: str
    date: str
    build_number: int
    kind: str
    """Which kind of source delivered it."""
    location: str
    """Which one, without secrets."""
    absent: tuple[str, ...]
    """Paths of the tree whose content the source did not deliver; empty for a complete source."""


def _record_path(cache: Cache, recipe: Recipe) -> Path:
    return cache.store(recipe.family) / "forkyard-pins" / f"{recipe.pin.commit}.json"


def recorded(recipe: Recipe, cache: Cache) -> Obtained | None:
    """What an earlier run obtained for the recipe's pin, if the store still has it. Runs no git."""
    try:
        data = json.loads(_record_path(cache, recipe).read_bytes())
        found = Obtained(**{**data, "absent": tuple(data["absent"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if recipe.pin.tree not in (None, found.tree) or found.commit != recipe.pin.commit:
        return None
    return found


def obtain(
    recipe: Recipe,
    cache: Cache,
    reporter: Reporter,
    *,
    source: str | None = None,
    offline: bool = False,
) -> Obtained:
    """Have the recipe's pin in the object store.

    Args:
        source: use only this: a kind (``git``, ``registry``, ``local``), a URL, the path of a clone, or the path
            of a downloaded source archive. ``None`` tries the recipe's sources in order.
        offline: touch no network: only what is in the cache, local clones and archives.

    Raises:
        SourceError: what arrived is not the pin.
        NetworkError: no source could be reached.
        StorageError: the cache cannot be written.
    """
    cache.prepare()
    store = Store(cache.store(recipe.family))
    with hold(
        cache.locks / f"store-{recipe.family}.lock",
        waiting=lambda who: reporter.note(f"waiting for the object store (held by {who})"),
    ):
        store.ensure()
        known = recorded(recipe, cache)
        if known is not None and source is None and store.has(known.tree, "tree"):
            return known
        failures: list[tuple[str, ForkyardError]] = []
        for chosen in _candidates(recipe, source, cache):
            shown = _shown(chosen)
            if offline and _needs_network(chosen, cache):
                failures.append((shown, NetworkError("skipped: offline")))
                continue
            try:
                obtained = _from_source(recipe, chosen, store, cache, reporter)
            except (NetworkError, SourceError) as error:
                if isinstance(error, SourceError):
                    # A source that delivers something else is never passed over in silence.
                    if source is not None:
                        raise
                    reporter.warn(f"{shown}: {error.describe()}")
                failures.append((shown, error))
                continue
            write_atomic(_record_path(cache, recipe), json.dumps(asdict(obtained), indent=1).encode())
            return obtained
    raise _none_left(recipe, failures, offline=offline)


def _none_left(recipe: Recipe, failures: Sequence[tuple[str, ForkyardError]], *, offline: bool) -> ForkyardError:
    why = "\n         ".join(
        f"{shown}: {error.what}{f' ({error.why})' if error.why else ''}" for shown, error in failures
    )
    steps = list(dict.fromkeys(error.next_step for _, error in failures if error.next_step))
    wrong = next((error for _, error in failures if isinstance(error, SourceError)), None)
    kind = SourceError if wrong is not None else NetworkError
    return kind(
        f"no source delivered {recipe.name} at {recipe.pin.commit}",
        where=recipe.location_of("sources"),
        why=why,
        next_step="run again without --offline"
        if offline
        else "\n         ".join([*steps, "check the network, or give a clone or archive with --source PATH"]),
    )


def _shown(source: Source) -> str:
    if isinstance(source, RegistrySource):
        return f"registry package {source.project} {source.version}"
    return without_secrets(source.url) if isinstance(source, GitSource) else source.path


def _candidates(recipe: Recipe, chosen: str | None, cache: Cache) -> list[Source]:
    sources = list(recipe.sources)
    if chosen is None:
        return sources
    if chosen in KINDS:
        of_kind = [source for source in sources if source.kind == chosen]
        if not of_kind:
            msg = f"{recipe.name} has no source of kind {chosen!r}"
            raise RecipeError(
                msg,
                where=recipe.location_of("sources"),
                next_step="name a URL or a path instead, or add one to the recipe",
            )
        return list(of_kind)
    path = expanded(chosen)
    if path.is_file():
        digest = sha256_of(path)
        for source in sources:
            if isinstance(source, RegistrySource) and source.sha256 == digest:
                _adopt(path, digest, cache)
                return [source]
        msg = f"{path.name} is none of the archives {recipe.name} names"
        raise SourceError(
            msg, where=str(path), why=f"its sha256 is {digest}", next_step="give the archive the recipe's sources name"
        )
    if path.is_dir():
        return [LocalSource(kind="local", path=str(path.absolute()))]
    return [GitSource(kind="git", url=chosen)]


def _adopt(path: Path, digest: str, cache: Cache) -> None:
    """Put a file the user gave where a download of it would be."""
    publish(path, cache.downloads / f"{digest}.tar.gz")


def _needs_network(source: Source, cache: Cache) -> bool:
    if isinstance(source, RegistrySource):
        return not (cache.downloads / f"{source.sha256}.tar.gz").is_file()
    location = source.url if isinstance(source, GitSource) else source.path
    return "://" in location and not location.startswith("file://")


def _from_source(recipe: Recipe, source: Source, store: Store, cache: Cache, reporter: Reporter) -> Obtained:
    if isinstance(source, RegistrySource):
        with reporter.step(f"downloading {source.project} {source.version}", "bytes") as step:
            archive = fetch_package(
                source.project,
                source.version,
                source.sha256,
                cache.downloads,
                progress=lambda done, total: step.update(done, total),
            )
        if source.store is not None:
            with _object_store_of(archive, source.store, cache) as repository:
                return _from_git(recipe, str(repository), store, reporter, kind="registry", shown=_shown(source))
        return _from_folder(recipe, source, archive, store, cache, reporter)
    location = source.url if isinstance(source, GitSource) else source.path
    if "://" not in location and not (isinstance(source, GitSource) and _is_scp(location)):
        location = str((recipe.folder / expanded(location)).resolve())
    return _from_git(recipe, location, store, reporter, kind=source.kind, shown=_shown(source))


def _is_scp(location: str) -> bool:
    head, colon, _ = location.partition(":")
    return bool(colon) and "/" not in head


def _from_git(recipe: Recipe, location: str, store: Store, reporter: Reporter, *, kind: str, shown: str) -> Obtained:
    pin = recipe.pin
    with reporter.step(f"fetching {pin.commit[:12]} from {shown}", "objects") as step:
        try:
            store.fetch(location, pin.commit, progress=lambda done, total: step.update(done, total))
        except GitFailure as error:
            said = error.complaint
            why, next_step = said.why or None, said.next_step
            if said.kind == "damaged":
                msg = f"{shown} delivered damaged objects"
                next_step = "repair it (`git fsck` there names what is damaged) or replace it by another clone"
                raise SourceError(msg, where=without_secrets(location), why=why, next_step=next_step) from error
            msg = f"{shown} did not deliver {pin.commit}"
            kind_of_error = SourceError if said.kind == "incomplete" else NetworkError
            raise kind_of_error(msg, where=without_secrets(location), why=why, next_step=next_step) from error
    tree = store.tree_of(pin.commit)
    if pin.tree is not None and tree != pin.tree:
        msg = f"commit {pin.commit} has another tree than the recipe says"
        raise SourceError(
            msg,
            where=recipe.location_of("pin", "tree"),
            why=f"expected tree {pin.tree}, found {tree}",
            next_step="correct pin.tree in the recipe",
        )
    missing = store.missing_blobs(tree)
    if missing:
        msg = f"{shown} delivered the commit without all of its files"
        raise SourceError(
            msg,
            where=without_secrets(location),
            why=f"{len(missing)} are missing, the first is {missing[0].path} ({missing[0].oid})",
        )
    date = store.commit_date(pin.commit)
    if pin.date is not None and pin.date != date:
        msg = f"commit {pin.commit} has another date than the recipe says"
        raise SourceError(
            msg,
            where=recipe.location_of("pin", "date"),
            why=f"expected {pin.date}, found {date}",
            next_step="correct pin.date in the recipe",
        )
    store.pin_object(pin.commit, f"pins/{pin.commit}")
    return Obtained(pin.commit, tree, date, pin.build_number, kind, shown, ())


@contextlib.contextmanager
def _object_store_of(archive: Path, inside: str, cache: Cache) -> Iterator[Path]:
    """Unpack only the objects of a git store in an archive, into a repository whose configuration is ours."""
    wanted = {"objects", "packed-refs", "shallow"}
    with owned_folder(cache.scratch, "store-") as scratch:
        repository = scratch / "repository"
        shell = Store(repository)
        shell.ensure()
        unpack_below(
            archive,
            PurePosixPath(inside),
            repository,
            wanted=lambda path: path.parts[0] in wanted and "alternates" not in path.parts,
        )
        shell.allow_any_fetch()
        yield repository


def _from_folder(
    recipe: Recipe, source: RegistrySource, archive: Path, store: Store, cache: Cache, reporter: Reporter
) -> Obtained:
    assert source.folder is not None
    pin = recipe.pin
    assert pin.tree is not None, "the recipe model demands it for a folder source"
    absent = [Entry(entry.mode, entry.type, entry.id, entry.path) for entry in load_absent(recipe, source)]
    with (
        owned_folder(cache.scratch, "folder-") as folder,
        reporter.step(f"checking {source.project} {source.version}"),
    ):
        unpack_below(archive, PurePosixPath(source.folder), folder)
        instead = {entry.path for entry in absent}
        present = [entry for entry in store.add_folder(folder, skip=source.drop) if entry.path not in instead]
        tree = store.write_tree([*present, *absent])
    if tree != pin.tree:
        raise _wrong_tree(recipe, source, store, pin.tree, tree)
    store.pin_object(tree, f"trees/{tree}")
    date = pin.date
    if date is None:
        msg = f"{recipe.name} does not say its pin's date"
        raise RecipeError(
            msg,
            where=recipe.location_of("pin"),
            why="a plain folder carries no commit to take it from",
            next_step="add `date` to [pin]",
        )
    missing = tuple(entry.path for entry in store.missing_blobs(tree))
    return Obtained(pin.commit, tree, date, pin.build_number, "registry", _shown(source), missing)


def _wrong_tree(recipe: Recipe, source: RegistrySource, store: Store, expected: str, found: str) -> SourceError:
    """Name the first file that differs when the expected listing is known, else the trees alone."""
    why = f"expected tree {expected}, found {found}"
    if store.has(expected, "tree"):
        wanted = {entry.path: f"{entry.mode} {entry.oid}" for entry in store.entries(expected)}
        have = {entry.path: f"{entry.mode} {entry.oid}" for entry in store.entries(found)}
        for path in sorted(wanted.keys() | have.keys()):
            if wanted.get(path) != have.get(path):
                why += f"; {path}: expected {wanted.get(path, 'no such file')}, found {have.get(path, 'no such file')}"
                break
    msg = f"{_shown(source)} does not hold the pin of {recipe.name}"
    return SourceError(
        msg, where=recipe.location_of("pin", "tree"), why=why, next_step="nothing of it was used; try another source"
    )
