"""The constructor's options as forkyard_llm.Llama takes them: mapped, ignored with a warning, or refused."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import forkyard_llm
from forkyard_llm.engines.options import ENGINE_OPTIONS
from forkyard_llm.errors import UnsupportedOption

from ._numbers import CACHE_TYPES, NUMA, POOLINGS, SPLIT_MODES, named
from ._once import warn_once
from .llama_speculative import LlamaDraftModel, LlamaPromptLookupDecoding

__all__ = ["REFUSED", "draft_options", "gpu_options", "mapped", "more_options"]

REFUSED: Mapping[str, tuple[object, ...]] = {
    "kv_overrides": (None, {}),
    "rope_scaling_type": (None, -1),
    "attention_type": (-1,),
    "yarn_ext_factor": (-1.0,),
    "yarn_attn_factor": (1.0,),
    "yarn_beta_fast": (32.0,),
    "yarn_beta_slow": (1.0,),
    "yarn_orig_ctx": (0,),
    "lora_base": (None, ""),
    "spm_infill": (False,),
}
"""Options that change results and that forkyard_llm does not have, with the values that ask for nothing."""


def mapped(given: Mapping[str, Any]) -> dict[str, Any]:
    """What forkyard_llm.Llama takes of the arguments ``given``, but for GPUs, drafts and what only engines know.

    Raises:
        UnsupportedOption: one of :data:`REFUSED` asks for something.
        UsageError: a number that has no name.
    """
    for name, harmless in REFUSED.items():
        if given[name] not in harmless:
            msg = f"{name}={given[name]!r} would change what the model says, and forkyard_llm lacks it: leave it out"
            raise UnsupportedOption(msg)
    if given["no_perf"]:
        warn_once("no_perf does nothing: the engine always counts")
    options: dict[str, Any] = {
        name: given[name]
        for name in [
            "n_ctx",
            "n_batch",
            "n_ubatch",
            "n_threads",
            "n_threads_batch",
            "vocab_only",
            "use_mmap",
            "use_mlock",
            "rope_freq_base",
            "rope_freq_scale",
            "embedding",
            "offload_kqv",
            "flash_attn",
            "lora_path",
            "lora_scale",
            "verbose",
        ]
    }
    options["pooling"] = named("pooling_type", POOLINGS, given["pooling_type"]) if given["embedding"] else None
    options["numa"] = named("numa", NUMA, given["numa"])
    for name in ("type_k", "type_v"):
        options[name] = named(name, CACHE_TYPES, given[name])
    for name in ("op_offload", "swa_full"):
        if given[name] is not None:
            options[name] = given[name]
    # As in llama-cpp-python, where it cannot be turned off.
    options["prompt_reuse"] = not given["vocab_only"] and not given["embedding"]
    return options


def gpu_options(given: Mapping[str, Any], engine: str, variant: str | None) -> dict[str, Any]:
    """The options about GPUs; none of them, with a warning, where the payload has none to use.

    Raises as forkyard_llm.devices does, and UsageError for a number that has no name.
    """
    layers, shares = given["n_gpu_layers"], tuple(given["tensor_split"] or ())
    mode = named("split_mode", SPLIT_MODES, given["split_mode"])
    if not layers and not shares and mode == "layer" and not given["main_gpu"]:
        return {}
    if not any(device.kind != "cpu" for device in forkyard_llm.devices(engine, variant)):
        warn_once("n_gpu_layers and what else is about GPUs does nothing: the payload in use has no GPU here")
        return {}
    options: dict[str, Any] = {"n_gpu_layers": max(layers, -1), "tensor_split": shares, "main_gpu": given["main_gpu"]}
    if mode != "layer":
        options["split_mode"] = mode
    return options


def draft_options(draft: LlamaDraftModel | None) -> dict[str, Any]:
    """The options about guesses; a way of guessing that is not ours does nothing, as guesses change no text."""
    if isinstance(draft, LlamaPromptLookupDecoding):
        return {"draft_model": "ngram", "draft_tokens": draft.num_pred_tokens}
    if draft is not None:
        warn_once(
            f"draft_model does nothing with a {type(draft).__name__}: use LlamaPromptLookupDecoding, or"
            " forkyard_llm.Llama with the path of a smaller model"
        )
    return {}


def more_options(more: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """Options beyond llama-cpp-python's that forkyard_llm has; others do nothing, as there, and are warned about."""
    ours = {
        *inspect.signature(forkyard_llm.Llama).parameters,
        *(name for one in ENGINE_OPTIONS.values() for name in one),
    }
    taken = {name: value for name, value in more.items() if name in ours and name not in known}
    for name in more.keys() - taken.keys():
        warn_once(f"{name} does nothing: neither llama-cpp-python 0.3.36 nor forkyard_llm has this option")
    return taken
