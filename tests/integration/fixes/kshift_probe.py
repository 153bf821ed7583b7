"""Decode through one payload with or without a context shift and save the logits; a child process, as it may crash.

Usage: kshift_probe.py PAYLOAD LIBRARIES MODEL K_TYPE V_TYPE fresh|shifted OUTPUT

PAYLOAD is a payload's package folder, of which _abi.py is read; LIBRARIES is {NAME: PATH, ...} in JSON. The token
sequence is fixed. ``shifted`` decodes all of it, drops the first DROPPED tokens and moves the rest to position 0;
``fresh`` decodes only the rest, from position 0. Both then decode the same QUERIES tokens, whose logits (float32, one
row each) go to OUTPUT.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

LENGTH = 64
"""Tokens in the cache before the shift."""
DROPPED = 16
QUERIES = 8
"""Tokens decoded after the shift; each attends to everything left."""
SEED = 20261123


def load_abi(payload: Path) -> ModuleType:
    """The generated ctypes module of a payload; importing it loads no library."""
    spec = importlib.util.spec_from_file_location("payload_abi", payload / "_abi.py")
    if spec is None or spec.loader is None:
        msg = f"{payload / '_abi.py'} cannot be imported"
        raise ImportError(msg)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Session:
    """One model with one context of sequence 0, greedy in nothing: it only decodes and reads logits."""

    def __init__(self, payload: Path, libraries: Mapping[str, str], model: Path, k_type: str, v_type: str) -> None:
        self.abi = load_abi(payload)
        self.api: Any = self.abi.bind(*(ctypes.CDLL(libraries[name]) for name in ("llama", "ggml")))
        self.api.llama_backend_init()
        # Without a linked CPU library there is none yet.
        if self.api.ggml_backend_reg_count() == 0 and not self.api.ggml_backend_load(libraries["ggml-cpu"].encode()):
            sys.exit(f"cannot load {libraries['ggml-cpu']}")
        self.model = self.api.llama_model_load_from_file(str(model).encode(), self.api.llama_model_default_params())
        if not self.model:
            sys.exit(f"the engine refused {model}")
        params = self.api.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = 256
        params.n_threads = params.n_threads_batch = 2
        params.flash_attn_type = self.abi.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.type_k = getattr(self.abi, f"GGML_TYPE_{k_type.upper()}")
        params.type_v = getattr(self.abi, f"GGML_TYPE_{v_type.upper()}")
        self.context = self.api.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit(f"no context with K {k_type} and V {v_type}")
        self.n_vocab: int = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))

    def decode(self, tokens: list[int], first_position: int) -> list[float]:
        """Logits of every given token, one row after the other."""
        batch = self.api.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for row, token in enumerate(tokens):
            batch.token[row] = token
            batch.pos[row] = first_position + row
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = 0
            batch.logits[row] = 1
        status = self.api.llama_decode(self.context, batch)
        self.api.llama_batch_free(batch)
        if status != 0:
            sys.exit(f"llama_decode: {status}")
        logits: list[float] = []
        for row in range(len(tokens)):
            logits += self.api.llama_get_logits_ith(self.context, row)[: self.n_vocab]
        return logits

    def drop_and_shift(self, count: int) -> None:
        """Forget the first ``count`` tokens and move the others down; the keys follow at the next decode."""
        memory = self.api.llama_get_memory(self.context)
        if not self.api.llama_memory_can_shift(memory):
            sys.exit("this cache does not shift")
        if not self.api.llama_memory_seq_rm(memory, 0, 0, count):
            sys.exit("llama_memory_seq_rm refused")
        self.api.llama_memory_seq_add(memory, 0, count, -1, -count)


def main(argv: list[str]) -> None:
    payload, libraries, model, k_type, v_type, mode, output = argv
    session = Session(Path(payload), json.loads(libraries), Path(model), k_type, v_type)
    numbers = random.Random(SEED)
    tokens = [numbers.randrange(session.n_vocab) for _ in range(LENGTH + QUERIES)]
    if mode == "shifted":
        session.decode(tokens[:LENGTH], 0)
        session.drop_and_shift(DROPPED)
    else:
        session.decode(tokens[DROPPED:LENGTH], 0)
    logits = session.decode(tokens[LENGTH:], LENGTH - DROPPED)
    Path(output).write_bytes((ctypes.c_float * len(logits))(*logits))


if __name__ == "__main__":
    main(sys.argv[1:])
