"""Check a model before an engine sees it: engines abort the process on some damage."""

from __future__ import annotations

import os
from pathlib import Path

from .gguf_parts import read_parts
from .gguf_reader import GgufSummary

__all__ = ["GgufSummary", "check"]


def check(path: str | os.PathLike[str], *, engine: str | None = None) -> GgufSummary:
    """Check the structure of the GGUF file at `path`, and of every other part of a split model.

    `engine` ("llama.cpp" or "ik_llama.cpp") also refuses tensor types that engine does not have; without it a
    type is good if either has it. Raises ModelError, naming the file, for one that is missing, unreadable,
    truncated, damaged, of another format or version, or no part of this model.
    """
    return read_parts(Path(path), engine=engine)[0]
