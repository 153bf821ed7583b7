"""Both engine families behind one set of words, for the probe: models, contexts, caches, saved states, the mirror.

Only ctypes and the payload's generated module; a child process imports this file by its name.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

Handle = Any
Spec = Mapping[str, Any]
Parts = Sequence[tuple[int, int, Sequence[int]]]
"""What a batch holds: sequence, first position, tokens."""


class Refused(Exception):
    """The engine said no to a model, a context or an adapter."""


def engine(payload: Path, libraries: Mapping[str, str]) -> Engine:
    """The engine of a payload's package folder, and the paths of its libraries by name."""
    manifest = json.loads((payload / "manifest.json").read_text(encoding="utf-8"))
    family = {"llama.cpp": LlamaCpp, "ik_llama.cpp": IkLlama}[manifest["engine"]]
    return family(payload, libraries)


class Mirror:
    """The functions of ggml-numa-mirror.h, if the engine has them."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self.there = hasattr(api, "ggml_numa_mirror_report")

    def set(self, what: int) -> None:
        """Choose what to mirror: the bits of ggml_numa_mirror_what."""
        self._api.ggml_numa_mirror_set(what)

    def reset_counters(self) -> None:
        self._api.ggml_numa_mirror_reset_counters()

    def parse(self, words: str) -> int | None:
        """The bits of a list of words, None if one of them is unknown."""
        what = ctypes.c_int(-1)
        return what.value if self._api.ggml_numa_mirror_parse(words.encode(), ctypes.byref(what)) else None

    def report(self) -> dict[str, Any] | None:
        """What ggml_numa_mirror_report says, with the answers of its sisters; None from an engine without."""
        if not self.there:
            return None
        size = self._api.ggml_numa_mirror_report(None, 0) + 1
        text = ctypes.create_string_buffer(size)
        written = self._api.ggml_numa_mirror_report(text, size)
        assert written == size - 1, "two reports of the same thing differ in length"
        report: dict[str, Any] = json.loads(text.value)
        report["n_nodes"] = self._api.ggml_numa_mirror_n_nodes()
        report["is_split"] = self._api.ggml_numa_mirror_is_split()
        report["counters"] = []
        for node in range(report["n_nodes"]):
            local, remote = ctypes.c_uint64(), ctypes.c_uint64()
            self._api.ggml_numa_mirror_counters(node, ctypes.byref(local), ctypes.byref(remote))
            report["counters"].append([local.value, remote.value])
        return report


class Engine:
    """What both families have in common; a context is a handle of the engine."""

    def __init__(self, payload: Path, libraries: Mapping[str, str]) -> None:
        self.abi = _load_abi(payload)
        self._paths = libraries
        names = [name for name in self._libraries if name in libraries]
        # A library before those that need it: they must find this one, not the one beside them.
        self._loaded = [ctypes.CDLL(libraries[name]) for name in reversed(names)][::-1]
        self.api: Any = self.abi.bind(*self._loaded)
        self.mirror = Mirror(self.api)
        self._device = ""

    _libraries: Sequence[str] = ("llama", "ggml")
    """In this order functions are looked up."""
    state_is_reproducible = True
    """Whether the saved state of a whole context depends on nothing but what was done with it."""

    def start(self, strategy: int, what: int | None) -> None:
        """Initialize, with a strategy of ggml_numa_strategy."""
        self.api.llama_backend_init()
        self._register_backends()
        if what is not None:
            self.mirror.set(what)
        self.api.llama_numa_init(strategy)

    def _register_backends(self) -> None:
        """Load what the engine does not link."""

    def use_device(self, endpoint: str) -> None:
        """Have layers of the models computed by the server at ``HOST:PORT``, as by a GPU."""
        self._device = endpoint

    def load(self, path: str, spec: Spec) -> Handle:
        params = self.api.llama_model_default_params()
        self._fill_model(params, spec)
        _assign(params, spec.get("model_params", {}))
        model = self.api.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            raise Refused(f"model {path}")
        return model

    def n_vocab(self, model: Handle) -> int:
        return int(self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(model)))

    def context(self, model: Handle, spec: Spec, callbacks: Mapping[str, Any]) -> Handle:
        params = self.api.llama_context_default_params()
        params.n_ctx = params.n_batch = spec.get("n_ctx", 256)
        params.n_ubatch = spec.get("n_ubatch", params.n_batch)
        params.n_seq_max = spec.get("seqs", 1)
        params.n_threads = params.n_threads_batch = spec.get("threads", 1)
        params.type_k = self.type(spec.get("k", "f16"))
        params.type_v = self.type(spec.get("v", "f16"))
        self._fill_context(params, spec)
        _assign(params, spec.get("params", {}))
        _assign(params, callbacks)
        context = self.api.llama_init_from_model(model, params)
        if not context:
            raise Refused(f"context {spec}")
        return context

    def type(self, name: str) -> int:
        value: int = getattr(self.abi, f"GGML_TYPE_{name.upper()}")
        return value

    def decode(self, context: Handle, parts: Parts, n_vocab: int) -> str:
        """The SHA-256 of the logits of all tokens, or the engine's error code."""
        count = sum(len(tokens) for _, _, tokens in parts)
        batch = self.api.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        row = 0
        for seq, position, tokens in parts:
            for offset, token in enumerate(tokens):
                batch.token[row] = token
                batch.pos[row] = position + offset
                batch.n_seq_id[row] = 1
                batch.seq_id[row][0] = seq
                batch.logits[row] = 1
                row += 1
        status = self.api.llama_decode(context, batch)
        self.api.llama_batch_free(batch)
        if status != 0:
            return f"error {status}"
        digest = hashlib.sha256()
        for index in range(count):
            digest.update(ctypes.string_at(self.api.llama_get_logits_ith(context, index), 4 * n_vocab))
        return digest.hexdigest()

    def save(self, context: Handle, seq: int | None) -> bytes:
        """The state of a context, or of one of its sequences."""
        size = self._state_size(context, seq)
        buffer = (ctypes.c_uint8 * size)()
        written = self._get_state(context, buffer, size, seq)
        return bytes(buffer)[:written]

    def restore(self, context: Handle, state: bytes, seq: int | None) -> bool:
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        return int(self._set_state(context, buffer, len(state), seq)) > 0

    def free(self, context: Handle) -> None:
        self.api.llama_free(context)

    def _fill_model(self, params: Any, spec: Spec) -> None:
        raise NotImplementedError

    def _fill_context(self, params: Any, spec: Spec) -> None:
        raise NotImplementedError

    def _state_size(self, context: Handle, seq: int | None) -> int:
        raise NotImplementedError

    def _get_state(self, context: Handle, buffer: Any, size: int, seq: int | None) -> int:
        raise NotImplementedError

    def _set_state(self, context: Handle, buffer: Any, size: int, seq: int | None) -> int:
        raise NotImplementedError

    def attach_pool(self, context: Handle, threads: int) -> Handle:
        """Threads of the context's own, None where the family has no such thing."""
        return None

    def free_pool(self, pool: Handle) -> None:
        """Free what :meth:`attach_pool` made, after the context."""


class LlamaCpp(Engine):
    """llama.cpp: the cache is a memory object; adapters are set all at once."""

    _libraries = ("llama", "ggml", "ggml-base", "ggml-cpu", "ggml-rpc")

    def _register_backends(self) -> None:
        if self.api.ggml_backend_reg_count() == 0:
            path = self._paths["ggml-cpu"]
            assert self.api.ggml_backend_load(os.fsencode(path)), f"cannot load {path}"

    def use_device(self, endpoint: str) -> None:
        reg = _find(self._loaded, "ggml_backend_rpc_add_server", ctypes.c_void_p, ctypes.c_char_p)(endpoint.encode())
        assert reg, f"no server at {endpoint}"
        _find(self._loaded, "ggml_backend_register", None, ctypes.c_void_p)(reg)

    def _fill_model(self, params: Any, spec: Spec) -> None:
        mode = "MMAP" if spec.get("mmap", True) else "NONE"
        params.load_mode = self.abi.ENUMS["llama_load_mode"][f"LLAMA_LOAD_MODE_{mode}"]

    def _fill_context(self, params: Any, spec: Spec) -> None:
        params.flash_attn_type = int(spec.get("flash", True))

    def free_model(self, model: Handle) -> None:
        self.api.llama_model_free(model)

    def _memory(self, context: Handle) -> Handle:
        return self.api.llama_get_memory(context)

    def remove(self, context: Handle, seq: int, start: int, end: int) -> bool:
        return bool(self.api.llama_memory_seq_rm(self._memory(context), seq, start, end))

    def move(self, context: Handle, seq: int, start: int, by: int) -> None:
        self.api.llama_memory_seq_add(self._memory(context), seq, start, -1, by)

    def copy(self, context: Handle, source: int, target: int) -> None:
        self.api.llama_memory_seq_cp(self._memory(context), source, target, -1, -1)

    def keep(self, context: Handle, seq: int) -> None:
        self.api.llama_memory_seq_keep(self._memory(context), seq)

    def clear(self, context: Handle, data: bool) -> None:
        self.api.llama_memory_clear(self._memory(context), data)

    def adapter(self, model: Handle, path: str) -> Handle:
        adapter = self.api.llama_adapter_lora_init(model, os.fsencode(path))
        if not adapter:
            raise Refused(f"adapter {path}")
        return adapter

    def use_adapter(self, context: Handle, adapter: Handle, scale: float) -> None:
        adapters = (type(adapter) * 1)(adapter)
        status = self.api.llama_set_adapters_lora(context, adapters, int(scale != 0.0), (ctypes.c_float * 1)(scale))
        assert status == 0, f"llama_set_adapters_lora: {status}"

    def attach_pool(self, context: Handle, threads: int) -> Handle:
        params = self.api.ggml_threadpool_params_default(threads)
        pool = self.api.ggml_threadpool_new(ctypes.byref(params))
        self.api.llama_attach_threadpool(context, pool, None)
        return pool

    def free_pool(self, pool: Handle) -> None:
        self.api.ggml_threadpool_free(pool)

    def _state_size(self, context: Handle, seq: int | None) -> int:
        if seq is None:
            return int(self.api.llama_state_get_size(context))
        return int(self.api.llama_state_seq_get_size(context, seq))

    def _get_state(self, context: Handle, buffer: Any, size: int, seq: int | None) -> int:
        if seq is None:
            return int(self.api.llama_state_get_data(context, buffer, size))
        return int(self.api.llama_state_seq_get_data(context, buffer, size, seq))

    def _set_state(self, context: Handle, buffer: Any, size: int, seq: int | None) -> int:
        if seq is None:
            return int(self.api.llama_state_set_data(context, buffer, size))
        return int(self.api.llama_state_seq_set_data(context, buffer, size, seq))


class IkLlama(Engine):
    """ik_llama.cpp: the cache belongs to the context."""

    # It has the state of a random number generator that is seeded by chance.
    state_is_reproducible = False

    def _fill_model(self, params: Any, spec: Spec) -> None:
        params.use_mmap = spec.get("mmap", True)
        if self._device:
            # The server's first device.
            params.rpc_servers = f"{self._device}|0".encode()
            # The first share is that of the build's own kind of GPU, which it counts even if there is none.
            self._shares = (ctypes.c_float * self.api.llama_max_devices())(0.0, 1.0)
            params.tensor_split = self._shares

    def _fill_context(self, params: Any, spec: Spec) -> None:
        params.flash_attn = spec.get("flash", True)

    def free_model(self, model: Handle) -> None:
        self.api.llama_free_model(model)

    def remove(self, context: Handle, seq: int, start: int, end: int) -> bool:
        return bool(self.api.llama_kv_cache_seq_rm(context, seq, start, end))

    def move(self, context: Handle, seq: int, start: int, by: int) -> None:
        self.api.llama_kv_cache_seq_add(context, seq, start, -1, by)

    def copy(self, context: Handle, source: int, target: int) -> None:
        self.api.llama_kv_cache_seq_cp(context, source, target, -1, -1)

    def keep(self, context: Handle, seq: int) -> None:
        self.api.llama_kv_cache_seq_keep(context, seq)

    def clear(self, context: Handle, data: bool) -> None:
        self.api.llama_kv_cache_clear(context)

    def adapter(self, model: Handle, path: str) -> Handle:
        adapter = self.api.llama_lora_adapter_init(model, os.fsencode(path))
        if not adapter:
            raise Refused(f"adapter {path}")
        return adapter

    def use_adapter(self, context: Handle, adapter: Handle, scale: float) -> None:
        if scale == 0.0:
            self.api.llama_lora_adapter_clear(context)
        else:
            status = self.api.llama_lora_adapter_set(context, adapter, scale)
            assert status == 0, f"llama_lora_adapter_set: {status}"

    def _state_size(self, context: Handle, seq: int | None) -> int:
        if seq is None:
            return int(self.api.llama_state_get_size(context))
        return int(self.api.llama_state_seq_get_size(context, seq, 0))

    def _get_state(self, context: Handle, buffer: Any, size: int, seq: int | None) -> int:
        if seq is None:
            return int(self.api.llama_state_get_data(context, buffer, size))
        return int(self.api.llama_state_seq_get_data(context, buffer, size, seq, 0))

    def _set_state(self, context: Handle, buffer: Any, size: int, seq: int | None) -> int:
        if seq is None:
            return int(self.api.llama_state_set_data(context, buffer, size))
        return int(self.api.llama_state_seq_set_data(context, buffer, size, seq, 0))


def _find(libraries: Sequence[ctypes.CDLL], name: str, restype: Any = None, *argtypes: Any) -> Any:
    """A function that the generated module does not know, from the first library that has it; None if none has."""
    for library in libraries:
        try:
            function = library[name]
        except AttributeError:
            continue
        function.restype, function.argtypes = restype, argtypes
        return function
    return None


def _load_abi(payload: Path) -> ModuleType:
    """The generated ctypes module of a payload; importing it loads no library."""
    spec = importlib.util.spec_from_file_location("payload_abi", payload / "_abi.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _assign(params: Any, values: Mapping[str, Any]) -> None:
    """Set members of a struct; a name it does not have would silently do nothing."""
    for name, value in values.items():
        if not hasattr(type(params), name):
            raise Refused(f"this engine has no parameter {name}")
        setattr(params, name, value)
