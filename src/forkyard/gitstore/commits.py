"""Commit objects written here and not by a git each: rebasing, applying and exporting make hundreds of them.

What git would word differently (a name it tidies, a date it reads in a way of its own, a message it refuses) is left to
git.
"""

from __future__ import annotations

import datetime
import io
import re
from pathlib import Path

from gitdb import IStream, LooseObjectDB

from forkyard.gitstore.formats import COMMITTER, Author

# git strips these from both ends of a name, and the last three from everywhere.
_CRUD = frozenset(".,:;'\"\\<>\n")
# What git refuses in a message, or takes for something else than UTF-8.
_LAST = "".join(chr(page + last) for page in range(0, 0x110000, 0x10000) for last in (0xFFFE, 0xFFFF))
_NO_CHARACTERS = re.compile(f"[\0\ufdd0-\ufdef{_LAST}]")
_STRICT = re.compile(r"^(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?P<sign>[+-])(?P<hours>\d\d):(?P<minutes>\d\d)$")


def write_commit(objects: Path, tree: str, parent: str | None, author: Author, message: bytes) -> str | None:
    """Write the commit that ``git commit-tree`` would write; ``None``, and nothing is written, if only git knows it.

    Args:
        objects: a repository's folder of objects.

    Raises:
        OSError: no space or permission.
    """
    when = _raw_date(author.date)
    if when is None or not (_plain(author.name) and _plain(author.email)):
        return None
    lines = [f"tree {tree}", *([f"parent {parent}"] if parent is not None else [])]
    lines += [f"author {author.name} <{author.email}> {when}", f"committer {COMMITTER[0]} <{COMMITTER[1]}> {when}"]
    data = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape") + b"\n" + message
    if not _is_text(data):
        return None
    stored = LooseObjectDB(str(objects)).store(IStream(b"commit", len(data), io.BytesIO(data)))
    return str(stored.hexsha.decode("ascii"))


def _is_text(data: bytes) -> bool:
    """Whether git takes it for UTF-8; anything else it would recode or refuse."""
    try:
        return not _NO_CHARACTERS.search(data.decode("utf-8"))
    except UnicodeDecodeError:
        return False


def _raw_date(date: str) -> str | None:
    """A strict ISO date as commits hold it."""
    match = _STRICT.match(f"{date[:-1]}+00:00" if date.endswith("Z") else date)
    if match is None or (match["sign"] == "-" and match["hours"] == match["minutes"] == "00"):
        return None
    try:
        seconds = int(datetime.datetime.fromisoformat(match[0]).timestamp())
    except ValueError:
        return None
    # Early and late years are where git begins to guess.
    return f"{seconds} {match['sign']}{match['hours']}{match['minutes']}" if 10**8 <= seconds < 4 * 10**9 else None


def _plain(text: str) -> bool:
    """Whether git takes a name as it is."""
    odd = any(character < " " or character in "<>" for character in text)
    return bool(text) and not odd and not ({text[0], text[-1]} & _CRUD) and text == text.strip()
