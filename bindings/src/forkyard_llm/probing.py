"""Try one payload, in a process that may die of it: `python -m forkyard_llm.probing PACKAGE_FOLDER`.

Loads the libraries (with every check loading makes), starts the engine and multiplies small matrices of the
kinds real models use, comparing with the same product in Python: a payload that needs an instruction this
machine does not execute dies here, one that computes nonsense is found out here. The verdict is one JSON
object on the last line of standard output: {"usable": bool, "reason": text, ...}; dying by a signal is a
verdict too.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from . import cpu
from .engines.base import Engine
from .errors import ForkyardLlmError
from .loading import load
from .payloads import Payload, read_payload

__all__ = ["main", "probe"]

# Enough for one block of the K-quants per row and for the engines' row-wise SIMD loops to be entered.
_WIDTH = 256
_ROWS = 8
_COLUMNS = 4
_ARENA_BYTES = 16 << 20
# Largest error allowed, as a share of the largest exact value: 4-bit weights alone cost up to 0.09 here, and
# a wrong product is off by about 1.
_TOLERANCE = 0.2
_TYPES = ("GGML_TYPE_F16", "GGML_TYPE_Q8_0", "GGML_TYPE_Q4_0", "GGML_TYPE_Q4_K")


def main(arguments: list[str] | None = None) -> None:
    """Probe the payload folder named on the command line, print the verdict and exit (0 usable, 1 not)."""
    folders = sys.argv[1:] if arguments is None else arguments
    # What the engine prints must not mix with the verdict: its standard output becomes our standard error.
    verdict_stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Dying is one of the expected answers: no core file, and no debugger that ggml starts for a backtrace.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["GGML_NO_BACKTRACE"] = "1"
    if len(folders) != 1:
        usage = "usage: python -m forkyard_llm.probing PACKAGE_FOLDER"
        verdict: dict[str, Any] = {"usable": False, "reason": usage}
    else:
        try:
            verdict = probe(read_payload(Path(folders[0])))
        except ForkyardLlmError as error:
            verdict = {"usable": False, "reason": str(error), "error": type(error).__name__}
        except OSError as error:
            verdict = {"usable": False, "reason": f"cannot be loaded: {error}", "error": type(error).__name__}
    verdict_stream.write(json.dumps(verdict) + "\n")
    verdict_stream.flush()
    # The verdict is out: no destructor of a strange library may still change the outcome.
    os._exit(0 if verdict["usable"] else 1)


def probe(payload: Payload) -> dict[str, Any]:
    """Load and exercise `payload` in this process. Raises ForkyardLlmError or OSError, or dies of it."""
    lacking = cpu.missing(payload.cpu_features)
    if lacking:
        return {"usable": False, "reason": "this CPU lacks " + ", ".join(lacking)}
    if any(feature.startswith("amx") for feature in payload.cpu_features):
        refusal = cpu.request_amx_permission()
        if refusal:
            return {"usable": False, "reason": refusal}
    engine = load(payload)
    engine.start()
    facts: dict[str, Any] = {"system_info": " ".join(engine.system_info().split())}
    types = _types(engine.abi)
    worst = {name: multiply_error(engine, number) for name, number in types.items()}
    facts["multiplied"] = {name: round(error, 5) for name, error in worst.items()}
    wrong = [name for name, error in worst.items() if not error <= _TOLERANCE]  # also NaN
    if wrong:
        reason = f"multiplies {', '.join(wrong)} matrices wrongly on this CPU"
    else:
        reason = f"loads, and multiplies {', '.join(worst)} matrices correctly"
    return {"usable": not wrong, "reason": reason, **facts}


def multiply_error(engine: Engine, type_number: int) -> float:
    """Largest error of a small product with weights of one type, as a share of the largest exact value."""
    abi, api = engine.abi, engine.api
    weights = [math.sin(0.37 * i) for i in range(_ROWS * _WIDTH)]
    inputs = [math.cos(0.11 * i) for i in range(_COLUMNS * _WIDTH)]
    context = api.ggml_init(abi.ggml_init_params(_ARENA_BYTES, None, False))
    if not context:
        return math.inf
    try:
        left = api.ggml_new_tensor_2d(context, type_number, _WIDTH, _ROWS)
        right = api.ggml_new_tensor_2d(context, abi.GGML_TYPE_F32, _WIDTH, _COLUMNS)
        source = (ctypes.c_float * len(weights))(*weights)
        api.ggml_quantize_chunk(type_number, source, api.ggml_get_data(left), 0, _ROWS, _WIDTH, None)
        values = (ctypes.c_float * len(inputs))(*inputs)
        ctypes.memmove(api.ggml_get_data(right), values, ctypes.sizeof(values))
        product = api.ggml_mul_mat(context, left, right)
        graph = api.ggml_new_graph(context)
        api.ggml_build_forward_expand(graph, product)
        if api.ggml_graph_compute_with_ctx(context, graph, 1) != 0:
            return math.inf
        result = (ctypes.c_float * (_ROWS * _COLUMNS)).from_address(api.ggml_get_data(product))
        exact = [
            sum(weights[row * _WIDTH + i] * inputs[column * _WIDTH + i] for i in range(_WIDTH))
            for column in range(_COLUMNS)
            for row in range(_ROWS)
        ]
        scale = max(abs(value) for value in exact)
        return max(abs(float(got) - wanted) for got, wanted in zip(result, exact, strict=True)) / scale
    finally:
        api.ggml_free(context)


def _types(abi: ModuleType) -> dict[str, int]:
    present = [name for name in _TYPES if hasattr(abi, name)]
    return {name.removeprefix("GGML_TYPE_").lower(): int(getattr(abi, name)) for name in present}


if __name__ == "__main__":
    main()
