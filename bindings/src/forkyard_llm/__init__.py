"""Run patched llama.cpp and ik_llama.cpp builds ("payloads") from Python, on the build this CPU can execute.

`Llama` and the errors are what most programs need:

    from forkyard_llm import Llama
    with Llama("model.gguf") as llm:
        print(llm("Once upon a time", max_tokens=32)["choices"][0]["text"])

Importing this package loads no payload and no engine; `Llama` is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import (
    AbiMismatch,
    DownloadError,
    EngineDied,
    EngineError,
    ForkyardLlmError,
    ModelError,
    PayloadNotFound,
    PayloadRejected,
    PromptTooLong,
    QueueFull,
    UnsupportedOption,
    UsageError,
)

if TYPE_CHECKING:
    from .engines.adapters import ControlVector as ControlVector
    from .engines.adapters import Lora as Lora
    from .engines.devices import Device as Device
    from .llama import Llama as Llama
    from .llama import devices as devices
    from .payloads import discover as discover
    from .sampling import SamplingParams as SamplingParams
    from .selection import select as select
    from .state import DiskCache as DiskCache
    from .state import LlamaState as LlamaState
    from .state import RamCache as RamCache

__version__ = "0.1.0"

__all__ = [
    "AbiMismatch",
    "ControlVector",
    "Device",
    "DiskCache",
    "DownloadError",
    "EngineDied",
    "EngineError",
    "ForkyardLlmError",
    "Llama",
    "LlamaState",
    "Lora",
    "ModelError",
    "PayloadNotFound",
    "PayloadRejected",
    "PromptTooLong",
    "QueueFull",
    "RamCache",
    "SamplingParams",
    "UnsupportedOption",
    "UsageError",
    "__version__",
    "devices",
    "discover",
    "select",
]

_LAZY = {
    "ControlVector": "engines.adapters",
    "Device": "engines.devices",
    "DiskCache": "state",
    "Llama": "llama",
    "LlamaState": "state",
    "Lora": "engines.adapters",
    "RamCache": "state",
    "SamplingParams": "sampling",
    "devices": "llama",
    "discover": "payloads",
    "select": "selection",
}


def __getattr__(name: str) -> object:
    """Import the public names that cost something when they are first used (PEP 562)."""
    if name in _LAZY:
        from importlib import import_module

        value: object = getattr(import_module(f".{_LAZY[name]}", __name__), name)
        globals()[name] = value
        return value
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
