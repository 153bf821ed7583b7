"""Which engine is behind this package where a program does not say it."""

from __future__ import annotations

import os

__all__ = ["ENGINE_VARIABLE", "default_engine"]

ENGINE_VARIABLE = "FORKYARD_LLM_ENGINE"


def default_engine() -> str:
    """What forkyard_llm.Llama takes as ``engine``."""
    return os.environ.get(ENGINE_VARIABLE, "").strip() or "auto"
