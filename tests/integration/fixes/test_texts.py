"""What ik_llama.cpp makes of capital letters, of logits that are all negative, and of a cache with holes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ..bindings.tiny_texts import write_decoder, write_encoder

TOKENS = """
import sys
from forkyard_llm import Llama
with Llama(sys.argv[1], vocab_only=True) as llm:
    print([llm.tokenize(text) for text in sys.argv[2:]])
"""
SIGMA = """
import ctypes, sys
from forkyard_llm import Llama
with Llama(sys.argv[1], n_threads=1) as llm:
    loaded = llm._generation.open_session().loaded
    abi = loaded.abi
    logits = [-9.0, -7.5, -8.0, -8.5, -9.5, -20.0]
    data = (abi.llama_token_data * 6)(*((token, logit, 0.0) for token, logit in enumerate(logits)))
    array = abi.llama_token_data_array(data, 6, -1, False)
    loaded.api.llama_sample_top_n_sigma(None, ctypes.byref(array), 0.2)
    print(sorted(data[index].id for index in range(array.size)))
"""
HOLES = """
import sys
from forkyard_llm import Llama
from forkyard_llm.engines.session import Row
with Llama(sys.argv[1], n_ctx=256, n_parallel=3, n_threads=1, flash_attn=True) as llm:
    session = llm._generation.open_session()
    tokens = [5 + position % 200 for position in range(512)]
    def decode(sequence, start, end):
        rows = [Row(tokens[at], at, sequence, at == end - 1) for at in range(start, end)]
        session.decode_rows(rows)
        return list(session.row_of_logits(len(rows) - 1))
    expected = decode(0, 0, 41)
    session.forget()
    decode(1, 0, 512)
    decode(0, 0, 40)
    # The cells 400 to 511 are free, and the next token takes one of them.
    session.truncate(400, 1)
    found = decode(0, 40, 41)
    print(max(abs(a - b) for a, b in zip(expected, found)) < 0.05)
"""
TIMEOUT_S = 120


@pytest.fixture
def run(engine_payload: Callable[[str], Path], environment: dict[str, str], tmp_path: Path) -> Callable[..., str]:
    """A function that runs a program with the payload in a child, as it may end the process, for what it prints."""
    own = {
        "FORKYARD_LLM_PAYLOAD_PATH": str(engine_payload("ik_llama.cpp")),
        "FORKYARD_LLM_CACHE": str(tmp_path / "cache"),
    }

    def run(program: str, *words: str) -> str:
        command = [sys.executable, "-c", program, *words]
        done = subprocess.run(
            command, env={**os.environ, **environment, **own}, capture_output=True, text=True, timeout=TIMEOUT_S,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.strip()

    return run


def test_bert_lowers_capital_letters(run: Callable[..., str], tmp_path: Path) -> None:
    write_encoder(tmp_path / "bert.gguf")
    big, small = json.loads(run(TOKENS, str(tmp_path / "bert.gguf"), "ABC XYZ", "abc xyz"))
    assert big == small
    assert len(small) == 8


def test_the_best_of_negative_logits_stays(run: Callable[..., str], tmp_path: Path) -> None:
    write_decoder(tmp_path / "tiny.gguf", bytes_as_tokens=True)
    assert run(SIGMA, str(tmp_path / "tiny.gguf")) == "[1, 2]"


def test_cells_behind_holes_are_seen(run: Callable[..., str], tmp_path: Path) -> None:
    write_decoder(tmp_path / "tiny.gguf", bytes_as_tokens=True)
    assert run(HOLES, str(tmp_path / "tiny.gguf")) == "True"
