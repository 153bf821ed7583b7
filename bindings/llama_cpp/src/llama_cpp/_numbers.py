"""Numbers that llama.h has for what forkyard_llm has names for, as llama-cpp-python's users pass them.

The numbers are llama.cpp's on both engines: a program is written for these.
"""

from __future__ import annotations

from collections.abc import Mapping

from forkyard_llm.errors import UsageError

__all__ = ["CACHE_TYPES", "CONSTANTS", "NUMA", "POOLINGS", "SPLIT_MODES", "named"]

SPLIT_MODES = {0: "none", 1: "layer", 2: "row", 3: "tensor"}
POOLINGS = {-1: None, 0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
NUMA = {0: None, 1: "distribute", 2: "isolate", 3: "numactl", 4: "mirror"}
CACHE_TYPES = {
    0: "f32",
    1: "f16",
    2: "q4_0",
    3: "q4_1",
    6: "q5_0",
    7: "q5_1",
    8: "q8_0",
    20: "iq4_nl",
    30: "bf16",
}

CONSTANTS: Mapping[str, int] = {
    "LLAMA_DEFAULT_SEED": 0xFFFFFFFF,
    "LLAMA_POOLING_TYPE_UNSPECIFIED": -1,
    "LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED": -1,
    "LLAMA_ATTENTION_TYPE_UNSPECIFIED": -1,
    **{f"LLAMA_SPLIT_MODE_{name.upper()}": number for number, name in SPLIT_MODES.items()},
    **{f"LLAMA_POOLING_TYPE_{name.upper()}": number for number, name in POOLINGS.items() if name},
    **{f"GGML_TYPE_{name.upper()}": number for number, name in CACHE_TYPES.items()},
}
"""Those that programs pass to the class Llama: they need no payload, and both engines take them."""


def named(option: str, table: Mapping[int, str | None], value: int | str | bool | None) -> str | None:
    """The name that forkyard_llm has for a number; a name stays as it is.

    Raises:
        UsageError: no such number.
    """
    if value is None or isinstance(value, str):
        return value
    if int(value) not in table:
        msg = f"{option}={value!r} is none of {', '.join(f'{number} ({name})' for number, name in table.items())}"
        raise UsageError(msg)
    return table[int(value)]
