"""Ask a llama-server whether it is ready: where it answers, what an answer means, and whether the answer is its own."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from urllib.parse import quote

from .errors import UsageError

__all__ = ["Address", "Answer", "State", "api_prefix", "ask", "has_key", "listening", "option_name", "wants_tls"]

_TIMEOUT_S = 2.0
_BODY_BYTES = 4096
_TLS_OPTIONS = ("--ssl-key-file", "--ssl-cert-file")
_TLS_VARIABLES = ("LLAMA_ARG_SSL_KEY_FILE", "LLAMA_ARG_SSL_CERT_FILE")


@dataclass(frozen=True)
class Address:
    """Where a server of this machine answers; `prefix` stands before every path, `tls` makes it https."""

    host: str
    port: int
    prefix: str = ""
    tls: bool = False

    @property
    def url(self) -> str:
        """Where clients find it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{quote(self.prefix)}"

    @property
    def health_path(self) -> str:
        """The path of its health address, as it is sent."""
        return quote(self.prefix + "/health")


class State(Enum):
    """What an answer means."""

    READY = "ready"
    LOADING = "loading"
    SILENT = "silent"
    """No answer yet: nothing listens, or the server is too busy."""
    OTHER = "other"
    """An answer, but not of a health address: waiting longer changes nothing."""


@dataclass(frozen=True)
class Answer:
    """What came back, from where, and in words."""

    state: State
    address: Address
    text: str


def option_name(argument: str) -> str:
    """The option an argument spells, as both engines read it: an underscore is a hyphen, `=` ends it."""
    name = argument.split("=", 1)[0]
    return name.replace("_", "-") if name.startswith("--") else name


def api_prefix(engine: str, arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """The prefix llama-server puts before its paths: the last --api-prefix, else llama.cpp's variable for it.

    Raises UsageError for one that no request can match.
    """
    source, prefix = "LLAMA_ARG_API_PREFIX", environment.get("LLAMA_ARG_API_PREFIX", "")
    if engine != "llama.cpp":  # the others read no such variable
        prefix = ""
    for argument, value in itertools.pairwise(arguments):
        if argument.replace("_", "-") == "--api-prefix":
            source, prefix = "--api-prefix", value
    if prefix and not prefix.startswith("/"):
        msg = f"{source} {prefix!r} must begin with a slash: llama-server would answer nowhere"
        raise UsageError(msg)
    return prefix


def wants_tls(engine: str, arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether the user asked llama-server for https."""
    asked = any(option_name(argument) in _TLS_OPTIONS for argument in arguments)
    return asked or (engine == "llama.cpp" and any(name in environment for name in _TLS_VARIABLES))


def has_key(arguments: Sequence[str]) -> bool:
    """Whether llama-server's arguments give it a key, so that not everybody may use it."""
    return any(option_name(argument) in ("--api-key", "--api-key-file") for argument in arguments)


def ask(address: Address) -> Answer:
    """Ask once, over http and, where something answers that is not HTTP, over https."""
    try:
        return _ask(address)
    except (http.client.BadStatusLine, ConnectionResetError) as error:
        if address.tls:
            return Answer(State.SILENT, address, f"no HTTP answer ({error})")
    # A server that expects TLS ends a plain connection without an answer.
    return ask(replace(address, tls=True))


def _ask(address: Address) -> Answer:
    connection = _connection(address)
    try:
        connection.request("GET", address.health_path)
        response = connection.getresponse()
        body = response.read(_BODY_BYTES)
    except (http.client.BadStatusLine, ConnectionResetError):
        raise
    except (OSError, http.client.HTTPException) as error:
        return Answer(State.SILENT, address, f"no answer ({error})")
    finally:
        connection.close()
    text = f"HTTP {response.status} {response.reason}".rstrip()
    if response.status == 503:
        return Answer(State.LOADING, address, text)
    value = _json(body)
    if response.status == 200 and "status" in value:
        return Answer(State.READY, address, text)
    # Both engines look at the key after they looked whether the model is loaded; llama.cpp guards a health address
    # with a prefix like any other.
    if response.status == 401 and isinstance(value.get("error"), dict):
        return Answer(State.READY, address, text)
    first = body.decode("utf-8", "replace").strip().partition("\n")[0][:120]
    return Answer(State.OTHER, address, f"{text}: {first}" if first else text)


def _connection(address: Address) -> http.client.HTTPConnection:
    host = address.host
    with contextlib.suppress(ValueError):
        parsed = ipaddress.ip_address(host)
        if parsed.is_unspecified:  # listening everywhere, asked here
            host = "127.0.0.1" if parsed.version == 4 else "::1"
    if not address.tls:
        return http.client.HTTPConnection(host, address.port, timeout=_TIMEOUT_S)
    import ssl  # some Pythons are built without

    # Whose certificate it is does not matter: the process is known, nothing secret is sent.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, address.port, timeout=_TIMEOUT_S, context=context)


def _json(body: bytes) -> dict[str, object]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def listening(pid: int, port: int) -> tuple[bool, bool] | None:
    """Whether process `pid` listens on TCP `port`, and whether another process listens at the very same address.

    Two processes can, with SO_REUSEPORT, and the kernel then gives each a part of the connections. None where
    /proc (proc_pid_net(5)) does not say.
    """
    own = set()
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                own.add(os.readlink(descriptor))
        rows = [
            line.split()
            for table in ("tcp", "tcp6")
            if (path := Path(f"/proc/{pid}/net/{table}")).exists()
            for line in path.read_text(encoding="ascii").splitlines()[1:]
        ]
    except OSError:
        return None
    # Columns: number, local address and port in hex, remote, state (0A: listening) ... inode.
    sockets = [
        (row[1], f"socket:[{row[9]}]")
        for row in rows
        if len(row) > 9 and row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port
    ]
    ours = {address for address, inode in sockets if inode in own}
    return bool(ours), any(address in ours and inode not in own for address, inode in sockets)
