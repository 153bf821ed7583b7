"""Reading states: GET alone, https alone, and no answer is believed."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest

from forkyard.errors import NetworkError, UsageError
from forkyard.pullrequest.states import MAX_BYTES, Reader, State, Unreadable, parse_page, token

URL = "https://github.com/o/r/pull/7"
PATH = "/repos/o/r/pulls/7"
SHA = "a" * 40
OPEN = {"number": 7, "state": "open", "merged": False, "merge_commit_sha": None}
MERGED = {"number": 7, "state": "closed", "merged": True, "merge_commit_sha": SHA}


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORKYARD_GITHUB_TOKEN", "GITHUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def answer(reply: Any, document: Any, **options: Any) -> Any:
    return reply(json.dumps(document).encode(), **options)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (OPEN, State(URL, "open")),
        (MERGED, State(URL, "merged", SHA)),
        ({**OPEN, "state": "closed"}, State(URL, "closed")),
        # An open one has a commit that tries the merge: it says nothing.
        ({**OPEN, "merge_commit_sha": SHA}, State(URL, "open")),
    ],
)
def test_states(server: Any, reply: Any, document: dict[str, Any], expected: State) -> None:
    server.replies[PATH] = answer(reply, document)

    assert Reader(server.url).read(URL) == expected
    assert "Authorization" not in server.requests[0].headers


def test_issues(server: Any, reply: Any) -> None:
    server.replies["/repos/o/r/issues/7"] = answer(reply, {"number": 7, "state": "closed"})

    url = "https://github.com/o/r/issues/7#issuecomment-1"
    assert Reader(server.url).read(url) == State(url, "closed")


@pytest.mark.parametrize(
    "url",
    [
        "http://github.com/o/r/pull/7",
        "https://github.com.evil.example/o/r/pull/7",
        "https://example.org/o/r/pull/7",
        "https://github.com/o/r/pull/7x",
        "https://github.com/o/r/commit/7",
        "https://github.com/../r/pull/7",
        "https://github.com/o/../pull/7",
        "https://user@github.com/o/r/pull/7",
        "https://github.com/o/r/pull/" + "7" * 11,
        "https://github.com/o/r/pull/7\n",
        "mailto:a@example.org",
        "",
    ],
)
def test_addresses_that_name_nothing_are_not_asked_for(server: Any, url: str) -> None:
    with pytest.raises(Unreadable):
        Reader(server.url).read(url)
    assert server.requests == []


def test_pages() -> None:
    for tail in ("", "/", "/files", "?a=b", "#x"):
        page = parse_page(URL + tail)
        assert page is not None
        assert page.path == PATH


@pytest.mark.parametrize(
    "api", ["http://example.org", "ftp://127.0.0.1", "file:///etc", "", "http://[", "//x", "https://"]
)
def test_only_https_or_this_machine(api: str) -> None:
    with pytest.raises(UsageError, match="https"):
        Reader(api)


def test_the_token_goes_to_the_api_and_into_no_message(
    server: Any, reply: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("GITHUB_TOKEN", "second-secret")
    monkeypatch.setenv("FORKYARD_GITHUB_TOKEN", "first-secret")
    server.replies[PATH] = reply(b"first-secret", status=401)

    with pytest.raises(NetworkError) as error:
        Reader(server.url).read(URL)

    assert server.requests[0].headers["Authorization"] == "Bearer first-secret"
    assert "secret" not in str(error.value)
    assert "does not accept the token" in str(error.value)


def test_a_token_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "a\nX-Other: b")
    with pytest.raises(UsageError) as error:
        token()
    assert "X-Other" not in str(error.value)
    monkeypatch.setenv("GITHUB_TOKEN", "  ")
    assert token() is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xff\xfe",
        b"[]",
        b"7",
        b"null",
        b"[" * 100_000,
        json.dumps({**OPEN, "number": 8}).encode(),
        json.dumps({**OPEN, "number": True}).encode(),
        json.dumps({**OPEN, "number": "7"}).encode(),
        json.dumps({**OPEN, "state": "merged"}).encode(),
        json.dumps({**OPEN, "state": ["open"]}).encode(),
        json.dumps({**OPEN, "merged": None}).encode(),
        json.dumps({**OPEN, "merged": 1}).encode(),
        json.dumps({**MERGED, "state": "open"}).encode(),
        json.dumps({**MERGED, "merge_commit_sha": None}).encode(),
        json.dumps({**MERGED, "merge_commit_sha": "a" * 39}).encode(),
        json.dumps({**MERGED, "merge_commit_sha": SHA + "\nDenied x"}).encode(),
        json.dumps({**MERGED, "merge_commit_sha": {"a": 1}}).encode(),
    ],
)
def test_an_answer_that_means_nothing(server: Any, reply: Any, body: bytes) -> None:
    server.replies[PATH] = reply(body)

    with pytest.raises(NetworkError, match="cannot be used"):
        Reader(server.url).read(URL)


def test_an_answer_without_an_end(server: Any, reply: Any) -> None:
    server.replies[PATH] = reply(b"[" * (MAX_BYTES + 100_000), declare=False)

    with pytest.raises(NetworkError, match="longer than"):
        Reader(server.url).read(URL)


def test_an_answer_that_drips(server: Any, reply: Any) -> None:
    server.replies[PATH] = answer(reply, OPEN)
    times = iter([0.0, 1000.0, 2000.0])

    with pytest.raises(NetworkError, match="did not end within"):
        Reader(server.url, clock=lambda: next(times)).read(URL)


def test_an_answer_that_is_cut_off(server: Any, reply: Any) -> None:
    server.replies[PATH] = answer(reply, OPEN, cut_after=10)

    with pytest.raises(NetworkError):
        Reader(server.url).read(URL)


def test_a_renamed_repository_is_followed_on_its_host(server: Any, reply: Any) -> None:
    server.replies[PATH] = reply(status=301, headers={"Location": f"{server.url}/repositories/1/pulls/7"})
    server.replies["/repositories/1/pulls/7"] = answer(reply, OPEN)

    assert Reader(server.url).read(URL).state == "open"


@pytest.mark.parametrize(
    "location",
    ["http://example.org/x", "https://example.org/x", "//example.org/x", "file:///etc/passwd", ""],
)
def test_other_redirects_are_not(server: Any, reply: Any, location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "secret")
    server.replies[PATH] = reply(status=302, headers={"Location": location} if location else {})

    with pytest.raises(NetworkError, match="not followed"):
        Reader(server.url).read(URL)
    assert len(server.requests) == 1


def test_a_redirect_that_is_no_address(server: Any, reply: Any) -> None:
    server.replies[PATH] = reply(status=302, headers={"Location": "http://["})

    with pytest.raises(NetworkError):
        Reader(server.url).read(URL)
    assert len(server.requests) == 1


def test_redirects_in_a_circle_end(server: Any, reply: Any) -> None:
    server.replies[PATH] = reply(status=302, headers={"Location": PATH})

    with pytest.raises(NetworkError, match="more than 3 redirects"):
        Reader(server.url).read(URL)


@pytest.mark.parametrize("status", [404, 410])
def test_what_is_not_there(server: Any, reply: Any, status: int) -> None:
    server.replies[PATH] = reply(status=status)

    with pytest.raises(Unreadable, match="no such pull request"):
        Reader(server.url).read(URL)


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1767225600"}, "until 2026-01-01 00:00 UTC"),
        (429, {"Retry-After": "60"}, "for 60 s"),
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "9" * 30}, "limit is used up"),
    ],
)
def test_a_limit_says_until_when(server: Any, reply: Any, status: int, headers: dict[str, str], words: str) -> None:
    server.replies[PATH] = reply(status=status, headers=headers)

    with pytest.raises(NetworkError, match=words) as error:
        Reader(server.url).read(URL)
    assert "FORKYARD_GITHUB_TOKEN" in str(error.value.next_step)


@pytest.mark.parametrize("status", [403, 500, 503, 204])
def test_other_statuses(server: Any, reply: Any, status: int) -> None:
    server.replies[PATH] = reply(status=status)

    with pytest.raises(NetworkError, match=str(status)):
        Reader(server.url).read(URL)


def test_no_network(server: Any) -> None:
    reader = Reader(server.url)
    server.close()
    started = time.monotonic()
    try:
        with pytest.raises(NetworkError) as error:
            reader.read(URL)
    finally:
        server.close = lambda: None
    assert error.value.exit_code == 5
    assert time.monotonic() - started < 20


def test_a_login_in_the_address_is_not_shown(server: Any) -> None:
    login = base64.b64encode(b"x").decode()
    reader = Reader(server.url.replace("://", f"://user:{login}@"))
    with pytest.raises(Unreadable):
        reader.read("nothing")
    with pytest.raises(UsageError) as error:
        Reader(f"http://user:{login}@example.org")
    assert login not in str(error.value)
