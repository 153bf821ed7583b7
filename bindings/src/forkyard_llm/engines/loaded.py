"""What a payload in this process is to those who use it: one value that never changes."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

from ..errors import UnsupportedOption
from ..payloads import Payload, discover
from ..text import to_engine
from .log import EngineLog

__all__ = ["Api", "Buffer", "Handle", "Loaded", "Params"]

# What a payload's generated module defines is known only when it is loaded, so these say what is meant, not what is
# checked; ctypes checks the types of every call.
Api: TypeAlias = Any
"""The functions bound from a payload's libraries."""
Handle: TypeAlias = Any
"""A pointer to something the engine owns."""
Params: TypeAlias = Any
"""A params struct, from one of the engine's default functions."""
Buffer: TypeAlias = Any
"""A ctypes array the engine reads or fills."""


@dataclass(frozen=True)
class Loaded:
    """A payload whose libraries are in this process."""

    payload: Payload
    abi: ModuleType
    api: Api
    probe: ctypes.CDLL
    log: EngineLog

    @property
    def family(self) -> str:
        """The engine's name."""
        return self.payload.engine

    def need(self, capability: str, what: str) -> None:
        """Refuse what only a payload with the patch stack of that capability can do.

        Args:
            what: what was asked for, as the beginning of a sentence.

        Raises:
            UnsupportedOption: naming the installed payloads that have it.
        """
        if capability in self.payload.capabilities:
            return
        others = [other for other in discover() if capability in other.capabilities]
        there = ", ".join(f"engine={other.distribution!r}" for other in others)
        advice = (
            f"installed payloads that have it: {there}" if there else "no installed payload has it: build one with it"
        )
        msg = f"{what} needs the stack {capability!r}, which {self.payload.distribution} does not have; {advice}"
        raise UnsupportedOption(msg)

    def metadata(self, model: Handle, key: str) -> str | None:
        """A scalar value of a model file's metadata as text, or None."""
        name = to_engine(key, "a metadata key", nul=False)
        size = int(self.api.llama_model_meta_val_str(model, name, ctypes.create_string_buffer(1), 1))
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        self.api.llama_model_meta_val_str(model, name, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    def all_metadata(self, model: Handle) -> dict[str, str]:
        """All scalar values of a model file's metadata as texts, by name."""
        values = {}
        for index in range(int(self.api.llama_model_meta_count(model))):
            size = int(self.api.llama_model_meta_key_by_index(model, index, ctypes.create_string_buffer(1), 1))
            if size < 0:
                continue
            buffer = ctypes.create_string_buffer(size + 1)
            self.api.llama_model_meta_key_by_index(model, index, buffer, len(buffer))
            key = buffer.value.decode("utf-8", "replace")
            value = self.metadata(model, key)
            if value is not None:
                values[key] = value
        return values
