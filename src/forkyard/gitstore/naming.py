"""Which commit another repository means by a name.

A name is what ``git rev-parse`` takes there: a ref by its full or short name, a remote, the whole or the beginning of a
commit's id, and any of those with steps behind it, as ``main~3``, ``v1^{commit}`` or ``HEAD^2~1``. Of a tag it is the
commit it stands for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from forkyard.gitstore.forks import fetch_refs, list_refs
from forkyard.gitstore.formats import OBJECT_ID
from forkyard.gitstore.history import commits, is_ancestor
from forkyard.gitstore.running import SHORT_S, GitFailure
from forkyard.gitstore.store import Store

_PLACES = ("{}", "refs/heads/{}", "refs/tags/{}", "refs/{}", "refs/remotes/{}", "refs/remotes/{}/HEAD")
# Where a clone has no HEAD of a remote, as one that was made by hand.
_MAIN_OF_REMOTE = ("refs/remotes/{}/master", "refs/remotes/{}/main")
_STEPS = re.compile(r"^(?P<word>.+?)(?P<steps>(?:\^\{(?:commit)?\}|[~^][0-9]*)*)$")
_BEGINNING = re.compile(r"^[0-9a-f]{4,39}$")
_BRANCHES = ("refs/heads/", "refs/remotes/", "refs/tags/")


class SeveralCommits(Exception):
    """The beginning of an id that several commits have; ``candidates`` says which."""

    def __init__(self, candidates: tuple[str, ...]) -> None:
        self.candidates = candidates
        super().__init__(", ".join(candidates))


@dataclass(frozen=True)
class Name:
    """A name, in the parts it is looked up by."""

    word: str
    """What says where to begin."""
    steps: str
    """What leads on from there, as ``~3``; mostly empty."""

    @classmethod
    def read(cls, text: str) -> Name:
        """Take a name apart. ``@`` is ``HEAD``, as for git."""
        found = _STEPS.match(text)
        word, steps = (found["word"], found["steps"]) if found else (text, "")
        return cls("HEAD" if word == "@" else word, steps)


def match_ref(refs: Iterable[str], name: str) -> str | None:
    """The full name of the ref that git would take for a name; ``None`` if there is none."""
    known = set(refs)
    if not name or not name.isprintable():
        return None
    return next((ref for place in (*_PLACES, *_MAIN_OF_REMOTE) if (ref := place.format(name)) in known), None)


def find_commit(
    store: Store,
    text: str,
    refs: Mapping[str, str],
    bring: Callable[[Mapping[str, str]], Mapping[str, str]],
    *,
    tips: Iterable[str] = (),
) -> str | None:
    """The commit a name means in another repository.

    Args:
        store: where ``bring`` puts what it fetches.
        refs: what that repository has a name for, see :func:`forkyard.gitstore.forks.list_refs`.
        bring: fetches refs or commits of it with their history: any key -> ref or id there, to key -> commit here.
            What it cannot fetch it leaves out.
        tips: commits of it that are here already. The beginning of an id is looked for in their history first.

    Returns:
        its id; ``None`` if the name means none.

    Raises:
        SeveralCommits: several begin so.
    """
    name = Name.read(text)
    ref = match_ref(refs, name.word)
    start: str | None = None
    if ref is not None:
        start = bring({"named": ref}).get("named")
    elif OBJECT_ID.match(name.word):
        start = name.word if store.has(name.word, "commit") else bring({"named": name.word}).get("named")
    elif _BEGINNING.match(name.word):
        start = _beginning_in(store, name.word, tips)
        if start is None:
            # In HEAD's history it costs one fetch; only then all branches.
            start = _beginning_in(store, name.word, bring({"HEAD": "HEAD"}).values() if "HEAD" in refs else ())
        if start is None:
            others = {oid: ref for ref, oid in refs.items() if ref.startswith(_BRANCHES)}
            start = _beginning_in(store, name.word, bring({ref: ref for ref in others.values()}).values())
    if start is None or not name.steps:
        return start
    status, output, _ = store._attempt("rev-parse", "--verify", "--quiet", f"{start}{name.steps}^{{commit}}")
    return output.decode("ascii").strip() if status == 0 else None


def _beginning_in(store: Store, word: str, tips: Iterable[str]) -> str | None:
    """The one commit in the history of some others whose id begins with ``word``."""
    known = list(tips)
    status, output, _ = store._attempt("rev-parse", f"--disambiguate={word}")
    names = output.decode("ascii").split() if status == 0 and known else []
    found = [one for one in names if store.has(one, "commit") and any(is_ancestor(store, one, tip) for tip in known)]
    if len(found) > 1:
        raise SeveralCommits(tuple(found))
    return found[0] if found else None


def described(store: Store, candidates: Iterable[str]) -> str:
    """Commits with their subjects, for a person who has to choose one."""
    return "\n         ".join(
        f"{one} {commits(store, '--no-walk', one)[0].subject}".encode("utf-8", "surrogateescape").decode(
            "utf-8", "replace"
        )
        for one in candidates
    )


def commit_elsewhere(
    store: Store, location: str, text: str, *, progress: Callable[[int, int | None], None] | None = None
) -> str | None:
    """The commit a name means in the repository at a location; the caller holds the store's lock.

    Fetches history into ``store``, which must not be one with cut-off history.

    Raises:
        GitFailure: the repository cannot be reached.
        SeveralCommits: several begin so.
    """
    store.ensure()
    refs = list_refs(store, location)

    def bring(wanted: Mapping[str, str]) -> dict[str, str]:
        ours = {f"refs/forkyard/named/{number}": key for number, key in enumerate(wanted)}
        found: dict[str, str] = {}
        try:
            found = fetch_refs(store, location, {one: wanted[key] for one, key in ours.items()}, progress=progress)
        except GitFailure:
            # One that the repository does not have keeps git from fetching any.
            for one, key in ours.items() if len(ours) > 1 else ():
                try:
                    found |= fetch_refs(store, location, {one: wanted[key]}, progress=progress)
                except GitFailure:
                    continue
        return {ours[one]: commit for one, commit in found.items()}

    return find_commit(store, text, refs, bring)


def named_commit(store: Store, location: str, ref: str = "HEAD") -> str | None:
    """The commit a ref of another repository is at; ``None`` if it has no such ref. Fetches nothing.

    ``git ls-remote`` answers with every ref that ends in the name: asked for ``main`` with ``feature/main`` as well.

    Raises:
        GitFailure: the repository cannot be reached.
    """
    command = ["ls-remote", "--end-of-options", location, ref, f"{ref}^{{}}"]
    config = {"protocol.ext.allow": "never"}
    output = store._git(*command, users_config=True, config=config, timeout_s=SHORT_S)
    found = {}
    for line in output.decode("utf-8", "replace").splitlines():
        oid, _, name = line.partition("\t")
        found[name] = oid
    for place in _PLACES:
        name = place.format(ref)
        if name in found:
            return found.get(f"{name}^{{}}", found[name])
    return None
