"""The checked-out patched tree of a recipe: one folder, updated in place, locked while anybody compiles from it."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from forkyard.cache import Cache, write_atomic
from forkyard.console import Reporter
from forkyard.errors import PatchError, SourceError
from forkyard.gitstore import Store
from forkyard.locks import hold
from forkyard.recipes import Recipe, RegistrySource, load_absent
from forkyard.recipes.lock import changed_since_lock, way_on
from forkyard.sources import Obtained
from forkyard.stacks import PatchedTree, Stack, apply_stacks
from forkyard.stacks.combining import at_home, combine_stacks

# ik_llama.cpp's build writes this into its source tree; removing it would relink every tool each time.
_WRITTEN_BY_BUILD = ("common/build-info.cpp",)


@dataclass(frozen=True)
class Checkout:
    """A patched tree on disk."""

    folder: Path
    patched: PatchedTree
    tree: str
    """Tree id of what lies in the folder: the patched tree less what one of the recipe's sources lacks."""
    lock_fd: int
    """Hand this to compilers: while they live, nobody changes the folder."""


def patch(
    recipe: Recipe,
    obtained: Obtained,
    stacks: Sequence[Stack],
    cache: Cache,
    usual: Sequence[Stack] | None = None,
) -> PatchedTree:
    """Apply the stacks to the obtained pin, in the object store.

    Args:
        usual: the recipe's own stacks. Patches that are not exact without stacks they are usually applied after are
            then carried over by a three-way merge; without it every patch must apply exactly.

    Raises:
        PatchError: a patch is malformed, does not apply exactly, or conflicts with what it is carried over to.
    """
    store = Store(cache.store(recipe.family))
    facts = (store, recipe.series, obtained.commit, obtained.date, obtained.tree)
    with hold(cache.locks / f"store-{recipe.family}.lock"):
        try:
            patched = apply_stacks(*facts, stacks)
        except PatchError as error:
            if usual is None or at_home(usual, stacks):
                raise _with_lock(error, recipe, stacks) from error
            patched = combine_stacks(*facts, usual, stacks)
        store.pin_object(patched.commit, f"patched/{patched.commit}")
    return patched


def _with_lock(error: PatchError, recipe: Recipe, stacks: Sequence[Stack]) -> PatchError:
    """The error, with the patches that are not the lock's: where one was cut, another is the one that fails."""
    changed = [one for stack in stacks[:1] for one in changed_since_lock(recipe, stack.folder.parents[1])]
    if not changed:
        return error
    said = "\n         ".join(f"{one.path} is not what the lock says: {one.why}" for one in changed)
    why = f"{said}\n         {error.why}" if error.why else said
    return PatchError(error.what, where=error.where, why=why, next_step=way_on(changed))


@contextlib.contextmanager
def checked_out(
    recipe: Recipe,
    workspace: str,
    obtained: Obtained,
    stacks: Sequence[Stack],
    toolchain: str,
    cache: Cache,
    reporter: Reporter,
    usual: Sequence[Stack] | None = None,
) -> Iterator[Checkout]:
    """The patched tree in its folder, every file hashed against its object id, unchanged for the length of the block.

    Several builds may use the folder at once; one that needs it changed waits until they are done.

    Args:
        workspace: name of the folder in the cache.
        toolchain: identity of the compiler; files a build writes into the tree do not survive a change of it.
        usual: see :func:`patch`.

    Raises:
        PatchError, SourceError, StorageError: see :func:`patch` and the object store.
    """
    store = Store(cache.store(recipe.family))
    with reporter.step(
        f"applying {sum(len(s.series(recipe.series).patches) for s in stacks)} patches to {recipe.name}"
    ):
        patched = patch(recipe, obtained, stacks, cache, usual)
        tree = store.without(patched.tree, {*declared_absent(recipe), *obtained.absent})
    folder, index = cache.tree(workspace), cache.tree_index(workspace)
    stamp = index.with_suffix(".stamp")
    origin = {"label": pin_label(recipe, stacks), "toolchain": toolchain}
    wanted = {"tree": tree, **origin}

    def told(who: str) -> None:
        reporter.note(f"waiting for {folder.name}'s source tree (held by {who})")

    def as_wanted() -> bool:
        return _read(stamp) == wanted and _intact(store, tree, folder)

    lock = cache.locks / f"tree-{workspace}.lock"
    with hold(lock, shared=True, waiting=told) as held:
        while not as_wanted():
            # Changing an flock lets go of it for a moment: two that both want to change the tree cannot block each
            # other, and what was found out before must be found out again.
            if not _try_exclusive(held.fd):
                told("a build that compiles from it")
                fcntl.flock(held.fd, fcntl.LOCK_EX)
            same_origin = origin.items() <= _read(stamp).items()
            stamp.unlink(missing_ok=True)
            with reporter.step(f"checking out {recipe.name}"):
                store.check_out(tree, folder, index, keep=_WRITTEN_BY_BUILD if same_origin else ())
                store.verify_checkout(tree, folder, keep=_WRITTEN_BY_BUILD)
            write_atomic(stamp, json.dumps(wanted).encode())
            fcntl.flock(held.fd, fcntl.LOCK_SH)
        yield Checkout(folder, patched, tree, held.fd)


def _read(stamp: Path) -> dict[str, str]:
    try:
        found = json.loads(stamp.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _intact(store: Store, tree: str, folder: Path) -> bool:
    try:
        store.verify_checkout(tree, folder, keep=_WRITTEN_BY_BUILD)
    except SourceError:
        return False
    return True


def _try_exclusive(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def headers_of(stack: Stack, patched: PatchedTree) -> list[str]:
    """Those headers of a stack's C API that its patches added to the tree.

    The beginning of a series may not have them yet.

    Raises:
        PatchError: the whole series does not add a header that stack.toml names.
    """
    added = {file.target for one in patched.patches if one.stack == stack.name for file in one.trailers.adds_files}
    missing = [header for header in stack.about.headers if header not in added]
    if missing and stack.limit is None:
        msg = f"no patch of stack {stack.name} adds its header {missing[0]}"
        raise PatchError(
            msg,
            where=str(stack.folder / "stack.toml"),
            why=f"whole files that its series for this engine adds: {', '.join(sorted(added)) or 'none'}",
            next_step="name it in an Adds-Files trailer of a patch, or correct `headers`",
        )
    return [header for header in stack.about.headers if header in added]


def declared_absent(recipe: Recipe) -> tuple[str, ...]:
    """Paths no build of the recipe has, whichever source delivers: what the poorest of its sources lacks.

    A complete source has them, but the same key must give the same bytes from every source.
    """
    sources = [source for source in recipe.sources if isinstance(source, RegistrySource)]
    return tuple(sorted({entry.path for source in sources for entry in load_absent(recipe, source)}))


def pin_label(recipe: Recipe, stacks: Sequence[Stack]) -> str:
    """What a build calls its commit: the pin, marked when patches are on it.

    It does not name the patched commit: a one-line change of a patch would then recompile every file that
    includes the version header. The manifest names the patched commit.
    """
    patched = any(stack.series(recipe.series).patches for stack in stacks)
    return recipe.pin.commit[:9] + ("-forkyard" if patched else "")
