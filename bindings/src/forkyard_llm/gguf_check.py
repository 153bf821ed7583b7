"""Check a model before an engine sees it: engines abort the process on some damage, and run some files they cannot use.

Checked are the structure of the file and, if the model is split, of every other part (gguf_reader, gguf_parts), that
the file is for what the caller wants of it (gguf_purpose), that the engine computes with the types of its tensors
(gguf_weights), and that its numbers can be true, each by itself and together (gguf_values, gguf_geometry). The cost
is one pass over the metadata; tensor data is never read.
"""

from __future__ import annotations

import os
from collections.abc import Set
from dataclasses import replace
from pathlib import Path

from .errors import ModelError
from .gguf_geometry import check_geometry
from .gguf_parts import read_parts
from .gguf_projector import check_projector
from .gguf_purpose import (
    DRAFT,
    EMBEDDINGS,
    FOR_EMBEDDINGS,
    LACKS,
    PROJECTOR,
    RANKING,
    TEXT,
    WITH_A_TOKENIZER,
    purpose_of,
)
from .gguf_reader import GgufSummary
from .gguf_values import check_values
from .gguf_weights import check_weights

__all__ = [
    "DRAFT",
    "EMBEDDINGS",
    "FOR_EMBEDDINGS",
    "PROJECTOR",
    "RANKING",
    "TEXT",
    "WITH_A_TOKENIZER",
    "GgufSummary",
    "check",
]


def check(path: str | os.PathLike[str], *, engine: str | None = None, purposes: Set[str] | None = None) -> GgufSummary:
    """Check the GGUF file at `path`, and every other part of a split model.

    `engine` ("llama.cpp" or "ik_llama.cpp") also refuses what only that engine cannot load; without it the file is
    good if either can. `purposes`, of those in gguf_purpose, are what the caller can compute with; None for any, where
    nothing is computed. Raises ModelError: the file or a part of it is missing, unreadable, damaged, of another format
    or version; it is for something else; a tensor is of a type the engine cannot compute with; or a number in it cannot
    be true. The error names the file, and the key and its byte offset, or the tensor.
    """
    parts = read_parts(Path(path), engine=engine)
    first = parts[0]
    purpose = purpose_of(first, tensors=sum(part.tensors for part in parts))
    if purposes is not None:
        if purpose not in purposes:
            msg = f"{first.path}: {LACKS[purpose]}"
            raise ModelError(msg)
        if purpose != PROJECTOR:
            check_weights(parts, engine=engine)
    check_values(first, engine=engine)
    if purpose == PROJECTOR:
        check_projector(first, engine=engine)
    check_geometry(parts, engine=engine)
    return replace(first, model_bytes=sum(part.file_size for part in parts))
