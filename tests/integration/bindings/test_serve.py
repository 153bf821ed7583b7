"""`forkyard-llm serve` with the real llama-server of both engines."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ENGINES = ["llama.cpp", "ik_llama.cpp"]


@pytest.fixture(autouse=True)
def real_payloads(payloads: dict[str, Path], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes see the payloads built here, and the bindings of the repository."""
    monkeypatch.setenv("FORKYARD_LLM_PAYLOAD_PATH", os.pathsep.join(map(str, payloads.values())))
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    monkeypatch.delenv("FORKYARD_LLM_PAYLOAD", raising=False)


@contextmanager
def served(model: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The supervisor's process and what it announced; ended at the latest when the test is."""
    command = [
        sys.executable,
        "-m",
        "forkyard_llm",
        "serve",
        "-m",
        str(model),
        "--port",
        "0",
        "--json",
        *arguments,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())
        finally:
            process.terminate()
            process.wait(timeout=1800)


def post(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=1800)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200
        value: dict[str, Any] = json.loads(answer.read())
        return value
    finally:
        connection.close()


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("engine", ENGINES)
def test_completions_over_http(smollm2: Path, engine: str) -> None:
    with served(smollm2, "--engine", engine, "--", "-t", "2", "-c", "512") as (process, ready):
        assert ready["engine"] == engine
        body = {"prompt": "The capital of France is", "n_predict": 4, "temperature": 0}
        assert "Paris" in post(ready["url"], "/completion", body)["content"]
        body = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
        assert "Paris" in post(ready["url"], "/v1/completions", body)["choices"][0]["text"]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=1800) == 0
        assert gone(ready["pid"])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_server_comes_back_and_a_killed_supervisor_leaves_none(smollm2: Path, engine: str) -> None:
    with served(smollm2, "--engine", engine, "--", "-t", "2", "-c", "512") as (process, ready):
        os.kill(ready["pid"], signal.SIGKILL)
        assert process.stdout is not None
        again = json.loads(process.stdout.readline())
        assert again["restarts"] == 1
        assert again["url"] == ready["url"]
        assert again["pid"] != ready["pid"]
        process.kill()
        process.wait(timeout=1800)
        assert gone(again["pid"])


@pytest.mark.parametrize("engine", ENGINES)
def test_an_argument_llama_server_does_not_know(smollm2: Path, engine: str) -> None:
    command = [sys.executable, "-m", "forkyard_llm", "serve", "-m", str(smollm2), "--port", "0", "--json"]
    command += ["--engine", engine, "--", "--no-such-thing"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 7
    message = json.loads(done.stdout)["error"]["message"]
    assert "before it was ready; it does not know --no-such-thing" in message
    assert "argument: --no-such-thing" in message.splitlines()[1]
    assert "--threads" not in message  # usage


def test_a_prefix_moves_every_address_and_the_url_says_so(smollm2: Path) -> None:
    arguments = ["--api-prefix", "/llm", "--api-key", "secret", "-t", "2", "-c", "512"]
    with served(smollm2, "--engine", "llama.cpp", "--", *arguments) as (process, ready):
        assert ready["url"].endswith("/llm")
        host = ready["url"].removeprefix("http://").removesuffix("/llm")
        connection = http.client.HTTPConnection(host, timeout=1800)
        connection.request("GET", "/llm/props", headers={"Authorization": "Bearer secret"})
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=1800) == 0


def test_a_config_file_that_moves_the_server_is_named(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama.cpp").mkdir()
    (tmp_path / "llama.cpp" / "config.ini").write_text("api-prefix = /llm\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    command = [sys.executable, "-m", "forkyard_llm", "serve", "-m", str(smollm2), "--port", "0", "--json"]
    command += ["--engine", "llama.cpp", "--", "-t", "2", "-c", "512"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 7
    message = json.loads(done.stdout)["error"]["message"]
    assert "it answers HTTP 404" in message
    assert str(tmp_path) in message  # the log's end says it


@pytest.mark.parametrize("engine", ENGINES)
def test_no_variable_opens_the_server_to_the_network(
    smollm2: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_ARG_HOST", "0.0.0.0")
    monkeypatch.setenv("LLAMA_ARG_PORT", "1")
    with served(smollm2, "--engine", engine, "--", "-t", "2", "-c", "512") as (process, ready):
        port = int(ready["url"].rpartition(":")[2])
        table = Path(f"/proc/{ready['pid']}/net/tcp").read_text()
        assert f" 0100007F:{port:04X} " in table
        assert f" 00000000:{port:04X} " not in table
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=1800) == 0


def test_a_busy_port(smollm2: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = str(other.getsockname()[1])
        command = [sys.executable, "-m", "forkyard_llm", "serve", "-m", str(smollm2), "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 2
    assert "Address already in use" in done.stderr
