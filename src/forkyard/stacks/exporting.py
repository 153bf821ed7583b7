"""From commits back to files: patches byte for byte the same wherever they are made, and the whole files beside them.

Whatever is exported is applied again before it is handed out, and must give the very commit it was made of: author,
date, message and tree. A message that a mail reader would cut, say at a line that looks like the start of a diff, is
refused there and not discovered by the next person.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from forkyard.errors import PatchError
from forkyard.gitstore import GitFailure, Store
from forkyard.gitstore.contents import read_blobs
from forkyard.gitstore.formats import Entry
from forkyard.gitstore.history import CommitFacts
from forkyard.gitstore.patching import Step, export_each, steps
from forkyard.stacks.applying import Chain
from forkyard.stacks.listing import file_name
from forkyard.stacks.patchfile import AddedFile, parse_trailers

_TRAILER_LINE = re.compile(r"^[A-Za-z][A-Za-z-]*: \S")
_OURS = re.compile(r"^(Upstream-Status|Retire-When|Adds-Files): \S")


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
    Patches of one author and second are not told apart by them.

    Args:
        taken: names that are in use otherwise.
    """
    names: dict[int, str] = {}
    left = list(old)
    for number, commit in enumerate(new):
        found = next((was for was in left if was.subject == commit.subject), None)
        if found is not None:
            names[number] = found.name
            left.remove(found)
    stamps = [(was.author, was.date) for was in old]
    new_stamps = [(commit.author.email, commit.author.date) for commit in new]
    for number, stamp in enumerate(new_stamps):
        if number in names or stamps.count(stamp) != 1 or new_stamps.count(stamp) != 1:
            continue
        found = next((was for was in left if (was.author, was.date) == stamp), None)
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
    last = _last_paragraph(text).split("\n")
    joined = "\n" in text and (all(_TRAILER_LINE.match(line) for line in last) or any(map(_OURS.match, last)))
    return text + ("\n" if joined else "\n\n") + "\n".join(lines) + "\n"


def _last_paragraph(text: str) -> str:
    return re.split(r"\n[ \t]*\n", text.strip("\n"))[-1]


@dataclass
class _Draft:
    """A commit on its way to be a patch."""

    commit: CommitFacts
    name: str
    message: str
    added: list[tuple[AddedFile, Entry]] = field(default_factory=list)
    diff: bool = True
    """Whether its patch holds a diff, or nothing but whole files, or nothing at all."""

    @property
    def where(self) -> str:
        return f"commit {self.commit.commit[:12]} {self.commit.subject!r}"


def export_commits(
    store: Store,
    base: str,
    commits: Sequence[CommitFacts],
    names: Sequence[str],
    *,
    whole_files: bool = True,
    inline: Mapping[str, Collection[str]] | None = None,
) -> Exported:
    """Make patches of commits that follow each other from ``base``.

    Args:
        base: the commit the first one is made on.
        commits: a chain without merges; their objects are in the store.
        names: a file name for each.
        whole_files: files a commit adds become whole files of ours, outside the patch; else only those its trailers
            name do.
        inline: patch name -> files it adds that stay in its diff nevertheless.

    Raises:
        PatchError: a message or change that cannot be a patch; names the commit.
    """
    base_tree = store.tree_of(base)
    notes: list[str] = []
    taken = steps(store, [base_tree, *(commit.tree for commit in commits)])
    drafts: list[_Draft] = []
    sources: dict[str, Entry] = {}
    for commit, name, step in zip(commits, names, taken, strict=True):
        draft = _draft(commit, name, step, notes, sources, whole_files=whole_files, inline=(inline or {}).get(name, ()))
        sources |= {file.source: entry for file, entry in draft.added}
        drafts.append(draft)
    files = _contents(store, drafts)
    made, exports, wrong = _round(store, base, base_tree, drafts, files)
    if wrong:
        # What mail cannot carry, and nobody would miss: blanks at line ends, a subject on several lines.
        for number in wrong:
            draft = drafts[number]
            draft.message = _tidy(draft.message)
            notes.append(f"{draft.name}: white space in its message was put in order")
        made, exports, wrong = _round(store, base, base_tree, drafts, files)
    if wrong:
        number = min(wrong)
        raise _refusal(drafts[number], wrong[number])
    patches = tuple(
        ExportedPatch(
            draft.name,
            data,
            draft.message.split("\n", 1)[0],
            oid,
            draft.commit.tree,
            tuple(file for file, _ in draft.added),
        )
        for draft, data, oid in zip(drafts, exports, made, strict=True)
    )
    return Exported(patches, files, tuple(notes))


def _draft(
    commit: CommitFacts,
    name: str,
    step: Step,
    notes: list[str],
    sources: Mapping[str, Entry],
    *,
    whole_files: bool,
    inline: Collection[str],
) -> _Draft:
    """The commit's message with the trailers a patch needs, and the whole files it adds.

    Args:
        sources: whole files of the commits before, by path among ours.
    """
    draft = _Draft(commit, name, commit.message.strip("\n") + "\n")
    _check_text(draft)
    if "\r\n" in draft.message:
        draft.message = draft.message.replace("\r\n", "\n")
        notes.append(f"{name}: the line ends of its message were put in order")
    if not draft.message.strip():
        raise _refusal(draft, "it has no message")
    if not re.search(r"^Upstream-Status: ", _last_paragraph(draft.message), re.MULTILINE):
        draft.message = with_trailers(draft.message, ["Upstream-Status: Pending"])
        notes.append(f"{name}: added `Upstream-Status: Pending`")
    declared = parse_trailers(draft.message, name).adds_files
    new = {entry.path: entry for entry in step.added}
    listed = {file.target for file in declared} | set(inline)
    if whole_files:
        fresh = [
            path
            for path, entry in new.items()
            if path not in listed and _nameable(path, entry, step) and _placeable(path, entry, sources)
        ]
        if fresh:
            draft.message = with_trailers(draft.message, [f"Adds-Files: {path}" for path in fresh])
            declared += tuple(AddedFile(path, path) for path in fresh)
            notes.append(f"{name}: {', '.join(fresh)} became whole files of the stack")
    gone = [file.target for file in declared if file.target not in new]
    if gone:
        msg = f"{name} says that it adds {gone[0]}, which it does not"
        raise PatchError(msg, where=draft.where, next_step="correct its Adds-Files trailer")
    draft.added = [(file, new[file.target]) for file in declared]
    draft.diff = bool(step.changed - {file.target for file in declared})
    return draft


def _check_text(draft: _Draft) -> None:
    """Refuse what no mail can say, whatever the export."""
    author = draft.commit.author
    for what, text in (("message", draft.message), ("author's name", author.name), ("author's address", author.email)):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise _refusal(draft, f"its {what} is not UTF-8") from None
        if "\0" in text:
            raise _refusal(draft, f"its {what} holds a null character")


def _contents(store: Store, drafts: Sequence[_Draft]) -> dict[str, tuple[bytes, bool]]:
    """Whole files by path in ``src``."""
    blobs = read_blobs(store, [entry.oid for draft in drafts for _, entry in draft.added])
    files: dict[str, tuple[bytes, bool]] = {}
    for draft in drafts:
        for file, entry in draft.added:
            found = (blobs[entry.oid], entry.mode == "100755")
            if files.get(file.source, found) != found:
                msg = f"{draft.name} adds {file.source} a second time with other content"
                raise PatchError(
                    msg, where=draft.where, next_step="give one of them another path in its Adds-Files trailer"
                )
            files[file.source] = found
    return files


def _round(
    store: Store, base: str, base_tree: str, drafts: Sequence[_Draft], files: dict[str, tuple[bytes, bool]]
) -> tuple[list[str], list[bytes], dict[int, str]]:
    """Commit and export every draft, and apply every export again.

    Returns:
        the commits, their patches, and what is wrong by number: the patch gives another commit.
    """
    made: list[str] = []
    for draft in drafts:
        parent = made[-1] if made else base
        # An applied patch's message ends with the line that parts it from the diff, where it has one.
        message = draft.message + ("\n" if draft.diff else "")
        try:
            made.append(store.commit(draft.commit.tree, parent, draft.commit.author, message.encode()))
        except GitFailure as error:
            raise _refusal(draft, error.text.strip()) from error
    links = [
        (parent, oid, [file.target for file, _ in draft.added])
        for parent, oid, draft in zip([base, *made], made, drafts, strict=False)
    ]
    exports = export_each(store, links)
    wrong: dict[int, str] = {}
    with Chain.on(store, base, base_tree) as chain:
        for number, (draft, data, oid) in enumerate(zip(drafts, exports, made, strict=True)):
            try:
                text, _, _ = chain.add(
                    data, label=draft.name, where=draft.name, whole_file=lambda source: files[source]
                )
            except PatchError as error:
                raise _refusal(draft, f"{error.what}: {error.why or ''}".rstrip(": ")) from error
            if chain.tree != draft.commit.tree:
                raise _refusal(draft, "applying the exported patch gives another tree")
            if chain.commit != oid:
                wrong[number] = _lost(draft.message, text)
                chain.commit = oid
    return made, exports, wrong


def _lost(message: str, text: str) -> str:
    """What of a message or its author does not come back."""
    if message.strip("\n") == text.strip("\n"):
        return "its author or date reads differently once it is a mail"
    back = text.strip("\n").split("\n")
    for number, line in enumerate(message.strip("\n").split("\n")):
        if number >= len(back) or back[number] != line:
            return f"line {number + 1} of its message would be lost or changed: {line[:80]!r}"
    return "its message would have lines more"


def _tidy(message: str) -> str:
    """A message as mail keeps it: subject on one line with single blanks, no blanks at line ends."""
    lines = [line.rstrip() for line in message.strip().split("\n")]
    end = lines.index("") if "" in lines else len(lines)
    subject = " ".join(" ".join(lines[:end]).split())
    body = "\n".join(lines[end:]).strip("\n")
    return f"{subject}\n\n{body}\n" if body else f"{subject}\n"


def _nameable(path: str, entry: Entry, step: Step) -> bool:
    """Whether a trailer can name the file; links, submodules and strange names stay in the diff.

    So does a file that takes the place of a folder: leaving it out of the diff would leave out the folder's end too.
    """
    plain = path.isprintable() and path == path.strip() and "->" not in path
    instead = any(other.startswith(path + "/") for other in step.changed)
    return plain and not instead and entry.mode in ("100644", "100755")


def _placeable(path: str, entry: Entry, sources: Mapping[str, Entry]) -> bool:
    """Whether the file can lie among ours beside those that are there: one that was removed and came back cannot."""
    known = sources.get(path)
    if known is not None:
        return (known.mode, known.oid) == (entry.mode, entry.oid)
    return not any(other.startswith(path + "/") or path.startswith(other + "/") for other in sources)


def _refusal(draft: _Draft, why: str) -> PatchError:
    return PatchError(
        f"{draft.name} cannot be a patch file",
        where=draft.where,
        why=why,
        next_step="look for lines of its message that begin like a diff or a mail (`diff --git`, `--- `, `Index: `,"
        " `---`, `From: `) and write them differently",
    )
