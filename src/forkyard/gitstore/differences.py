"""What differs between two trees, line by line: how much, in which files, and around which functions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from forkyard.gitstore.running import Repository

# A change is the same whatever the machine's diff settings are.
_PLAIN_DIFF = {
    "diff.noprefix": "false",
    "diff.mnemonicPrefix": "false",
    "diff.algorithm": "myers",
    "diff.context": "3",
    "diff.interHunkContext": "0",
    "core.quotePath": "false",
}
_HUNK = re.compile(rb"^@@ -\d+(?:,\d+)? \+(\d+)(?:,\d+)? @@ ?(.*)$")


@dataclass
class ChangedFile:
    """One file that differs; a rename is a deleted and an added one."""

    path: str
    status: str
    """git's letter: ``A`` added, ``D`` deleted, ``M`` changed, ``T`` of another type."""
    mode: str
    """Of the new side; of the old one where the file is gone."""
    binary: bool = False
    removed: int = 0
    """Lines taken away."""
    added: list[tuple[int, bytes]] = field(default_factory=list)
    """New lines, without their line feeds, and their numbers."""
    contexts: list[str] = field(default_factory=list)
    """What git shows behind the hunks' headers: the functions the hunks are in."""
    no_final_newline: bool = False
    """Whether the change's own last line has no line feed."""


def changed_files(repository: Repository, old: str, new: str) -> list[ChangedFile]:
    """Every file that differs between two trees or commits, by path.

    Raises:
        GitFailure: a tree, or a file that must be looked into, is not there.
    """
    words = ("-r", "-z", "--no-renames", "--full-index")
    fields = repository._git("diff-tree", "--raw", *words, old, new).decode("utf-8", "surrogateescape").split("\0")
    files: list[ChangedFile] = []
    for head, path in zip(fields[::2], fields[1::2], strict=False):
        before, after, _, _, status = head.lstrip(":").split(" ")
        files.append(ChangedFile(path, status[0], before if status[0] == "D" else after))
    text = repository._git("diff-tree", "-p", *words, old, new, config=_PLAIN_DIFF)
    # git writes a section a file, in the order of the list above; content lines never begin with `diff --git`.
    sections = re.split(rb"^diff --git .*\n", text, flags=re.MULTILINE)[1:]
    todo = iter(sections)
    for file in files:
        # A file that becomes a link, say, is shown as deleted and made anew.
        for _ in range(2 if file.status == "T" else 1):
            _read_section(file, next(todo, b""))
    return files


def _read_section(file: ChangedFile, section: bytes) -> None:
    number = 0
    last = b""
    inside = False
    for line in section.split(b"\n"):
        hunk = _HUNK.match(line)
        if hunk is not None:
            inside, number = True, int(hunk[1])
            context = hunk[2].decode("utf-8", "replace").strip()
            if context and context not in file.contexts:
                file.contexts.append(context)
        elif not inside:
            file.binary = file.binary or line.startswith((b"GIT binary patch", b"Binary files "))
        elif line.startswith(b"+"):
            file.added.append((number, line[1:]))
            number += 1
        elif line.startswith(b"-"):
            file.removed += 1
        elif line.startswith(b"\\"):
            file.no_final_newline = file.no_final_newline or last[:1] == b"+"
        else:
            number += 1
        last = line
