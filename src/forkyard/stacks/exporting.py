"""From commits back to files: patches byte for byte the same wherever they are made, and the whole files beside them.

Whatever is exported is applied again before it is handed out. A message that a mail reader would cut, say at a line
that looks like the start of a diff, is refused there and not discovered by the next person.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from forkyard.errors import PatchError
from forkyard.gitstore import Store
from forkyard.gitstore.formats import Entry
from forkyard.gitstore.history import CommitFacts
from forkyard.stacks.applying import Chain
from forkyard.stacks.listing import file_name
from forkyard.stacks.patchfile import AddedFile, parse_trailers

_TRAILER_LINE = re.compile(r"^[A-Za-z][A-Za-z-]*: \S")


@dataclass(frozen=True)
class ExportedPatch:
    """A commit as the files of a stack hold it."""

    name: str
    data: bytes
    subject: str
    commit: str
    """Its deterministic commit."""
    tree: str
    adds: tuple[AddedFile, ...] = ()


@dataclass(frozen=True)
class Exported:
    """A series ready to be written."""

    patches: tuple[ExportedPatch, ...]
    files: dict[str, tuple[bytes, bool]] = field(default_factory=dict)
    """Path below the stack's ``src`` -> content, and whether it is executable."""
    notes: tuple[str, ...] = ()
    """What was added to messages or left to a person."""

    @property
    def names(self) -> tuple[str, ...]:
        """File names in order."""
        return tuple(patch.name for patch in self.patches)


@dataclass(frozen=True)
class OldPatch:
    """What a patch of the series was, for finding it again among new commits."""

    name: str
    subject: str
    author: str
    date: str


def match_names(old: Sequence[OldPatch], new: Sequence[CommitFacts], taken: Sequence[str] = ()) -> list[str]:
    """A file name for each commit: the one it had, found by subject, then by author and date; else a new one.

    Amending keeps the author's date and rewording keeps the content, so a patch loses its name only when both go.

    Args:
        taken: names that are in use otherwise.
    """
    names: dict[int, str] = {}
    left = list(old)

    def same_subject(was: OldPatch, commit: CommitFacts) -> bool:
        return was.subject == commit.subject

    def same_author(was: OldPatch, commit: CommitFacts) -> bool:
        return (was.author, was.date) == (commit.author.email, commit.author.date)

    for same in (same_subject, same_author):
        for number, commit in enumerate(new):
            if number in names:
                continue
            found = next((was for was in left if same(was, commit)), None)
            if found is not None:
                names[number] = found.name
                left.remove(found)
    used = {*taken, *names.values()}
    for number, commit in enumerate(new):
        if number not in names:
            names[number] = file_name(commit.subject, used)
            used.add(names[number])
    return [names[number] for number in range(len(new))]


def with_trailers(message: str, lines: Sequence[str]) -> str:
    """A commit message with trailer lines added to its last paragraph, or as a paragraph of their own."""
    text = message.strip("\n")
    if not lines:
        return text + "\n"
    last = re.split(r"\n[ \t]*\n", text)[-1].splitlines()
    joined = len(text.splitlines()) > 1 and all(_TRAILER_LINE.match(line) for line in last)
    return text + ("\n" if joined else "\n\n") + "\n".join(lines) + "\n"


def export_commits(
    store: Store, base: str, commits: Sequence[CommitFacts], names: Sequence[str], *, whole_files: bool = True
) -> Exported:
    """Make patches of commits that follow each other from ``base``.

    Args:
        base: the commit the first one is made on.
        commits: a chain without merges; their objects are in the store.
        names: a file name for each.
        whole_files: files a commit adds become whole files of ours, outside the patch, unless it says otherwise.

    Raises:
        PatchError: a message or change that cannot be a patch; names the commit.
    """
    parent, parent_tree = base, store.tree_of(base)
    patches: list[ExportedPatch] = []
    files: dict[str, tuple[bytes, bool]] = {}
    notes: list[str] = []
    with Chain.on(store, base, parent_tree) as chain:
        for commit, name in zip(commits, names, strict=True):
            message, added = _complete(store, commit, parent_tree, name, notes, whole_files=whole_files)
            for file, entry in added:
                data = store._git("cat-file", "blob", entry.oid)
                if files.get(file.source, (data, False))[0] != data:
                    msg = f"{name} adds {file.source} a second time with other content"
                    raise PatchError(msg, next_step="give one of them another path in its Adds-Files trailer")
                files[file.source] = (data, entry.mode == "100755")
            made = store.commit(commit.tree, parent, commit.author, message.encode("utf-8", "surrogateescape"))
            data = store.export(made, exclude=[file.target for file, _ in added])
            _check(chain, store, data, name, files, commit.tree)
            patches.append(
                ExportedPatch(name, data, commit.subject, chain.commit, commit.tree, tuple(f for f, _ in added))
            )
            parent, parent_tree = chain.commit, commit.tree
        chain.check_exports()
    return Exported(tuple(patches), files, tuple(notes))


def _complete(
    store: Store, commit: CommitFacts, parent_tree: str, name: str, notes: list[str], *, whole_files: bool
) -> tuple[str, list[tuple[AddedFile, Entry]]]:
    """The commit's message with the trailers a patch needs, and the whole files it adds."""
    message = commit.message.strip("\n") + "\n"
    if not re.search(r"^Upstream-Status: ", message, re.MULTILINE):
        message = with_trailers(message, ["Upstream-Status: Pending"])
        notes.append(f"{name}: added `Upstream-Status: Pending`")
    declared = parse_trailers(message, name).adds_files
    new = {entry.path: entry for entry in added_files(store, parent_tree, commit.tree)}
    listed = {file.target for file in declared}
    if whole_files:
        fresh = [path for path, entry in new.items() if path not in listed and _nameable(path, entry)]
        if fresh:
            message = with_trailers(message, [f"Adds-Files: {path}" for path in fresh])
            declared += tuple(AddedFile(path, path) for path in fresh)
            notes.append(f"{name}: {', '.join(fresh)} became whole files of the stack")
    gone = [file.target for file in declared if file.target not in new]
    if gone:
        msg = f"{name} says that it adds {gone[0]}, which it does not"
        raise PatchError(
            msg, where=f"commit {commit.commit[:12]} {commit.subject!r}", next_step="correct its Adds-Files trailer"
        )
    return message, [(file, new[file.target]) for file in declared]


def _nameable(path: str, entry: Entry) -> bool:
    """Whether a trailer can name the file; links, submodules and strange names stay in the diff."""
    plain = path.isprintable() and path == path.strip() and "->" not in path
    return plain and entry.mode in ("100644", "100755")


def added_files(store: Store, old: str, new: str) -> list[Entry]:
    """Files of tree ``new`` that tree ``old`` does not have."""
    output = store._git("diff-tree", "-r", "-z", "--no-renames", "--diff-filter=A", old, new)
    fields = output.decode("utf-8", "surrogateescape").split("\0")
    entries = []
    for head, path in zip(fields[::2], fields[1::2], strict=False):
        _, mode, _, oid, _ = head.lstrip(":").split(" ")
        entries.append(Entry(mode, "blob", oid, path))
    return entries


def _check(chain: Chain, store: Store, data: bytes, name: str, files: dict[str, tuple[bytes, bool]], tree: str) -> None:
    """Apply the exported patch; it must give the commit's tree."""
    try:
        chain.add(data, label=name, where=name, whole_file=lambda source: files[source])
        wrong = None if chain.tree == tree else "applying the exported patch gives another tree"
    except PatchError as error:
        wrong = f"{error.what}: {error.why or ''}".rstrip(": ")
    if wrong is not None:
        msg = f"{name} cannot be a patch file"
        raise PatchError(
            msg,
            why=wrong,
            next_step="look for lines of its message that begin like a diff (`diff --git`, `--- `, `Index: `, `---`)"
            " and write them differently; a file that is both renamed and replaced goes into two commits",
        )
