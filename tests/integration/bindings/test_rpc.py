"""Models on the devices of RPC servers, split in every way, and servers that are not there, busy, or end.

The servers run on this machine, each on one thread of its CPU. What is measured here is that the text is the same.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm.payloads import Payload

from forkyard.recipes import load_variants, resolve

from ..conftest import FEW, ROOT, RpcServers
from .conftest import EXPECTED, PROMPT

ENGINE = "llama.cpp"
# Asks one after the other in one process; an ask names a server that is killed before it, or holds a model open.
ASK = """
import json, os, signal, sys
sys.path[:] = json.loads(sys.argv[1])
from forkyard_llm import ForkyardLlmError, Llama, devices
from forkyard_llm.engines import rpc
rpc._PATIENCE_S = 3.0
model, prompt, asks, held = sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), []
for ask in asks:
    if "kill" in ask:
        os.kill(ask.pop("kill"), signal.SIGKILL)
    for llm in held if ask.pop("close", False) else ():
        llm.close()
    hold = ask.pop("hold", False)
    try:
        if ask.pop("list", False):
            print(json.dumps([[one.name, one.kind, one.description, one.total_bytes] for one in devices(**ask)]))
            continue
        llm = Llama(model, n_ctx=128, n_threads=1, **ask)
        print(json.dumps(llm(prompt, max_tokens=4, temperature=0.0)["choices"][0]["text"]), flush=True)
        held.append(llm) if hold else llm.close()
    except ForkyardLlmError as error:
        print(json.dumps(f"{type(error).__name__}: {error}"), flush=True)
"""


# What another engine does that uses a server.
HOLD = """
import socket, sys, time
host, port = sys.argv[1].split(":")
link = socket.create_connection((host, int(port)))
link.sendall(bytes([14]) + (24).to_bytes(8, "little") + bytes(24))
link.recv(36, socket.MSG_WAITALL)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def ask(
    rpc_payload: Callable[[str], Payload], alone: Callable[[Payload], None], smollm2: Path
) -> Callable[..., list[Any]]:
    alone(rpc_payload(ENGINE))

    def answers(*asks: dict[str, Any]) -> list[Any]:
        words = [sys.executable, "-c", ASK, json.dumps(sys.path), str(smollm2), PROMPT, json.dumps(asks)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-3000:]}"
        return [json.loads(line) for line in done.stdout.splitlines()]

    return answers


def test_the_small_variant_is_the_whole_one_but_for_its_instruction_sets(tmp_path: Path) -> None:
    (tmp_path / "few.toml").write_text(FEW)
    own = load_variants(ROOT, tmp_path / "few.toml")
    small, whole = (resolve(own, name, ENGINE) for name in ("few-rpc", "rpc"))
    assert {one.name for one in small.members} < {one.name for one in whole.members}
    assert small.backend == whole.backend
    for what in ("module", "tools", "headers"):
        assert getattr(small, what) == getattr(whole, what)
    isa = set(own.engines[ENGINE].options)
    options = [{k: v for k, v in one.options.items() if k not in isa} for one in (small, whole)]
    assert options[0] == options[1]


def test_every_split_says_what_one_device_says(ask: Callable[..., list[Any]], rpc_servers: RpcServers) -> None:
    servers = rpc_servers(ENGINE, 3)
    three = {"rpc_servers": servers, "n_gpu_layers": -1}
    q8_0 = {"type_k": "q8_0", "type_v": "q8_0"}
    plain, plain_q8_0, *others = ask(
        {"flash_attn": True},
        {"flash_attn": True, **q8_0},
        {**three, "split_mode": "tensor"},
        {**three, "split_mode": "tensor", **q8_0},
        {**three, "split_mode": "tensor", "devices": ["RPC2", "RPC0", "RPC1"], "tensor_split": [1, 1, 1]},
        {**three, "split_mode": "layer", **q8_0},
        {**three, "split_mode": "none", "main_gpu": 2},
        {"rpc_servers": servers, "n_gpu_layers": "auto"},
        {"list": True, "rpc_servers": servers},
        # What was used before is not used by a model that does not ask for it.
        {},
    )
    assert plain.startswith(EXPECTED)
    assert others[1] == others[3] == plain_q8_0
    assert [others[0], others[2], others[4], others[5]] == [plain] * 4
    cpu, *remote = others[6]
    assert cpu[1] == "cpu"
    assert [one[:3] for one in remote] == [[f"RPC{i}", "remote", address] for i, address in enumerate(servers)]
    assert all(one[3] > 0 for one in remote)
    assert others[7].startswith(EXPECTED)


def test_what_is_refused(ask: Callable[..., list[Any]], rpc_servers: RpcServers) -> None:
    servers = rpc_servers(ENGINE, 2)
    two = {"rpc_servers": servers, "n_gpu_layers": -1}
    said = ask(
        {**two, "split_mode": "graph"},
        {**two, "split_mode": "row"},
        {**two, "split_mode": "tensor", "flash_attn": False},
        {**two, "tensor_split": [1, 1, 1]},
        {**two, "devices": ["RPC9"]},
        {"rpc_servers": servers},
        {"n_gpu_layers": -1},
        {"rpc_servers": ["192.0.2.7:1"], "n_gpu_layers": -1},
        {"rpc_servers": ["127.0.0.1:1"], "n_gpu_layers": -1},
    )
    for answer, words in zip(
        said,
        (
            "UnsupportedOption: llama.cpp has no split_mode 'graph'",
            "ModelError: .*RPC0 does not support split buffers",
            "UnsupportedOption: .*flash attention alone",
            "UsageError: tensor_split has 3 parts, and the devices used are RPC0, RPC1: ",
            "UsageError: .*has no GPU 'RPC9' here; it has: RPC0, RPC1",
            "UsageError: RPC servers compute only layers that are kept on them",
            "UnsupportedOption: n_gpu_layers=-1 needs a GPU, .*none but those of RPC servers",
            "UsageError: the RPC server 192.0.2.7:1 is another machine's",
            "EngineError: there is no RPC server at 127.0.0.1:1: ",
        ),
        strict=True,
    ):
        assert re.match(words, answer), answer


def test_a_server_that_another_process_uses(ask: Callable[..., list[Any]], rpc_servers: RpcServers) -> None:
    (server,) = rpc_servers(ENGINE, 1)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, server], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        busy, cpu = ask({"rpc_servers": [server], "n_gpu_layers": -1}, {})
    finally:
        holder.kill()
        holder.wait()
    assert f"EngineError: the RPC server at {server} does not answer within 3 s; a server serves one engine" in busy
    assert cpu.startswith(EXPECTED)


def test_one_connection_serves_all_models_of_a_process(ask: Callable[..., list[Any]], rpc_servers: RpcServers) -> None:
    (server,) = rpc_servers(ENGINE, 1)
    process = rpc_servers.processes[server]
    one = {"rpc_servers": [server], "n_gpu_layers": -1}
    first, second, after, cpu = ask({**one, "hold": True}, one, {**one, "close": True}, {})
    assert first == second == after == cpu
    # It ends between two models: an error that names it, and the process goes on.
    before, gone, cpu = ask(one, {**one, "kill": process.pid}, {})
    assert before == cpu == first
    assert f"EngineError: there is no RPC server at {server}: " in gone


def test_the_command_line(
    rpc_payload: Callable[[str], Payload], alone: Callable[[Payload], None], rpc_servers: RpcServers, smollm2: Path
) -> None:
    alone(rpc_payload(ENGINE))
    servers = rpc_servers(ENGINE, 2)
    words = ["generate", "-m", str(smollm2), "-p", PROMPT, "-n", "2", "-c", "128", "-t", "1", "--temp", "0", "--json"]
    words += [word for server in servers for word in ("--rpc-server", server)]
    words += ["--gpu-layers", "-1", "--split-mode", "layer", "--tensor-split", "1,2", "--type-k", "q8_0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "bindings" / "src")}
    command = [sys.executable, "-m", "forkyard_llm"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=600, env=environment)
    assert json.loads(done.stdout)["text"] == EXPECTED
    for more, code, said in (
        (["--tensor-split", "1,x"], 2, "--tensor-split 1,x: take numbers"),
        (["--gpu-layers", "all"], 2, "--gpu-layers all: take a number"),
        (["--rpc-server", "192.0.2.7:1"], 2, "another machine's"),
        (["--rpc-server", "127.0.0.1:1"], 7, "there is no RPC server at 127.0.0.1:1"),
    ):
        done = subprocess.run([*command, *words, *more], capture_output=True, text=True, timeout=600, env=environment)
        assert done.returncode == code
        assert said in json.loads(done.stdout)["error"]["message"]


def test_the_server(
    rpc_payload: Callable[[str], Payload], alone: Callable[[Payload], None], rpc_servers: RpcServers, smollm2: Path
) -> None:
    """With a tensor split, which llama.cpp is not asked to fit to memory, and devices named before their servers."""
    alone(rpc_payload(ENGINE))
    servers = rpc_servers(ENGINE, 3)
    words = ["serve", "-m", str(smollm2), "--port", "0", "--json", "--", "-dev", "RPC0,RPC1,RPC2", "-sm", "tensor"]
    words += ["--rpc", ",".join(servers), "-ngl", "99", "-c", "128", "-np", "1", "-t", "1", "--no-warmup"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "bindings" / "src")}
    serving = subprocess.Popen(
        [sys.executable, "-m", "forkyard_llm", *words], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert serving.stdout is not None
        ready = json.loads(serving.stdout.readline())
        body = json.dumps({"prompt": PROMPT, "n_predict": 2, "temperature": 0}).encode()
        with urllib.request.urlopen(f"{ready['url']}/completion", body, timeout=600) as answer:
            assert json.load(answer)["content"] == EXPECTED
    finally:
        serving.terminate()
        serving.wait(timeout=60)
    assert serving.returncode == 0
