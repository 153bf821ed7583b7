"""Send rows through the cache types ftq4, ftq3 and ftq2 of one payload; a child process, as it may crash.

Usage: python -m tests.integration.turboquant.types_probe ENGINE PACKAGE LIBRARIES IN OUT, from the repository's root

ENGINE is llama.cpp or ik_llama.cpp, LIBRARIES {NAME: PATH} in JSON. IN is a numpy archive of ``rows`` (float32; rows x values) and of ``ftq4``, ``ftq3``
and ``ftq2``: blocks (bytes; rows x bytes) to be read. OUT becomes one, for each type:

- ``TYPE_reference``: the bytes of ``rows`` by ggml's own plain C, and ``TYPE_cpu`` by what writes the cache: the CPU backend's SET_ROWS,
  or its copy in ik_llama.cpp;
- ``TYPE_values`` (float32): what the CPU backend's GET_ROWS reads of the blocks, and ``TYPE_copied`` what its copy reads.
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
    """Rows of one type on the CPU."""

    def __init__(self, cpu: Cpu, kind: str) -> None:
        self._cpu, self._api = cpu, cpu.api
        self._type = getattr(cpu.abi, f"GGML_TYPE_{kind.upper()}")

    def reference(self, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The bytes that ggml's plain C writes."""
        out = np.zeros((len(rows), self._api.ggml_row_size(self._type, rows.shape[1])), np.uint8)
        source = rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        self._api.ggml_quantize_chunk(self._type, source, out.ctypes.data, 0, *rows.shape, None)
        return out

    def written(self, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The bytes of a cache's rows."""
        context, index = self._context(len(rows))
        source = self._cpu._tensor(context, "f32", rows)
        target = self._api.ggml_new_tensor_2d(context, self._type, rows.shape[1], len(rows))
        # A method of the one engine alone.
        has_set_rows = hasattr(self._api, "ggml_set_rows")
        result = (
            self._api.ggml_set_rows(context, target, source, index)
            if has_set_rows
            else self._api.ggml_cpy(context, source, target)
        )
        self._cpu.compute(context, result)
        return self._bytes(context, target).reshape(len(rows), -1)

    def read(self, blocks: NDArray[np.uint8], *, copy: bool) -> NDArray[np.float32]:
        """What GET_ROWS reads of rows of blocks, or a copy to F32."""
        api = self._api
        width = blocks.shape[1] // api.ggml_type_size(self._type) * 64
        context, index = self._context(len(blocks))
        source = api.ggml_new_tensor_2d(context, self._type, width, len(blocks))
        ctypes.memmove(api.ggml_get_data(source), blocks.ctypes.data, blocks.nbytes)
        f32 = self._cpu.abi.GGML_TYPE_F32
        result = api.ggml_cast(context, source, f32) if copy else api.ggml_get_rows(context, source, index)
        self._cpu.compute(context, result)
        return self._bytes(context, result).view(np.float32).reshape(len(blocks), width)

    def _context(self, count: int) -> tuple[Any, Any]:
        """A context and a tensor of the rows' numbers."""
        context = self._api.ggml_init(self._cpu.abi.ggml_init_params(ARENA_BYTES, None, False))
        index = self._api.ggml_new_tensor_1d(context, self._cpu.abi.GGML_TYPE_I32, count)
        numbers = np.arange(count, dtype=np.int32)
        ctypes.memmove(self._api.ggml_get_data(index), numbers.ctypes.data, numbers.nbytes)
        return context, index

    def _bytes(self, context: Any, tensor: Any) -> NDArray[np.uint8]:
        """A tensor's bytes; the context ends."""
        data = ctypes.string_at(self._api.ggml_get_data(tensor), self._api.ggml_nbytes(tensor))
        self._api.ggml_free(context)
        return np.frombuffer(data, np.uint8)


def main(engine: str, package: str, libraries: str, given: str, out: str) -> None:
    cpu = CPUS[engine](Path(package), json.loads(libraries))
    found: dict[str, Any] = {}
    with np.load(given) as arrays:
        for kind in TYPES:
            rows = Rows(cpu, kind)
            found[f"{kind}_reference"] = rows.reference(arrays["rows"])
            found[f"{kind}_cpu"] = rows.written(arrays["rows"])
            found[f"{kind}_values"] = rows.read(arrays[kind], copy=False)
            found[f"{kind}_copied"] = rows.read(arrays[kind], copy=True)
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
