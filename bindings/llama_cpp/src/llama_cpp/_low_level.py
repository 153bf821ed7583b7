"""Functions, structs and constants of llama.h and its kin, from the module that is generated with each payload."""

from __future__ import annotations

import ctypes
import re
from typing import Any

from forkyard_llm.engines.loaded import Loaded
from forkyard_llm.errors import UnsupportedOption
from forkyard_llm.loading import load, loaded
from forkyard_llm.selection import select

from ._engine import ENGINE_VARIABLE, default_engine
from ._numbers import CONSTANTS

__all__ = ["find"]

_FAMILY = "llama.cpp"
_OF_C = re.compile(r"(llama|ggml|gguf|mtmd)_\w+", re.IGNORECASE)
_POINTER = re.compile(r"(?P<struct>\w+?)_p(_ctypes)?")


def find(module: str, name: str, prefix: str = "") -> Any:
    """What the C name ``name`` stands for in the llama.cpp payload in use.

    Args:
        module: who is asked, for the message.
        prefix: what names of that module begin with.

    Raises:
        AttributeError: there is no such name.
        UnsupportedOption: the engine is another one than llama.cpp.
        PayloadNotFound: no payload of llama.cpp is installed.
    """
    if name in CONSTANTS and not prefix:
        return CONSTANTS[name]
    if _OF_C.fullmatch(name) and name.lower().startswith(prefix):
        engine = _engine(name)
        for place in (engine.api, engine.abi):
            if hasattr(place, name):
                return getattr(place, name)
        match = _POINTER.fullmatch(name)
        if match is not None and hasattr(engine.abi, match["struct"]):
            return ctypes.POINTER(getattr(engine.abi, match["struct"]))
        msg = f"module {module!r} has no attribute {name!r}: {engine.payload.distribution} does not have it"
        raise AttributeError(msg)
    msg = f"module {module!r} has no attribute {name!r}"
    raise AttributeError(msg)


def _engine(name: str) -> Loaded:
    for engine in loaded():
        if engine.payload.engine == _FAMILY:
            return engine.loaded
    return _chosen(default_engine(), name)


def _chosen(wish: str, name: str) -> Loaded:
    payload = select(_FAMILY if wish == "auto" else wish)
    if payload.engine != _FAMILY:
        msg = (
            f"{name} is a name of {_FAMILY}'s C interface, and {ENGINE_VARIABLE}={wish} chooses {payload.engine},"
            f" whose interface is another one; set {ENGINE_VARIABLE}={_FAMILY}, or use the class Llama"
        )
        raise UnsupportedOption(msg)
    return load(payload).loaded
