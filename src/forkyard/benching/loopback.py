"""Pretended devices: RPC servers of the engine under test on 127.0.0.1, for as long as a measurement takes."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from forkyard.errors import BuildError
from forkyard.process import background, clean_environment

HOST = "127.0.0.1"
"""Never another: the servers trust whoever connects."""
_START_S = 60.0
_POLL_S = 0.05
_ATTEMPTS = 3


@contextlib.contextmanager
def lent_devices(server: Path, count: int, threads: int, log: Path) -> Iterator[tuple[str, ...]]:
    """``count`` servers, each with ``threads`` threads of this machine's CPU; the block gets their addresses.

    They end with the block, and with this process, however that ends.

    Raises:
        BuildError: a server does not start.
    """
    with contextlib.ExitStack() as stack:
        yield tuple(_start(stack, server, threads, log.with_suffix(f".rpc{number}.log")) for number in range(count))


def _start(stack: contextlib.ExitStack, server: Path, threads: int, log: Path) -> str:
    """Start one on a free port; somebody else may take the port before it does, so try more than once."""
    for _ in range(_ATTEMPTS):
        port = _free_port()
        command = [sys.executable, "-m", "forkyard.tethered", str(os.getpid()), str(server)]
        command += ["-H", HOST, "-p", str(port), "-d", "CPU", "-t", str(threads)]
        status = stack.enter_context(background(command, log=log, env=clean_environment()))
        if _listens(port, status):
            return f"{HOST}:{port}"
    msg = f"{server.name} does not start"
    raise BuildError(msg, where=str(log), next_step="look at the log's last lines")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _listens(port: int, status: Callable[[], int | None]) -> bool:
    """Whether the server accepts connections; waits until it does, ends, or its time is up."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and status() is None:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1.0):
            # Whoever else may have taken the port would have made it end.
            time.sleep(_POLL_S)
            return status() is None
        time.sleep(_POLL_S)
    return False
