"""Check a model file before an engine sees it: engines abort the process on some damage."""

from __future__ import annotations

import os

from .gguf_reader import GgufSummary, read

__all__ = ["GgufSummary", "check"]


def check(path: str | os.PathLike[str], *, engine: str | None = None) -> GgufSummary:
    """Check the structure of the GGUF file at `path`.

    `engine` ("llama.cpp" or "ik_llama.cpp") also refuses tensor types that engine does not have; without it a
    type is good if either has it. Raises ModelError, with the byte offset where there is one, for a file that
    is missing, unreadable, truncated, damaged, of another format or of a version this does not know.
    """
    return read(path, engine=engine)
