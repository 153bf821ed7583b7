"""Reading the state of a pull request or issue from the public API: GET only, and nothing in an answer is believed.

https only, except to this machine itself. The token goes to the API's own host and nowhere else, and into no message.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.auth import AuthBase

from forkyard.errors import NetworkError, UsageError
from forkyard.network import CONNECT_TIMEOUT_S, without_secrets

DEFAULT_API = "https://api.github.com"
TOKEN_VARIABLES = ("FORKYARD_GITHUB_TOKEN", "GITHUB_TOKEN")
READ_TIMEOUT_S = 30.0
WHOLE_S = 90.0
"""Seconds one answer may take in all, however slowly it drips."""
MAX_BYTES = 4 << 20
_MAX_REDIRECTS = 3
_CHUNK = 1 << 16
_PAGE = re.compile(r"https://github\.com/([A-Za-z0-9_.-]+)/([A-Za-z0-9_.-]+)/(pull|issues)/(\d{1,10})(?:[/?#][^\s]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class Unreadable(Exception):
    """One state that cannot be told, while others may be."""


@dataclass(frozen=True)
class State:
    """Where a pull request or an issue stands."""

    url: str
    state: str
    """``open``, ``merged`` or ``closed``."""
    merge_commit: str | None = None


@dataclass(frozen=True)
class Page:
    """A pull request or an issue, by its address."""

    owner: str
    repository: str
    kind: str
    number: int

    @property
    def path(self) -> str:
        """Where the API has it."""
        what = "pulls" if self.kind == "pull" else "issues"
        return f"/repos/{self.owner}/{self.repository}/{what}/{self.number}"


def parse_page(url: str) -> Page | None:
    """What an address names; ``None`` if it is no pull request or issue of the site whose API is known here."""
    match = _PAGE.fullmatch(url)
    if match is None or not match[1].strip(".") or not match[2].strip("."):
        return None
    return Page(match[1], match[2], match[3], int(match[4]))


def token() -> str | None:
    """The user's token, if there is one."""
    for name in TOKEN_VARIABLES:
        value = os.environ.get(name, "").strip()
        if value:
            if not value.isascii() or not value.isprintable() or " " in value:
                msg = f"{name} does not hold a token"
                raise UsageError(msg, why="it has characters no token has", next_step="set it again, or unset it")
            return value
    return None


class _Bearer(AuthBase):
    """The token; given as requests' own kind of login, so that a .netrc cannot put another in its place."""

    def __init__(self, value: str | None) -> None:
        self._value = value

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._value is not None:
            request.headers["Authorization"] = f"Bearer {self._value}"
        return request


class Reader:
    """Asks one API.

    Raises:
        UsageError: its address is neither https nor this machine's.
    """

    def __init__(self, api: str = DEFAULT_API, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api.rstrip("/")
        if not _acceptable(self._api):
            msg = "states are only read over https"
            raise UsageError(msg, where=without_secrets(api), next_step="give an https address with --api")
        self._session = requests.Session()
        self._session.headers.update(
            {
                "Accept": "application/vnd.github+json",
                "Accept-Encoding": "identity",
                "User-Agent": "forkyard",
                "X-GitHub-Api-Version": "2022-11-28",
            }
        )
        self._auth = _Bearer(token())
        self._clock = clock

    def read(self, url: str) -> State:
        """The state of a pull request or an issue.

        Raises:
            Unreadable: it is not there, or the address names none.
            NetworkError: the API cannot be reached, refuses, or answers something useless.
        """
        page = parse_page(url)
        if page is None:
            msg = "it is no pull request or issue of a site whose API is known here"
            raise Unreadable(msg)
        facts = self._get(self._api + page.path)
        return _state(url, page, facts)

    def _get(self, url: str) -> dict[str, Any]:
        for _ in range(_MAX_REDIRECTS + 1):
            deadline = self._clock() + WHOLE_S
            try:
                with self._session.get(
                    url,
                    auth=self._auth,
                    stream=True,
                    allow_redirects=False,
                    timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
                ) as answer:
                    if answer.is_redirect or answer.status_code in (301, 302, 303, 307, 308):
                        url = self._followed(url, answer.headers.get("Location", ""))
                        continue
                    _check_status(url, answer)
                    return _document(url, self._body(url, answer, deadline))
            except (requests.RequestException, ValueError) as error:
                msg = "the state of a pull request could not be read"
                raise NetworkError(
                    msg,
                    where=without_secrets(url),
                    why=without_secrets(str(error))[:300],
                    next_step="run it where the internet can be reached; nothing was changed",
                ) from error
        raise _useless(url, f"more than {_MAX_REDIRECTS} redirects")

    def _followed(self, url: str, location: str) -> str:
        """Where a redirect leads: a repository that was renamed stays on its host."""
        try:
            new = urljoin(url, location)
            same = urlsplit(new)[:2] == urlsplit(self._api)[:2]
        except ValueError:
            same = False
        if not location or not same:
            shown = without_secrets(location)[:200]
            raise _useless(url, f"it redirects to another place ({shown or 'nowhere'}), which is not followed")
        return new

    def _body(self, url: str, answer: requests.Response, deadline: float) -> bytes:
        data = bytearray()
        for chunk in answer.iter_content(_CHUNK):
            data += chunk
            if len(data) > MAX_BYTES:
                raise _useless(url, f"it is longer than {MAX_BYTES} bytes, which no such answer is")
            if self._clock() > deadline:
                raise _useless(url, f"it did not end within {WHOLE_S:.0f} s")
        return bytes(data)


def _acceptable(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK))


def _check_status(url: str, answer: requests.Response) -> None:
    status = answer.status_code
    if status == 200:
        return
    if status in (404, 410):
        msg = "there is no such pull request or issue, or it is not public"
        raise Unreadable(msg)
    if status in (403, 429):
        reset = answer.headers.get("X-RateLimit-Reset", "")
        again = answer.headers.get("Retry-After", "")
        if answer.headers.get("X-RateLimit-Remaining") == "0" or again:
            raise NetworkError(
                "the API answers no more requests for now",
                where=without_secrets(url),
                why=f"its limit is used up{_until(reset, again)}",
                next_step=f"wait, or set {TOKEN_VARIABLES[0]} to a token, which has a higher limit",
            )
    if status == 401:
        raise NetworkError(
            "the API does not accept the token",
            where=without_secrets(url),
            next_step=f"correct or unset {' and '.join(TOKEN_VARIABLES)}: public states can be read without one",
        )
    raise _useless(url, f"HTTP status {status}")


def _until(reset: str, again: str) -> str:
    if again.isdigit() and len(again) < 7:
        return f" for {again} s"
    if reset.isdigit() and len(reset) < 12:
        return f" until {datetime.datetime.fromtimestamp(int(reset), tz=datetime.UTC):%Y-%m-%d %H:%M} UTC"
    return ""


def _useless(url: str, why: str) -> NetworkError:
    return NetworkError(
        "the API's answer cannot be used",
        where=without_secrets(url),
        why=why,
        next_step="try again later; nothing was changed",
    )


def _document(url: str, data: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _useless(url, "it is not JSON") from error
    if not isinstance(facts, dict):
        raise _useless(url, "it is not a JSON object")
    return facts


def _state(url: str, page: Page, facts: dict[str, Any]) -> State:
    where = page.path
    if facts.get("number") != page.number or isinstance(facts.get("number"), bool):
        raise _useless(where, "it is about another number")
    state = facts.get("state")
    if state not in ("open", "closed"):
        raise _useless(where, "its `state` is neither open nor closed")
    if page.kind != "pull":
        return State(url, state)
    merged = facts.get("merged")
    if not isinstance(merged, bool):
        raise _useless(where, "its `merged` is neither true nor false")
    if not merged:
        return State(url, state)
    commit = facts.get("merge_commit_sha")
    if state != "closed" or not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise _useless(where, "it is merged, but its `merge_commit_sha` is no commit id")
    return State(url, "merged", commit)
