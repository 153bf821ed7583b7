"""LoRA adapters and control vectors with real files: random ones, small, for SmolLM2."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from forkyard_llm import Llama
from forkyard_llm.errors import ModelError, UnsupportedOption

from .test_serve import post, served

pytestmark = pytest.mark.usefixtures("built_payloads")

ENGINES = ("llama.cpp", "ik_llama.cpp")
PROMPT = "Once upon a time"
COUNT = 8
N_EMBD, N_FF, N_LAYER, RANK = 576, 1536, 30, 2
SCALE = 0.75
# ik_llama.cpp's takes no LoRA adapter.
FLASH_ATTENTION: Any = {"llama.cpp": {}, "ik_llama.cpp": {"flash_attn": False}}


def write_lora(path: Path, *, n_ff: int = N_FF, architecture: str = "llama") -> Path:
    """An adapter that changes what every third layer adds to the text."""
    numbers = np.random.default_rng(20261201)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0 * RANK)
    for layer in range(0, N_LAYER, 3):
        name = f"blk.{layer}.ffn_down.weight"
        first = numbers.standard_normal((RANK, n_ff), dtype=np.float32)
        writer.add_tensor(f"{name}.lora_a", first * np.float32(n_ff**-0.5))
        writer.add_tensor(f"{name}.lora_b", numbers.standard_normal((N_EMBD, RANK), dtype=np.float32))
    return finish(writer, path)


def write_control_vector(path: Path, n_embd: int = N_EMBD) -> Path:
    numbers = np.random.default_rng(20261202)
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", N_LAYER - 1)
    for layer in range(1, N_LAYER):
        writer.add_tensor(f"direction.{layer}", numbers.standard_normal(n_embd, dtype=np.float32))
    return finish(writer, path)


def finish(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lora(tmp_path_factory.mktemp("lora") / "lora.gguf")


@pytest.fixture(scope="module")
def vector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_control_vector(tmp_path_factory.mktemp("vector") / "vector.gguf")


@pytest.fixture(scope="module", params=ENGINES)
def llm(request: pytest.FixtureRequest, built_payloads: None, smollm2: Path) -> Iterator[Llama]:
    with Llama(smollm2, engine=request.param, n_ctx=128, n_threads=1, **FLASH_ATTENTION[request.param]) as opened:
        yield opened


def say(llm: Llama, **more: Any) -> str:
    return str(llm(PROMPT, max_tokens=COUNT, temperature=0, **more)["choices"][0]["text"])


def test_a_request_has_the_adapters_that_it_names(llm: Llama, lora: Path, vector: Path):
    style, mood = llm.load_lora(lora), llm.load_control_vector(vector)
    plain = say(llm)
    changed = [say(llm, adapters=one) for one in ({style: 1.0}, {mood: 1.0}, {style: 1.0, mood: 1.0})]
    assert len({plain, *changed}) == 4, [plain, *changed]
    assert say(llm, adapters={style: 1.0}) == changed[0]
    assert say(llm, adapters={style: 0.0, mood: 0.0}) == plain
    assert say(llm, adapters={}) == say(llm) == plain
    late = llm.load_control_vector(vector, layers=(N_LAYER - 1, N_LAYER - 1))
    assert say(llm, adapters={late: 0.01}) == plain
    with pytest.raises(ModelError, match="another Llama"), Llama(llm.model_path, engine=llm.engine, n_ctx=64) as other:
        say(other, adapters={style: 1.0})


def test_they_do_what_the_server_does(
    llm: Llama, lora: Path, vector: Path, smollm2: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    scaled = [f"{lora}:{SCALE}"] if llm.engine == "llama.cpp" else [str(lora), str(SCALE)]
    off = ["-fa", "off"] if FLASH_ATTENTION[llm.engine] else []
    options = ["-t", "1", "-c", "128", *off, "--lora-scaled", *scaled, "--control-vector", str(vector)]
    with served(smollm2, "--engine", llm.engine, "--", *options) as (_, ready):
        asked = {"prompt": PROMPT, "n_predict": COUNT, "temperature": 0}
        expected = post(ready["url"], "/completion", asked)["content"]
    style, mood = llm.load_lora(lora), llm.load_control_vector(vector)
    assert say(llm, adapters={style: SCALE, mood: 1.0}) == expected != say(llm)


def test_the_adapter_of_the_constructor_is_for_requests_that_name_none(llm: Llama, lora: Path, smollm2: Path):
    plain, changed = say(llm), say(llm, adapters={llm.load_lora(lora): SCALE})
    options: Any = {"engine": llm.engine, "n_ctx": 128, "n_threads": 1}
    with Llama(smollm2, lora_path=lora, lora_scale=SCALE, **options) as other:
        assert (say(other), say(other, adapters={})) == (changed, plain)


def test_ik_llama_cpps_flash_attention_takes_no_lora(built_payloads: None, lora: Path, smollm2: Path):
    options: Any = {"engine": "ik_llama.cpp", "n_ctx": 64, "n_threads": 1}
    refused = pytest.raises(UnsupportedOption, match="flash_attn=False, or with lora_path")
    with Llama(smollm2, **options) as llm, refused:
        llm.load_lora(lora)
    with pytest.raises(UnsupportedOption, match="flash_attn=False"):
        Llama(smollm2, flash_attn=True, lora_path=lora, **options)


def test_requests_at_a_time_keep_their_adapters_apart(llm: Llama, lora: Path, vector: Path, smollm2: Path):
    options: Any = {"n_ctx": 128, "n_threads": 1, **FLASH_ATTENTION[llm.engine]}
    with Llama(smollm2, engine=llm.engine, n_parallel=4, **options) as many:
        style, mood = many.load_lora(lora), many.load_control_vector(vector)
        kinds: list[Any] = [{}, {style: 1.0}, {mood: 1.0}]
        alone = [say(many, adapters=kind) for kind in kinds]
        assert len(set(alone)) == 3
        with ThreadPoolExecutor(6) as pool:
            # One of a kind at a time: together, a batch rounds in another way.
            for turn in range(2):
                order = kinds[turn:] + kinds[:turn]
                together = pool.map(lambda kind: say(many, adapters=kind), order)
                assert list(together) == alone[turn:] + alone[:turn]


def test_files_that_do_not_fit_are_refused(llm: Llama, lora: Path, vector: Path, tmp_path: Path):
    plain = say(llm)
    cut = tmp_path / "cut.gguf"
    for load, whole in ((llm.load_lora, lora), (llm.load_control_vector, vector)):
        for size in (0, 3, 100, whole.stat().st_size // 2, whole.stat().st_size - 1):
            cut.write_bytes(whole.read_bytes()[:size])
            with pytest.raises(ModelError, match=r"cut\.gguf"):
                load(cut)
    with pytest.raises(ModelError, match=r"wide\.gguf"):
        llm.load_lora(write_lora(tmp_path / "wide.gguf", n_ff=2 * N_FF))
    with pytest.raises(ModelError, match=r"other\.gguf"):
        llm.load_lora(write_lora(tmp_path / "other.gguf", architecture="gemma3"))
    with pytest.raises(ModelError, match="it is for another model"):
        llm.load_control_vector(write_control_vector(tmp_path / "narrow.gguf", n_embd=64))
    for load, other in ((llm.load_lora, vector), (llm.load_control_vector, lora)):
        with pytest.raises(ModelError):
            load(other)
    assert say(llm) == plain
