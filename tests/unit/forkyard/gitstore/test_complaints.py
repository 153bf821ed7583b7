"""What a failed git is reduced to: its cause first, and a next step that was tried."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import shlex
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forkyard.gitstore import GitFailure, Store
from forkyard.gitstore.complaints import read_complaint
from forkyard.gitstore.forks import fetch_refs, list_refs
from forkyard.gitstore.naming import named_commit

COURTESY = (
    "fatal: Could not read from remote repository.\n\nPlease make sure you have the correct access rights\n"
    "and the repository exists.\n"
)
OID = "1127304b44c93b81365608aa80e44d54815adb52"


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True, timeout=1800)
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with two commits."""
    folder = tmp_path / "some where" / "clone"
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    for number in (1, 2):
        (folder / f"f{number}").write_text(f"{number}\n" * 50)
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "--message", f"c{number}")
    return folder


@pytest.fixture(autouse=True)
def no_users_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is advised here is not to reach the configuration of whoever runs the tests."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


def failure(what: Callable[[], object]) -> GitFailure:
    with pytest.raises(GitFailure) as caught:
        what()
    return caught.value


# -- what is known, in git's words -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "first"),
    [
        (f"git@example.org: Permission denied (publickey).\n{COURTESY}", "access", "Permission denied (publickey)"),
        (f"a@b: Permission denied (publickey,password).\n{COURTESY}", "access", "Permission denied"),
        (f"Host key verification failed.\n{COURTESY}", "access", "Host key verification failed."),
        (
            f"ssh: Could not resolve hostname example.invalid: Name or service not known\n{COURTESY}",
            "unreachable",
            "Could not resolve hostname",
        ),
        (
            "fatal: unable to access 'https://example.invalid/': Could not resolve host: example.invalid",
            "unreachable",
            "Could not resolve host",
        ),
        (f"ssh: connect to host x port 22: Connection refused\n{COURTESY}", "unreachable", "Connection refused"),
        ("remote: Repository not found.\nfatal: repository 'https://x/y/' not found", "no-repository", "not found"),
        (f"ERROR: Repository not found.\n{COURTESY}", "no-repository", "ERROR: Repository not found."),
        (
            "fatal: could not read Username for 'https://x': terminal prompts disabled",
            "access",
            "could not read Username",
        ),
        ("fatal: Authentication failed for 'https://x/'", "access", "Authentication failed"),
        (
            "fatal: unable to access 'https://x/': The requested URL returned error: 403",
            "access",
            "returned error: 403",
        ),
        (
            "fatal: unable to access 'https://x/': server certificate verification failed. CAfile: none CRLfile: none",
            "access",
            "certificate",
        ),
        (
            "fatal: unable to access 'https://x/': SSL certificate problem: unable to get local issuer certificate",
            "access",
            "SSL certificate problem",
        ),
        (
            "error: RPC failed; curl 56 recv failure\nfatal: early EOF\nfatal: fetch-pack: invalid index-pack output",
            "unreachable",
            "RPC failed",
        ),
        (
            f"remote: error: inflate: data stream error\nremote: fatal: loose object {OID} (stored in ./x) is corrupt\n"
            "remote: aborting due to possible repository corruption on the remote side.\nfatal: early EOF\n"
            "fatal: fetch-pack: invalid index-pack output",
            "damaged",
            f"loose object {OID}",
        ),
        (
            "error: inflate: data stream error (invalid distance too far back)\nfatal: unpack-objects failed",
            "damaged",
            "inflate",
        ),
        (f"remote: error: object file ./objects/11/{OID[2:]} is empty\nfatal: early EOF", "damaged", "is empty"),
        ("error: file write error: No space left on device\nfatal: early EOF", "disk-full", "No space left"),
        ("fatal: Unable to create '/r/.git/index.lock': File exists.\n\nAnother git process", "locked", "index.lock"),
        (f"remote: fatal: could not fetch {OID} from promisor remote\nfatal: early EOF", "incomplete", OID),
        (f"fatal: remote error: upload-pack: not our ref {OID}", "absent", OID),
        ("fatal: couldn't find remote ref nope", "absent", "nope"),
        (f"error: Server does not allow request for unadvertised object {OID}", "absent", OID),
        ("fatal: attempt to fetch/clone from a shallow repository", "cut-off", "shallow"),
        ("error: unknown option `no-filter'\nusage: git fetch", "too-old", "no-filter"),
        ("error: cannot run ssh: No such file or directory\nfatal: unable to fork", "no-transport", "cannot run ssh"),
        ("fatal: transport 'ext' not allowed", "no-transport", "ext"),
    ],
)
def test_the_cause_comes_first_and_has_a_next_step(text: str, kind: str, first: str) -> None:
    said = read_complaint(text)
    assert said.kind == kind
    assert first in said.lines[0]
    assert said.meaning
    assert said.why.startswith(said.meaning)
    assert said.next_step or kind == "damaged"
    assert "and the repository exists" not in said.why


@pytest.mark.parametrize(
    "text",
    ["error: invalid path 'a'", "fatal: packfile name", "fatal: filter-process", "error: corrupt patch at line 3"],
)
def test_a_single_word_is_no_cause(text: str) -> None:
    assert read_complaint(text).kind == "other"
    assert not GitFailure(["apply"], 1, text).corrupt


def test_progress_and_courtesies_are_left_out() -> None:
    steps = "\r".join(f"remote: Compressing objects: {n:3}% ({n}/100)        " for n in range(101))
    text = (
        f"remote: Enumerating objects: 5, done.        \nremote: Counting objects: 100% (5/5), done.\n{steps}\n"
        "Receiving objects:  20% (1/5)\rReceiving objects: 100% (5/5), 1.2 KiB | 1.2 MiB/s, done.\n"
        "Resolving deltas: 100% (2/2), done.\nremote: Total 5 (delta 2), reused 5 (delta 2), pack-reused 0 (from 0)\n"
        "From /tmp/x\n * branch            HEAD       -> FETCH_HEAD\nhint: try this\n"
        "warning: something\n\x1b[31mfatal: strange\x1b[m\0\nremote: it says so\n" + COURTESY
    )
    said = read_complaint(text)
    assert said.kind == "other"
    assert said.lines == (
        "fatal: strange",
        "fatal: Could not read from remote repository.",
        "warning: something",
        "remote: it says so",
    )


def test_much_is_cut_and_counted() -> None:
    said = read_complaint("\n".join(f"error: {number}" for number in range(30)))
    assert said.why.splitlines()[-1].strip() == "(22 more lines)"
    assert read_complaint("").brief == "no reason given"


# -- what is known, tried ----------------------------------------------------------------------------------------


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has ssh say something and end as ssh does."""

    def say(text: str) -> None:
        script = tmp_path / "ssh"
        script.write_text(f"#!/bin/sh\nprintf '%s\\n' {shlex.quote(text)} >&2\nexit 255\n")
        script.chmod(0o755)
        monkeypatch.setenv("GIT_SSH_COMMAND", shlex.quote(str(script)))
        monkeypatch.setenv("GIT_SSH_VARIANT", "simple")

    return say


@pytest.mark.parametrize(
    ("text", "meaning", "step"),
    [
        ("git@example.org: Permission denied (publickey).", "ssh keys", "ssh-add -l"),
        ("Host key verification failed.", "server's key", "ssh SERVER"),
        ("ssh: Could not resolve hostname example.invalid: Name or service not known", "name", "check the name"),
        ("ssh: connect to host example.org port 22: Connection timed out", "reached", "network"),
        ("ERROR: Repository not found.", "no such repository", "check the address"),
    ],
)
def test_what_ssh_says_is_the_cause(
    store: Store, ssh: Callable[[str], None], text: str, meaning: str, step: str
) -> None:
    ssh(text)
    address = "ssh://git@example.org/a/b.git"
    for ask in (
        lambda: store.fetch(address, OID),
        lambda: named_commit(store, address),
        lambda: list_refs(store, address),
        lambda: fetch_refs(store, address, {"refs/x": "HEAD"}),
    ):
        error = failure(ask)
        assert text in str(error.why)
        assert meaning in str(error.why).splitlines()[0]
        assert step in str(error.next_step)
        assert "and the repository exists" not in str(error)


@pytest.fixture
def answering() -> Iterator[Callable[[int, str], str]]:
    """A web server that answers everything alike; gives its address."""
    with contextlib.ExitStack() as stack:

        def answer(status: int, body: str) -> str:
            class Handler(http.server.BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    self.send_response(status)
                    self.send_header("Content-Type", "text/html")
                    if status == 401:
                        self.send_header("WWW-Authenticate", 'Basic realm="x"')
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body.encode())

                def log_message(self, format: str, *args: object) -> None:
                    pass

            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_address[1]}/a/b.git"

        yield answer


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, "access"), (403, "access"), (404, "no-repository"), (500, "unreachable"), (503, "unreachable")],
)
def test_what_a_web_server_says_is_the_cause(
    store: Store, answering: Callable[[int, str], str], monkeypatch: pytest.MonkeyPatch, status: int, kind: str
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_ASKPASS", "true")
    error = failure(lambda: store.fetch(answering(status, "no"), OID))
    assert error.complaint.kind == kind, error.text


def test_a_page_is_no_repository(store: Store, answering: Callable[[int, str], str]) -> None:
    page = (
        "<!DOCTYPE html>\n<html><head><title>Sign in</title></head>\n" + "<p>Please sign in to the network.</p>\n" * 9
    )
    error = failure(lambda: named_commit(store, answering(200, page)))
    assert error.complaint.kind == "no-repository", error.text


def test_the_advice_for_a_certificate_nobody_vouches_for_helps(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("there is no openssl to make a certificate with")
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("GIT_SSL_CAINFO", "GIT_SSL_NO_VERIFY", "SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    words += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([program, *words], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")

    class Quiet(http.server.ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that hangs up is what is tested."""

    with Quiet(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            address = f"https://127.0.0.1:{server.server_address[1]}/a.git"
            error = failure(lambda: named_commit(store, address))
            assert "certificate is not accepted" in str(error.why), error.text
            command = re.search(r"`(git config [^`]*)`", str(error.next_step))
            assert command is not None
            given = command[1].replace("FILE", shlex.quote(str(tmp_path / "cert.pem")))
            subprocess.run(given, shell=True, check=True, timeout=60)
            # It does not answer GET; but it was asked.
            assert "certificate" not in str(failure(lambda: named_commit(store, address)).why)
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("place", ["", ".git", "worktree", "bare", "submodule", "link", "url"])
def test_the_advice_for_somebody_elses_repository_helps(
    store: Store, clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    head = git(clone, "rev-parse", "HEAD")
    other = tmp_path / "o'ther"
    if place == "worktree":
        git(clone, "worktree", "add", "--quiet", "--detach", str(other))
    if place == "submodule":
        other.mkdir()
        git(other, "init", "--quiet")
        git(other, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(clone), "sub")
    if place == "link":
        other.symlink_to(clone)
    if place == "bare":
        git(tmp_path, "clone", "--quiet", "--bare", str(clone), str(other))
    for path in [clone, *clone.rglob("*"), *([other, *other.rglob("*")] if other.exists() else [])]:
        os.chown(path, 12345, 12345, follow_symlinks=False)
    if place == "submodule":
        other = other / "sub"
    location = {"": str(clone), ".git": str(clone / ".git"), "url": clone.as_uri().replace("%20", " ")}.get(
        place, str(other)
    )
    monkeypatch.delenv("SUDO_UID", raising=False)
    error = failure(lambda: store.fetch(location, head))
    assert error.complaint.kind == "ownership"
    command = str(error.next_step).partition("run: ")[2]
    assert command.startswith("git config --global --add safe.directory ")
    subprocess.run(command, shell=True, check=True, timeout=1800)
    store.fetch(location, head)
    assert store.has(head, "commit")
    # What was edited in the project is taken from there in the same way.
    second = Store(tmp_path / "second.git")
    second.ensure()
    second.take(Path(location.removeprefix("file://")), head)
    assert second.has(head, "commit")


def test_the_advice_for_a_partial_clone_helps(store: Store, clone: Path, tmp_path: Path) -> None:
    git(clone, "config", "uploadpack.allowFilter", "true")
    words = ("--quiet", "--filter=blob:none", "--no-checkout", f"file://{clone}")
    git(tmp_path, "clone", *words, str(tmp_path / "partial"))
    ask = {"refs/x": "HEAD"}
    error = failure(lambda: fetch_refs(store, str(tmp_path / "partial"), ask))
    assert error.complaint.kind == "incomplete", error.text
    command = re.search(r"`(git fetch [^`]*)`", str(error.next_step))
    assert command is not None
    subprocess.run(shlex.split(command[1]), cwd=tmp_path / "partial", check=True, capture_output=True, timeout=1800)
    assert fetch_refs(store, str(tmp_path / "partial"), ask)


def test_the_advice_for_a_lock_that_was_left_helps(clone: Path, tmp_path: Path) -> None:
    store = Store(clone / ".git")
    (clone / ".git" / "refs" / "heads" / "x.lock").touch()
    head = git(clone, "rev-parse", "HEAD")
    error = failure(lambda: store._git("update-ref", "refs/heads/x", head))
    assert error.complaint.kind == "locked", error.text
    subprocess.run(str(error.next_step).partition("delete it: ")[2], shell=True, check=True, timeout=1800)
    store._git("update-ref", "refs/heads/x", head)


def test_a_commit_that_is_not_there_is_no_network_fault(store: Store, clone: Path) -> None:
    error = failure(lambda: store.fetch(str(clone), OID))
    assert error.complaint.kind == "absent"
    assert not error.corrupt


@pytest.mark.parametrize("how", ["flip", "empty", "cut", "gone", "pack"])
def test_damage_is_said_first_and_without_progress(store: Store, clone: Path, how: str) -> None:
    if how == "pack":
        git(clone, "repack", "-adq")
        (victim,) = (clone / ".git" / "objects" / "pack").glob("*.pack")
    else:
        oid = git(clone, "rev-parse", "HEAD:f2")
        victim = clone / ".git" / "objects" / oid[:2] / oid[2:]
    victim.chmod(0o644)
    data = victim.read_bytes()
    middle = len(data) // 2
    if how == "pack":
        victim.write_bytes(data[:12] + bytes(byte ^ (0x55 if not n % 9 else 0) for n, byte in enumerate(data[12:])))
    elif how == "gone":
        victim.unlink()
    else:
        changed = bytes(byte ^ 0x55 for byte in data[middle - 2 : middle + 2])
        victim.write_bytes(
            {"empty": b"", "cut": data[:middle]}.get(how, data[: middle - 2] + changed + data[middle + 2 :])
        )
    error = failure(lambda: store.fetch(str(clone), git(clone, "rev-parse", "HEAD")))
    assert error.corrupt, error.text
    assert error.complaint.kind == "damaged"
    assert len(str(error.why).splitlines()) <= 10
    assert "objects: " not in str(error.why)
    # What is advised in the end: git fsck sees it, too.
    done = subprocess.run(["git", "fsck"], cwd=clone, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode != 0


def test_no_repository(store: Store, tmp_path: Path) -> None:
    for location in (str(tmp_path / "nowhere"), str(tmp_path)):
        assert failure(lambda location=location: store.fetch(location, OID)).complaint.kind == "no-repository"  # type: ignore[misc]


def test_without_ssh(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GIT_SSH_COMMAND", raising=False)
    program = shutil.which("git")
    assert program is not None
    for name in ("env", "sh"):
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    (tmp_path / "git").write_text(f'#!/bin/sh\nexec {program} "$@"\n')
    (tmp_path / "git").chmod(0o755)
    exec_path = subprocess.run([program, "--exec-path"], capture_output=True, text=True, check=True).stdout.strip()
    if (Path(exec_path) / "ssh").exists():
        pytest.skip("ssh lies beside git here")
    monkeypatch.setenv("PATH", str(tmp_path))
    error = failure(lambda: store.fetch("ssh://git@127.0.0.1/x", OID))
    assert error.complaint.kind == "no-transport", error.text
