"""The examples of the documents, as somebody runs them who has a model of that name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from forkyard_llm.payloads import read_payload

from ...examples import ROOT, Example, examples
from .tiny_media import LLAVA, png, write_projector
from .tiny_texts import SEED, write_encoder

pytestmark = pytest.mark.usefixtures("built_payloads")

PROBE = Path(__file__).with_name("example_probe.py")
TIMEOUT_S = 900.0
PAGES = sorted({example.page for example in examples() if example.runs})
# What an engine lacks; the page says so.
LACKS = {"ik_llama.cpp": ('pooling="rank"',)}


@pytest.fixture(scope="module")
def folder(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that examples name."""
    made = tmp_path_factory.mktemp("examples")
    (made / "model.gguf").symlink_to(smollm2)
    write_encoder(made / "all-minilm-l6-v2.gguf")
    write_encoder(made / "reranker.gguf", ranks=True)
    model = gguf.GGUFReader(smollm2)
    (n_embd,) = {int(tensor.shape[0]) for tensor in model.tensors if tensor.name == "output_norm.weight"}
    write_projector(made / "mmproj.gguf", LLAVA, n_embd=n_embd)
    (made / "cat.png").write_bytes(png(96, 64, 1))
    layers = sum(tensor.name.endswith("attn_q.weight") for tensor in model.tensors)
    rng = np.random.default_rng(SEED)

    def small(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(0.01)

    style = gguf.GGUFWriter(made / "style.gguf", "llama")
    style.add_type("adapter")
    style.add_string("adapter.type", "lora")
    style.add_float32("adapter.lora.alpha", 4.0)
    style.add_tensor("blk.0.attn_q.weight.lora_a", small(4, n_embd))
    style.add_tensor("blk.0.attn_q.weight.lora_b", small(n_embd, 4))
    calm = gguf.GGUFWriter(made / "calm.gguf", "controlvector")
    calm.add_string("controlvector.model_hint", "llama")
    for layer in range(1, layers):
        calm.add_tensor(f"direction.{layer}", small(n_embd))
    for writer in (style, calm):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return made


def run(shown: list[Example], folder: Path, **more: str) -> None:
    paths = [str(ROOT / "bindings" / "src"), str(ROOT / "bindings" / "llama_cpp" / "src")]
    done = subprocess.run(
        [sys.executable, str(PROBE)],
        input=json.dumps([[example.where, example.text] for example in shown]),
        cwd=folder,
        # One thread: others use the cores, too.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_THREAD_LIMIT": "1", **more},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == [example.where for example in shown]


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page: str, folder: Path):
    run([example for example in examples() if example.page == page and example.runs], folder)


@pytest.mark.deep
@pytest.mark.parametrize("engine", ["llama.cpp", "ik_llama.cpp"])
def test_examples_run_on(engine: str, payloads: dict[str, Path], folder: Path):
    shown = [
        example
        for example in examples()
        if example.runs
        and "engine=" not in example.text
        and not any(word in example.text for word in LACKS.get(engine, ()))
    ]
    run(shown, folder, FORKYARD_LLM_PAYLOAD=read_payload(payloads[engine]).distribution)
