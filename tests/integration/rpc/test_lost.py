"""Servers that end, answer nonsense or nothing while a model uses them, and engines that go away."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

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

SILENT = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from forkyard_llm import ForkyardLlmError, Llama
said = []
for more in ({"rpc_servers": [sys.argv[4]], "n_gpu_layers": -1}, {}):
    try:
        with Llama(sys.argv[2], n_ctx=128, n_threads=1, **more) as llm:
            said.append(llm(sys.argv[3], max_tokens=2, temperature=0.0)["choices"][0]["text"])
    except ForkyardLlmError as error:
        said.append(str(error))
print(json.dumps(said))
"""
GREETED = len(HELLO) + 9
"""Bytes that the bindings send, and the engine before it asks for anything else: the greeting, and how many devices."""
MIB = 1 << 20
LIMIT_S, LONG_S = 2, 12
"""For how long one that is silent may be, and how long one computes, which may be silent for somewhat less."""


class Between:
    """Hands everything on between engines and a server, until the file ``now`` is there; then it does the damage.

    Of what an engine sends over one connection, it takes no more than ``most`` bytes. Then it is silent.
    """

    def __init__(self, server: str, now: Path, damage: str, most: float = math.inf) -> None:
        host, _, port = server.partition(":")
        self._server = (host, int(port))
        self._now = now
        self.damage = damage
        self._most = most
        self._closed = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closed.set()
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
        taken = 0
        try:
            while data := source.recv(1 << 16):
                taken += len(data)
                if not answers and taken > self._most:
                    self._closed.wait()
                    break
                if answers and self._now.exists():
                    if self.damage == "slow":
                        self.damage = "done"
                        self._closed.wait(LONG_S)
                    elif self.damage == "size":
                        sink.sendall(b"\xff" * 8)
                    elif self.damage == "cut" and len(data) > ANSWER:
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


@pytest.fixture
def run(payload: Payload, smollm2: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """A function that runs a script with a model, its prompt and more words, and returns what it says in JSON."""

    def said(script: str, *words: str, limit_s: int | None = None) -> list[str]:
        command = [sys.executable, "-c", script, json.dumps(sys.path), str(smollm2), PROMPT, *words]
        environment = {name: value for name, value in os.environ.items() if name != "FORKYARD_LLM_PAYLOAD"}
        environment |= {"FORKYARD_LLM_PAYLOAD_PATH": str(payload.root), "FORKYARD_LLM_CACHE": str(tmp_path)}
        if limit_s is not None:
            environment["GGML_RPC_TIMEOUT"] = str(limit_s)
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
        assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-3000:]}"
        answer = json.loads(done.stdout.splitlines()[-1])
        assert isinstance(answer, list)
        return answer

    return said


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
    run: Callable[..., list[str]], rpc_servers: RpcServers, tmp_path: Path, mode: str, damage: str
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
    try:
        error, *texts = run(LOST, mode, json.dumps(servers), str(now), str(victim))
    finally:
        between.close()
    assert f"lost the RPC server at {servers[1]}" in error
    assert texts == [EXPECTED] * 2


@pytest.mark.patch("rpc-silent-server")
@pytest.mark.parametrize("most", [GREETED, 5 * MIB], ids=["when asked for its devices", "in the weights"])
def test_a_server_that_is_silent_while_a_model_is_loaded(
    run: Callable[..., list[str]], rpc_servers: RpcServers, tmp_path: Path, most: int
) -> None:
    """It greets, and then neither reads nor answers: an error names it, and the process goes on."""
    (server,) = rpc_servers(ENGINE, 1)
    between = Between(server, tmp_path / "never", "", most)
    try:
        error, text = run(SILENT, between.address, limit_s=LIMIT_S)
    finally:
        between.close()
    assert re.search(f"(no RPC server that fits|the RPC server) at {between.address}", error), error
    assert text == EXPECTED


@pytest.mark.patch("rpc-silent-server")
def test_a_server_that_does_not_greet(payload: Payload, rpc_servers: RpcServers, tmp_path: Path) -> None:
    """The bindings would notice before the engine does."""
    (server,) = rpc_servers(ENGINE, 1)
    between = Between(server, tmp_path / "never", "", 0)
    command = [payload.tool("llama-cli"), "--rpc", between.address, "--list-devices"]
    environment = {**os.environ, "GGML_RPC_TIMEOUT": str(LIMIT_S)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    finally:
        between.close()
    said = done.stdout + done.stderr
    assert "the RPC peer is silent for too long, GGML_RPC_TIMEOUT sets the limit in seconds" in said
    assert f"no RPC server that fits at {between.address}" in said


@pytest.mark.patch("rpc-silent-server")
def test_a_client_that_does_not_greet_keeps_nobody_waiting(payload: Payload, rpc_servers: RpcServers) -> None:
    with mock.patch.dict(os.environ, GGML_RPC_TIMEOUT=str(LIMIT_S)):
        (address,) = rpc_servers(ENGINE, 1)
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port))), socket.create_connection((host, int(port)), timeout=60) as next_:
        next_.sendall(HELLO)
        assert next_.recv(ANSWER, socket.MSG_WAITALL)


def test_a_server_that_computes_for_longer_than_one_may_be_silent(
    run: Callable[..., list[str]], rpc_servers: RpcServers, tmp_path: Path
) -> None:
    """What it computes may take any time."""
    servers = rpc_servers(ENGINE, 2)
    now = tmp_path / "now"
    between = Between(servers[1], now, "slow")
    try:
        texts = run(LOST, "layer", json.dumps([servers[0], between.address]), str(now), "0", limit_s=LONG_S - 2)
    finally:
        between.close()
    assert between.damage == "done"
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
