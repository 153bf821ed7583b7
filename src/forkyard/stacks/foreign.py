"""Reading patches of other people: mails, mailboxes, and folders of patches with or without a quilt series."""

from __future__ import annotations

import re
from collections.abc import Sequence
from email.utils import formatdate
from pathlib import Path

from forkyard.errors import PatchError, UsageError
from forkyard.gitstore import Author, GitFailure, Store
from forkyard.gitstore.patching import Mail, read_foreign_mail, split_mails
from forkyard.stacks.patchfile import as_git_wrote, check_form

_MAIL = re.compile(rb"\A\s*(From |(From|Date|Subject|Message-ID|MIME-Version|Received|Return-Path): )", re.IGNORECASE)
_COVER = re.compile(rb"^Subject: [^\n]*\[[^\]\n]*\b0+/\d+\]", re.MULTILINE)
_DIFF = re.compile(rb"^(diff --git |--- |Index: )", re.MULTILINE)
_FIELD = re.compile(r"^(?P<name>From|Author|Date|Last-Update|Subject|Description): *(?P<value>.*)$", re.IGNORECASE)
_PERSON = re.compile(r"^\s*(?P<name>[^<>]*[^<>\s])\s*<(?P<email>[^<>\s]+)>\s*$")


def parse_author(text: str) -> tuple[str, str]:
    """Name and address of ``A Person <a@example.org>``.

    Raises:
        UsageError: it is not of that form.
    """
    match = _PERSON.match(text)
    if match is None:
        msg = f"{text!r} does not say who wrote a patch"
        raise UsageError(msg, next_step="write it as `A Person <a@example.org>`")
    return match["name"], match["email"]


def read_patches(
    store: Store, paths: Sequence[Path], *, author: str | None = None
) -> tuple[list[tuple[str, str, Mail]], list[str]]:
    """Every patch in some files and folders, in order.

    Args:
        author: who wrote those that do not say so, as ``A Person <a@example.org>``.

    Returns:
        a name for messages, the file, and the patch, each; and notes about what was left out.

    Raises:
        UsageError: a file is not there, or holds no patch.
        PatchError: a patch that is none, or that nobody is known to have written.
    """
    found: list[tuple[str, str, Mail]] = []
    notes: list[str] = []
    for path in (file for given in paths for file in _files(given)):
        try:
            data = path.read_bytes()
        except OSError as error:
            msg = f"{path.name} cannot be read"
            raise UsageError(msg, where=str(path), why=error.strerror) from error
        data, undone = as_git_wrote(data)
        if undone is not None:
            notes.append(f"{path.name}: {undone} was undone")
        check_form(data, str(path), ours=False)
        if not _MAIL.match(data):
            found.append((path.name, str(path), _plain(store, path, data, author)))
            continue
        try:
            mails = split_mails(store, data.lstrip())
        except GitFailure as error:
            msg = f"{path.name} is no mailbox"
            raise PatchError(msg, where=str(path), why=error.text.strip()) from error
        for number, mail in enumerate(mails, start=1):
            label = path.name if len(mails) == 1 else f"{path.name} (mail {number})"
            if _COVER.search(mail.split(b"\n\n", 1)[0]):
                notes.append(f"{label}: a cover letter, left out")
                continue
            try:
                read = read_foreign_mail(store, mail)
            except PatchError as error:
                msg = f"{label} is not a patch"
                raise PatchError(msg, where=str(path), why=error.why or error.what) from error
            if not read.diff.strip():
                notes.append(f"{label}: it changes no file")
            found.append((label, str(path), read))
    if not found:
        msg = "there is no patch in what was given"
        raise UsageError(msg, where=", ".join(map(str, paths)))
    return found, notes


def _files(path: Path) -> list[Path]:
    if not path.exists():
        msg = f"there is no {path}"
        raise UsageError(msg, next_step="give patch files, a mailbox, or a folder of patches")
    if not path.is_dir():
        return [path]
    listing = path / "series"
    if not listing.is_file():
        files = [file for file in path.iterdir() if file.suffix in (".patch", ".diff", ".mbox", ".eml")]
        return sorted(files, key=lambda file: [int(word) if word.isdigit() else word for word in _words(file.name)])
    files = []
    for number, line in enumerate(listing.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if [word for word in words[1:] if word != "-p1"]:
            msg = f"the series applies {words[0]} in an unusual way"
            raise UsageError(
                msg, where=f"{listing}:{number}", why=" ".join(words[1:]), next_step="make it a -p1 patch first"
            )
        if not (path / words[0]).is_file():
            msg = f"the series names {words[0]}, which is not there"
            raise UsageError(msg, where=f"{listing}:{number}")
        files.append(path / words[0])
    return files


def _words(name: str) -> list[str]:
    # Text and numbers alternate, so that two names compare like with like.
    return re.split(r"(\d+)", name)


def _plain(store: Store, path: Path, data: bytes, author: str | None) -> Mail:
    """A diff with some words above it: quilt's and Debian's patches."""
    match = _DIFF.search(data)
    if match is None:
        msg = f"{path.name} is not a patch"
        raise PatchError(msg, where=str(path), why="it is no mail and holds no diff")
    fields: dict[str, str] = {}
    text: list[str] = []
    for line in data[: match.start()].decode("utf-8", "replace").replace("\r\n", "\n").split("\n"):
        field = _FIELD.match(line)
        if field is None:
            text.append("" if line.strip() in (".", "---") else line.rstrip())
            continue
        name = {"author": "from", "description": "subject", "last-update": "date"}.get(
            field["name"].lower(), field["name"].lower()
        )
        fields.setdefault(name, field["value"].strip())
    who = fields.get("from") or author
    if who is None:
        msg = f"{path.name} does not say who wrote it"
        raise PatchError(msg, where=str(path), next_step="give --author 'A Person <a@example.org>'")
    person = _PERSON.match(who)
    name, email = (person["name"], person["email"]) if person else parse_author(author or who)
    body = "\n".join(text).strip("\n")
    subject, _, rest = (body if "subject" not in fields else f"{fields['subject']}\n\n{body}").partition("\n")
    if not subject.strip():
        subject = path.stem.replace("-", " ")
    message = f"{subject.strip()}\n\n{rest.strip()}\n" if rest.strip() else f"{subject.strip()}\n"
    # A day without a time is one; a patch that tells no day was, for us, written when its file was.
    date = fields.get("date") or formatdate(path.stat().st_mtime)
    date = f"{date}T00:00:00+00:00" if re.fullmatch(r"\d{4}-\d\d-\d\d", date) else date
    return Mail(Author(name, email, date), message.encode(), data[match.start() :])
