"""Compute attention over two pairs of K and V through one payload and save it; a child process, as it may crash.

Usage: python -m tests.integration.turboquant.pair_probe JSON, from the root of the repository

The JSON object says which ``engine`` it is, which ``libraries`` ({NAME: PATH}) of which ``payload`` (package folder, of which _abi.py is read);
the fields of a test_pair.Shape; ``input``, a folder with q, k, v, k2, v2, mask and sinks (.npy) as the op takes them, K
and V as bytes of their types; the ``output`` file, .npy; whether both pairs are attended to (``pair``) or the first alone.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..fixes.kshift_probe import load_abi

MEMORY = 64 << 20


def main(argument: str) -> None:
    wish = json.loads(argument)
    abi = load_abi(Path(wish["payload"]))
    is_ik = wish["engine"] == "ik_llama.cpp"
    names = ("ggml",) if is_ik else ("ggml", "ggml-cpu", "ggml-base")
    api: Any = abi.bind(*(ctypes.CDLL(wish["libraries"][name]) for name in names))
    params = abi.ggml_init_params(mem_size=MEMORY, mem_buffer=None, no_alloc=False)
    context = api.ggml_init(params)

    def tensor(name: str, kind: str, shape: list[int]) -> Any:
        made = api.ggml_new_tensor_4d(context, getattr(abi, f"GGML_TYPE_{kind.upper()}"), *shape)
        data = np.load(Path(wish["input"]) / f"{name}.npy").tobytes()
        assert len(data) == api.ggml_nbytes(made), (name, len(data), api.ggml_nbytes(made))
        ctypes.memmove(made.contents.data, data, len(data))
        return made

    d, n_head, n_kv_head, streams = wish["d"], wish["heads"], wish["kv_heads"], wish["streams"]
    q = tensor("q", "f32", [d, wish["queries"], n_head, streams])
    k, v = (tensor(name, wish[name], [d, wish["first"], n_kv_head, streams]) for name in ("k", "v"))
    sinks = tensor("sinks", "f32", [n_head, 1, 1, 1]) if wish["sinks"] else None
    scale, bias, cap = (ctypes.c_float(wish[name]) for name in ("scale", "bias", "cap"))
    if wish["pair"]:
        k2, v2 = (tensor(name, "f16", [d, wish["second"], n_kv_head, streams]) for name in ("k2", "v2"))
    if is_ik:
        rows = -(-wish["queries"] // abi.GGML_KQ_MASK_PAD) * abi.GGML_KQ_MASK_PAD
        masks = [tensor(f"mask{i}", "f16", [wish[part], rows, 1, 1]) for i, part in enumerate(("first", "second"))]
        out = api.ggml_flash_attn_ext(context, q, k, v, masks[0], scale, bias, cap)
        api.ggml_flash_attn_ext_add_sinks(out, sinks)
        api.ggml_flash_attn_ext_add_pair(out, k2, v2, masks[1])
    elif wish["pair"]:
        mask = tensor("mask", "f16", [wish["first"] + wish["second"], wish["queries"], 1, streams])
        out = api.ggml_flash_attn_pair(context, q, k, v, k2, v2, mask, sinks, scale, bias, cap)
    else:
        mask = tensor("mask", "f16", [wish["first"] + wish["second"], wish["queries"], 1, streams])
        out = api.ggml_flash_attn_ext(context, q, k, v, mask, scale, bias, cap)
        api.ggml_flash_attn_ext_add_sinks(out, sinks)
    graph = api.ggml_new_graph(context)
    api.ggml_build_forward_expand(graph, out)
    if api.ggml_graph_compute_with_ctx(context, graph, wish["threads"]) != 0:
        sys.exit("not computed")
    data = ctypes.string_at(out.contents.data, api.ggml_nbytes(out))
    np.save(wish["output"], np.frombuffer(data, dtype=np.float32).reshape(streams, wish["queries"], n_head, d))


if __name__ == "__main__":
    main(sys.argv[1])
