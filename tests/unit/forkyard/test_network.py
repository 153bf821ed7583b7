from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from forkyard.errors import NetworkError, SourceError
from forkyard.network import download, sha256_of, without_secrets

# Larger than the pieces a download is read in, so that a cut connection leaves something to go on from.
CONTENT = bytes(range(256)) * 4096
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def fetch(tmp_path: Path, server: Any) -> Callable[..., Path]:
    """Download ``/file`` from the loopback server without pauses between the tries."""

    def run(**options: Any) -> Path:
        target = tmp_path / "down" / "file.bin"
        address = options.pop("url", f"{server.url}/file")
        with requests.Session() as session:
            session.trust_env = False
            return download(session, address, target, **{"sha256": DIGEST, "pause_s": 0.0, **options})

    return run


def part_of(tmp_path: Path) -> Path:
    return tmp_path / "down" / "file.bin.part"


def leave_part(tmp_path: Path, data: bytes) -> None:
    part_of(tmp_path).parent.mkdir(exist_ok=True)
    part_of(tmp_path).write_bytes(data)


def test_complete_download_reports_progress_and_leaves_no_part(
    tmp_path: Path, server: Any, reply: Any, fetch: Any
) -> None:
    server.replies["/file"] = reply(CONTENT)
    told: list[tuple[int, int | None]] = []
    target = fetch(progress=lambda done, total: told.append((done, total)))
    assert target.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]
    assert "Range" not in server.requests[0].headers


def test_a_part_is_continued_and_only_the_rest_is_asked_for(
    tmp_path: Path, server: Any, reply: Any, fetch: Any
) -> None:
    server.replies["/file"] = reply(CONTENT)
    leave_part(tmp_path, CONTENT[:300_000])
    told: list[tuple[int, int | None]] = []
    assert fetch(progress=lambda done, total: told.append((done, total))).read_bytes() == CONTENT
    assert [request.headers["Range"] for request in server.requests] == ["bytes=300000-"]
    assert told[0][0] > 300_000
    assert {total for _, total in told} == {len(CONTENT)}


def test_a_server_without_ranges_sends_all_again(tmp_path: Path, server: Any, reply: Any, fetch: Any) -> None:
    server.replies["/file"] = reply(CONTENT, ranges=False)
    leave_part(tmp_path, b"x" * 1000)
    assert fetch().read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_a_cut_connection_is_continued_where_it_broke_off(tmp_path: Path, server: Any, reply: Any, fetch: Any) -> None:
    server.replies["/file"] = [reply(CONTENT, cut_after=600_000), reply(CONTENT)]
    assert fetch().read_bytes() == CONTENT
    first, second = server.requests
    assert "Range" not in first.headers
    start = int(second.headers["Range"].removeprefix("bytes=").removesuffix("-"))
    assert 0 < start <= 600_000


def test_a_cut_download_that_never_ends_keeps_its_part_for_the_next_run(
    tmp_path: Path, server: Any, reply: Any, fetch: Any
) -> None:
    server.replies["/file"] = reply(CONTENT, cut_after=600_000, ranges=False)
    with pytest.raises(NetworkError, match="could not download"):
        fetch(tries=2)
    kept = part_of(tmp_path).read_bytes()
    assert kept
    assert CONTENT.startswith(kept)
    server.replies["/file"] = reply(CONTENT)
    assert fetch().read_bytes() == CONTENT
    assert server.requests[-1].headers["Range"] == f"bytes={len(kept)}-"


def test_wrong_content_names_both_digests_and_keeps_nothing(
    tmp_path: Path, server: Any, reply: Any, fetch: Any
) -> None:
    server.replies["/file"] = reply(b"something else")
    with pytest.raises(SourceError) as caught:
        fetch()
    assert DIGEST in caught.value.describe()
    assert hashlib.sha256(b"something else").hexdigest() in caught.value.describe()
    assert list((tmp_path / "down").iterdir()) == []
    assert len(server.requests) == 1


def test_a_part_of_another_file_does_not_spoil_the_download(
    tmp_path: Path, server: Any, reply: Any, fetch: Any
) -> None:
    server.replies["/file"] = reply(CONTENT)
    leave_part(tmp_path, b"y" * 1000)
    assert fetch().read_bytes() == CONTENT
    assert len(server.requests) == 2
    assert "Range" not in server.requests[1].headers


def test_a_complete_part_that_was_not_renamed_is_not_lost(tmp_path: Path, server: Any, reply: Any, fetch: Any) -> None:
    # The server answers 416: there is nothing after the end.
    server.replies["/file"] = reply(CONTENT)
    leave_part(tmp_path, CONTENT)
    assert fetch().read_bytes() == CONTENT
    assert not part_of(tmp_path).exists()


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (401, 1), (500, 3), (503, 3), (429, 3), (408, 3)])
def test_refusals_are_final_and_faults_are_retried(
    tmp_path: Path, server: Any, reply: Any, fetch: Any, status: int, tries: int
) -> None:
    server.replies["/file"] = reply(b"no", status=status)
    with pytest.raises(NetworkError) as caught:
        fetch(tries=3)
    assert str(status) in caught.value.describe()
    assert len(server.requests) == tries
    assert list((tmp_path / "down").glob("*")) == []


def test_a_fault_that_passes_is_overcome(server: Any, reply: Any, fetch: Any) -> None:
    server.replies["/file"] = [reply(status=500), reply(status=503), reply(CONTENT)]
    assert fetch().read_bytes() == CONTENT


def test_pauses_double(server: Any, reply: Any, fetch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("forkyard.network.time.sleep", slept.append)
    server.replies["/file"] = reply(status=500)
    with pytest.raises(NetworkError):
        fetch(tries=4, pause_s=0.5)
    assert slept == [0.5, 1.0, 2.0]


def test_no_answer_at_all(fetch: Any) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with pytest.raises(NetworkError) as caught:
        fetch(url=f"http://127.0.0.1:{port}/file", tries=2)
    assert caught.value.next_step


def test_a_server_that_speaks_no_http(tmp_path: Path, fetch: Any) -> None:
    import threading

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def babble() -> None:
            for _ in range(2):
                connection, _address = listener.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"\0\1\2 what is this\r\n\r\n")

        thread = threading.Thread(target=babble)
        thread.start()
        with pytest.raises(NetworkError):
            fetch(url=f"http://127.0.0.1:{listener.getsockname()[1]}/file", tries=2)
        thread.join()
    assert list((tmp_path / "down").glob("*")) == []


def test_a_good_target_needs_no_network(tmp_path: Path, server: Any, fetch: Any) -> None:
    (tmp_path / "down").mkdir()
    (tmp_path / "down" / "file.bin").write_bytes(CONTENT)
    assert fetch().read_bytes() == CONTENT
    assert server.requests == []


def test_a_damaged_target_is_fetched_again(tmp_path: Path, server: Any, reply: Any, fetch: Any) -> None:
    server.replies["/file"] = reply(CONTENT)
    (tmp_path / "down").mkdir()
    (tmp_path / "down" / "file.bin").write_bytes(b"X" + CONTENT[1:])
    assert fetch().read_bytes() == CONTENT


@pytest.mark.parametrize(
    "answer", [{"status": 404}, {"status": 500}, {"body": b"wrong"}, {"body": b"w", "cut_after": 0}]
)
def test_no_secret_of_the_url_is_in_a_message(server: Any, reply: Any, fetch: Any, answer: dict[str, Any]) -> None:
    server.replies["/file"] = reply(**answer)
    address = server.url.replace("http://", "http://someone:hunter2@") + "/file?token=s3cr3t"
    with pytest.raises((NetworkError, SourceError)) as caught:
        fetch(url=address, tries=1)
    for text in (caught.value.describe(), str(caught.value.as_json())):
        assert "hunter2" not in text
        assert "s3cr3t" not in text
        assert "127.0.0.1" in text
    assert server.requests[0].headers["Authorization"].startswith("Basic ")
    assert server.requests[0].path == "/file?token=s3cr3t"


words = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)


@given(words, words, words, words, words)
def test_without_secrets_in_the_middle_of_a_sentence(user: str, secret: str, host: str, path: str, before: str) -> None:
    secret = f"S-{secret}-S"
    text = f"{before} for url: https://{user}:{secret}@{host}/{path}?key={secret} (again: https://{secret}@{host})"
    shown = without_secrets(text)
    assert secret not in shown
    assert f"@{host}/{path}" in shown
    assert shown.startswith(f"{before} for url: https://")


def test_without_secrets_leaves_harmless_text_alone() -> None:
    for text in ("https://example.org/a@b/c", "mail me@example.org", "no url at all", "Is it there? Yes"):
        assert without_secrets(text) == text


def test_sha256_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    assert sha256_of(tmp_path / "file") == DIGEST
