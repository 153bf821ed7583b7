"""Every tiny model by name, with the engines that know its architecture at their pins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import attention_models, gguf_builder, state_models
from .gguf_builder import Type

BOTH = ("llama.cpp", "ik_llama.cpp")
ONLY_LLAMA_CPP = ("llama.cpp",)


@dataclass(frozen=True)
class Model:
    """How a model is written, which engines can load it, and what can be done with its cache.

    ``shifts``: its positions can be moved. ``recurrent``: its state cannot be cut at any position.
    """

    write: Callable[[Path], None]
    engines: tuple[str, ...] = BOTH
    shifts: bool = False
    recurrent: bool = False


MODELS: Mapping[str, Model] = {
    "dense": Model(attention_models.write_dense, shifts=True),
    "dense-q4_0": Model(lambda path: attention_models.write_dense(path, Type.Q4_0), shifts=True),
    "dense-q8_0": Model(lambda path: attention_models.write_dense(path, Type.Q8_0), shifts=True),
    "dense-q4_k": Model(lambda path: attention_models.write_dense(path, Type.Q4_K), shifts=True),
    "dense-q6_k": Model(lambda path: attention_models.write_dense(path, Type.Q6_K), shifts=True),
    "dense-iq4_nl": Model(lambda path: attention_models.write_dense(path, Type.IQ4_NL), shifts=True),
    "biased": Model(attention_models.write_biased, shifts=True),
    "experts": Model(attention_models.write_experts, shifts=True),
    "experts-q4_0": Model(lambda path: attention_models.write_experts(path, Type.Q4_0), shifts=True),
    "experts-q4_k": Model(lambda path: attention_models.write_experts(path, Type.Q4_K), shifts=True),
    "sinks": Model(attention_models.write_sinks),
    "window": Model(attention_models.write_window),
    "latent": Model(attention_models.write_latent),
    "latent-q8_0": Model(lambda path: attention_models.write_latent(path, Type.Q8_0)),
    "latent-whole": Model(lambda path: attention_models.write_latent(path, absorbed=False)),
    "compressed": Model(attention_models.write_compressed, ONLY_LLAMA_CPP),
    # ik_llama.cpp has the architecture of "scan", too, but fails an assertion at its pin.
    "scan": Model(state_models.write_scan, ONLY_LLAMA_CPP, recurrent=True),
    "hybrid-scan": Model(state_models.write_hybrid_scan, ONLY_LLAMA_CPP, recurrent=True),
    "hybrid-delta": Model(state_models.write_hybrid_delta, recurrent=True),
    "time-mix": Model(state_models.write_time_mix, ONLY_LLAMA_CPP, recurrent=True),
}


def names(engine: str) -> list[str]:
    """The models an engine can load."""
    return [name for name, model in MODELS.items() if engine in model.engines]


def write_model(name: str, folder: Path) -> Path:
    """The model file of that name under ``folder``, written if it is not there yet."""
    path = folder / f"{name}.gguf"
    if not path.exists():
        MODELS[name].write(path)
    return path


def write_adapter(folder: Path) -> Path:
    """A LoRA adapter for ``dense`` and its quantized kin, written if it is not there yet."""
    path = folder / "adapter.gguf"
    if not path.exists():
        a = attention_models
        shapes = []
        for layer in range(2):
            blk = f"blk.{layer}"
            shapes += [
                (f"{blk}.attn_q.weight", a.N_HEAD * a.HEAD_DIM, a.N_EMBD),
                (f"{blk}.attn_v.weight", a.N_HEAD_KV * a.HEAD_DIM, a.N_EMBD),
                (f"{blk}.ffn_down.weight", a.N_EMBD, a.N_FF),
            ]
        gguf_builder.write_adapter(path, "llama", shapes)
    return path
