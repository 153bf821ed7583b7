"""Sources that cannot be reached, answer garbage, or deliver something else than the pin."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import os
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from ..toy import Answer, Toy

HTML = "text/html"
PROJECT, VERSION = "toy-engine", "1.0"
SDIST = f"toy_engine-{VERSION}.tar.gz"


@dataclass
class Index:
    """A package registry on the loopback interface that answers whatever a test wants."""

    url: str = ""
    answers: dict[str, tuple[int, str, bytes]] = field(default_factory=dict)
    """Path -> status, content type, body."""
    asked: list[str] = field(default_factory=list)

    def offer(self, archive: bytes, *, announced: str | None = None) -> None:
        """Offer an archive, with another sha256 than its own if given."""
        digest = announced or hashlib.sha256(archive).hexdigest()
        page = f'<!DOCTYPE html><html><body><a href="/files/{SDIST}#sha256={digest}">{SDIST}</a></body></html>'
        self.answers[f"/simple/{PROJECT}/"] = (200, HTML, page.encode())
        self.answers[f"/files/{SDIST}"] = (200, "application/octet-stream", archive)


@pytest.fixture
def index() -> Iterator[Index]:
    """A running registry; it knows nothing yet."""
    state = Index()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            status, kind, body = state.answers.get(self.path, (404, HTML, b"not here"))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}/simple/"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield state
        server.shutdown()
        thread.join()


@pytest.fixture
def toy(toy: Toy, index: Index) -> Toy:
    """The toy, its pip set up for the test's registry and nothing else."""
    toy.environment |= {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": index.url,
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_NO_INDEX": "0",
        "PIP_FIND_LINKS": "",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    return toy


def closed_port() -> int:
    """A loopback port where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def sdist(toy: Toy) -> bytes:
    """The engine's files in a source archive of another package, as registries have them."""
    command = ["git", "archive", f"--prefix=toy_engine-{VERSION}/vendor/engine/", "HEAD"]
    tar = subprocess.run(command, cwd=toy.engine, capture_output=True, check=True, timeout=1800).stdout
    return gzip.compress(tar, mtime=0)


def registry_source(digest: str) -> str:
    return (
        f'[[sources]]\nkind = "registry"\nproject = "{PROJECT}"\nversion = "{VERSION}"\n'
        f'sha256 = "{digest}"\nfolder = "vendor/engine"\n'
    )


def git_source(url: str) -> str:
    return f'[[sources]]\nkind = "git"\nurl = "{url}"\n'


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def assert_nothing_kept(toy: Toy) -> None:
    assert not toy.wheels()
    assert list((toy.cache / "downloads").iterdir()) == []
    assert not list((toy.cache / "trees").glob("*/CMakeLists.txt"))


def assert_failed(answer: Answer, status: int, *words: str) -> None:
    assert answer.status == status, f"{answer.status}\n{answer.stdout}\n{answer.stderr}"
    text = " ".join(str(value) for value in answer.json.values())
    for word in words:
        assert word in text, f"{word!r} is not in {text}"
    assert answer.json["next"], text


def test_nothing_can_be_reached(toy: Toy) -> None:
    port = closed_port()
    toy.write_recipe(sources=git_source(f"https://127.0.0.1:{port}/toy.git") + registry_source("0" * 64))
    answer = toy.build(env={"PIP_INDEX_URL": f"http://127.0.0.1:{port}/simple/"})
    assert_failed(answer, 5, f"127.0.0.1:{port}/toy.git", f"{PROJECT} {VERSION}")
    assert_nothing_kept(toy)


def test_a_password_is_never_shown(toy: Toy) -> None:
    port = closed_port()
    toy.write_recipe(sources=git_source(f"https://me:hunter2@127.0.0.1:{port}/toy.git") + registry_source("0" * 64))
    answer = toy.build(env={"PIP_INDEX_URL": f"http://me:hunter2@127.0.0.1:{port}/simple/"})
    assert_failed(answer, 5)
    assert "hunter2" not in answer.stdout + answer.stderr


@pytest.mark.parametrize(
    "page",
    [
        (200, HTML, bytes(range(256)) * 40),
        (200, HTML, b""),
        (200, "application/vnd.pypi.simple.v1+json", b'{"files": [{"na'),
        (200, "application/vnd.pypi.simple.v1+json", b'{"files": 7}'),
        (200, "application/pdf", b"%PDF-1.4"),
        (500, HTML, b"oops"),
        (404, HTML, b"who?"),
    ],
    ids=["bytes", "empty", "torn-json", "other-json", "pdf", "500", "404"],
)
def test_a_registry_that_answers_garbage(toy: Toy, index: Index, page: tuple[int, str, bytes]) -> None:
    toy.write_recipe(sources=registry_source("0" * 64))
    index.answers[f"/simple/{PROJECT}/"] = page
    assert_failed(toy.build(), 5, index.url)
    assert_nothing_kept(toy)


def test_a_registry_that_gives_another_file(toy: Toy, index: Index) -> None:
    archive = sdist(toy)
    toy.write_recipe(sources=registry_source(sha256(archive)))
    wrong = archive[:-1] + bytes([archive[-1] ^ 1])
    index.offer(wrong, announced=sha256(archive))
    assert_failed(toy.build(), 4, sha256(archive), sha256(wrong))
    assert_nothing_kept(toy)
    # The registry is mended: nothing of the wrong file is in the way.
    index.offer(archive)
    assert toy.build().built["fresh"]


def test_a_registry_that_announces_another_file(toy: Toy, index: Index) -> None:
    archive = sdist(toy)
    toy.write_recipe(sources=registry_source(sha256(archive)))
    index.offer(archive + b"more")
    assert_failed(toy.build(), 4, sha256(archive), sha256(archive + b"more"))
    assert f"/files/{SDIST}" not in index.asked
    assert_nothing_kept(toy)


@pytest.mark.parametrize("content", ["garbage", "hostile", "torn", "changed"])
def test_an_archive_that_is_not_what_it_should_be(toy: Toy, index: Index, content: str) -> None:
    """The recipe's own digest is of a bad archive: even then nothing is built from it."""
    archive = {
        "garbage": lambda: b"\x00garbage" * 1000,
        "hostile": lambda: gzip.compress(_hostile(), mtime=0),
        "torn": lambda: sdist(toy)[:900],
        "changed": lambda: gzip.compress(gzip.decompress(sdist(toy)).replace(b"value + 3;", b"value + 4;"), mtime=0),
    }[content]()
    toy.write_recipe(sources=registry_source(sha256(archive)))
    index.offer(archive)
    words = [toy.tree] if content == "changed" else [".tar.gz"]
    assert_failed(toy.build(), 4, *words)
    assert not (toy.home / "outside").exists()
    assert not toy.wheels()


def _hostile() -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        info = tarfile.TarInfo(f"toy_engine-{VERSION}/vendor/engine/../../../../../home/outside")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    return whole.getvalue()


def test_a_commit_with_another_tree_than_the_pins(toy: Toy) -> None:
    toy.write_recipe(tree="1234" * 10)
    assert_failed(toy.build(), 4, "1234" * 10, toy.tree)
    assert not toy.wheels()


def test_a_repository_without_the_commit(toy: Toy) -> None:
    toy.edit_recipe(toy.commit, "5678" * 10)
    assert_failed(toy.build(), 5, "5678" * 10)


def test_ssh_says_no(toy: Toy) -> None:
    """What ssh said is the reason, and not the sentence git adds to every failure."""
    ssh = toy.home / "ssh"
    ssh.write_text("#!/bin/sh\necho 'git@example.org: Permission denied (publickey).' >&2\nexit 255\n")
    ssh.chmod(0o755)
    toy.environment |= {"GIT_SSH_COMMAND": f"'{ssh}'", "GIT_SSH_VARIANT": "simple"}
    toy.write_recipe(sources=git_source("ssh://git@example.org/a/b.git"))
    answer = toy.build()
    assert_failed(answer, 5, "Permission denied (publickey)", "the server accepts none of your ssh keys")
    assert "ssh-add" in answer.json["next"]
    assert "and the repository exists" not in answer.json["why"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_the_advice_for_a_source_of_somebody_else_helps(toy: Toy) -> None:
    for path in [toy.engine, *toy.engine.rglob("*")]:
        os.chown(path, 12345, 12345, follow_symlinks=False)
    answer = toy.build()
    assert_failed(answer, 5, "belongs to somebody else")
    command = answer.json["next"].partition("run: ")[2].splitlines()[0]
    environment = {**os.environ, **toy.environment, "HOME": str(toy.home)}
    subprocess.run(command, shell=True, check=True, timeout=1800, env=environment)
    assert toy.build().built


def test_a_repository_with_a_flipped_byte(toy: Toy) -> None:
    """Loose objects of the clone are damaged: git sees it, and so does the user."""
    for path in (toy.engine / ".git" / "objects").glob("??/*"):
        data = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 0x10]) + data[-2:])
    answer = toy.build()
    assert answer.status in (4, 5), answer.stdout
    assert len(answer.json["why"].splitlines()) < 15, "progress is no reason"
    assert "objects: " not in answer.json["why"]
    assert not toy.wheels()


def test_every_way_to_the_pin_gives_the_same_wheel(toy: Toy, index: Index) -> None:
    archive = sdist(toy)
    sources = git_source(toy.engine.as_uri()) + registry_source(sha256(archive)) + toy.local_source
    toy.write_recipe(sources=sources)
    index.offer(archive)
    mine = toy.home / "mine.tar.gz"
    mine.write_bytes(archive)
    digests = {}
    # Every kind of source by its name, a URL, a clone, and a downloaded archive.
    for source in ("git", "registry", "local", str(toy.engine), str(mine)):
        toy.cache = toy.cache.with_name(f"cache-{len(digests)}")
        if source == str(mine):
            index.answers.clear()
        digests[source] = toy.build("--source", source).built["sha256"]
    assert len(set(digests.values())) == 1, digests


def test_a_source_the_recipe_does_not_have(toy: Toy) -> None:
    answer = toy.build("--source", "registry")
    assert answer.status == 3
    assert f"{toy.recipe}:" in answer.json["where"]


def test_an_archive_the_recipe_does_not_name(toy: Toy) -> None:
    mine = toy.home / "mine.tar.gz"
    mine.write_bytes(b"something")
    assert_failed(toy.build("--source", str(mine)), 4, sha256(b"something"))


def test_offline(toy: Toy, index: Index) -> None:
    archive = sdist(toy)
    toy.write_recipe(sources=registry_source(sha256(archive)))
    index.offer(archive)
    assert_failed(toy.build("--offline"), 5, "offline")
    assert index.asked == []
    online = toy.build().built
    asked = len(index.asked)
    toy.run("clean", "builds", "wheels")
    assert toy.build("--offline").built["sha256"] == online["sha256"]
    assert len(index.asked) == asked
