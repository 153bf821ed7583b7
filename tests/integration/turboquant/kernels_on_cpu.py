"""Kernels for GPUs that write and read ftq4, ftq3 and ftq2, compiled for the CPU, and ggml's plain C beside them.

Each thread of a block has a stack of its own (kernels/fibers.h), and files in that folder stand for what the kernels
include. So their arithmetic, their indices and what threads exchange are tested; a GPU's compiler and its rounding are not.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends.compiling import TIMEOUT_S, compiler
from ..conftest import ROOT
from .test_types import BITS

SOURCES = ROOT / "patches" / "turboquant" / "src" / "ggml" / "src"
FOLDER = Path(__file__).with_name("kernels")


class Kernels:
    """Functions of one file of the folder and of reference.cpp."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))

    def call(self, name: str, *given: NDArray[Any] | ctypes.Structure | int) -> int:
        """Call a function by its name; it takes 64-bit numbers and addresses."""
        words = [
            ctypes.c_int64(one)
            if isinstance(one, int)
            else one.ctypes.data_as(ctypes.c_void_p)
            if isinstance(one, np.ndarray)
            else ctypes.byref(one)
            for one in given
        ]
        return int(getattr(self._library, name)(*words))

    def reference(self, kind: str, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The bytes of rows of values."""
        rows = np.ascontiguousarray(values)
        out = np.zeros((*rows.shape[:-1], rows.shape[-1] // 64 * (2 + 8 * BITS[kind])), np.uint8)
        self.call("write_reference", BITS[kind], rows, out, rows.size)
        return out


def compiled_for_the_cpu(name: str, folder: Path, *options: str) -> Kernels:
    """Compile a file of the folder, with what it includes of the stack."""
    library = folder / "kernels.so"
    # What jumps from stack to stack must not be taken for a fault.
    options += ("-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-w")
    sources = [str(FOLDER / name), str(FOLDER / "reference.cpp")]
    command = [compiler(), *options, f"-I{FOLDER}", f"-I{SOURCES}", *sources, "-o", str(library)]
    subprocess.run(command, check=True, timeout=TIMEOUT_S)
    return Kernels(library)
