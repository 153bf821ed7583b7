"""Pretended devices: RPC servers of the engine under test on 127.0.0.1, for as long as a measurement takes."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from forkyard.benching.engine import Engine
from forkyard.errors import BuildError
from forkyard.process import background, clean_environment

HOST = "127.0.0.1"
"""Never another: the servers trust whoever connects."""
_START_S = 60.0
_POLL_S = 0.05
_ATTEMPTS = 3


@contextlib.contextmanager
def lent_devices(engine: Engine, server: Path, count: int, threads: int, log: Path) -> Iterator[tuple[str, ...]]:
    """``count`` servers, each with ``threads`` threads of this machine's CPU.

    They end with the block, and with this process, however that ends. The block gets the arguments of llama-bench that
    name their devices.

    Raises:
        BuildError: a server does not start.
    """
    # ik_llama.cpp's knows the device CPU only with a further word.
    device = ("-d", "CPU") if engine.chooses_devices else ("-cpu", "-d", "CPU")
    words = (*device, "-t", str(threads))
    with contextlib.ExitStack() as stack:
        addresses = [_start(stack, server, words, log.with_suffix(f".rpc{number}.log")) for number in range(count)]
        if engine.chooses_devices:
            # -dev knows the servers' devices only after --rpc.
            yield "--rpc", ",".join(addresses), "-dev", "/".join(f"RPC{number}" for number in range(count))
        else:
            yield "-rpc", ",".join(f"{address}|0" for address in addresses)


def _start(stack: contextlib.ExitStack, server: Path, words: Sequence[str], log: Path) -> str:
    """Start one on a free port; somebody else may take the port before it does, so try more than once."""
    for _ in range(_ATTEMPTS):
        port = _free_port()
        command = [sys.executable, "-m", "forkyard.tethered", str(os.getpid()), str(server)]
        command += ["-H", HOST, "-p", str(port), *words]
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
