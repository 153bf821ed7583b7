"""Upstream's own test cases of chat templates and answer parsers, replayed through the stack common-c-api."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from .conftest import compiled

pytestmark = pytest.mark.deep

HARNESS = Path(__file__).with_name("replay_chat.cpp")
TIMEOUT_S = 1800.0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model without a vocabulary: upstream's tests have no model, and the API wants one."""
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(8)
    writer.add_tokenizer_model("no_vocab")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "model.gguf"


def replay(program: Path, model: Path, folder: Path) -> tuple[int, dict[str, int], str]:
    """Its exit status, the numbers it prints, and what it says of what went wrong."""
    done = subprocess.run([program, model], cwd=folder, capture_output=True, timeout=TIMEOUT_S, check=False)
    said = done.stderr.decode("utf-8", "replace")
    wrong = "\n".join(re.findall(r"^(?:FAULT|upstream's test).*(?:\n  .*)*", said, re.MULTILINE))
    counts: dict[str, int] = json.loads(done.stdout.decode("utf-8", "replace").splitlines()[-1])
    return done.returncode, counts, wrong or said[-2000:]


def test_llama_cpp_s_cases_hold(
    sources: Callable[[str], Path], payloads: dict[str, Path], model: Path, tmp_path: Path
) -> None:
    tree = sources("llama.cpp")
    program = compiled(HARNESS, payloads["llama.cpp"], tree, tmp_path)
    status, counts, wrong = replay(program, model, tree)
    print(counts)
    assert status == 0, f"{counts}: {wrong[:5000]}"
    assert counts["faults"] == 0
    # A prompt that continues an empty content behind reasoning: the API continues the reasoning there.
    assert counts["natives"] <= 1
    assert counts["prompts"] >= 600
    assert counts["texts"] >= 45_000


def test_ik_llama_cpp_s_cases_give_what_its_common_gives(
    sources: Callable[[str], Path], payloads: dict[str, Path], model: Path, tmp_path: Path
) -> None:
    """Its package lacks the templates, and some no source has: those of llama.cpp stand in.

    So not all that its test expects holds, whoever is asked. It ends at templates whose parser is switched off.
    """
    tree = sources("ik_llama.cpp")
    templates = tree / "models" / "templates"
    others = sources("llama.cpp") / "models" / "templates"
    folder = tmp_path / "models" / "templates"
    folder.mkdir(parents=True)
    names: set[Any] = set(
        re.findall(r"models/templates/([\w.-]+\.jinja)", (tree / "tests" / "test-chat.cpp").read_text())
    )
    assert len(names) > 30
    for name in names:
        found = [path for path in (templates / name, others / name, others / "Qwen-Qwen3-0.6B.jinja") if path.is_file()]
        shutil.copy(found[0], folder / name)
    program = compiled(HARNESS, payloads["ik_llama.cpp"], tree, tmp_path, "-DIK")
    _, counts, wrong = replay(program, model, tmp_path)
    print(counts)
    assert counts["faults"] == 0, f"{counts}: {wrong[:5000]}"
    assert counts["natives"] == 0
    assert counts["prompts"] >= 200
    assert counts["texts"] >= 6_000
