"""Decode through ik_llama.cpp, whole or split among devices, and save the logits; a child process, as it may crash.

Usage: graph_probe.py JOB, where JOB is a JSON object:

payload, model, output: paths; scenario: a name of SCENARIOS; split: none or graph; n_gpu_layers; devices: names or "";
type_k, type_v, flash_attn, offload_kqv, k_hadamard, v_hadamard, mla: the cache; lacks: not for this process; session: a
file some scenarios write or read.

The engine is the library preloaded into this process, or the payload's own. Every scenario ends with the same QUERIES
tokens at the same positions, whose logits (float32, one row each) go to ``output``. ``moved`` is the one that compares
with ``later``; the others compare with ``plain``.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LENGTH = 48
"""Tokens in the cache before the queries."""
DROPPED = 16
QUERIES = 8
SEED = 20261130


class Session:
    """One model with one context of two sequences."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        payload = Path(job["payload"])
        spec = importlib.util.spec_from_file_location("payload_abi", payload / "_abi.py")
        assert spec is not None
        assert spec.loader is not None
        self.abi: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.abi)
        libraries = json.loads((payload / "manifest.json").read_text())["libraries"]
        engine = os.environ.get("LD_PRELOAD") or str(payload / libraries["llama"])
        self.api: Any = self.abi.bind(ctypes.CDLL(engine), ctypes.CDLL(str(payload / libraries["ggml"])))
        self.api.llama_backend_init()
        self.job = job
        params = self.api.llama_model_default_params()
        params.split_mode = getattr(self.abi, f"LLAMA_SPLIT_MODE_{job['split'].upper()}")
        params.n_gpu_layers = job["n_gpu_layers"]
        params.mla = job["mla"]
        if job["devices"]:
            params.devices = job["devices"].encode()
        self.model = self.api.llama_model_load_from_file(job["model"].encode(), params)
        if not self.model:
            sys.exit("no model")
        params = self.api.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = 256
        params.n_seq_max = 2
        params.n_threads = params.n_threads_batch = 1
        params.flash_attn = job["flash_attn"]
        params.offload_kqv = job["offload_kqv"]
        params.k_cache_hadamard = job["k_hadamard"]
        params.v_cache_hadamard = job["v_hadamard"]
        params.mla_attn = job["mla"]
        params.type_k = getattr(self.abi, f"GGML_TYPE_{job['type_k'].upper()}")
        params.type_v = getattr(self.abi, f"GGML_TYPE_{job['type_v'].upper()}")
        # what the CPU can normalize; the default is for GPUs
        params.type_reduce = self.abi.GGML_TYPE_F32
        self.context = self.api.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit("no context")
        self.n_vocab: int = self.api.llama_n_vocab(self.model)
        numbers = random.Random(SEED)
        tokens = [numbers.randrange(self.n_vocab) for _ in range(LENGTH + QUERIES)]
        self.tokens, self.queries = tokens[:LENGTH], tokens[LENGTH:]

    def decode(self, tokens: list[int], first: int, sequence: int = 0) -> list[float]:
        """Logits of every given token, one row after the other."""
        batch = self.api.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for row, token in enumerate(tokens):
            batch.token[row] = token
            batch.pos[row] = first + row
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = sequence
            batch.logits[row] = 1
        status = self.api.llama_decode(self.context, batch)
        self.api.llama_batch_free(batch)
        if status != 0:
            sys.exit(f"llama_decode: {status}")
        logits: list[float] = []
        for row in range(len(tokens)):
            logits += self.api.llama_get_logits_ith(self.context, row)[: self.n_vocab]
        return logits

    def path(self) -> bytes:
        """The session file, as C wants it."""
        return str(self.job["session"]).encode()

    def clear(self) -> None:
        self.api.llama_kv_cache_clear(self.context)
        # What was there must not be what is read afterwards.
        self.decode(list(reversed(self.tokens)), 0)
        self.api.llama_kv_cache_clear(self.context)


def plain(s: Session) -> list[float]:
    """The reference: all in one go."""
    s.decode(s.tokens, 0)
    return s.decode(s.queries, LENGTH)


def steps(s: Session) -> list[float]:
    """Token by token: the engine uses a graph again."""
    s.decode(s.tokens, 0)
    logits: list[float] = []
    for row, token in enumerate(s.queries):
        logits += s.decode([token], LENGTH + row)
    return logits


def later(s: Session) -> list[float]:
    """The reference of ``moved``."""
    s.decode(s.tokens[DROPPED:], 0)
    return s.decode(s.queries, LENGTH - DROPPED)


def moved(s: Session) -> list[float]:
    """A context shift."""
    s.decode(s.tokens, 0)
    s.api.llama_kv_cache_seq_rm(s.context, 0, 0, DROPPED)
    s.api.llama_kv_cache_seq_add(s.context, 0, DROPPED, -1, -DROPPED)
    if s.api.llama_kv_cache_update(s.context) != 0:
        sys.exit("no shift")
    return s.decode(s.queries, LENGTH - DROPPED)


def state(s: Session) -> list[float]:
    """The whole state, through memory."""
    s.decode(s.tokens, 0)
    size = s.api.llama_state_get_size(s.context)
    buffer = (ctypes.c_uint8 * size)()
    if s.api.llama_state_get_data(s.context, buffer, size) != size:
        sys.exit("not saved")
    s.clear()
    if s.api.llama_state_set_data(s.context, buffer, size) != size:
        sys.exit("not restored")
    return s.decode(s.queries, LENGTH)


def save(s: Session) -> list[float]:
    """Write the session file."""
    s.decode(s.tokens, 0)
    if not s.api.llama_state_save_file(s.context, s.path(), None, 0):
        sys.exit("not saved")
    return s.decode(s.queries, LENGTH)


def load(s: Session) -> list[float]:
    """Read a session file that another process wrote."""
    count = ctypes.c_uint64()
    if not s.api.llama_state_load_file(s.context, s.path(), None, 0, ctypes.byref(count)):
        sys.exit("not restored")
    return s.decode(s.queries, LENGTH)


def file(s: Session) -> list[float]:
    """The whole state, through a file."""
    save(s)
    s.clear()
    return load(s)


def sequence(s: Session) -> list[float]:
    """One sequence, through memory, into another."""
    s.decode(s.tokens, 0)
    size = s.api.llama_state_seq_get_size(s.context, 0, 0)
    buffer = (ctypes.c_uint8 * size)()
    if s.api.llama_state_seq_get_data(s.context, buffer, size, 0, 0) != size:
        sys.exit("not saved")
    s.clear()
    if s.api.llama_state_seq_set_data(s.context, buffer, size, 1, 0) != size:
        sys.exit("not restored")
    return s.decode(s.queries, LENGTH, sequence=1)


def sequence_file(s: Session) -> list[float]:
    """One sequence, through a file, into another."""
    s.decode(s.tokens, 0)
    if not s.api.llama_state_seq_save_file(s.context, s.path(), 0, None, 0):
        sys.exit("not saved")
    s.clear()
    count = ctypes.c_uint64()
    if not s.api.llama_state_seq_load_file(s.context, s.path(), 1, None, 0, ctypes.byref(count)):
        sys.exit("not restored")
    return s.decode(s.queries, LENGTH, sequence=1)


def copied(s: Session) -> list[float]:
    """A copy of a sequence, without the original."""
    s.decode(s.tokens, 0)
    s.api.llama_kv_cache_seq_cp(s.context, 0, 1, -1, -1)
    if s.api.llama_kv_cache_update(s.context) != 0:
        sys.exit("not copied")
    s.api.llama_kv_cache_seq_rm(s.context, 0, -1, -1)
    return s.decode(s.queries, LENGTH, sequence=1)


def defragmented(s: Session) -> list[float]:
    """A hole at the beginning of the cache, closed with cells from its end."""
    s.decode(s.tokens[:DROPPED], 0)
    s.decode(s.tokens, DROPPED)
    s.api.llama_kv_cache_seq_rm(s.context, 0, 0, DROPPED)
    s.api.llama_kv_cache_defrag(s.context)
    if s.api.llama_kv_cache_update(s.context) != 0:
        sys.exit("no defragmentation")
    return s.decode(s.queries, DROPPED + LENGTH)


SCENARIOS: Mapping[str, Callable[[Session], list[float]]] = {
    one.__name__: one
    for one in (plain, steps, later, moved, state, save, load, file, sequence, sequence_file, copied, defragmented)
}


def main(argv: list[str]) -> None:
    job = json.loads(argv[0])
    logits = SCENARIOS[job["scenario"]](Session(job))
    Path(job["output"]).write_bytes((ctypes.c_float * len(logits))(*logits))


if __name__ == "__main__":
    main(sys.argv[1:])
