"""The command line with real payloads and a real model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ENGINES = ["llama.cpp", "ik_llama.cpp"]
COMMAND = [sys.executable, "-m", "forkyard_llm"]


@pytest.fixture(autouse=True)
def real_payloads(payloads: dict[str, Path], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes see the payloads built here, and the bindings of the repository."""
    monkeypatch.setenv("FORKYARD_LLM_PAYLOAD_PATH", os.pathsep.join(map(str, payloads.values())))
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    monkeypatch.delenv("FORKYARD_LLM_PAYLOAD", raising=False)


def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, text=True, timeout=1800, check=False
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_generate(smollm2: Path, engine: str) -> None:
    options = ["-m", str(smollm2), "-n", "8", "--temp", "0", "-c", "256", "-t", "2", "--engine", engine]
    streamed = run("generate", *options, "-p", "The capital of France is")
    assert streamed.returncode == 0, streamed.stderr
    assert streamed.stderr == ""
    assert "Paris" in streamed.stdout
    document = json.loads(run("generate", *options, "--json", stdin="The capital of France is\n").stdout)
    assert document["text"] + "\n" == streamed.stdout
    assert document["engine"] == engine
    assert document["tokens"] == {"prompt": 5, "completion": 8}
    assert document["timings"]["generated_tokens_per_s"] > 0
    assert document["payload"]["distribution"].startswith("forkyard-")


@pytest.mark.parametrize("engine", ENGINES)
def test_bytes_of_a_path_and_characters_of_a_prompt_in_a_poor_locale(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    model = tmp_path / os.fsdecode("é😀".encode() + b"\xff.gguf")
    model.symlink_to(smollm2)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii:strict")
    command = [*COMMAND, "generate", "-m", str(model), "-n", "2", "-c", "64", "-t", "2", "--engine", engine]
    prompt = "😀 a\0b é"
    done = subprocess.run([*command, "--json"], input=prompt.encode(), capture_output=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.decode("utf-8"))
    assert document["prompt"] == prompt
    assert os.fsencode(document["model"]) == os.fsencode(model)
    # A model that is made to write what the locale lacks: the text is UTF-8 all the same.
    done = subprocess.run([*command, "-p", "😀" * 8, "--temp", "0"], capture_output=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    done.stdout.decode("utf-8")


def test_the_same_seed_gives_the_same_text(smollm2: Path) -> None:
    options = ["-m", str(smollm2), "-n", "12", "-c", "256", "-t", "2", "-p", "Once"]
    texts = [run("generate", *options, "--seed", seed).stdout for seed in ("1", "1", "2")]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_ctrl_c(smollm2: Path) -> None:
    # Greedy counting: a model that is not interrupted goes on until its limit, far beyond the first character.
    counting = " ".join(str(number) for number in range(1, 40))
    command = [*COMMAND, "generate", "-m", str(smollm2), "-n", "4000", "-t", "2", "--temp", "0", "-p", counting]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        assert process.wait(timeout=1800) == 130
        assert time.monotonic() - started < 30
        assert process.stderr.read() == "interrupted\n"


@pytest.mark.parametrize("keep", [0, 3, 1000, 1_000_000, 98_000_000])
def test_a_truncated_model(smollm2: Path, tmp_path: Path, keep: int) -> None:
    damaged = tmp_path / "damaged.gguf"
    with smollm2.open("rb") as source:
        damaged.write_bytes(source.read(keep))
    for engine in ENGINES:
        done = run("generate", "-m", str(damaged), "-p", "x", "--engine", engine, "--json")
        assert done.returncode == 6, done.stderr
        assert json.loads(done.stdout)["error"]["type"] == "ModelError"


def test_doctor_finds_both_engines() -> None:
    done = run("doctor", "--json")
    assert done.returncode == 0
    facts = json.loads(done.stdout)
    assert facts["payloads"][0]["chosen"]
    assert {entry["engine"] for entry in facts["payloads"] if entry["usable"]} == set(ENGINES)
    assert "chosen" in run("doctor").stdout
