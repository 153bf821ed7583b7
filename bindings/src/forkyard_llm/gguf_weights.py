"""Judge the types of a model's tensors: the engines load them all, and abort or crash when they compute with some.

What a tensor is for follows from its shape and name. Vectors, and what is added or multiplied value by value, are
float32. The rest are matrices, of a type whose rows the engine can multiply with. Found by computing with tiny models
of many architectures, one tensor in each type, on both engines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Final

from . import cpu
from .errors import ModelError
from .gguf_reader import GgufSummary, shown
from .gguf_types import TENSOR_TYPES

__all__ = ["check_weights"]

# Integers, and what the engines quantize the other side of a product to.
_NO_PRODUCT: Final = frozenset({"i8", "i16", "i32", "i64", "f64", "q8_1", "q8_k"})
# More of the latter in ik_llama.cpp; formats that it only converts (i2_s) or has no kernels for any more (q4_0_4x4 and
# its kin: q4_0_r8 took their place); one that it makes in memory alone (q8_k_r16).
_NO_PRODUCT_OF: Final[Mapping[str, Set[str]]] = {
    "llama.cpp": _NO_PRODUCT,
    "ik_llama.cpp": _NO_PRODUCT
    | {
        "q8_0_x4", "q8_1_x4", "q8_2_x4", "q8_k16", "q8_k32", "q8_k64", "q8_k128", "q8_kr8", "i2_s", "q4_0_4x4",
        "q4_0_4x8", "q4_0_8x8", "q8_k_r16",
    },
}  # fmt: skip
_MATRICES: Final[Mapping[str, Set[str]]] = {
    engine: {layout.name for layout in types.values()} - _NO_PRODUCT_OF[engine]
    for engine, types in TENSOR_TYPES.items()
}
# Types for CPUs with a feature alone.
_NEEDED: Final = {"bf16_r16": "avx512_bf16"}
# Types of which ik_llama.cpp multiplies no shorter rows.
_LEAST_WIDTH: Final = {"iq1_bn": 512, "iq2_bn": 512}
# So many rows of a matrix stand together in these, and the engine reads them together.
_INTERLEAVED: Final = re.compile(r"_r(4|8|16)$")

# Not matrices although they have more than one dimension.
_VALUE_BY_VALUE: Final = re.compile(
    r"norm|\.bias$|^token_types\.|\.(ssm|ple)_conv1d|\.shortconv\.conv\.|\.ssm_[ad]$|_mix_lerp_|\.time_mix_(first|decay)\."
)
# A matrix of one row, which some converters write as a vector.
_ONE_ROW: Final = re.compile(r"\.ffn_gate_inp_shexp\.")
_F32: Final = frozenset({"f32"})
# The only tensors that hold integers: experts of each token, tokens of each token of a draft model.
_INTEGERS: Final = (
    (re.compile(r"\.ffn_gate_tid2eid\."), frozenset({"i32"})),
    (re.compile(r"^(d2t|masked_embd_ordering)\b"), frozenset({"i32", "i64"})),
)


def check_weights(parts: Iterable[GgufSummary], *, engine: str | None = None) -> None:
    """Check the type of every tensor in the `parts` of a model that `engine` (None: either) computes with.

    Raises ModelError, naming the tensor and its type.
    """
    for part in parts:
        for name, kind in part.types.items():
            problems = [_problem(name, part.shapes[name], kind, one) for one in ([engine] if engine else _MATRICES)]
            if all(problems):
                msg = f"{part.path}: tensor {shown(name)} has the type {kind}; {problems[0]}"
                raise ModelError(msg)


def _problem(name: str, shape: Sequence[int], kind: str, engine: str) -> str | None:
    for pattern, integers in _INTEGERS:
        if pattern.search(name):
            return None if kind in integers else f"it holds whole numbers, as {' or '.join(sorted(integers))}"
    if _VALUE_BY_VALUE.search(name) or (len(shape) < 2 and not _ONE_ROW.search(name)):
        return None if kind in _F32 else "the engines compute with it value by value, as f32; convert the model again"
    if kind not in _MATRICES[engine]:
        return f"{engine} cannot multiply with a matrix of that type; quantize the model again, to another type"
    needed, together = _NEEDED.get(kind), _INTERLEAVED.search(kind)
    if needed is not None and cpu.missing([needed]):
        return f"{engine} computes with it on CPUs with {needed} alone; quantize the model again, to another type"
    width, rows = (*shape, 1, 1)[:2]
    if width < _LEAST_WIDTH.get(kind, 0):
        return f"its rows have {width} numbers, and {engine} needs {_LEAST_WIDTH[kind]}"
    if together is not None and rows % int(together[1]):
        return f"{engine} reads {together[1]} rows of it at a time, and it has {rows}"
    return None
