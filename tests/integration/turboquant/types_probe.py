"""Send rows through the cache types ftq4, ftq3 and ftq2 of one payload; a child process, as it may crash.

Usage: python -m tests.integration.turboquant.types_probe ENGINE PACKAGE LIBRARIES IN OUT DEVICE, from the repository's root

ENGINE is llama.cpp or ik_llama.cpp, LIBRARIES {NAME: PATH} in JSON. DEVICE is the engine's name of what computes, such as CPU or Vulkan0. IN is a numpy archive of ``rows`` (float32; rows x values) and of ``ftq4``, ``ftq3``
and ``ftq2``: blocks (bytes; rows x bytes) to be read. OUT becomes one, for each type:

- ``TYPE_reference``: the bytes of ``rows`` by ggml's own plain C, ``TYPE_set`` by the device's SET_ROWS, and
  ``TYPE_stored`` by its copy, which ik_llama.cpp has alone;
- ``TYPE_values`` (float32): what the device's GET_ROWS reads of the blocks, and ``TYPE_copied`` what its copy reads.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .attention_probe import ARENA_BYTES, CPUS, Cpu

TYPES = ("ftq4", "ftq3", "ftq2")


class Rows:
    """Rows of one type on a device."""

    _no_alloc = True

    def __init__(self, cpu: Cpu, device: str, kind: str) -> None:
        self._abi, self._api = cpu.abi, cpu.api
        self._type = getattr(cpu.abi, f"GGML_TYPE_{kind.upper()}")
        self._cpu = cpu
        self._backend = getattr(cpu, "backend", None)
        if device != "CPU":
            self._backend = self._api.ggml_backend_init_by_name(device.encode(), None)
            if not self._backend:
                sys.exit(f"there is no device {device}")

    def reference(self, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The bytes that ggml's plain C writes."""
        out = np.zeros((len(rows), self._api.ggml_row_size(self._type, rows.shape[1])), np.uint8)
        source = rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        self._api.ggml_quantize_chunk(self._type, source, out.ctypes.data, 0, *rows.shape, None)
        return out

    def written(self, rows: NDArray[np.float32], *, copy: bool) -> NDArray[np.uint8]:
        """The bytes that SET_ROWS writes, or a copy from F32."""
        api = self._api
        context = api.ggml_init(self._abi.ggml_init_params(ARENA_BYTES, None, self._no_alloc))
        source = api.ggml_new_tensor_2d(context, self._abi.GGML_TYPE_F32, rows.shape[1], len(rows))
        target = api.ggml_new_tensor_2d(context, self._type, rows.shape[1], len(rows))
        if copy:
            return self._computed(context, api.ggml_cpy(context, source, target), (source, rows)).reshape(len(rows), -1)
        # The last row comes first, as the order of a cache's cells is any.
        index = api.ggml_new_tensor_1d(context, self._abi.GGML_TYPE_I64, len(rows))
        result = api.ggml_set_rows(context, target, source, index)
        numbers = np.arange(len(rows), dtype=np.int64)[::-1].copy()
        return self._computed(context, result, (source, rows), (index, numbers)).reshape(len(rows), -1)[::-1]

    def read(self, blocks: NDArray[np.uint8], *, copy: bool) -> NDArray[np.float32]:
        """What GET_ROWS reads of rows of blocks, or a copy to F32."""
        api = self._api
        context = api.ggml_init(self._abi.ggml_init_params(ARENA_BYTES, None, self._no_alloc))
        width = blocks.shape[1] // api.ggml_type_size(self._type) * 64
        source = api.ggml_new_tensor_2d(context, self._type, width, len(blocks))
        index = api.ggml_new_tensor_1d(context, self._abi.GGML_TYPE_I32, len(blocks))
        f32 = self._abi.GGML_TYPE_F32
        result = api.ggml_cast(context, source, f32) if copy else api.ggml_get_rows(context, source, index)
        numbers = np.arange(len(blocks), dtype=np.int32)
        data = self._computed(context, result, (source, blocks), (index, numbers))
        return data.view(np.float32).reshape(len(blocks), width)

    def _computed(self, context: Any, result: Any, *given: tuple[Any, NDArray[Any]]) -> NDArray[np.uint8]:
        """A result's bytes, with these values of the tensors before; the context ends."""
        api = self._api
        if not api.ggml_backend_supports_op(self._backend, result):
            sys.exit("the device does not compute this")
        buffer = api.ggml_backend_alloc_ctx_tensors(context, self._backend)
        for tensor, values in given:
            values = np.ascontiguousarray(values)
            api.ggml_backend_tensor_set(tensor, values.ctypes.data, 0, values.nbytes)
        graph_context = api.ggml_init(self._abi.ggml_init_params(ARENA_BYTES, None, True))
        graph = api.ggml_new_graph(graph_context)
        api.ggml_build_forward_expand(graph, result)
        if api.ggml_backend_graph_compute(self._backend, graph) != 0:
            sys.exit("not computed")
        data = np.zeros(api.ggml_nbytes(result), np.uint8)
        api.ggml_backend_tensor_get(result, data.ctypes.data, 0, data.nbytes)
        api.ggml_backend_buffer_free(buffer)
        api.ggml_free(graph_context)
        api.ggml_free(context)
        return data


class IkRows(Rows):
    """On the CPU of ik_llama.cpp, which has no SET_ROWS."""

    _no_alloc = False

    def written(self, rows: NDArray[np.float32], *, copy: bool) -> NDArray[np.uint8]:
        return super().written(rows, copy=True)

    def _computed(self, context: Any, result: Any, *given: tuple[Any, NDArray[Any]]) -> NDArray[np.uint8]:
        for tensor, values in given:
            values = np.ascontiguousarray(values)
            ctypes.memmove(self._api.ggml_get_data(tensor), values.ctypes.data, values.nbytes)
        self._cpu.compute(context, result)
        data = ctypes.string_at(self._api.ggml_get_data(result), self._api.ggml_nbytes(result))
        self._api.ggml_free(context)
        return np.frombuffer(data, np.uint8)


ROWS = {"llama.cpp": Rows, "ik_llama.cpp": IkRows}


def main(engine: str, package: str, libraries: str, given: str, out: str, device: str) -> None:
    paths = json.loads(libraries)
    cpu = CPUS[engine](Path(package), paths)
    if device.startswith("Vulkan"):
        cpu.api.ggml_backend_load(paths["ggml-vulkan"].encode())
    found: dict[str, Any] = {}
    with np.load(given) as arrays:
        for kind in TYPES:
            rows = ROWS[engine](cpu, device, kind)
            found[f"{kind}_reference"] = rows.reference(arrays["rows"])
            found[f"{kind}_set"] = rows.written(arrays["rows"], copy=False)
            found[f"{kind}_stored"] = rows.written(arrays["rows"], copy=True)
            found[f"{kind}_values"] = rows.read(arrays[kind], copy=False)
            found[f"{kind}_copied"] = rows.read(arrays[kind], copy=True)
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
