"""Small matrix products in an engine, compared with the same product in Python."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .engines.base import Engine

__all__ = ["Layout", "layouts", "multiply_error"]

# One block of the K-quants per row, and as many rows as the widest kernels (AMX: 32) take at once, twice.
_WIDTH = 256
_ROWS = 64
_COLUMNS = 4
_ARENA_BYTES = 16 << 20
_EXTRA_BUFFERS = b"ggml_backend_dev_get_extra_bufts"


@dataclass(frozen=True)
class Layout:
    """A special layout the CPU backend keeps weights in: AMX tiles, interleaved rows."""

    name: str
    buffer_type: Any
    device: Any


def layouts(engine: Engine) -> Iterator[Layout]:
    """The layouts the engine's CPU backend has on this machine; none where the engine knows no such thing."""
    abi, api = engine.abi, engine.api
    if not hasattr(abi, "GGML_BACKEND_DEVICE_TYPE_CPU"):
        return
    device = api.ggml_backend_dev_by_type(abi.GGML_BACKEND_DEVICE_TYPE_CPU)
    address = device and api.ggml_backend_reg_get_proc_address(api.ggml_backend_dev_backend_reg(device), _EXTRA_BUFFERS)
    if not address:
        return
    list_of = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)
    types = list_of(ctypes.cast(device, ctypes.c_void_p))
    number = 0
    while types and types[number]:
        buffer_type = ctypes.cast(types[number], ctypes.POINTER(abi.ggml_backend_buffer_type))
        yield Layout(api.ggml_backend_buft_name(buffer_type).decode("utf-8", "replace"), buffer_type, device)
        number += 1


def multiply_error(engine: Engine, type_number: int, layout: Layout | None = None) -> float | None:
    """Largest error of a small product with weights of one type, as a share of the largest exact value.

    Returns:
        infinity if the engine does not compute it; None if ``layout`` holds no weights of that type here.
    """
    abi, api = engine.abi, engine.api
    weights = [math.sin(0.37 * i) for i in range(_ROWS * _WIDTH)]
    inputs = [math.cos(0.11 * i) for i in range(_COLUMNS * _WIDTH)]
    context = api.ggml_init(abi.ggml_init_params(_ARENA_BYTES, None, False))
    # Weights in a layout have their memory in a buffer of it.
    outside = api.ggml_init(abi.ggml_init_params(_ARENA_BYTES, None, True)) if layout else None
    buffers = []
    if not context:
        return math.inf
    try:
        left = api.ggml_new_tensor_2d(outside or context, type_number, _WIDTH, _ROWS)
        right = api.ggml_new_tensor_2d(context, abi.GGML_TYPE_F32, _WIDTH, _COLUMNS)
        quantized = (ctypes.c_char * api.ggml_nbytes(left))()
        source = (ctypes.c_float * len(weights))(*weights)
        api.ggml_quantize_chunk(type_number, source, ctypes.addressof(quantized), 0, _ROWS, _WIDTH, None)
        if layout is None:
            ctypes.memmove(api.ggml_get_data(left), quantized, len(quantized))
        else:
            # As upstream's loader asks: would the operation run with its weights in an (empty) buffer of this type?
            buffers.append(api.ggml_backend_buft_alloc_buffer(layout.buffer_type, 0))
            left.contents.buffer = buffers[-1]
            if not api.ggml_backend_dev_supports_op(layout.device, api.ggml_mul_mat(context, left, right)):
                return None
            left.contents.buffer = None
            size = api.ggml_backend_buft_get_alloc_size(layout.buffer_type, left)
            buffers.append(api.ggml_backend_buft_alloc_buffer(layout.buffer_type, size))
            base = api.ggml_backend_buffer_get_base(buffers[-1])
            api.ggml_backend_tensor_alloc(buffers[-1], left, base)
            api.ggml_backend_tensor_set(left, ctypes.addressof(quantized), 0, len(quantized))
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
        for buffer in buffers:
            api.ggml_backend_buffer_free(buffer)
        if outside:
            api.ggml_free(outside)
        api.ggml_free(context)
