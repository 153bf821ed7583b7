"""Servers that end or answer nonsense while a model uses them, and engines that go away while a server answers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from forkyard_llm.payloads import Payload

from ..bindings.conftest import EXPECTED, PROMPT
from .conftest import ANSWER, ENGINE, HELLO, RpcServers

LOST = """
import json, os, signal, sys
from pathlib import Path
sys.path[:] = json.loads(sys.argv[1])
from forkyard_llm import EngineError, Llama
model, prompt, mode, servers, now, victim = *sys.argv[2:5], json.loads(sys.argv[5]), sys.argv[6], int(sys.argv[7])
llm = Llama(model, n_ctx=128, n_threads=1, n_gpu_layers=-1, rpc_servers=servers, split_mode=mode)
said = []
try:
    for number, _ in enumerate(llm.generate(llm.tokenize(prompt))):
        if number == 1:
            Path(now).touch()
            if victim:
                os.kill(victim, signal.SIGKILL)
except EngineError as error:
    said.append(str(error))
llm.close()
for more in ({}, {"rpc_servers": servers[:1], "n_gpu_layers": -1}):
    with Llama(model, n_ctx=128, n_threads=1, **more) as other:
        said.append(other(prompt, max_tokens=2, temperature=0.0)["choices"][0]["text"])
print(json.dumps(said))
"""


class Between:
    """Hands everything on between engines and a server, until the file ``now`` is there; then it does the damage."""

    def __init__(self, server: str, now: Path, damage: str) -> None:
        host, _, port = server.partition(":")
        self._server = (host, int(port))
        self._now = now
        self._damage = damage
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            far = socket.create_connection(self._server)
            for source, sink, answers in ((near, far, False), (far, near, True)):
                threading.Thread(target=self._relay, args=(source, sink, answers), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                if answers and self._now.exists():
                    if self._damage == "size":
                        sink.sendall(b"\xff" * 8)
                    elif len(data) > ANSWER:
                        # In the middle of a tensor: every other answer is shorter.
                        sink.sendall(data[: len(data) // 2])
                        break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


@pytest.mark.patch("rpc-lost-server")
@pytest.mark.parametrize(
    ("mode", "damage"),
    [
        ("layer", "end"),
        ("tensor", "cut"),
        pytest.param("tensor", "end", marks=pytest.mark.deep),
        pytest.param("layer", "size", marks=pytest.mark.deep),
    ],
)
def test_a_server_that_is_lost_while_it_computes(
    payload: Payload, rpc_servers: RpcServers, smollm2: Path, tmp_path: Path, mode: str, damage: str
) -> None:
    """It ends, answers with a wrong size, or closes in a tensor: an error names it, and the process goes on."""
    servers = rpc_servers(ENGINE, 3)
    now = tmp_path / "now"
    between = Between(servers[1], now, damage)
    victim = 0
    if damage == "end":
        victim = rpc_servers.processes[servers[1]].pid
    else:
        servers[1] = between.address
    words = [json.dumps(sys.path), str(smollm2), PROMPT, mode, json.dumps(servers), str(now), str(victim)]
    environment = {name: value for name, value in os.environ.items() if name != "FORKYARD_LLM_PAYLOAD"}
    environment |= {"FORKYARD_LLM_PAYLOAD_PATH": str(payload.root), "FORKYARD_LLM_CACHE": str(tmp_path)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", LOST, *words],
            capture_output=True,
            text=True,
            env=environment,
            timeout=600,
            check=False,
        )
    finally:
        between.close()
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-3000:]}"
    error, *texts = json.loads(done.stdout.splitlines()[-1])
    assert f"lost the RPC server at {servers[1]}" in error
    assert texts == [EXPECTED] * 2


@pytest.mark.patch("rpc-gone-peer")
def test_an_engine_that_goes_away_does_not_end_the_server(payload: Payload, rpc_servers: RpcServers) -> None:
    (address,) = rpc_servers(ENGINE, 1)
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port))) as first:
        first.sendall(HELLO)
        assert first.recv(ANSWER, socket.MSG_WAITALL)
        # Waits for its turn, and goes before it comes.
        with socket.create_connection((host, int(port))) as second:
            second.sendall(HELLO)
    deadline = time.monotonic() + 60
    while True:
        with socket.create_connection((host, int(port))) as last:
            last.sendall(HELLO)
            if last.recv(ANSWER, socket.MSG_WAITALL):
                break
        assert time.monotonic() < deadline
    assert rpc_servers.processes[address].poll() is None
