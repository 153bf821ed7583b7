"""What several unit tests need: a loopback server, git stores in a temporary folder, and a small project."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import shlex
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest

from forkyard.cache import Cache
from forkyard.cli import main
from forkyard.gitstore import Author, Entry, Store
from forkyard.plan import Plan, logic_digest, make_plan
from forkyard.recipes import Variants, load_recipe, load_variants
from forkyard.toolchain import Toolchain

REPOSITORY = Path(__file__).parents[2]

RECIPE = """\
schema = 1
name = "mine"
family = "llama.cpp"
title = "my engine"
stacks = []

[pin]
commit = "1111111111111111111111111111111111111111"
tree = "2222222222222222222222222222222222222222"
date = "2026-01-05"
build-number = 7

[[sources]]
kind = "local"
path = "clone"

[build]
tools = ["llama-server"]
libraries = ["llama"]
headers = ["include/llama.h"]
include-dirs = ["include"]
defines = ["SHARED"]
cpu-target = "ggml-cpu"
options = { GGML_OPENMP = false }
licenses = ["LICENSE", "vendor/x/LICENSE"]
"""

STACK = """\
title = "a stack"
intent = "to be tested"
engines = ["llama.cpp"]
since = "2026-01-01"
"""

MESSAGE = b"part : change it\n\nBecause.\n\nUpstream-Status: Pending\n"


_variants: dict[bytes, Variants] = {}


@dataclass
class Request:
    """One request the loopback server got."""

    path: str
    headers: dict[str, str]


@dataclass
class Reply:
    """How the loopback server answers one request."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    """Whether a Range header is obeyed."""
    cut_after: int | None = None
    """Bytes of the body after which the connection is cut."""
    declare: bool = True
    """Whether Content-Length is sent."""


class LoopbackServer:
    """Answers from ``replies``: path -> one reply for ever, or a list used up one by one (the last one stays)."""

    def __init__(self) -> None:
        self.replies: dict[str, Reply | list[Reply]] = {}
        self.requests: list[Request] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.requests.append(Request(self.path, dict(self.headers)))
                self._send(server._reply(self.path.partition("?")[0]))

            def _send(self, reply: Reply) -> None:
                body, status, extra = reply.body, reply.status, dict(reply.headers)
                wanted = self.headers.get("Range")
                if wanted and reply.ranges and status == 200:
                    start = int(wanted.removeprefix("bytes=").rstrip("-"))
                    if start >= len(body):
                        status, body = 416, b""
                    else:
                        status, body = 206, body[start:]
                        extra["Content-Range"] = f"bytes {start}-{len(reply.body) - 1}/{len(reply.body)}"
                self.send_response(status)
                for name, value in extra.items():
                    self.send_header(name, value)
                if reply.declare:
                    self.send_header("Content-Length", str(len(body)))
                self.send_header("Connection", "close")
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body if reply.cut_after is None else body[: reply.cut_after])
                    self.wfile.flush()
                self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def _reply(self, path: str) -> Reply:
        reply = self.replies.get(path, Reply(status=404))
        if isinstance(reply, list):
            return reply.pop(0) if len(reply) > 1 else reply[0]
        return reply

    def close(self) -> None:
        """Stop answering."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    """A fresh loopback server."""
    running = LoopbackServer()
    yield running
    running.close()


@pytest.fixture(scope="session")
def reply() -> type[Reply]:
    """The class of the server's answers."""
    return Reply


class Forge:
    """Trees, commits and patches made in a store from plain data."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def tree(self, files: Mapping[str, bytes | tuple[str, bytes]]) -> str:
        """Tree id of ``path -> content`` or ``path -> (mode, content)``."""
        entries = []
        for path, content in files.items():
            mode, data = content if isinstance(content, tuple) else ("100644", content)
            oid = self.store._line("hash-object", "-w", "--no-filters", "--stdin", stdin=data)
            entries.append(Entry(mode, "blob", oid, path))
        return self.store.write_tree(entries)

    def patch(
        self,
        old: Mapping[str, Any],
        new: Mapping[str, Any],
        message: bytes = MESSAGE,
        author: Author = Author("A. Person", "a@example.org", "2026-01-02T03:04:05+02:00"),  # noqa: B008
    ) -> bytes:
        """The mailed patch that turns one set of files into another."""
        base = self.store.commit(self.tree(old), None, author, b"base\n")
        return self.store.export(self.store.commit(self.tree(new), base, author, message))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty object store."""
    made = Store(tmp_path / "store" / "engine.git")
    made.ensure()
    return made


@pytest.fixture
def forge(store: Store) -> Forge:
    """Makes trees and patches in the ``store`` fixture."""
    return Forge(store)


@pytest.fixture(scope="session")
def forge_of() -> type[Forge]:
    """The class of ``forge``, for other stores."""
    return Forge


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """A prepared cache of its own."""
    made = Cache(tmp_path / "cache")
    made.prepare()
    return made


@pytest.fixture
def project_root(tmp_path: Path) -> Path:
    """A project with one small recipe called ``mine``, the real variants and templates, and no stacks."""
    root = tmp_path / "project"
    (root / "recipes").mkdir(parents=True)
    (root / "patches").mkdir()
    (root / "recipes" / "mine.toml").write_text(RECIPE)
    shutil.copy(REPOSITORY / "recipes" / "variants.toml", root / "recipes" / "variants.toml")
    shutil.copytree(REPOSITORY / "wheels", root / "wheels")
    return root


@pytest.fixture
def add_stack() -> Callable[..., Path]:
    """Write a stack into a project: ``add_stack(root, name, patches={...}, files={...}, about=...)``."""

    def add(
        root: Path,
        name: str = "part",
        *,
        patches: Mapping[str, bytes] | None = None,
        files: Mapping[str, bytes] | None = None,
        about: str = STACK,
        family: str = "llama.cpp",
        series: str | None = None,
    ) -> Path:
        folder = root / "patches" / name
        (folder / family).mkdir(parents=True)
        (folder / "stack.toml").write_text(about)
        for patch, data in (patches or {}).items():
            (folder / family / patch).write_bytes(data)
        listing = "".join(f"{patch}\n" for patch in patches or {}) if series is None else series
        (folder / family / "series").write_text(listing)
        for path, data in (files or {}).items():
            target = folder / "src" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        return folder

    return add


@pytest.fixture(scope="session")
def repository() -> Path:
    """The project's own folder."""
    return REPOSITORY


@pytest.fixture(scope="session")
def as_nobody() -> Callable[[Callable[[], None]], int]:
    """Run a function in a child process without root's power over permissions; returns its exit status.

    The status is 0 if the function returns, 99 if it raises.
    """

    def run(function: Callable[[], None]) -> int:
        child = os.fork()
        if child == 0:
            status = 99
            try:
                if os.geteuid() == 0:
                    os.setgroups([])
                    os.setgid(65534)
                    os.setuid(65534)
                function()
                status = 0
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return run


@pytest.fixture
def toolchain(tmp_path: Path) -> Toolchain:
    """A compiler that nobody has."""
    openmp = tmp_path / "libgomp.so.1"
    openmp.write_bytes(b"openmp")
    return Toolchain(
        Path("/usr/bin/cc"), Path("/usr/bin/c++"), "gcc", "gcc 13", "x86_64-linux-gnu", "glibc 2.36", "9" * 64, openmp
    )


@pytest.fixture
def plan_of(project_root: Path, toolchain: Toolchain) -> Callable[..., Plan]:
    """Plan a recipe of the ``project_root`` fixture as it lies there now."""

    def make(variant: str = "avx2", recipe: str = "mine", stacks: list[str] | None = None, **changes: Any) -> Plan:
        logic_digest.cache_clear()
        compiler = dataclasses.replace(toolchain, **changes)
        found = load_recipe(recipe, project_root)
        text = (project_root / "recipes" / "variants.toml").read_bytes()
        if text not in _variants:
            # Reading them takes longer than all the rest of a plan.
            _variants[text] = load_variants(project_root)
        return make_plan(found, _variants[text], variant, project_root, compiler, stacks=stacks)

    return make


@dataclass(frozen=True)
class Pasted:
    """One command of a line that a person was told to paste."""

    program: str
    words: list[str]
    values: dict[str, Any]
    """What click made of the words, if the program is forkyard's."""


@pytest.fixture(scope="session")
def pasted() -> Callable[[Sequence[str]], list[Pasted]]:
    """Read lines as a shell does, and each command of forkyard's as forkyard does; comments mean nothing."""

    def read(lines: Sequence[str]) -> list[Pasted]:
        found = []
        for line in lines:
            words = shlex.split(line, comments=True)
            while words:
                part = list(itertools.takewhile(lambda word: word != "&&", words))
                words = words[len(part) + 1 :]
                assert part[0] in ("forkyard", "git", "cd"), f"{line!r} cannot be pasted"
                values = _parsed(part[1:]) if part[0] == "forkyard" else {}
                found.append(Pasted(part[0], part[1:], values))
        return found

    return read


def _parsed(words: Sequence[str]) -> dict[str, Any]:
    command: click.Command | None = main
    rest = list(words)
    with click.Context(main) as context:
        while isinstance(command, click.Group):
            command = command.get_command(context, rest.pop(0))
        assert command is not None, words
        return command.make_context(command.name, rest).params
