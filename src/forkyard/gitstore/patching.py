"""Patches in bulk and from elsewhere: many exports by few gits, mails of other people, and three-way application."""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from forkyard.errors import PatchError
from forkyard.gitstore.formats import Author, Entry
from forkyard.gitstore.running import GitFailure
from forkyard.gitstore.store import Store

_FAILED_HUNK = re.compile(r"^error: patch failed: (?P<path>.*):(?P<line>\d+)$", re.MULTILINE)
_UNMERGED = re.compile(r"^U (?P<path>.*)$", re.MULTILINE)


def export_each(store: Store, links: Sequence[tuple[str, str, Sequence[str]]]) -> list[bytes]:
    """Export commits that follow each other; those that leave nothing out, many by one git.

    Args:
        links: parent, commit, and the paths its patch leaves out.
    """
    found: list[bytes] = []
    start = 0
    while start < len(links):
        end = start
        while end < len(links) and not links[end][2]:
            end += 1
        if end > start:
            found += store.export_range(links[start][0], links[end - 1][1])
            start = end
        else:
            found.append(store.export(links[start][1], exclude=links[start][2]))
            start += 1
    return found


@dataclass(frozen=True)
class Step:
    """What one tree has that another has not."""

    added: tuple[Entry, ...]
    """Files that are new."""
    changed: frozenset[str]
    """Every path that differs, new ones and removed ones among them."""


def steps(store: Store, trees: Sequence[str]) -> list[Step]:
    """How each of some trees differs from the one before it; one less than there are trees."""
    pairs = list(itertools.pairwise(trees))
    if not pairs:
        return []
    listing = "".join(f"{old} {new}\n" for old, new in pairs).encode()
    output = store._git("diff-tree", "--stdin", "-r", "-z", "--no-renames", stdin=listing)
    found: list[Step] = []
    position = 0
    for old, new in pairs:
        head = f"{old} {new}\n".encode()
        if not output.startswith(head, position):
            raise GitFailure(["diff-tree", "--stdin"], 0, f"no answer for {old} {new}")
        position += len(head)
        added: list[Entry] = []
        changed: set[str] = set()
        while output.startswith(b":", position):
            middle = output.index(b"\0", position)
            end = output.index(b"\0", middle + 1)
            _, mode, _, oid, status = output[position + 1 : middle].decode("ascii").split(" ")
            path = output[middle + 1 : end].decode("utf-8", "surrogateescape")
            changed.add(path)
            if status == "A":
                added.append(Entry(mode, "commit" if mode == "160000" else "blob", oid, path))
            position = end + 1
        found.append(Step(tuple(added), frozenset(changed)))
    return found


@dataclass(frozen=True)
class Mail:
    """One mailed patch taken apart."""

    author: Author
    message: bytes
    diff: bytes


def split_mails(store: Store, data: bytes) -> list[bytes]:
    """The mails of an mbox; one that is no mbox is one mail.

    Raises:
        GitFailure: git cannot split it.
    """
    with tempfile.TemporaryDirectory(prefix="split-", dir=store.path) as folder:
        store._git("mailsplit", "-b", "--keep-cr", "-d6", f"-o{folder}", stdin=data)
        return [path.read_bytes() for path in sorted(Path(folder).iterdir())]


def read_foreign_mail(store: Store, data: bytes) -> Mail:
    """A mail as anybody's ``git format-patch`` makes it: a ``[PATCH 3/7]`` before the subject goes.

    Raises:
        PatchError: it is no mailed patch.
    """
    author, message, diff = store.mail_info(data, foreign=True)
    return Mail(author, message, diff)


@dataclass(frozen=True)
class Applied:
    """How a diff went onto a tree."""

    tree: str | None
    """The tree with it; ``None`` where it conflicts."""
    exact: bool = False
    """Every hunk stood where it says."""
    guessed: bool = False
    """Lines were found at an offset, and the files the diff was made on are not at hand to prove it."""
    conflicts: tuple[tuple[str, int | None], ...] = field(default=())
    """File and, where known, the line at which the hunk that failed begins in the file the diff was made on."""
    lacking: bool = False
    """The files the diff was made on are not at hand."""
    said: str = ""


def apply_onto(store: Store, tree: str, diff: bytes) -> Applied:
    """Apply a diff: exactly, else as a three-way merge with the files it was made on, else at an offset.

    The second needs the files named by the diff's ``index`` lines in the store. Nothing is ever applied with fuzz.
    """
    if not diff.strip():
        return Applied(tree, exact=True)
    options = ["--cached", "--whitespace=nowarn"]
    with store.index(tree) as index:
        status, _, direct = store._attempt("apply", "--verbose", *options, "-", stdin=diff, index=index)
        plain = store.write_index(index) if status == 0 else None
    if plain is not None and "(offset " not in direct:
        return Applied(plain, exact=True)
    if plain is None and not _FAILED_HUNK.search(direct) and "does not exist in index" not in direct:
        return Applied(None, said=_errors(direct))
    with store.index(tree) as index:
        status, _, said = store._attempt("apply", "--3way", *options, "-", stdin=diff, index=index)
        merged = store.write_index(index) if status == 0 else None
    fell_back = "Falling back to direct application" in said
    if merged is not None and not fell_back:
        return Applied(merged)
    if plain is not None:
        # The three-way merge had nothing to go by.
        return Applied(plain, guessed=True, lacking=True)
    lines = {match["path"]: int(match["line"]) for match in _FAILED_HUNK.finditer(direct)}
    paths = [match["path"] for match in _UNMERGED.finditer(said)] or list(lines)
    return Applied(
        None,
        conflicts=tuple((path, lines.get(path)) for path in paths),
        lacking="lacks the necessary blob" in said,
        said=_errors(direct),
    )


def _errors(said: str) -> str:
    return "\n".join(line for line in said.splitlines() if line.startswith(("error:", "fatal:")))


def refuse_conflict(label: str, where: str, diff: bytes, outcome: Applied, next_step: str) -> PatchError:
    """The error for a diff that went nowhere: names each file and the hunk that failed first in it."""
    shown = []
    for path, line in outcome.conflicts:
        hunk = _hunk_at(diff, path, line)
        shown.append(f"{path}: {hunk}" if hunk else path)
    why = "\n         ".join(shown) or outcome.said.replace("\n", "\n         ") or "git gave no reason"
    if outcome.lacking:
        why += "\n         (the files it was made on are not in the store, so there is nothing to merge with)"
    return PatchError(f"{label} does not apply", where=where, why=why, next_step=next_step)


def _hunk_at(diff: bytes, path: str, line: int | None) -> str:
    """The header of the hunk of a file that begins at a line of the old file."""
    name = f"--- a/{path}".encode("utf-8", "surrogateescape")
    here = False
    first = ""
    for text in diff.split(b"\n"):
        if text.startswith(b"--- "):
            here = text.split(b"\t")[0].rstrip() == name
        elif here and text.startswith(b"@@ "):
            shown = text.decode("utf-8", "replace")
            first = first or shown
            if line is not None and re.match(rf"@@ -{line}[, ]", shown):
                return shown
    return first if line is None else ""


def entries_at(store: Store, tree: str, paths: Sequence[str]) -> dict[str, Entry]:
    """Those of some files that a tree has."""
    if not paths:
        return {}
    output = store._git("ls-tree", "-z", "--full-tree", tree, "--", *paths)
    found = {}
    for record in output.decode("utf-8", "surrogateescape").split("\0"):
        if record:
            head, _, path = record.partition("\t")
            mode, kind, oid = head.split(" ")
            found[path] = Entry(mode, kind, oid, path)
    return found
