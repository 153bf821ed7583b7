"""Somebody's fork: where it is, which branch is meant, and its history in a store of its own.

The engine's store knows single commits and stays that way. Forks come with all of their history, so they are kept in
``<family>.forks.git`` beside it; one whose history is cut off gets a store to itself, because a cut-off commit is cut
off for everybody who shares the store.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from forkyard.cache import Cache
from forkyard.console import Reporter
from forkyard.errors import ForkyardError, NetworkError, SourceError, UsageError
from forkyard.gitstore import OBJECT_ID, GitFailure, Store
from forkyard.gitstore.forks import cut_off, fetch_refs, is_shallow, list_refs, remotes
from forkyard.gitstore.naming import Name, SeveralCommits, described, find_commit, match_ref
from forkyard.network import without_secrets
from forkyard.places import expanded

_SCHEMES = ("https", "ssh", "file")
_SCP = re.compile(r"^[A-Za-z0-9_][^/:\s]*:[^:]")


@dataclass(frozen=True)
class Location:
    """Where a repository is, in the form git is given it."""

    word: str
    folder: Path | None = None
    """Its folder, if it is one on this disk."""
    remote: bool = False
    """Whether the network is needed."""

    @property
    def shown(self) -> str:
        """For people, without secrets."""
        return without_secrets(self.word)

    @property
    def url(self) -> str | None:
        """Its URL, if anybody else could use it; without whoever used it here."""
        return re.sub(r"^https://[^/@]*@", "https://", self.word) if self.word.startswith("https://") else None


def locate(text: str) -> Location:
    """Read what a person gave as a repository.

    Raises:
        UsageError: it is no place a repository could be at, or there is nothing.
    """
    scheme, separator, rest = text.partition("://")
    plain = text.isprintable() and bool(text.strip())
    if not plain or text.startswith("-") or "::" in text or (separator and scheme not in _SCHEMES):
        msg = f"{without_secrets(text)!r} is no place of a repository"
        raise UsageError(
            msg,
            why="git would read it as an option or run a program to reach it"
            if text.startswith("-") or "::" in text
            else None,
            next_step="give a path, or an https, ssh or file URL",
        )
    if separator and scheme != "file":
        return Location(text, remote=True)
    path = expanded(rest if separator else text).absolute()
    if not separator and not path.exists() and _SCP.match(text):
        return Location(text, remote=True)
    if not path.exists():
        msg = "there is no repository"
        raise UsageError(msg, where=str(path), next_step="check the path; it may also be an https, ssh or file URL")
    return Location(str(path), path if path.is_dir() else None)


@dataclass(frozen=True)
class Fork:
    """A branch of a fork, fetched."""

    location: Location
    store: Store
    branch: str
    """As the person named it."""
    ref: str
    """The ref it is at there; the commit itself if it was named by its id."""
    tip: str
    refs: Mapping[str, str]
    """Everything the repository has a name for."""
    shallow: bool
    """Whether its history is cut off."""
    remotes: Mapping[str, str]
    """Name and URL, if the repository is a clone on this disk."""

    def find(self, name: str) -> str | None:
        """The commit a name of the fork's repository means, fetched with its history; ``None`` if it means none.

        Args:
            name: see :mod:`forkyard.gitstore.naming`.

        Raises:
            UsageError: it is the beginning of several commits.
        """
        return _named(self.store, self.location, name, self.refs, self.bring, (self.tip,))

    def bring(self, wanted: Mapping[str, str]) -> dict[str, str]:
        """Try to fetch refs or commits of the repository; what it does not have is left out.

        Args:
            wanted: a name of ours -> ref or commit there.
        """
        return _bring(self.store, self.location, wanted, accept_shallow=self.shallow)


def _named(
    store: Store,
    location: Location,
    text: str,
    refs: Mapping[str, str],
    bring: Callable[[Mapping[str, str]], Mapping[str, str]],
    tips: Sequence[str] = (),
) -> str | None:
    try:
        return find_commit(store, text, refs, bring, tips=tips)
    except SeveralCommits as error:
        msg = f"{Name.read(text).word} is the beginning of several commits"
        raise UsageError(
            msg, where=location.shown, why=described(store, error.candidates), next_step="give more digits"
        ) from None


def fork_store(cache: Cache, family: str, location: Location, *, shallow: bool) -> Store:
    """The store a fork is fetched into."""
    path = cache.store(family)
    tail = f"-{location_key(location)}" if shallow else ""
    return Store(path.with_name(f"{family}.forks{tail}.git"))


def fetch_fork(cache: Cache, family: str, location: Location, branch: str, reporter: Reporter) -> Fork:
    """Fetch a branch with its history; the caller holds the forks' lock.

    Raises:
        UsageError: there is no such branch, or no repository.
        NetworkError: it cannot be reached.
        SourceError: what arrives is damaged or incomplete.
    """
    shallow = location.folder is not None and is_shallow(location.folder)
    store = fork_store(cache, family, location, shallow=shallow)
    store.ensure()
    try:
        refs = list_refs(store, location.word)
    except GitFailure as error:
        unreadable(location, error)
    name = Name.read(branch)
    ref = match_ref(refs, name.word)
    if ref is None and OBJECT_ID.match(name.word):
        ref = name.word
    if ref is None:
        ref = _named(store, location, name.word, refs, partial(_bring, store, location, accept_shallow=shallow))
    if ref is None:
        raise _no_branch(location, branch, refs)
    tip = _fetch_tip(store, location, ref, reporter, accept_shallow=shallow)
    if tip is None and not shallow:
        # A server with cut-off history does not say so before it is asked.
        shallow = True
        store = fork_store(cache, family, location, shallow=True)
        store.ensure()
        tip = _fetch_tip(store, location, ref, reporter, accept_shallow=True)
    if tip is not None and name.steps:
        tip = find_commit(store, f"{tip}{name.steps}", {}, lambda wanted: {})
    if tip is None:
        msg = f"{branch} is not a commit"
        raise UsageError(msg, where=location.shown, next_step="name a branch")
    known = remotes(store, location.folder) if location.folder is not None else {}
    return Fork(location, store, branch, ref, tip, refs, shallow and bool(cut_off(store)), known)


def _fetch_tip(store: Store, location: Location, ref: str, reporter: Reporter, *, accept_shallow: bool) -> str | None:
    ours = _ours(location, "branch")
    with reporter.step(f"fetching {ref.removeprefix('refs/heads/')} from {location.shown}", "objects") as step:
        try:
            found = fetch_refs(
                store,
                location.word,
                {ours: ref},
                accept_shallow=accept_shallow,
                progress=lambda done, total: step.update(done, total),
            )
        except GitFailure as error:
            unreadable(location, error)
    return found.get(ours)


def _bring(store: Store, location: Location, wanted: Mapping[str, str], *, accept_shallow: bool) -> dict[str, str]:
    found = {}
    for name, theirs in wanted.items():
        ours = _ours(location, name)
        try:
            done = fetch_refs(store, location.word, {ours: theirs}, accept_shallow=accept_shallow)
        except GitFailure:
            continue
        if ours in done:
            found[name] = done[ours]
    return found


def location_key(location: Location) -> str:
    """A word for a place that may be part of a ref or a file name."""
    return hashlib.sha256(location.word.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _ours(location: Location, name: str) -> str:
    """A ref of ours: only numbers and words of our own, whatever theirs is called."""
    return f"refs/forkyard/forks/{location_key(location)}/{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _no_branch(location: Location, branch: str, refs: Mapping[str, str]) -> UsageError:
    names = sorted(ref.removeprefix("refs/heads/") for ref in refs if ref.startswith("refs/heads/"))
    near = difflib.get_close_matches(branch, names, n=1)
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return UsageError(
        f"there is no branch {branch!r}",
        where=location.shown,
        why=f"it has: {shown}" if names else "it has no branches",
        next_step=f"did you mean {near[0]!r}?" if near else "name a branch, a tag, a ref or a commit",
    )


def unreadable(location: Location, error: GitFailure) -> NoReturn:
    """Say what kept git from reading a repository, in words that help."""
    said = error.complaint
    kind: type[ForkyardError] = NetworkError if location.remote else SourceError
    what, step = "the fork could not be fetched", said.next_step
    if said.kind == "ownership":
        kind, what = SourceError, "git does not read a repository that belongs to somebody else"
    elif said.kind == "incomplete":
        kind, what = SourceError, "the fork is a partial clone: files of its history are missing"
    elif said.kind == "damaged":
        kind, what = SourceError, "the fork is damaged"
    elif said.kind == "no-repository" and not location.remote:
        kind, what = UsageError, "this is no git repository"
    if step is None:
        step = "check the address and the network, or give a clone on this disk"
        step = step if location.remote and said.kind != "damaged" else "run `git fsck` there"
    raise kind(what, where=location.shown, why=said.why or None, next_step=step) from error
