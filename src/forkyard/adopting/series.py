"""From a branch in a line to a series of patches: on its upstream state, then at the stack's home."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from forkyard.adopting.linearising import Clash, Line, place
from forkyard.adopting.mailing import Letter, make_letter
from forkyard.errors import PatchError
from forkyard.gitstore import Author, Store
from forkyard.gitstore.forks import changes_of, sizes_of
from forkyard.gitstore.formats import Entry
from forkyard.gitstore.history import CommitFacts
from forkyard.gitstore.merging import standing
from forkyard.gitstore.patching import steps
from forkyard.stacks.exporting import Exported, export_commits, match_names, with_trailers

LARGEST_PATCH = 64 << 20
"""Bytes of new content in one patch. A stack holds sources; what is larger is a model or a build."""
MERGES, SQUASHED = "merges", "squashed"


@dataclass(frozen=True)
class Draft:
    """A patch of the series to be, on the upstream state the fork is made on."""

    origin: CommitFacts | None
    """The fork's commit; ``None`` for what is made of several."""
    letter: Letter
    tree: str
    clashes: tuple[Clash, ...] = ()
    """Where it did not go into the line as it was."""
    upstream: str | None = None
    """Upstream's commit of the same change, which the base does not have."""
    against: str | None = None
    """Upstream's commit that it takes back."""
    made_of: str = ""
    """``merges`` or ``squashed`` where it is no single commit."""


def drafts_of(
    store: Store,
    line: Line,
    *,
    upstream: Mapping[str, str],
    against: Mapping[str, str],
    note_origin: bool,
    progress: Callable[[int, int | None], None],
) -> list[Draft]:
    """A draft for each commit of a line.

    Raises:
        PatchError: an author or message cannot be written as a mail.
    """
    drafts = []
    for number, link in enumerate(line.links):
        progress(number, len(line.links))
        one = link.commit
        theirs = upstream.get(one.commit)
        letter = make_letter(
            store,
            one,
            status=f"Accepted {theirs}" if theirs else "Pending",
            trailers=[f"Adopted-From: {one.commit}"] if note_origin else [],
            instead=f"Change of {one.author.date[:10]} without a message",
        )
        drafts.append(Draft(one, letter, link.tree, link.clashes, theirs, against.get(one.commit)))
    return drafts


def rest_of(store: Store, name: str, line: Line, tip: CommitFacts, merges: Sequence[CommitFacts]) -> Draft | None:
    """One more patch with exactly what the branch's files differ in from the line's; ``None`` if they do not."""
    if line.tree == tip.tree:
        return None
    last = merges[-1] if merges else tip
    subject = f"{name} : what the merges of the fork decided" if merges else f"{name} : what else the fork holds"
    body = "Distribute this over the patches it belongs to: it is the difference between them and the branch."
    facts = CommitFacts("", tip.tree, (), last.author, f"{subject}\n\n{body}\n")
    return Draft(None, make_letter(store, facts), tip.tree, made_of=MERGES)


def squashed(store: Store, name: str, own: Sequence[CommitFacts], tip: CommitFacts) -> Draft:
    """The whole branch as one patch."""
    authors = dict.fromkeys((one.author.name, one.author.email) for one in own)
    mine = (tip.author.name, tip.author.email)
    body = "\n".join(f"- {one.subject}" for one in own)
    facts = CommitFacts("", tip.tree, (), tip.author, f"{name} : {tip.subject}\n\nMade of:\n\n{body}\n")
    others = [f"Co-authored-by: {who} <{address}>" for who, address in authors if (who, address) != mine]
    return Draft(None, make_letter(store, facts, trailers=_plain(others)), tip.tree, made_of=SQUASHED)


def _plain(lines: Sequence[str]) -> list[str]:
    return [re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", " ", line) for line in lines]


def make_chain(store: Store, base: str, drafts: Sequence[Draft]) -> list[CommitFacts]:
    """The drafts as commits that follow each other.

    Raises:
        PatchError: one of them is too large for a patch.
    """
    chain: list[CommitFacts] = []
    for draft in drafts:
        parent = chain[-1].commit if chain else base
        chain.append(_commit(store, parent, draft.tree, draft.letter.author, draft.letter.message))
    _refuse_large(store, chain, drafts)
    return chain


def _commit(store: Store, parent: str, tree: str, author: Author, message: str) -> CommitFacts:
    made = store.commit(tree, parent, author, message.encode())
    return CommitFacts(made, tree, (parent,), author, message)


def _refuse_large(store: Store, chain: Sequence[CommitFacts], drafts: Sequence[Draft]) -> None:
    changes = changes_of(store, [one.commit for one in chain])
    sizes = sizes_of(store, (one.oids[1] for change in changes.values() for one in change.values()))
    for one, draft in zip(chain, drafts, strict=True):
        change = changes[one.commit]
        total = sum(sizes.get(file.oids[1], 0) for file in change.values())
        if total > LARGEST_PATCH:
            worst = max(change, key=lambda path: sizes.get(change[path].oids[1], 0))
            origin = draft.origin.commit[:12] if draft.origin else "all of them"
            msg = f"a commit of the fork is too large for a patch: {total / 2**20:.0f} MiB"
            raise PatchError(
                msg,
                where=f"commit {origin} {one.subject!r}",
                why=f"the largest of its {len(change)} files is {worst}; a stack holds sources, at most "
                f"{LARGEST_PATCH >> 20} MiB a patch",
                next_step="take it out of the fork's history (`git rebase -i`), or, if a later commit deletes it, "
                "use --squash",
            )


@dataclass(frozen=True)
class Settled:
    """A draft at the stack's home."""

    draft: Draft
    before: str
    """Tree before it, at home."""
    tree: str
    """After it; with its own side where there is a clash."""
    clashes: tuple[Clash, ...] = ()
    gone: str = ""
    """Why nothing of it is left there."""

    @property
    def clean(self) -> bool:
        """Whether a person has nothing to decide."""
        return not self.clashes


def settle(
    store: Store,
    base_tree: str,
    home_tree: str,
    drafts: Sequence[Draft],
    at_home: Callable[[str], bool],
    progress: Callable[[int, int | None], None],
) -> list[Settled]:
    """Carry every draft home, past those that clash.

    Args:
        at_home: whether an upstream commit is in the pin's history, as far as that is known.
    """
    before, tree = base_tree, home_tree
    found = []
    for number, draft in enumerate(drafts):
        progress(number, len(drafts))
        theirs = draft.upstream if draft.upstream is not None and at_home(draft.upstream) else None
        if theirs is not None and standing(store, before, draft.tree, tree) in ("whole", "changed"):
            # What upstream made of its own change since is upstream's decision.
            found.append(Settled(draft, tree, tree, gone=f"the pin has it as {theirs[:12]}"))
            before = draft.tree
            continue
        placed = place(store, before, tree, draft.tree)
        if placed.tree == tree and not placed.clashes:
            found.append(Settled(draft, tree, tree, gone="the pin has all of it"))
        else:
            if theirs is not None:
                draft = replace(draft, letter=_not_there_now(draft.letter, theirs))
            found.append(Settled(draft, tree, placed.tree, placed.clashes))
        tree = placed.tree
        before = draft.tree
    return found


def _not_there_now(letter: Letter, theirs: str) -> Letter:
    """The letter of a change that upstream made and that the pin does not have, or not all of it."""
    note = f"upstream made the same change as {theirs[:12]}, but it is not there now, or not all of it"
    return replace(letter, notes=(*letter.notes, note))


def export_series(store: Store, base: str, items: Sequence[tuple[Letter, str]], *, whole_files: bool) -> Exported:
    """Patches of letters and the trees after each.

    Raises:
        PatchError: one of them cannot be a patch file.
    """
    trees = [store.tree_of(base), *(tree for _, tree in items)]
    trailers = _whole_files(store, trees) if whole_files else [[] for _ in items]
    chain: list[CommitFacts] = []
    for (letter, tree), lines in zip(items, trailers, strict=True):
        parent = chain[-1].commit if chain else base
        chain.append(_commit(store, parent, tree, letter.author, with_trailers(letter.message, lines)))
    return export_commits(store, base, chain, match_names([], chain), whole_files=False)


def patch_names(letters: Sequence[Letter]) -> list[str]:
    """The file names :func:`export_series` gives."""
    return match_names([], [CommitFacts("", "", (), letter.author, letter.message) for letter in letters])


def _whole_files(store: Store, trees: Sequence[str]) -> list[list[str]]:
    """For each tree after the first the ``Adds-Files`` trailers of the files it adds.

    A path that is added twice with other content, or where a file has a folder's name, gets another name in ``src``.
    """
    taken: dict[str, tuple[str, str]] = {}
    above: set[str] = set()
    found = []
    for step in steps(store, trees):
        lines = []
        # Where a file takes a folder's place, leaving it out of the diff would leave the folder's files out as well.
        replaced = {parent for path in step.changed for parent in _parents(path)}
        for entry in step.added:
            if entry.path in replaced or not _nameable(entry):
                continue
            source = _free_name(entry, taken, above)
            taken[source] = (entry.oid, entry.mode)
            above |= set(_parents(source))
            moved = "" if source == entry.path else f" -> {entry.path}"
            lines.append(f"Adds-Files: {source}{moved}")
        found.append(lines)
    return found


def _free_name(entry: Entry, taken: Mapping[str, tuple[str, str]], above: set[str]) -> str:
    name, number = entry.path, 2
    while (
        taken.get(name, (entry.oid, entry.mode)) != (entry.oid, entry.mode)
        or name in above
        or any(parent in taken for parent in _parents(name))
    ):
        name, number = f"again-{number}/{entry.path}", number + 1
    return name


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def _nameable(entry: Entry) -> bool:
    """Whether a trailer can name the file; links, submodules and strange names stay in the diff."""
    path = entry.path
    plain = path.isprintable() and path == path.strip() and "->" not in path
    return plain and entry.mode in ("100644", "100755")
