"""The barriers that the model of NUMA modes counts on are those that ik_llama.cpp passes.

The numbers in the model belong to one commit; upstream fuses operations now and then, so a few percent are allowed.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from forkyard.numamodel.architecture import WORKLOADS
from forkyard.toolchain import find_compilers

from .layered_models import MODELS

TIMEOUT_S = 1800.0
THREADS = 2
TOKENS = 5


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The counting library, compiled."""
    compilers = find_compilers()
    assert compilers is not None, "there is no C compiler"
    library = tmp_path_factory.mktemp("counter") / "barrier_counter.so"
    source = Path(__file__).with_name("barrier_counter.c")
    subprocess.run(
        [str(compilers[0]), "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"],
        check=True,
        timeout=TIMEOUT_S,
    )
    return library


@pytest.mark.parametrize("model", MODELS)
def test_barriers_of_one_token(
    model: str, engine_payload: Callable[[str], Path], counter: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    MODELS[model](path)
    done = subprocess.run(
        [
            str(engine_payload("ik_llama.cpp") / "bin" / "llama-bench"),
            *("-m", str(path), "-rtr", "1", "-b", "16", "-ub", "16", "-p", "0"),
            *("-n", str(TOKENS), "-t", str(THREADS), "-r", "1", "-w", "0"),
        ],
        env={**os.environ, "LD_PRELOAD": str(counter), "GGML_NO_BACKTRACE": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts = [int(count) for count in re.findall(r"^barriers: (\d+)$", done.stderr, re.MULTILINE)]
    assert len(counts) == TOKENS
    assert statistics.median(counts) == pytest.approx(WORKLOADS[model].barriers, rel=0.05)
