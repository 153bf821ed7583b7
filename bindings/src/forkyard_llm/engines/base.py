"""What every engine adapter offers: an engine that opens models."""

from __future__ import annotations

import ctypes
import os
from abc import ABC, abstractmethod
from pathlib import Path
from types import ModuleType
from typing import ClassVar

from ..errors import EngineError, ModelError, UnsupportedOption, UsageError
from ..payloads import Payload
from .log import EngineLog
from .numa import Numa
from .numa_mirror import CAPABILITY, SPLIT_STRATEGY, NumaMirror
from .options import CAPABILITIES, ENGINE_OPTIONS, ModelOptions, check_engine_options, choice
from .session import Api, Handle, Params, Session

__all__ = ["Engine"]


class Engine(ABC):
    """One loaded payload: its libraries, its generated ABI module and the functions bound from it."""

    family: ClassVar[str]

    def __init__(
        self, payload: Payload, abi: ModuleType, api: Api, probe: ctypes.CDLL, mirror: NumaMirror | None = None
    ) -> None:
        self.payload = payload
        self.abi = abi
        self.api = api
        self.probe = probe
        self.log = EngineLog(abi, api)
        self.numa = Numa(payload, mirror, self._set_numa_strategy)
        self._started = False

    @property
    def capabilities(self) -> frozenset[str]:
        """What this payload can do: its family's abilities and those its patch stacks add."""
        found = {CAPABILITY} if self.numa.available else set()
        return CAPABILITIES[self.family] | frozenset(self.payload.capabilities) | found

    def start(self) -> None:
        """Initialise the engine's backends; does nothing the second time."""
        if not self._started:
            self.api.llama_backend_init()
            self._register_backends()
            self._started = True

    def system_info(self) -> str:
        """The engine's own line about the CPU features it was compiled with and uses."""
        return bytes(self.api.llama_print_system_info()).decode("utf-8", "replace").strip()

    def open(self, path: Path, options: ModelOptions, *, verbose: bool = False) -> Session:
        """Load the model at ``path`` and make a context for it.

        Args:
            verbose: whether the engine's log goes to stderr, from now on and for all models of this engine.

        Raises:
            UnsupportedOption, UsageError: an option this engine lacks, or no engine has; before anything is loaded.
            ModelError: the engine refuses the file.
            EngineError: the context cannot be made (memory, mostly), or a node has no room for its copy.
        """
        check_engine_options(self.family, options.engine_options)
        self.numa.check(options.numa)
        self.log.verbose = verbose
        self.start()
        model_params = self.api.llama_model_default_params()
        context_params = self.api.llama_context_default_params()
        keep = self._fill_model_params(model_params, options)
        self._fill_context_params(context_params, options)
        self._set_engine_options(model_params, context_params, options)
        with self.numa.admit(options.numa):
            session = self._load(path, options, model_params, context_params)
        del keep
        return session

    def _load(self, path: Path, options: ModelOptions, model_params: Params, context_params: Params) -> Session:
        self.log.forget()
        model = self.api.llama_model_load_from_file(os.fsencode(path), model_params)
        if not model:
            what = f"{self.family} cannot load {path}"
            self._check_copies(what, options)
            msg = f"{what}: {self.log.complaints() or 'it gives no reason'}"
            raise ModelError(msg)
        context = None
        if not options.vocab_only:
            self.log.forget()
            context = self.api.llama_init_from_model(model, context_params)
            if not context:
                self._free_model(model)
                size = options.n_ctx or "the model maximum of"
                what = f"{self.family} cannot make a context of {size} tokens for {path}"
                self._check_copies(what, options)
                msg = f"{what}: {self.log.complaints() or 'it gives no reason'}; try a smaller n_ctx or n_batch"
                raise EngineError(msg)
        return self._session(model, context, options)

    def _check_copies(self, what: str, options: ModelOptions) -> None:
        """Raise the reason for ``what``, if it is that a copy could not be made."""
        line = self.numa.failure(self.log.lines(), options.numa)
        if line is not None:
            msg = (
                f"{what}: {line}; free memory on that node, copy less (numa_mirror='weights' or 'kv'), take"
                " numa='split', or go on without that copy (numa_mirror='best-effort')"
            )
            raise EngineError(msg)

    def _set_numa_strategy(self, name: str) -> None:
        if name == "split":
            number = SPLIT_STRATEGY
        else:
            number = self._enum("ggml_numa_strategy", f"GGML_NUMA_STRATEGY_{name.upper()}", "numa")
        self.api.llama_numa_init(number)

    def _fill_model_params(self, params: Params, options: ModelOptions) -> object:
        """Set the members both families share; returns what must outlive the loading call."""
        params.n_gpu_layers = options.n_gpu_layers
        params.main_gpu = options.main_gpu
        params.check_tensors = options.check_tensors
        params.vocab_only = options.vocab_only
        if options.split_mode is not None:
            name = choice(self.family, "split_mode", "split_mode", options.split_mode)
            params.split_mode = self._enum("llama_split_mode", f"LLAMA_SPLIT_MODE_{name.upper()}", "split_mode")
        if not options.tensor_split:
            return None
        devices = int(self.api.llama_max_devices())
        if len(options.tensor_split) > devices:
            msg = f"tensor_split has {len(options.tensor_split)} parts, this payload knows at most {devices} devices"
            raise UsageError(msg)
        # The engine reads one value per possible device, whatever the length given.
        shares = (ctypes.c_float * devices)(*options.tensor_split)
        params.tensor_split = shares
        return shares

    def _fill_context_params(self, params: Params, options: ModelOptions) -> None:
        params.n_ctx = options.n_ctx
        params.n_batch = options.n_batch
        params.n_ubatch = min(options.n_ubatch or params.n_ubatch, options.n_batch)
        params.n_threads = options.n_threads
        params.n_threads_batch = options.n_threads_batch
        params.rope_freq_base = options.rope_freq_base
        params.rope_freq_scale = options.rope_freq_scale
        params.offload_kqv = options.offload_kqv
        for name, value in (("type_k", options.type_k), ("type_v", options.type_v)):
            if value is not None:
                setattr(params, name, self.cache_type(name, value))

    def cache_type(self, option: str, value: str) -> int:
        """This engine's number for the KV cache type called ``value``."""
        name = choice(self.family, "cache type", option, value)
        types: dict[str, int] = self.abi.ENUMS["ggml_type"]
        for spelling, number in types.items():
            if spelling.lower() == f"ggml_type_{name}":
                return number
        msg = f"payload {self.payload.distribution} has no tensor type {name!r} for {option}"
        raise UnsupportedOption(msg)

    def _enum(self, enum: str, name: str, option: str) -> int:
        values: dict[str, int] = self.abi.ENUMS[enum]
        if name not in values:
            msg = f"payload {self.payload.distribution} has no {name}, which {option} asks for"
            raise UnsupportedOption(msg)
        return values[name]

    def _set_engine_options(self, model_params: Params, context_params: Params, options: ModelOptions) -> None:
        for name, value in options.engine_options.items():
            option = ENGINE_OPTIONS[self.family][name]
            for params, member in (
                (model_params, option.model_field),
                (context_params, option.context_field),
            ):
                if not member:
                    continue
                # Setting an attribute no member answers to would silently do nothing.
                if not hasattr(type(params), member):
                    msg = f"payload {self.payload.distribution} has no parameter {member!r}, which {name!r} sets"
                    raise UnsupportedOption(msg)
                setattr(params, member, value)

    @abstractmethod
    def _register_backends(self) -> None:
        """Load the compute backends that are libraries of their own, where the family has such."""

    @abstractmethod
    def _free_model(self, model: Handle) -> None: ...

    @abstractmethod
    def _session(self, model: Handle, context: Handle, options: ModelOptions) -> Session: ...
