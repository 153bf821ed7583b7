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
            process.wait(timeout=60)


def post(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=300)
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
        assert process.wait(timeout=60) == 0
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
        process.wait(timeout=60)
        assert gone(again["pid"])


def test_an_argument_llama_server_does_not_know(smollm2: Path) -> None:
    command = [sys.executable, "-m", "forkyard_llm", "serve", "-m", str(smollm2), "--port", "0", "--json"]
    done = subprocess.run([*command, "--", "--no-such-thing"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 7
    message = json.loads(done.stdout)["error"]["message"]
    assert "before it was ready" in message
    assert "--no-such-thing" in message  # the log's end says it


def test_a_busy_port(smollm2: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = str(other.getsockname()[1])
        command = [sys.executable, "-m", "forkyard_llm", "serve", "-m", str(smollm2), "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert "Address already in use" in done.stderr
