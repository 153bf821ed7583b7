"""No request, schema or sampling parameter ends the process: random ones in a child, which must live and still be right."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from ..conftest import ROOT

pytestmark = pytest.mark.usefixtures("built_payloads")

KINDS = {"chat": 400, "schema": 400, "sampling": 25}


def survives(engine: str, model: Path, kind: str, seed: int, count: int, environment: Mapping[str, str]) -> None:
    words = [engine, str(model), kind, str(seed), str(count)]
    command = [sys.executable, "-m", "tests.integration.bindings.fuzz_probe", *words]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", timeout=900
    )
    assert done.returncode == 0, f"{words}: ended with {done.returncode}\n{done.stderr[-3000:]}"
    # Some must be taken, or nothing was tried.
    assert int(done.stdout.split()[-1]) > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["llama.cpp", "ik_llama.cpp"])
def test_random_requests(smollm2: Path, engine: str, kind: str, environment: dict[str, str]):
    survives(engine, smollm2, kind, 1, KINDS[kind], environment)


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(2, 7))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["llama.cpp", "ik_llama.cpp"])
def test_many_random_requests(smollm2: Path, engine: str, kind: str, seed: int, environment: dict[str, str]):
    survives(engine, smollm2, kind, seed, 20 * KINDS[kind], environment)
