"""The upstream state a fork is made on: the newest one its branch contains.

Which commits are upstream's is asked in several ways, best first, and each answer is remembered, so that a fork whose
origin cannot be told ends with a list of what was tried and not with a shrug.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from forkyard.adopting.fork import Fork, locate, location_key, unreadable
from forkyard.adopting.keeping import MADE
from forkyard.console import Reporter
from forkyard.errors import SourceError, UsageError
from forkyard.gitstore import GitFailure
from forkyard.gitstore.forks import common_ancestors, count, fetch_refs, history_trees, list_refs
from forkyard.gitstore.history import is_ancestor
from forkyard.gitstore.naming import Name, match_ref
from forkyard.network import without_secrets
from forkyard.places import expanded
from forkyard.recipes import GitSource, LocalSource, Recipe, load_known_pins

_MAIN = ("master", "main", "HEAD")
MANY = 200
"""So many commits of a fork's own, some by way of merges, and one may suspect that some are upstream's."""


@dataclass(frozen=True)
class Base:
    """What a fork is made on."""

    commit: str
    tree: str
    date: str
    """Committer date, ``YYYY-MM-DD`` in UTC."""
    how: str
    """How it was found, as the end of a sentence."""
    upstream: tuple[str, ...]
    """Commits known to be upstream's; the base is in the history of one of them."""
    pin: str
    """How it lies to the recipe's pin: ``same``, ``newer``, ``older`` or ``unknown``."""
    distance: int | None = None
    """Upstream commits between the two, where history tells."""
    others: tuple[str, ...] = ()
    """Upstream commits the branch contains besides and the base does not."""
    hint: str | None = None
    """What to try, if commits that count as the fork's own are perhaps upstream's."""


@dataclass
class _Search:
    """What was tried, and what is known to be upstream's."""

    fork: Fork
    tried: list[str] = field(default_factory=list)
    tips: dict[str, str] = field(default_factory=dict)
    """Commit -> how it is known, as the end of a sentence."""

    def know(self, commit: str | None, how: str, otherwise: str) -> None:
        if commit is None:
            self.tried.append(otherwise)
        elif commit not in self.tips:
            self.tips[commit] = how
            self.tried.append(f"{how} ({commit[:12]})")

    def common(self) -> list[str]:
        return common_ancestors(self.fork.store, self.fork.tip, list(self.tips))


def find_base(
    fork: Fork,
    recipe: Recipe,
    root: Path,
    reporter: Reporter,
    *,
    base: str | None = None,
    upstream: str | None = None,
    offline: bool = False,
) -> Base:
    """Find what the fork's branch is made on.

    Args:
        base: what the person says it is made on; taken at its word.
        upstream: what is upstream's: a name of the fork's repository, or the URL or folder of a repository.

    Raises:
        UsageError: ``base`` or ``upstream`` is not there, or the branch is not made on it.
        SourceError: nothing tells.
    """
    search = _Search(fork)
    if upstream is not None:
        search.know(_upstream(fork, upstream, reporter, offline=offline), f"--upstream {upstream}", "")
    if base is not None:
        commit = _named(fork, base, "--base")
        if MADE not in fork.refs:
            # The base is the person's to say; what upstream has besides is still upstream's. A repository that
            # from-branch made for a conflict has nothing of upstream's history: there is nobody to ask for it.
            _ask(search, recipe, root, reporter, offline=offline)
        return _given(search, base, commit, recipe)
    found = _ask(search, recipe, root, reporter, offline=offline)
    if not found:
        raise _not_found(search, recipe)
    chosen = _nearest(fork, found)
    own = count(fork.store, "--no-merges", fork.tip, *(f"^{tip}" for tip in search.tips))
    if own > MANY and upstream is None and not offline:
        # Perhaps upstream was merged beyond everything that is known of it here.
        _ask_sources(search, recipe, reporter, remote=True)
        chosen = _nearest(fork, search.common())
    hint = _hint(search) if upstream is None else None
    if hint is None and own > MANY and upstream is None and chosen in found:
        hint = f"{own} commits seem to be the fork's own; if many of them are upstream's, give --upstream REF"
    if hint is not None:
        reporter.warn(hint)
    common = search.common() or [chosen]
    how = next((how for tip, how in search.tips.items() if _contains(fork, tip, chosen)), "")
    return _describe(fork, recipe, chosen, how, tuple(search.tips), tuple(one for one in common if one != chosen), hint)


def _upstream(fork: Fork, text: str, reporter: Reporter, *, offline: bool) -> str:
    """The commit ``--upstream`` means: of the fork's repository, of a remote that one knows, or of another place."""
    commit = fork.find(text)
    if commit is not None:
        return commit
    place = fork.remotes.get(text)
    if place is not None and fork.location.folder is not None and "://" not in place:
        # git reads a relative one from there.
        beside = fork.location.folder / place
        place = str(beside) if beside.exists() else place
    if place is None and ("/" in text or ":" in text or Path(text).expanduser().exists()):
        place = text
    if place is None:
        raise _no_commit(fork, text, "--upstream", "nor a folder or URL of a repository")
    location = locate(place)
    if location.remote and offline:
        msg = "upstream is on the network, and --offline says not to use it"
        raise UsageError(msg, where=location.shown, next_step="give --upstream a clone on this disk")
    with reporter.step(f"fetching upstream's history from {location.shown}", "objects") as step:
        try:
            refs = list_refs(fork.store, location.word)
            ref = next((ref for name in ("HEAD", *_MAIN) if (ref := match_ref(refs, name)) is not None), None)
            ours = f"refs/forkyard/upstream/given/{location_key(location)}"
            found = fetch_refs(fork.store, location.word, {ours: ref}, progress=step.update) if ref else {}
        except GitFailure as error:
            unreadable(location, error)
    if not found:
        msg = "--upstream names a repository whose history cannot be read"
        raise UsageError(
            msg,
            where=location.shown,
            why=f"its history is cut off at {ref}" if ref else "it has no HEAD, master or main",
            next_step="run `git fetch --unshallow` there, or give another clone"
            if ref
            else "give a branch of the fork",
        )
    return found[ours]


def _hint(search: _Search) -> str | None:
    """Whether commits that count as the fork's own are on its main branch as well: perhaps that one is upstream's."""
    fork, known = search.fork, [f"^{tip}" for tip in search.tips]
    own = count(fork.store, "--no-merges", fork.tip, *known)
    best: tuple[int, str] | None = None
    for ref, oid in fork.refs.items():
        words = ref.split("/")
        if words[-1] not in _MAIN or words[:2] not in (["refs", "heads"], ["refs", "remotes"]) or len(words) > 4:
            continue
        if oid == fork.tip or oid in search.tips or ref == fork.ref:
            continue
        commit = fork.bring({ref: ref}).get(ref)
        # A branch it was merged into says nothing.
        if commit is None or is_ancestor(fork.store, fork.tip, commit):
            continue
        shared = own - count(fork.store, "--no-merges", fork.tip, *known, f"^{commit}")
        if shared and (best is None or shared > best[0]):
            best = shared, "/".join(words[2:])
    if best is None:
        return None
    shared, name = best
    return (
        f"{shared} of the {own} commits that count as the fork's own are also on its branch {name}:"
        f" if that is upstream's, give --upstream {name}"
    )


def _given(search: _Search, base: str, commit: str, recipe: Recipe) -> Base:
    fork = search.fork
    if commit != fork.tip and not is_ancestor(fork.store, commit, fork.tip):
        meets = common_ancestors(fork.store, fork.tip, [commit])
        msg = f"{fork.branch} is not made on {base}"
        raise UsageError(
            msg,
            where=fork.location.shown,
            why=f"{commit[:12]} is not in its history"
            + ("; the fork's history is cut off" if fork.shallow else "")
            + (f", but {meets[0]} is in both" if meets else ", and they have no commit in common"),
            next_step=f"give --base {meets[0][:12]}, or --upstream {base} to have the newest state of it that "
            f"{fork.branch} contains"
            if meets
            else "name a commit of the branch's own history",
        )
    return _describe(fork, recipe, commit, f"--base {base}", (commit, *search.tips), ())


def _named(fork: Fork, name: str, option: str) -> str:
    commit = fork.find(name)
    if commit is None:
        raise _no_commit(fork, name, option)
    return commit


def _no_commit(fork: Fork, name: str, option: str, more: str = "") -> UsageError:
    word = Name.read(name)
    start = fork.find(word.word) if word.steps else None
    why = f"{name!r} is neither a branch, tag, ref or remote of it, nor a commit in the history of one"
    if start is not None:
        why = f"{word.word} is {start[:12]}, but {word.steps} leads nowhere from there"
    near = difflib.get_close_matches(name, [ref.split("/", 2)[-1] for ref in fork.refs], n=1)
    return UsageError(
        f"{option} names no commit of the fork's repository",
        where=fork.location.shown,
        why=f"{why}, {more}" if more and start is None else why,
        next_step=f"did you mean {near[0]!r}?"
        if near and near[0] != name
        else "give a branch, ref or commit id it has",
    )


def _ask(search: _Search, recipe: Recipe, root: Path, reporter: Reporter, *, offline: bool) -> list[str]:
    """Everything that costs no network first; the newest common commits as soon as there are any."""
    fork, pin = search.fork, recipe.pin.commit
    if not search.tips:
        known = load_known_pins(root, recipe.family)
        have = pin if fork.store.has(pin, "commit") else fork.bring({"pin": pin}).get("pin")
        search.know(have, "the recipe's pin", f"the recipe's pin {pin[:12]}: the fork's repository does not have it")
        for one in known:
            if one.commit != pin and fork.store.has(one.commit, "commit"):
                search.know(one.commit, f"the known pin of {one.date}", "")
        _ask_remotes(search, recipe)
        _ask_sources(search, recipe, reporter, remote=False)
        if not search.common():
            trees = {one.tree: f"the known pin of {one.date}" for one in known}
            _ask_trees(search, {**trees, recipe.pin.tree or "": "the recipe's pin"})
        if not search.common():
            if offline:
                search.tried.append("upstream itself: skipped, as --offline says")
            else:
                _ask_sources(search, recipe, reporter, remote=True)
    return search.common()


def _ask_trees(search: _Search, trees: dict[str, str]) -> None:
    """A commit with the very files of a pin is upstream's state, whatever its id: an import, or a cut-off history."""
    for commit, tree in history_trees(search.fork.store, search.fork.tip):
        if tree in trees:
            search.know(commit, f"it has the files of {trees[tree]}", "")
            return
    search.tried.append("a commit with the files of a known pin: the branch has none")


def _ask_remotes(search: _Search, recipe: Recipe) -> None:
    """The main branch of a remote of the fork's clone that is upstream's."""
    fork = search.fork
    urls = {_plain(source.url) for source in recipe.sources if isinstance(source, GitSource)}
    urls |= {_plain(str(_local(recipe, source.path))) for source in recipe.sources if isinstance(source, LocalSource)}
    names = [name for name, url in fork.remotes.items() if _plain(url) in urls]
    for name in names:
        for branch in _MAIN:
            ref = f"refs/remotes/{name}/{branch}"
            if ref in fork.refs:
                commit = fork.bring({ref: ref}).get(ref)
                search.know(commit, f"{name}/{branch} of the fork's clone", f"{ref}: it could not be read")
    if not names and fork.location.folder is not None:
        search.tried.append("a remote of the fork's clone that is upstream's: it has none")


def _ask_sources(search: _Search, recipe: Recipe, reporter: Reporter, *, remote: bool) -> None:
    """The pin with its history, and the newest commit, from where the recipe says upstream is."""
    store = search.fork.store
    for number, (place, far) in enumerate(_sources(recipe)):
        if far != remote:
            continue
        shown = without_secrets(place)
        wanted = {
            f"refs/forkyard/upstream/{recipe.name}/{number}/{what}": theirs
            for what, theirs in (("head", "HEAD"), ("pin", recipe.pin.commit))
        }
        with reporter.step(f"fetching upstream's history from {shown}", "objects") as step:
            for ours, theirs in wanted.items():
                what = f"{theirs[:12]} of {shown}"
                try:
                    found = fetch_refs(store, place, {ours: theirs}, progress=step.update)
                except GitFailure as error:
                    search.tried.append(f"{what}: {error.complaint.brief}")
                else:
                    search.know(found.get(ours), what, f"{what}: its history is cut off")


def _sources(recipe: Recipe) -> Iterator[tuple[str, bool]]:
    """Repositories the recipe names, and whether reaching one needs the network."""
    for source in recipe.sources:
        if isinstance(source, LocalSource):
            yield str(_local(recipe, source.path)), False
        elif isinstance(source, GitSource):
            far = "://" in source.url and not source.url.startswith("file://")
            yield (source.url if "://" in source.url else str(_local(recipe, source.url))), far


def _local(recipe: Recipe, path: str) -> Path:
    return (recipe.folder / expanded(path)).resolve()


def _plain(url: str) -> str:
    """A URL reduced to what tells repositories apart: ``git@host:a/b.git`` and ``https://host/a/b`` are one."""
    text = re.sub(r"^[a-z+]+://", "", url.strip())
    text = re.sub(r"^[^/@]*@", "", text)
    text = re.sub(r"^([^/:]+):(?!/)", r"\1/", text)
    return text.rstrip("/").removesuffix(".git").rstrip("/").lower()


def _nearest(fork: Fork, found: Sequence[str]) -> str:
    """Of several upstream states the branch contains, the one that leaves the fewest commits to explain."""
    if len(found) == 1:
        return found[0]
    return min(found, key=lambda one: (count(fork.store, fork.tip, f"^{one}"), one))


def _contains(fork: Fork, tip: str, commit: str) -> bool:
    return tip == commit or is_ancestor(fork.store, commit, tip)


def _describe(
    fork: Fork,
    recipe: Recipe,
    commit: str,
    how: str,
    upstream: tuple[str, ...],
    others: tuple[str, ...],
    hint: str | None = None,
) -> Base:
    store, pin = fork.store, recipe.pin
    tree, date = store.tree_of(commit), store.commit_date(commit)
    lies, distance = "unknown", None
    if pin.commit == commit or pin.tree == tree:
        lies, distance = "same", 0
    elif store.has(pin.commit, "commit") and is_ancestor(store, pin.commit, commit):
        lies, distance = "newer", count(store, commit, f"^{pin.commit}")
    elif store.has(pin.commit, "commit") and is_ancestor(store, commit, pin.commit):
        lies, distance = "older", count(store, pin.commit, f"^{commit}")
    return Base(commit, tree, date, how, upstream, lies, distance, others, hint)


def _not_found(search: _Search, recipe: Recipe) -> SourceError:
    fork = search.fork
    tried = [*search.tried, *(["the fork's history is cut off (a shallow clone)"] if fork.shallow else [])]
    deepen = "run `git fetch --unshallow` in the fork, or give" if fork.shallow else "give"
    return SourceError(
        f"it cannot be told which {recipe.name} {fork.branch} is made on",
        where=fork.location.shown,
        why="it has no commit in common with what is known to be upstream's:\n         "
        + "\n         ".join(tried or ["nothing is known"]),
        next_step=f"{deepen} --base COMMIT, the commit of the branch where the fork's own work begins, or "
        "--upstream REF, a branch of the fork's repository that is upstream's, or a clone or URL of upstream",
    )
