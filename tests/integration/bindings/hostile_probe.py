"""Loads models and uses them: ``hostile_probe.py ANSWERS USE ENGINE MODEL...``; ANSWERS gets a line for each.

USE is ``generate`` for some tokens, or ``embed`` for vectors or ranks of some texts.

For a process of its own: the engine may end it. Memory is limited, so that a huge allocation fails instead of paging.
"""

from __future__ import annotations

import json
import resource
import sys

from forkyard_llm import Llama
from forkyard_llm.errors import ForkyardLlmError
from forkyard_llm.sampling import SamplingParams

MEMORY = 6 << 30


def use(path: str, engine: str, what: str) -> str:
    try:
        if what == "embed":
            embed(path, engine)
            return "used"
        with Llama(path, engine=engine, n_ctx=64, n_batch=16, n_threads=1, use_mmap=False) as llm:
            tokens = llm.generate([1, 2, 3], SamplingParams(0.0))
            made = [token for token, _ in zip(tokens, range(8), strict=False)]
            tokens.close()  # type: ignore[attr-defined]
            llm.detokenize([*llm.tokenize("Hello world", special=True), *made])
    except ForkyardLlmError as error:
        return f"{type(error).__name__}: {error}"
    return "used"


def embed(path: str, engine: str) -> None:
    with Llama(path, engine=engine, n_ctx=64, n_batch=16, n_threads=1, use_mmap=False, embedding=True) as llm:
        if llm.pooling == "rank":
            llm.rank("Hello world", ["Hello", "world " * 6])
        else:
            llm.embed([[1, 2, 3], [3] * 60])
            llm.embed(["Hello world", "Hello " * 60], truncate=True)


resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
with open(sys.argv[1], "a", buffering=1, encoding="utf-8") as answers:
    for path in sys.argv[4:]:
        # The engine writes to standard output, too.
        print(json.dumps(["begin", path]), file=answers)
        print(json.dumps(["end", path, use(path, sys.argv[3], sys.argv[2])]), file=answers)
