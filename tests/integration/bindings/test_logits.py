"""What a model thinks of each next token: bit for bit what a C program has that is linked to the payload's library."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from forkyard_llm import Llama

from . import qwen
from .conftest import compiled

pytestmark = pytest.mark.usefixtures("built_payloads")

PROGRAM = Path(__file__).with_name("logits.c")
N_CTX, N_BATCH = 256, 16
TEXTS = (
    "The capital of France is Paris, and that of Italy is Rome. Whoever travels there by train",
    " sees",
    " the Alps",
)


@pytest.mark.parametrize(
    "name", ["smollm2-135m", *(pytest.param(name, marks=pytest.mark.deep) for name in ("gemma3-270m", qwen.NAME))]
)
@pytest.mark.parametrize("engine", ["llama.cpp", "ik_llama.cpp"])
def test_logits_are_a_c_program_s_bit_for_bit(
    engine: str,
    name: str,
    payloads: dict[str, Path],
    model_file: Callable[[str], Path],
    sources: Callable[[str], Path],
    tmp_path: Path,
):
    model = model_file(name)
    program = compiled(PROGRAM, payloads[engine], sources(engine), tmp_path)
    with Llama(model, engine=engine, n_ctx=N_CTX, n_batch=N_BATCH, n_threads=1) as llm:
        parts = [llm.tokenize(text, add_bos=index == 0) for index, text in enumerate(TEXTS)]
        assert len(parts[0]) > N_BATCH
        ours = []
        for part in parts:
            llm.eval(part)
            ours.append(bytes(llm.logits()))
        n_vocab = llm.n_vocab()
    lists = [",".join(map(str, part)) for part in parts]
    done = subprocess.run(
        [program, model, str(N_CTX), str(N_BATCH), *lists], capture_output=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout) == 4 * n_vocab * len(parts)
    assert b"".join(ours) == done.stdout
    assert len(set(ours)) == len(parts)
