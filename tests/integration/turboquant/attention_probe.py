"""Compute flash attention on the CPU through one payload; a child process, as it may crash.

Usage: python -m tests.integration.turboquant.attention_probe ENGINE PACKAGE LIBRARIES OUT < JSON, from the repository's root

ENGINE is llama.cpp or ik_llama.cpp, LIBRARIES {NAME: PATH} in JSON. The document on standard input is a list of cases, each the fields of ``Case``. OUT
becomes a numpy archive, by the case's number: its result (float32; sequences x tokens x heads x head size), and with
``k`` and ``v`` behind the number the bytes of the cache.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..fixes.kshift_probe import load_abi
from .attention_cases import Case, Inputs

ARENA_BYTES = 256 << 20


class Cpu:
    """The CPU backend of a payload."""

    def __init__(self, package: Path, libraries: dict[str, str]) -> None:
        self.abi = load_abi(package)
        self.api: Any = self.abi.bind(*(ctypes.CDLL(libraries[name]) for name in ("llama", "ggml")))
        if self.api.ggml_backend_reg_count() == 0:
            self.api.ggml_backend_load(libraries["ggml-cpu"].encode())
        device = self.api.ggml_backend_dev_by_type(self.abi.GGML_BACKEND_DEVICE_TYPE_CPU)
        self.backend = self.api.ggml_backend_dev_init(device, None)
        registry = self.api.ggml_backend_dev_backend_reg(device)
        address = self.api.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_set_n_threads")
        self.set_threads = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(address)

    def compute(self, context: Any, result: Any, threads: int = 4) -> None:
        """Compute a tensor of a context."""
        graph = self.api.ggml_new_graph(context)
        self.api.ggml_build_forward_expand(graph, result)
        self._run(context, graph, threads)

    def _run(self, _context: Any, graph: Any, threads: int) -> None:
        self.set_threads(ctypes.cast(self.backend, ctypes.c_void_p), threads)
        if self.api.ggml_backend_graph_compute(self.backend, graph) != 0:
            sys.exit("not computed")

    def mask(self, context: Any, values: NDArray[np.float32]) -> Any:
        """A mask as this engine takes it."""
        return self._tensor(context, "f16", values)

    def attention(self, case: Case) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]:
        """The result of one case, and the bytes of its K and V."""
        abi, api, data = self.abi, self.api, Inputs.of(case)
        context = api.ggml_init(abi.ggml_init_params(ARENA_BYTES, None, False))
        q = self._tensor(context, "f32", data.q)
        # As the engine's cache has them: the heads of a position lie side by side.
        k, v = (self._tensor(context, kind, rows) for kind, rows in ((case.k, data.k), (case.v, data.v)))
        stored = [
            np.frombuffer(ctypes.string_at(api.ggml_get_data(rows), api.ggml_nbytes(rows)), np.uint8) for rows in (k, v)
        ]
        k, v = (api.ggml_permute(context, rows, 0, 2, 1, 3) for rows in (k, v))
        mask = None if data.mask is None else self.mask(context, data.mask)
        scale = case.head_k**-0.5
        result = api.ggml_flash_attn_ext(context, q, k, v, mask, scale, case.bias, case.softcap)
        if data.sinks is not None:
            api.ggml_flash_attn_ext_add_sinks(result, self._tensor(context, "f32", data.sinks))
        self.compute(context, result, case.threads)
        shape = (case.sequences, case.tokens, case.heads, case.head_v)
        values = np.ctypeslib.as_array(
            (ctypes.c_float * int(np.prod(shape))).from_address(api.ggml_get_data(result))
        ).reshape(shape)
        copied = values.copy()
        api.ggml_free(context)
        return copied, *stored

    def _tensor(self, context: Any, kind: str, values: NDArray[np.float32]) -> Any:
        """A tensor of a type with these values; the last axis of an array is a tensor's first."""
        number = getattr(self.abi, f"GGML_TYPE_{kind.upper()}")
        shape = (1,) * (4 - values.ndim) + values.shape
        tensor = self.api.ggml_new_tensor_4d(context, number, *reversed(shape))
        source = np.ascontiguousarray(values, dtype=np.float32)
        target = self.api.ggml_get_data(tensor)
        if kind == "f32":
            ctypes.memmove(target, source.ctypes.data, source.nbytes)
        elif kind == "f16":
            half = source.astype(np.float16)
            ctypes.memmove(target, half.ctypes.data, half.nbytes)
        else:
            pointer = source.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            self.api.ggml_quantize_chunk(number, pointer, target, 0, source.size // shape[3], shape[3], None)
        return tensor


class IkCpu(Cpu):
    """The CPU of ik_llama.cpp, which has no backends that can be chosen."""

    def __init__(self, package: Path, libraries: dict[str, str]) -> None:
        self.abi = load_abi(package)
        self.api = self.abi.bind(*(ctypes.CDLL(libraries[name]) for name in ("llama", "ggml")))

    def _run(self, context: Any, graph: Any, threads: int) -> None:
        if self.api.ggml_graph_compute_with_ctx(context, graph, threads) != 0:
            sys.exit("not computed")

    def mask(self, context: Any, values: NDArray[np.float32]) -> Any:
        """Of one sequence, with rows that nothing looks at."""
        rows = -(-values.shape[2] // self.abi.GGML_KQ_MASK_PAD) * self.abi.GGML_KQ_MASK_PAD
        return self._tensor(context, "f16", np.resize(values[0, 0], (rows, values.shape[3])))


CPUS = {"llama.cpp": Cpu, "ik_llama.cpp": IkCpu}


def main(engine: str, package: str, libraries: str, out: str) -> None:
    cpu = CPUS[engine](Path(package), json.loads(libraries))
    cases = [Case(**fields) for fields in json.load(sys.stdin)]
    arrays = {}
    for number, case in enumerate(cases):
        arrays |= dict(zip((f"{number}", f"{number}k", f"{number}v"), cpu.attention(case), strict=True))
    np.savez(out, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
