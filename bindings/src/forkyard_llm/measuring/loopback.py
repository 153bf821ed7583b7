"""Pretended devices: RPC servers of the engine under test on 127.0.0.1, for as long as a measurement takes."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..serve import DEFAULT_HOST, free_port
from .child import RunFailed, background, plain_environment
from .dialect import last_words

_START_S = 60.0
_POLL_S = 0.05
_ATTEMPTS = 3


@contextlib.contextmanager
def lent_devices(server: Path, count: int, threads: int, log: Path) -> Iterator[tuple[str, ...]]:
    """``count`` servers, each with ``threads`` threads of this machine's CPU; the block gets their addresses.

    They end with the block, and with this process, however that ends.

    Raises:
        RunFailed: a server does not start.
    """
    with contextlib.ExitStack() as stack:
        yield tuple(_start(stack, server, threads, log.with_suffix(f".rpc{number}.log")) for number in range(count))


def _start(stack: contextlib.ExitStack, server: Path, threads: int, log: Path) -> str:
    """Start one on a free port; somebody else may take the port before it does, so try more than once."""
    lines: Sequence[str] = ()
    for _ in range(_ATTEMPTS):
        port = free_port(DEFAULT_HOST, 0)
        command = [str(server), "-H", DEFAULT_HOST, "-p", str(port), "-d", "CPU", "-t", str(threads)]
        gone, lines = stack.enter_context(background(command, log, plain_environment({})))
        if _listens(port, gone):
            return f"{DEFAULT_HOST}:{port}"
    msg = f"{server.name} does not start"
    raise RunFailed(msg, last_words(lines), log)


def _listens(port: int, gone: threading.Event) -> bool:
    """Whether the server accepts connections; waits until it does, ends, or its time is up."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and not gone.is_set():
        with contextlib.suppress(OSError), socket.create_connection((DEFAULT_HOST, port), timeout=1.0):
            # Whoever else may have taken the port would have made it end.
            return not gone.wait(_POLL_S)
        time.sleep(_POLL_S)
    return False
