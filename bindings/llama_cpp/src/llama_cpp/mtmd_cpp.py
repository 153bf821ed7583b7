"""The names of mtmd.h, as far as the payload has them: those of the llama.cpp payload in use."""

from __future__ import annotations

from . import _low_level


def __getattr__(name: str) -> object:
    return _low_level.find(__name__, name, "mtmd_")
