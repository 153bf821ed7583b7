"""Decode through one payload with a precision tail or without and save the logits; a child process, as it may crash.

Usage: python -m tests.integration.turboquant.tail_probe JSON, from the root of the repository

The JSON object says which ``engine`` it is; which ``payload`` (package folder, of which _abi.py is read) with which
``libraries`` ({NAME: PATH});
the ``endpoints`` of RPC servers, whose first devices are the devices, or the name of a ``device``, none for the CPU; the ``model`` and its ``split``;
``k`` and ``v``, the types of the cache; ``tail`` and ``sinks``, the tokens with f16 copies; ``center``, whether K are less
a vector of each layer (1, 0, or null for what the engine does by itself); ``layers``, types of some layers; ``flash``, whether attention is one kernel;
``unified``, whether sequences share one buffer; ``step``, how many tokens a batch of the prompt has, and ``ubatch``, how many
it may have; ``hadamard``, whether K and V are transformed; ``length``, how many tokens come before the queries; an ``act``;
the ``output`` file; ``state``, a file for the acts ``sequence`` and ``adopted``, or empty.

Every act ends with the same QUERIES tokens, whose logits (float32, one row each) go to the file:

- ``plain``: after ``length`` tokens;
- ``shift``: after these without the first DROPPED (``shift-sinks``: without as many behind the first KEPT), the others
  moved to close the gap; ``far``: after all of them were moved by FAR positions;
- ``copy``: in a second sequence, into which the first was copied; ``keep``: there, after the first was dropped;
- ``sequence``: in a second sequence, into which the state of the first was restored, which ``state`` then holds;
  ``adopted``: in one into which the state in ``state`` was restored;
- ``state``: in a second context, into which the whole state of the first was restored;
- ``longer``: in a second context for more tokens, into which that state was restored; ``busy``: not at all, as there is
  another sequence in that context when the state of the first is restored; ``uncentered``: nor into a context with K as
  they are;
- ``foreign``: not at all, as that state is restored into a context with another tail, which is to be refused;
- ``back``: after other tokens were decoded there, one by one, and removed again;
- ``idle``: after another sequence was decoded;
- ``defrag``: after the cells were moved to where another sequence had been (ik_llama.cpp alone);
- ``regrown``: in the first sequence, whose state was saved and restored after half as many other tokens were there;
- ``pair``: in the first of two sequences that are decoded in the same batches, token by token in turn.
"""

from __future__ import annotations

import ctypes
import json
import random
import sys
from pathlib import Path
from typing import Any

from ..fixes.kshift_probe import load_abi
from ..split import split_probe
from ..split.split_probe import REFUSED, SEED

DROPPED = 12
KEPT = 4
FAR = 700
QUERIES = 8


class Engine(split_probe.Engine):
    """One model; contexts of it with a tail, each with two sequences."""

    flags: tuple[int, ...] = ()
    """What the functions for the state of a sequence take as well."""

    def attention(self, params: Any) -> None:
        """Set what the engines name differently."""
        params.kv_unified = self.wish["unified"]
        kind = "ENABLED" if self.wish["flash"] else "DISABLED"
        params.flash_attn_type = getattr(self.abi, f"LLAMA_FLASH_ATTN_TYPE_{kind}")

    def memory(self, context: Any, name: str, *arguments: int) -> bool:
        """Call the function of the cache that ends with this name; whether it worked, where it says so."""
        memory = self.api.llama_get_memory(context)
        if name == "seq_add" and not self.api.llama_memory_can_shift(memory):
            sys.exit("this cache does not shift")
        return getattr(self.api, f"llama_memory_{name}")(memory, *arguments) is not False

    def clear(self, context: Any) -> None:
        self.memory(context, "clear", False)

    def tailed(self, tail: int, sinks: int, *, n_ctx: int = 1024, center: bool = True) -> Any:
        """A context of the wished caches; without ``center`` with K as they are."""
        params = self.api.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = self.wish["ubatch"]
        params.n_threads = params.n_threads_batch = 1
        params.n_seq_max = 2
        self.attention(params)
        params.type_k = getattr(self.abi, f"GGML_TYPE_{self.wish['k'].upper()}")
        params.type_v = getattr(self.abi, f"GGML_TYPE_{self.wish['v'].upper()}")
        # An engine without the stack has no such fields; ctypes would take any attribute.
        if tail or sinks:
            if not hasattr(type(params), "n_kv_tail"):
                sys.exit("this engine keeps no tail")
            params.n_kv_tail = tail
            params.n_kv_sink = sinks
        if self.wish["center"] is not None:
            if not hasattr(type(params), "kv_center"):
                sys.exit("this engine has no centers of K")
            params.kv_center = self.wish["center"] if center else 0
        if self.wish["layers"]:
            if not hasattr(type(params), "kv_layer_types"):
                sys.exit("this engine has no types for each layer")
            params.kv_layer_types = self.wish["layers"].encode()
        context = self.api.llama_init_from_model(self.model, params)
        if not context:
            sys.exit(REFUSED)
        return context

    def batch(self, context: Any, rows: list[tuple[int, int, int]]) -> list[float]:
        """Logits of each (token, position, sequence), one row after the other, of one batch."""
        batch = self.api.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for row, (token, position, sequence) in enumerate(rows):
            batch.token[row] = token
            batch.pos[row] = position
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = sequence
            batch.logits[row] = 1
        status = self.api.llama_decode(context, batch)
        self.api.llama_batch_free(batch)
        if status != 0:
            sys.exit(f"llama_decode: {status}")
        logits: list[float] = []
        for row in range(len(rows)):
            logits += self.api.llama_get_logits_ith(context, row)[: self.n_vocab]
        return logits

    def read(self, context: Any, tokens: list[int], position: int, sequence: int = 0) -> list[float]:
        """Logits of tokens of one sequence, in batches of the wished size."""
        logits: list[float] = []
        for start in range(0, len(tokens), self.wish["step"]):
            part = tokens[start : start + self.wish["step"]]
            logits += self.batch(context, [(t, position + start + i, sequence) for i, t in enumerate(part)])
        return logits

    def state(self, context: Any) -> Any:
        """The whole state of a context."""
        data = (ctypes.c_uint8 * self.api.llama_state_get_size(context))()
        size = self.api.llama_state_get_data(context, data, len(data))
        return (ctypes.c_uint8 * size).from_buffer(data)


class IkEngine(Engine):
    """The same on ik_llama.cpp, which has one buffer for all sequences."""

    flags = (0,)

    def __init__(self, wish: dict[str, Any]) -> None:
        self.wish = wish
        self.abi = load_abi(Path(wish["payload"]))
        self.api = self.abi.bind(*(ctypes.CDLL(wish["libraries"][name]) for name in ("llama", "ggml")))
        self.api.llama_backend_init()
        params = self.api.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = self.api.llama_model_load_from_file(wish["model"].encode(), params)
        if not self.model:
            sys.exit(REFUSED)
        self.n_vocab = self.api.llama_n_vocab(self.model)

    def attention(self, params: Any) -> None:
        params.flash_attn = self.wish["flash"]
        params.k_cache_hadamard = params.v_cache_hadamard = self.wish["hadamard"]

    def memory(self, context: Any, name: str, *arguments: int) -> bool:
        return getattr(self.api, f"llama_kv_cache_{name}")(context, *arguments) is not False

    def clear(self, context: Any) -> None:
        self.memory(context, "clear")


def act(engine: Engine, tokens: list[int], others: list[int]) -> list[float]:
    """The logits at the end of the act that is wished for."""
    api, wish, name = engine.api, engine.wish, engine.wish["act"]
    length = wish["length"]
    prompt, queries = tokens[:length], tokens[length:]
    context = engine.tailed(wish["tail"], wish["sinks"])
    if name == "pair":
        for start in range(0, length, wish["step"]):
            places = range(start, min(start + wish["step"], length))
            engine.batch(context, [row for i in places for row in ((prompt[i], i, 0), (others[i], i, 1))])
        return engine.read(context, queries, length)
    if name == "defrag":
        engine.read(context, others[:length], 0, 1)
    engine.read(context, prompt, 0)
    if name == "defrag":
        engine.memory(context, "seq_rm", 1, -1, -1)
        engine.memory(context, "defrag")
    if name.startswith("shift"):
        first = KEPT if name == "shift-sinks" else 0
        if not engine.memory(context, "seq_rm", 0, first, first + DROPPED):
            sys.exit("seq_rm refused")
        engine.memory(context, "seq_add", 0, first + DROPPED, -1, -DROPPED)
        return engine.read(context, queries, length - DROPPED)
    if name == "far":
        engine.memory(context, "seq_add", 0, 0, -1, FAR)
        return engine.read(context, queries, length + FAR)
    if name in ("copy", "keep"):
        engine.memory(context, "seq_cp", 0, 1, -1, -1)
        if name == "keep":
            engine.memory(context, "seq_keep", 1)
        return engine.read(context, queries, length, 1)
    if name in ("sequence", "regrown", "adopted"):
        size = api.llama_state_seq_get_size(context, 0, *engine.flags)
        data = (ctypes.c_uint8 * size)()
        if api.llama_state_seq_get_data(context, data, size, 0, *engine.flags) != size:
            sys.exit("the state of the sequence was not saved whole")
        if name == "adopted":
            data = (ctypes.c_uint8 * size).from_buffer_copy(Path(wish["state"]).read_bytes())
        elif wish["state"]:
            Path(wish["state"]).write_bytes(data)
        if name == "regrown":
            engine.clear(context)
            engine.read(context, others[: length // 2 - 1], 0)
            engine.batch(context, [(others[-1], length // 2 - 1, 0)])
            engine.clear(context)
        if api.llama_state_seq_set_data(context, data, size, 1, *engine.flags) != size:
            sys.exit("the state of the sequence was not restored whole")
        # A graph for one token is there, for other numbers of cells and of copies.
        engine.wish["step"] = 1 if name == "regrown" else engine.wish["step"]
        return engine.read(context, queries, length, 1)
    if name == "busy":
        size = api.llama_state_seq_get_size(context, 0)
        data = (ctypes.c_uint8 * size)()
        api.llama_state_seq_get_data(context, data, size, 0)
        other = engine.tailed(wish["tail"], wish["sinks"], n_ctx=2048)
        engine.read(other, others[:length], 0)
        if api.llama_state_seq_set_data(other, data, size, 1) != size:
            sys.exit(REFUSED)
    if name in ("longer", "uncentered"):
        data = engine.state(context)
        other = engine.tailed(wish["tail"], wish["sinks"], n_ctx=2048, center=name == "longer")
        if api.llama_state_set_data(other, data, len(data)) != len(data):
            sys.exit(REFUSED)
        return engine.read(other, queries, length)
    if name in ("state", "foreign"):
        data = engine.state(context)
        foreign = (0, 0) if wish["tail"] else (8, 0)
        other = engine.tailed(*(foreign if name == "foreign" else (wish["tail"], wish["sinks"])))
        if api.llama_state_set_data(other, data, len(data)) != len(data):
            sys.exit(REFUSED)
        return engine.read(other, queries, length)
    if name == "idle":
        engine.read(context, others[:length], 0, 1)
    if name == "back":
        for index in range(DROPPED):
            engine.batch(context, [(others[index], length + index, 0)])
        if not engine.memory(context, "seq_rm", 0, length, -1):
            sys.exit("seq_rm refused")
    return engine.read(context, queries, length)


def main(argument: str) -> None:
    wish = json.loads(argument)
    engine = (IkEngine if wish["engine"] == "ik_llama.cpp" else Engine)(wish)
    numbers = random.Random(SEED)
    tokens, others = (
        [numbers.randrange(engine.n_vocab) for _ in range(engine.wish["length"] + QUERIES)] for _ in range(2)
    )
    logits = act(engine, tokens, others)
    Path(engine.wish["output"]).write_bytes((ctypes.c_float * len(logits))(*logits))


if __name__ == "__main__":
    main(sys.argv[1])
