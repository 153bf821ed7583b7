"""What git's objects look like from outside, and how a commit becomes the bytes of a patch file."""

from __future__ import annotations

import datetime
import hashlib
import re
from dataclasses import dataclass

COMMITTER = ("Forkyard", "forkyard@users.noreply.invalid")
OBJECT_ID = re.compile(r"^[0-9a-f]{40}$")

# Electron's lesson: each flag is there so that the same commit always exports to the same bytes.
EXPORT_OPTIONS = (
    "--zero-commit",  # the first line must not name a commit that changes on every rebase
    "--no-signature",  # git's version is not content
    "--no-stat",  # the diffstat depends on the terminal and on git's version
    "--full-index",  # abbreviations depend on how many objects the store holds
    "--no-numbered",  # a patch does not know how many others there are
    "--keep-subject",  # the subject is the commit's, without a [PATCH] to strip
    "--no-renames",  # rename detection depends on configuration and limits
    "--no-attach",
    "--no-thread",
    "--encode-email-headers",
    "--binary",
    # Without these a commit of nothing but whole files of ours, which are left out, would export as its parent.
    "--always",
    "--full-history",
    "--sparse",
)
EXPORT_CONFIG = {
    "core.abbrev": "40",
    "core.quotePath": "true",
    "diff.noprefix": "false",
    "diff.mnemonicPrefix": "false",
    "diff.algorithm": "myers",
    "diff.context": "3",
    "diff.interHunkContext": "0",
    "diff.indentHeuristic": "true",
    "diff.renames": "false",
    "diff.suppressBlankEmpty": "false",
}


@dataclass(frozen=True)
class Entry:
    """One line of a tree listing."""

    mode: str
    kind: str
    oid: str
    path: str


@dataclass(frozen=True)
class Author:
    """Who wrote a patch and when; ``date`` in any form git reads."""

    name: str
    email: str
    date: str


def iso_date(raw: str) -> str:
    """A date as git keeps it, seconds since 1970 and a time zone as ``+0130``, in the one form we write: ISO 8601.

    UTC is ``+00:00``. A date that no calendar has, say of a time zone of 99 hours, stays in a form that git reads.
    """
    seconds, _, zone = raw.partition(" ")
    try:
        hours, minutes = int(zone[:3]), int(zone[:1] + zone[3:])
        if abs(minutes) > 59:
            return f"@{raw}"
        offset = datetime.timedelta(hours=hours, minutes=minutes)
        return datetime.datetime.fromtimestamp(int(seconds), datetime.timezone(offset)).isoformat()
    except (ValueError, OverflowError, OSError):
        return f"@{raw}" if raw else raw


def blob_id(data: bytes) -> str:
    """git's object id of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
