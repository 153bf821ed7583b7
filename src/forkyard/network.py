"""The one place that talks to the network (git's own fetching apart): resumable, retried, verified downloads."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path

import requests

from forkyard.cache import explained
from forkyard.errors import NetworkError, SourceError

CONNECT_TIMEOUT_S = 20.0
READ_TIMEOUT_S = 60.0
TRIES = 5
MAX_BYTES = 4 << 30
"""An answer without an end must not fill the disk before its digest can be looked at."""
_CHUNK = 1 << 18
_USER = re.compile(r"(://)[^/?#\s]*@")
# Signed addresses and tokens: what follows the question mark says nothing a reader needs.
_QUERY = re.compile(r"\?[^\s'\"<>()]*=[^\s'\"<>()]*")

Progress = Callable[[int, int | None], None]
"""Called with (bytes so far, bytes in all or None)."""


def without_secrets(url: str) -> str:
    """A URL, or a text with URLs in it, less user names, passwords and queries: fit for logs and messages."""
    return _QUERY.sub("?***", _USER.sub(r"\1***@", url))


def sha256_of(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def download(
    session: requests.Session,
    url: str,
    target: Path,
    *,
    sha256: str,
    progress: Progress | None = None,
    tries: int = TRIES,
    pause_s: float = 1.0,
) -> Path:
    """Fetch ``url`` to ``target`` unless it is there already; what does not hash to ``sha256`` never gets that name.

    A partial file (``target`` + ``.part``) left by an earlier run is continued when the server allows it.

    Args:
        session: carries the user's proxy, certificate and login settings.
        sha256: the expected digest, hex.
        progress: told the bytes so far.
        tries: attempts before giving up; each continues where the last one broke off.
        pause_s: seconds before the second attempt; doubled each time.

    Raises:
        SourceError: the complete file has another digest; names both.
        NetworkError: it could not be fetched.
        StorageError: it could not be written.
    """
    if target.is_file():
        found = sha256_of(target)
        if found == sha256:
            return target
        target.unlink()
    part = target.with_name(target.name + ".part")
    last = "no attempt was made"
    for attempt in range(tries):
        if attempt:
            time.sleep(pause_s * 2 ** (attempt - 1))
        resumed = part.exists() and part.stat().st_size > 0
        try:
            _fetch_into(session, url, part, progress)
        except (requests.RequestException, _Unfinished) as error:
            last = without_secrets(str(error))
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status is not None and 400 <= status < 500 and status not in (408, 416, 429):
                break
            continue
        found = sha256_of(part)
        if found == sha256:
            with explained(f"keep {target.name}"):
                part.replace(target)
            return target
        part.unlink()
        if resumed:
            # The old part may have come from another file; a fresh download decides.
            last = "the continued download had another content"
            continue
        msg = f"{target.name} is not the file that was asked for"
        raise SourceError(
            msg,
            where=without_secrets(url),
            why=f"expected sha256 {sha256}, got {found}",
            next_step="check the index or mirror in your pip settings; nothing of the file was used",
        )
    msg = f"could not download {target.name}"
    raise NetworkError(
        msg,
        where=without_secrets(url),
        why=last,
        next_step="check the network and pip's index settings, or name another --source; running again continues",
    )


class _Unfinished(Exception):
    """The connection closed before the announced length."""


def _fetch_into(session: requests.Session, url: str, part: Path, progress: Progress | None) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with session.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)) as answer:
        if answer.status_code == 416:
            part.unlink(missing_ok=True)
            msg = "the server would not continue the download"
            raise _Unfinished(msg)
        answer.raise_for_status()
        if answer.status_code != 206:
            have = 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else None
        with explained(f"download {part.stem}"):
            part.parent.mkdir(parents=True, exist_ok=True)
            with part.open("ab" if have else "wb") as sink:
                for chunk in answer.iter_content(_CHUNK):
                    sink.write(chunk)
                    have += len(chunk)
                    if have > MAX_BYTES:
                        msg = f"it is longer than {MAX_BYTES} bytes, which no source archive is"
                        raise _Unfinished(msg)
                    if progress is not None:
                        progress(have, total)
        if total is not None and have < total:
            msg = f"the connection closed after {have} of {total} bytes"
            raise _Unfinished(msg)
