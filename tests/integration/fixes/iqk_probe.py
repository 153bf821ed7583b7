"""One operation of ik_llama.cpp on the CPU, on given numbers; a child process, as it may abort.

Usage: iqk_probe.py JOB, where JOB is a JSON object: ``payload`` is a payload's package folder, of which _abi.py is read;
``libraries`` are its paths by name; ``input`` and ``output`` are files of NumPy arrays (.npz).

``operation`` is ``product``: of ``a``, stored in the type ``kind``, and ``b``; ``output`` has it and ``stored``, what a
is in that type. Or ``attention``: of queries ``q`` to keys ``k`` and values ``v`` (f16, or the type ``kind``) under
``mask``, with ``window`` as the layer's sliding window.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from kshift_probe import load_abi
from numpy.typing import NDArray

MEMORY = 64 * 1024 * 1024
"""Bytes for tensors and graph; the largest test needs a third."""
INTERLEAVED = {"iq4_nl_r4": 4, "q4_0_r8": 8}
"""Rows that a type stores together."""
PADDING = 64
"""More rows of a mask than there are queries: the engine wants them, and does not look at them."""
THREADS = 2
WINDOW = 4
"""Which of an attention's parameters the window is."""

Floats = NDArray[np.float32]


class Operation:
    """Tensors of one operation and what computes it."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.abi = load_abi(Path(job["payload"]))
        # First the one of which a payload has several: the other one takes what is there.
        ggml, llama = (ctypes.CDLL(job["libraries"][name]) for name in ("ggml", "llama"))
        self.api: Any = self.abi.bind(llama, ggml)
        self.api.llama_backend_init()
        self.context = self.api.ggml_init(self.abi.ggml_init_params(MEMORY, None, False))

    def type(self, name: str) -> int:
        return int(getattr(self.abi, f"GGML_TYPE_{name.upper()}"))

    def tensor(self, values: NDArray[Any], kind: str) -> Any:
        """A tensor of up to four dimensions, the last of ``values`` the first."""
        number = self.type(kind)
        shape = values.shape[::-1] + (1,) * (4 - values.ndim)
        tensor = self.api.ggml_new_tensor_4d(self.context, number, *shape)
        data = np.ascontiguousarray(values, dtype=np.float16 if kind == "f16" else np.float32)
        if kind in {"f32", "f16"}:
            ctypes.memmove(tensor.contents.data, data.ctypes.data, data.nbytes)
        else:
            weights = np.ones(data.shape[-1], dtype=np.float32)
            rows = data.size // data.shape[-1]
            self.api.ggml_quantize_chunk(
                number, _floats(data), tensor.contents.data, 0, rows, data.shape[-1], _floats(weights)
            )
        return tensor

    def stored(self, tensor: Any, kind: str, rows: int, columns: int) -> Floats:
        """What the rows of a tensor are after they were stored in its type."""
        convert = self.api.ggml_internal_get_type_traits(self.type(kind)).to_float
        size = self.api.ggml_row_size(self.type(kind), columns)
        values = np.empty((rows, columns), dtype=np.float32)
        step = INTERLEAVED.get(kind, 1)
        for row in range(0, rows, step):
            convert(tensor.contents.data + row * size, _floats(values[row]), step * columns)
        return values

    def result(self, tensor: Any) -> Floats:
        """Compute a tensor; its numbers, row by row."""
        graph = self.api.ggml_new_graph(self.context)
        self.api.ggml_build_forward_expand(graph, tensor)
        if self.api.ggml_graph_compute_with_ctx(self.context, graph, THREADS) != 0:
            sys.exit("not computed")
        count = int(np.prod(tensor.contents.ne[:4]))
        data = ctypes.cast(tensor.contents.data, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(data, (count,)).copy()


def _floats(values: Floats) -> Any:
    return values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


def product(job: Mapping[str, Any], given: Mapping[str, NDArray[Any]]) -> dict[str, Floats]:
    op, kind = Operation(job), job["kind"]
    a = op.tensor(given["a"], kind)
    stored = op.stored(a, kind, *given["a"].shape)
    return {"stored": stored, "result": op.result(op.api.ggml_mul_mat(op.context, a, op.tensor(given["b"], "f32")))}


def attention(job: Mapping[str, Any], given: Mapping[str, NDArray[Any]]) -> dict[str, Floats]:
    op, kind = Operation(job), job["kind"]
    k, v = (op.tensor(given[name], kind) for name in ("k", "v"))
    padded = np.pad(given["mask"], ((0, PADDING), (0, 0)))
    q, mask = op.tensor(given["q"], "f32"), op.tensor(padded, "f16")
    out = op.api.ggml_flash_attn_ext(op.context, q, k, v, mask, given["q"].shape[-1] ** -0.5, 0.0, 0.0)
    out.contents.op_params[WINDOW] = job["window"]
    return {"result": op.result(out)}


def main(argv: list[str]) -> None:
    job = json.loads(argv[0])
    with np.load(job["input"]) as given:
        np.savez(job["output"], **{"product": product, "attention": attention}[job["operation"]](job, given))


if __name__ == "__main__":
    main(sys.argv[1:])
