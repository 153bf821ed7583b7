"""Every file that llama-server will open is checked before it starts, whichever option or variable names it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from forkyard_llm.errors import ModelError
from forkyard_llm.server_files import check_files

from .gguf_bytes import gguf, string, tensor

KINDS = {
    "text": [string(b"general.architecture", b"llama")],
    "embeddings": [string(b"general.architecture", b"bert")],
    "adapter": [string(b"general.architecture", b"llama"), string(b"general.type", b"adapter")],
    "projector": [string(b"general.architecture", b"clip")],
    "vector": [string(b"general.architecture", b"controlvector")],
    "draft": [string(b"general.architecture", b"eagle3")],
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    made = {}
    for name, values in KINDS.items():
        made[name] = tmp_path / f"{name}.gguf"
        made[name].write_bytes(gguf(values, [tensor(b"t", [8], 0, 0)], b"\0" * 32))
    made["broken"] = tmp_path / "broken.gguf"
    made["broken"].write_bytes(made["adapter"].read_bytes()[:-1])
    made["gone"] = tmp_path / "gone.gguf"
    return made


def given(
    files: dict[str, Path], line: str, engine: str = "llama.cpp", model: str = "text", **environment: str
) -> None:
    arguments = line.format(**files).split()
    check_files(files[model], arguments, {k: v.format(**files) for k, v in environment.items()}, engine=engine)


@pytest.mark.parametrize(
    ("line", "engines"),
    [
        ("-c 512 --alias x", ("llama.cpp", "ik_llama.cpp")),
        ("--lora {adapter} --mmproj {projector} -md {text} --control-vector {vector}", ("llama.cpp", "ik_llama.cpp")),
        ("-mm {projector} --spec-draft-model {draft}", ("llama.cpp",)),
        ("--lora={adapter}", ("llama.cpp",)),
        ("--lora {adapter},{adapter}", ("llama.cpp",)),
        ("--lora-scaled {adapter}:0.5,{adapter}:1 --control-vector-scaled {vector}:0.1", ("llama.cpp",)),
        ("--lora-scaled {adapter} 0.5 --control-vector-scaled {vector} 0.1", ("ik_llama.cpp",)),
        ("--lora", ("llama.cpp", "ik_llama.cpp")),
    ],
)
def test_sound_files(files: dict[str, Path], line: str, engines: Sequence[str]) -> None:
    for engine in engines:
        given(files, line, engine)


@pytest.mark.parametrize("engine", ["llama.cpp", "ik_llama.cpp"])
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--lora {broken}", "broken.gguf: the data of tensor t ends"),
        ("--lora={broken}", "broken.gguf: the data of tensor t ends"),
        ("-c 5 --mmproj {broken}", "broken.gguf: the data of tensor t ends"),
        ("-md {broken}", "broken.gguf: the data of tensor t ends"),
        ("--model-draft {broken}", "broken.gguf: the data of tensor t ends"),
        ("--control-vector {broken}", "broken.gguf: the data of tensor t ends"),
        ("--lora {gone}", "there is no model file"),
        ("--lora {text}", "text.gguf: this is a whole model"),
        ("--mmproj {adapter}", "adapter.gguf: this is a LoRA adapter"),
        ("-md {embeddings}", "embeddings.gguf: this model makes embeddings"),
        ("--control-vector {adapter}", "adapter.gguf: this is a LoRA adapter"),
    ],
)
def test_files_that_are_not(files: dict[str, Path], engine: str, line: str, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        given(files, line, engine)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("line", "engine"),
    [
        ("--lora {adapter},{broken}", "llama.cpp"),
        ("--lora-scaled {adapter}:1,{broken}:0.5", "llama.cpp"),
        ("--control-vector-scaled {broken}:0.5", "llama.cpp"),
        ("--lora-scaled {broken} 0.5", "ik_llama.cpp"),
        ("--control-vector-scaled {broken} 0.5", "ik_llama.cpp"),
    ],
)
def test_lists_and_factors(files: dict[str, Path], line: str, engine: str) -> None:
    with pytest.raises(ModelError, match=r"broken\.gguf: the data of tensor t ends"):
        given(files, line, engine)


def test_variables(files: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"adapter\.gguf: this is a LoRA adapter"):
        given(files, "", LLAMA_ARG_MMPROJ="{adapter}")
    with pytest.raises(ModelError, match=r"broken\.gguf"):
        given(files, "", LLAMA_ARG_SPEC_DRAFT_MODEL="{broken}")


@pytest.mark.parametrize("option", ["--embedding", "--embeddings", "--reranking", "--rerank", "--pooling mean"])
def test_embedding_models_are_served_when_asked_for(files: dict[str, Path], option: str) -> None:
    with pytest.raises(ModelError, match="this model makes embeddings, not text"):
        given(files, "-c 512", model="embeddings")
    given(files, option, model="embeddings")
    given(files, option)
    given(files, "", model="embeddings", LLAMA_ARG_EMBEDDINGS="1")
    with pytest.raises(ModelError, match="this is the projector"):
        given(files, option, model="projector")
