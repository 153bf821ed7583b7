"""Decode through one payload on split devices and save the logits; a child process, as it may crash.

Usage: python -m tests.integration.split.split_probe JSON, from the root of the repository

The JSON object says which ``payload`` (package folder, of which _abi.py is read) with which ``libraries`` ({NAME: PATH});
the ``endpoints`` of RPC servers, whose first devices are the devices, or the name of a ``device`` of a backend that is a
library of the payload; the ``model``, its ``split`` (``none`` or
``tensor``) and ``shares`` (of each device, or empty); ``k`` and ``v``, the types of the cache, ``offload``, whether the
devices hold it, and ``unified``, whether its sequences share one buffer; an ``act``; and the ``output`` file.

Every act ends with the same QUERIES tokens, whose logits (float32, one row each) go to the file:

- ``plain``: after LENGTH tokens, a batch and then one by one;
- ``shift``: after these without the first DROPPED, the others moved to position 0;
- ``copy``: in a second sequence, into which the first was copied;
- ``sequence``: in a second sequence, into which the state of the first was restored;
- ``state``: in a second context, into which the whole state of the first was restored.
"""

from __future__ import annotations

import ctypes
import json
import random
import sys
from pathlib import Path
from typing import Any

from ..fixes.kshift_probe import load_abi

LENGTH = 48
DROPPED = 12
QUERIES = 8
N_BATCH = 32
SEED = 20261130
USED_BYTES = 24 << 20
"""Memory of each device that holds NaN before anything else is put there, as it may in a server that has run long."""
REFUSED = 3
"""Exit status where the engine gives back no model or no context, instead of one."""


class Engine:
    """One model on the devices; contexts of it, each with two sequences."""

    def __init__(self, wish: dict[str, Any]) -> None:
        self.wish = wish
        self.abi = load_abi(Path(wish["payload"]))
        libraries = {name: ctypes.CDLL(path) for name, path in wish["libraries"].items() if name in ("llama", "ggml")}
        self.api: Any = self.abi.bind(libraries["llama"], libraries["ggml"])
        self.api.llama_backend_init()
        self.api.ggml_backend_load(wish["libraries"]["ggml-cpu"].encode())
        params = self.api.llama_model_default_params()
        on_devices = wish["endpoints"] or wish.get("device")
        params.n_gpu_layers = 99 if on_devices else 0
        params.split_mode = getattr(self.abi, f"LLAMA_SPLIT_MODE_{wish['split'].upper()}")
        if wish["endpoints"]:
            self._devices = self._remote(wish["libraries"]["ggml-rpc"], wish["endpoints"])
            params.devices = self._devices
        elif wish.get("device"):
            self._devices = self._local(wish["libraries"], wish["device"])
            params.devices = self._devices
        if wish["shares"]:
            self._shares = (ctypes.c_float * self.api.llama_max_devices())(*wish["shares"])
            params.tensor_split = self._shares
        self.model = self.api.llama_model_load_from_file(wish["model"].encode(), params)
        if not self.model:
            sys.exit(REFUSED)
        self.n_vocab: int = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))

    def _local(self, libraries: dict[str, str], name: str) -> Any:
        for library, path in libraries.items():
            if name.lower().startswith(library.removeprefix("ggml-")):
                self.api.ggml_backend_load(path.encode())
        devices = (ctypes.POINTER(self.abi.ggml_backend_device) * 2)()
        devices[0] = self.api.ggml_backend_dev_by_name(name.encode())
        if not devices[0]:
            sys.exit(f"there is no device {name}")
        return devices

    def _remote(self, library: str, endpoints: list[str]) -> Any:
        registry = self.api.ggml_backend_load(library.encode())
        add = self.api.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_rpc_add_server")
        added = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(add)
        device = ctypes.POINTER(self.abi.ggml_backend_device)
        devices = (device * (len(endpoints) + 1))()
        for index, endpoint in enumerate(endpoints):
            server = added(endpoint.encode())
            if not server:
                sys.exit(f"no server at {endpoint}")
            server = ctypes.cast(server, ctypes.POINTER(self.abi.ggml_backend_reg))
            devices[index] = self.api.ggml_backend_reg_dev_get(server, 0)
            kind = self.api.ggml_backend_dev_buffer_type(devices[index])
            buffer = self.api.ggml_backend_buft_alloc_buffer(kind, USED_BYTES)
            self.api.ggml_backend_buffer_clear(buffer, 0xFF)
            self.api.ggml_backend_buffer_free(buffer)
        return devices

    def context(self) -> Any:
        params = self.api.llama_context_default_params()
        params.n_ctx = 512
        params.n_batch = params.n_ubatch = N_BATCH
        params.n_threads = params.n_threads_batch = 1
        params.n_seq_max = 2
        params.kv_unified = self.wish["unified"]
        params.offload_kqv = self.wish["offload"]
        params.flash_attn_type = self.abi.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.type_k = getattr(self.abi, f"GGML_TYPE_{self.wish['k'].upper()}")
        params.type_v = getattr(self.abi, f"GGML_TYPE_{self.wish['v'].upper()}")
        context = self.api.llama_init_from_model(self.model, params)
        if not context:
            sys.exit(REFUSED)
        return context

    def decode(self, context: Any, tokens: list[int], position: int, sequence: int = 0) -> list[float]:
        """Logits of every given token, one row after the other."""
        logits: list[float] = []
        for start in range(0, len(tokens), N_BATCH):
            part = tokens[start : start + N_BATCH]
            batch = self.api.llama_batch_init(len(part), 0, 1)
            batch.n_tokens = len(part)
            for row, token in enumerate(part):
                batch.token[row] = token
                batch.pos[row] = position + start + row
                batch.n_seq_id[row] = 1
                batch.seq_id[row][0] = sequence
                batch.logits[row] = 1
            status = self.api.llama_decode(context, batch)
            self.api.llama_batch_free(batch)
            if status != 0:
                sys.exit(f"llama_decode: {status}")
            for row in range(len(part)):
                logits += self.api.llama_get_logits_ith(context, row)[: self.n_vocab]
        return logits

    def queries(self, context: Any, tokens: list[int], position: int, sequence: int = 0) -> list[float]:
        """Logits of half of the tokens as a batch, the others one by one."""
        half = len(tokens) // 2
        logits = self.decode(context, tokens[:half], position, sequence)
        for index in range(half, len(tokens)):
            logits += self.decode(context, [tokens[index]], position + index, sequence)
        return logits


def act(engine: Engine, tokens: list[int]) -> list[float]:
    """The logits at the end of the act that is wished for."""
    api, name = engine.api, engine.wish["act"]
    context = engine.context()
    memory = api.llama_get_memory(context)
    engine.decode(context, tokens[:LENGTH], 0)
    queries = tokens[LENGTH:]
    if name == "shift":
        if not api.llama_memory_can_shift(memory):
            sys.exit("this cache does not shift")
        if not api.llama_memory_seq_rm(memory, 0, 0, DROPPED):
            sys.exit("llama_memory_seq_rm refused")
        api.llama_memory_seq_add(memory, 0, DROPPED, -1, -DROPPED)
        return engine.queries(context, queries, LENGTH - DROPPED)
    if name == "copy":
        api.llama_memory_seq_cp(memory, 0, 1, -1, -1)
        return engine.queries(context, queries, LENGTH, 1)
    if name == "sequence":
        size = api.llama_state_seq_get_size(context, 0)
        data = (ctypes.c_uint8 * size)()
        if api.llama_state_seq_get_data(context, data, size, 0) != size:
            sys.exit("the state of the sequence was not saved whole")
        if api.llama_state_seq_set_data(context, data, size, 1) != size:
            sys.exit("the state of the sequence was not restored whole")
        return engine.queries(context, queries, LENGTH, 1)
    if name == "state":
        size = api.llama_state_get_size(context)
        data = (ctypes.c_uint8 * size)()
        size = api.llama_state_get_data(context, data, size)
        other = engine.context()
        if api.llama_state_set_data(other, data, size) != size:
            sys.exit("the state was not restored whole")
        return engine.queries(other, queries, LENGTH)
    return engine.queries(context, queries, LENGTH)


def main(argument: str) -> None:
    engine = Engine(json.loads(argument))
    numbers = random.Random(SEED)
    tokens = [numbers.randrange(engine.n_vocab) for _ in range(LENGTH + QUERIES)]
    logits = act(engine, tokens)
    Path(engine.wish["output"]).write_bytes((ctypes.c_float * len(logits))(*logits))


if __name__ == "__main__":
    main(sys.argv[1])
