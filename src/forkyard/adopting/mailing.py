"""Making authors and messages fit for a patch file, which is a mail: what it would lose is changed as little as can be.

A line that looks like the start of a diff ends a mail's message, one that looks like a header at its top is taken for
one, and an author of two letters is not believed. Whatever is changed is said.
"""

from __future__ import annotations

import datetime
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forkyard.errors import PatchError
from forkyard.gitstore import Author, GitFailure, Store
from forkyard.gitstore.history import CommitFacts
from forkyard.stacks.exporting import with_trailers
from forkyard.stacks.patchfile import parse_trailers

# What git's mailinfo takes for the start of the diff, and mailsplit for the start of another mail.
_CUTS = re.compile(r"^(diff -|Index: |--- \S|---\s*$|>*From )")
# What it takes for a header if the message begins with it.
_HEADER = re.compile(r"^(From|Subject|Date):\s|^\[PATCH\]\s")
_EPOCH = "1970-01-01T00:00:00+00:00"
# git itself drops these from the ends of a name.
_CRUD = "".join(map(chr, range(33))) + ".,:;<>\"\\'"
_STATUS = "Upstream-Status"
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
"""Every git knows it without having it."""


@dataclass(frozen=True)
class Letter:
    """An author and a message that come out of a patch file as they went in."""

    author: Author
    message: str
    notes: tuple[str, ...] = ()
    """What had to be changed."""


def make_letter(
    store: Store,
    commit: CommitFacts,
    *,
    status: str = "Pending",
    trailers: Sequence[str] = (),
    instead: str = "",
) -> Letter:
    """The author and message of a commit for a patch, with its trailers.

    Args:
        status: the value of ``Upstream-Status``, unless the message has a good one.
        trailers: further trailer lines.
        instead: the message to use where the commit has none.

    Raises:
        PatchError: there is no way to write it as a mail; names the commit.
    """
    notes: list[str] = []
    author = _author_in_mail(store, _author(commit.author, notes), notes)
    message = _text(commit.message, "message", notes).replace("\0", "")
    if not message.strip():
        message = instead or "Change without a message"
        notes.append("it has no message")
    message = _subject_apart(_safe_lines(message.strip(), notes))
    message = _with_trailers(message, status, trailers, notes)
    for change in _CHANGES:
        tried = change(message)
        if author is not None and _comes_out(store, author, tried):
            if tried != message:
                notes.append("its message was put in order")
            return Letter(author, tried, tuple(notes))
    msg = "a commit cannot be written as a patch"
    raise PatchError(
        msg,
        where=f"commit {commit.commit[:12]} {commit.subject!r}",
        why="its message or author does not come out of a mail as it went in",
        next_step="amend it in the fork (`git rebase -i`, `reword`)",
    )


def _author(author: Author, notes: list[str]) -> Author:
    name = _text(author.name, "author's name", notes)
    email = _text(author.email, "author's address", notes)
    clean = re.sub(r"[<>\x00-\x1f\x7f]", "", name).strip(_CRUD)
    # Where a quote or a bracket is not closed, git 2.39 reads on in whatever memory follows the address.
    address = re.sub(r"[<>\"\\()\s\x00-\x1f\x7f]", "", email).strip(_CRUD)
    if not address:
        address = "unknown@users.noreply.invalid"
        notes.append("its author has no address")
    if not clean:
        clean = address.partition("@")[0].strip(_CRUD) or "unknown"
        notes.append("its author has no name")
    elif (clean, address) != (name, email) and author.email.strip():
        notes.append("its author's name or address was put in order")
    date = author.date
    if not _writable(date):
        notes.append(f"its date {date!r} cannot be written in a mail")
        date = _EPOCH
    return Author(clean, address, date)


def _writable(date: str) -> bool:
    """Whether git reads a date as it wrote it: not before 1970 or after 2099, and in a time zone there is."""
    try:
        return 1970 <= datetime.datetime.fromisoformat(date).year < 2100
    except ValueError:
        return False


def _author_in_mail(store: Store, author: Author, notes: list[str]) -> Author | None:
    """The author as a mail can name them: as they are, else with plainer words, else as git reads it."""
    plain = re.sub(r"[@()\"=?\\]+", " ", author.name)
    plain = "".join(c for c in plain if unicodedata.category(c)[0] not in "CZ" or c == " ")
    # git takes a longer name for something else.
    plain = plain.encode()[:60].decode("utf-8", "ignore").strip(_CRUD)
    address = re.sub(r"[^A-Za-z0-9.@+_-]+", "", author.email) or "unknown"
    found = None
    for name, email in ((author.name, author.email), (plain, author.email), (author.name, address), (plain, address)):
        tried = Author(name, email, author.date)
        read = _read_author(store, tried) if name else None
        if read == tried:
            found = tried
            break
    else:
        read = _read_author(store, Author(author.name, address, author.date))
        if read is not None and _read_author(store, read) == read:
            found = read
    if found is not None and found != author:
        notes.append(f"its author {author.name} <{author.email}> is {found.name} <{found.email}> in a mail")
    return found


def _read_author(store: Store, author: Author) -> Author | None:
    """Whom git reads a mail of an author to be from."""
    try:
        made = store.commit(EMPTY_TREE, None, author, b"part : do\n")
        found, text, _ = store.mail_info(store.export(made))
        # The date is written in another form; it is the same if the commit is.
        same = Author(found.name, found.email, author.date)
        if store.commit(EMPTY_TREE, None, found, text) != store.commit(EMPTY_TREE, None, same, b"part : do\n"):
            return None
    except (GitFailure, PatchError):
        return None
    return same


def _subject_apart(message: str) -> str:
    """The message with an empty line after its first: mail would make one line of everything up to there."""
    first, _, rest = message.partition("\n")
    return f"{first}\n\n{rest.lstrip(chr(10))}" if rest.strip() else first


def _text(text: str, what: str, notes: list[str]) -> str:
    """Text that is UTF-8; bytes that are not are read as Latin-1, which has a letter for every byte."""
    read = re.sub("[\udc80-\udcff]", lambda match: chr(ord(match[0]) - 0xDC00), text)
    if read != text:
        notes.append(f"its {what} is not UTF-8 and was read as Latin-1")
    return read


def _safe_lines(message: str, notes: list[str]) -> str:
    """Indent lines a mail reader would cut the message at."""
    lines = message.replace("\r\n", "\n").split("\n")
    # The first becomes the subject, which is a header itself.
    cut = [number for number, line in enumerate(lines) if number and _CUTS.match(line)]
    for number in cut:
        lines[number] = " " + lines[number]
    if cut:
        notes.append(f"lines of its message that look like a diff are indented ({len(cut)})")
    return "\n".join(lines)


def _with_trailers(message: str, status: str, trailers: Sequence[str], notes: list[str]) -> str:
    """The message with exactly our trailers; which files it adds is said anew when it is exported."""
    while True:
        body, blank, last = _split_last(message)
        kept = [line for line in last.split("\n") if not line.strip().startswith("Adds-Files:")]
        if len(kept) == last.count("\n") + 1:
            break
        message = body + blank + "\n".join(kept) if any(line.strip() for line in kept) else body
        message = message.strip("\n")
        if not message:
            message = "Add files"
    if not _has_status(message):
        if re.search(rf"^[ \t]*{_STATUS}:", message, re.MULTILINE):
            notes.append(f"a line of its message that looks like a {_STATUS} is marked with a bar")
            message = re.sub(rf"^([ \t]*{_STATUS}:)", r"| \1", message, flags=re.MULTILINE)
        message = with_trailers(message, [f"{_STATUS}: {status}"]).strip("\n")
    return with_trailers(message, list(trailers)).strip("\n") + "\n"


def _has_status(message: str) -> bool:
    """Whether the message ends with good trailers; its subject is none."""
    try:
        parse_trailers(message, "")
    except PatchError:
        return False
    return bool(_split_last(message)[0])


def _split_last(message: str) -> tuple[str, str, str]:
    """A message as everything before its last paragraph, the blank lines between, and that paragraph."""
    match = None
    for match in re.finditer(r"\n[ \t]*\n\s*", message.strip("\n")):  # noqa: B007 - the last one is wanted
        pass
    if match is None:
        return "", "", message
    text = message.strip("\n")
    return text[: match.start()], match[0], text[match.end() :]


def _tidy(message: str) -> str:
    """Subject on one line with single blanks, no blanks at line ends."""
    lines = [line.rstrip() for line in message.strip().split("\n")]
    end = lines.index("") if "" in lines else len(lines)
    subject = " ".join(" ".join(lines[:end]).split())
    body = "\n".join(lines[end:]).strip("\n")
    return f"{subject}\n\n{body}\n" if body else f"{subject}\n"


def _plain(message: str) -> str:
    """As :func:`_tidy`, without control characters, and with lines indented that look like a mail's headers."""
    text = "".join(
        character if character == "\n" or unicodedata.category(character) not in ("Cc", "Cs") else " "
        for character in message
    )
    text = re.sub("[\u2028\u2029\x85]", " ", text)
    subject, _, body = _tidy(text).partition("\n")
    return f"{subject}\n" + "\n".join(" " + line if _HEADER.match(line) else line for line in body.split("\n"))


_CHANGES: tuple[Callable[[str], str], ...] = (lambda message: message, _tidy, _plain)


def _comes_out(store: Store, author: Author, message: str) -> bool:
    """Whether a mail of the message gives the same commit back."""
    try:
        # Where there is a diff an empty line parts it from the message; here there may be none.
        made = store.commit(EMPTY_TREE, None, author, message.strip("\n").encode() + b"\n")
        read, text, _ = store.mail_info(store.export(made))
        return store.commit(EMPTY_TREE, None, read, text.strip(b"\n") + b"\n") == made
    except (GitFailure, PatchError):
        return False
