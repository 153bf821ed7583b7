"""What every engine adapter offers: an engine that opens models."""

from __future__ import annotations

import ctypes
import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import ClassVar

from ..errors import EngineError, ModelError, UnsupportedOption, UsageError
from ..payloads import Payload, discover
from .common import CAPABILITY as GUESSING
from .common import OwnGuesses
from .context_memory import batch_bytes, least_bytes
from .cuda import gpus_without_code
from .devices import GPU_KINDS, Device
from .embedding import IDLE_TALK, Embedder, EmbeddingPlan
from .loaded import Api, Handle, Loaded, Params
from .log import EngineLog
from .media import MTMD
from .numa import Numa
from .numa_mirror import CAPABILITY, NumaMirror
from .options import CAPABILITIES, ENGINE_OPTIONS, UNDONE, ModelOptions, check_engine_options, choice
from .quota import available_bytes
from .rpc import Servers
from .session import Session
from .threads import check_threads

__all__ = ["NO_LAYERS", "Engine"]

log = logging.getLogger(__name__)

NO_LAYERS = "it has no layers that predict further tokens (nextn_predict_layers)"
_ALL_LAYERS = 2**15
_MLOCK_HINT = "raise the limit on locked memory (`ulimit -l`, in systemd LimitMEMLOCK=) or leave use_mlock out"
_NO_GPU_PAYLOAD = (
    "take a payload built for a GPU backend (none is installed; `forkyard-llm doctor` lists what is,"
    " `forkyard variants` what can be built)"
)
# What the engines answer for a model that continues a text.
_OF_A_DECODER = (
    ("llama_model_has_encoder", False),
    ("llama_model_has_decoder", True),
    ("llama_model_is_diffusion", False),
)


class Engine(ABC):
    """One loaded payload: its libraries, its generated ABI module and the functions bound from it."""

    family: ClassVar[str]
    idle_talk: ClassVar[re.Pattern[str]] = re.compile("(?!)")
    """Warnings at every load that mean nothing."""
    flash_attn_with_lora: ClassVar[bool | None] = None
    """Of a model that is opened with a LoRA adapter, where nothing else is asked for."""
    rpc_greeting: ClassVar[bytes] = b""
    """What its RPC client sends with its greeting; no header says it."""

    def __init__(
        self, payload: Payload, abi: ModuleType, api: Api, probe: ctypes.CDLL, mirror: NumaMirror | None = None
    ) -> None:
        self.payload = payload
        self.abi = abi
        self.api = api
        self.log = EngineLog(abi, api)
        self.loaded = Loaded(payload, abi, api, probe, self.log)
        self.numa = Numa(payload, mirror, self._set_numa_strategy)
        self.rpc = Servers.of(abi, self.rpc_greeting)
        self._started = False
        self.no_gpu: str | None = None
        """Why a payload built for GPUs computes on the CPU alone, once it is started; None where it does not."""

    @property
    def capabilities(self) -> frozenset[str]:
        """What this payload can do: its family's abilities and those its patch stacks add."""
        found = {CAPABILITY} if self.numa.available else set()
        found |= {MTMD} if self.payload.has_library(MTMD) else set()
        return CAPABILITIES[self.family] | frozenset(self.payload.capabilities) | found

    def start(self) -> None:
        """Initialise the engine's backends; does nothing the second time.

        Raises EngineError where a GPU that it would use has no code in the payload.
        """
        if not self._started:
            if unfit := gpus_without_code(self.payload):
                msg = f"{self.payload.title} cannot be used here: {unfit}"
                raise EngineError(msg)
            self.api.llama_backend_init()
            self._register_backends()
            self._started = True
            if self.payload.for_gpu and not self._has_gpu():
                self.no_gpu = self.log.complaints() or "its backend finds none"
                advice = self.payload.without_libraries(self.no_gpu)
                self.no_gpu += f"; {advice}" if advice else ""
                log.warning("%s has no GPU to use, and computes on the CPU: %s", self.payload.title, self.no_gpu)

    def _has_gpu(self) -> bool:
        return bool(self.api.llama_supports_gpu_offload())

    @abstractmethod
    def devices(self) -> tuple[Device, ...]:
        """What it can compute on, in its own order."""

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
            EngineError: the context cannot be made (memory, mostly), a node has no room for its copy, the engine does
                not do what an option asks for, or this process was forked from one in which an engine computed.
        """
        own = check_engine_options(self.family, options.engine_options)
        self.numa.check(options.numa)
        if options.own_guesses:
            self.loaded.need(GUESSING, "draft_model='mtp'")
        if options.pooling is not None:
            choice(self.family, "pooling", "pooling", options.pooling)
        check_threads(max(options.n_threads, options.n_threads_batch))
        self.log.verbose = verbose
        self.start()
        model_params = self.api.llama_model_default_params()
        context_params = self.api.llama_context_default_params()
        keep = self._fill_model_params(model_params, options)
        self._fill_context_params(context_params, options)
        self._set_engine_options(model_params, context_params, own)
        with self.numa.admit(options.numa), self.log.collected() as complaints:
            session = self._load(path, options, model_params, context_params, complaints)
        del keep
        try:
            self._check_obeyed(options, session, complaints)
        except BaseException:
            session.close()
            raise
        # Layers that guess are left out unless they are asked for.
        left_out = {found[1] for line in complaints if (found := re.search(r"unused tensor (blk\.\d+\.)nextn", line))}
        for line in complaints:
            if self.idle_talk.search(line) or (options.embedding and IDLE_TALK.search(line)):
                continue
            if any(f"unused tensor {layer}" in line for layer in left_out):
                continue
            log.warning("%s, loading %s: %s", self.family, path.name, line)
        return session

    def _check_obeyed(self, options: ModelOptions, session: Session, complaints: Sequence[str]) -> None:
        """Refuse a session that lacks what was asked for, where the engine only warns, or says nothing."""
        asked = {"flash_attn": options.flash_attn, "use_mlock": options.use_mlock, **options.engine_options}
        for name, words in UNDONE.items():
            line = next((line for line in complaints if asked.get(name) and re.search(words, line)), None)
            if line is not None:
                hint = _MLOCK_HINT if name == "use_mlock" else f"leave {name} out, or take another model or engine"
                msg = f"{self.family} does not do what {name}={asked[name]!r} asks for: {line}; {hint}"
                raise EngineError(msg)
        # Embeddings need no longer context than the model has positions.
        if not (options.vocab_only or options.embedding) and session.n_ctx < options.n_ctx:
            msg = f"{self.family} made a context of {session.n_ctx} tokens, n_ctx asks for {options.n_ctx}"
            raise EngineError(msg)

    def _load(
        self, path: Path, options: ModelOptions, model_params: Params, context_params: Params, complaints: list[str]
    ) -> Session:
        self.log.forget()
        model = self.api.llama_model_load_from_file(os.fsencode(path), model_params)
        if not model:
            what = f"{self.family} cannot load {path}"
            self.numa.check_placed(what, options.numa)
            msg = f"{what}: {self.log.complaints() or 'it gives no reason'}"
            raise ModelError(msg)
        self.numa.warn_unplaced(complaints)
        context = plan = None
        if options.own_guesses and (why := self._cannot_guess(model)):
            self._free_model(model)
            msg = f"{path} cannot guess tokens by itself: {why}; leave draft_model='mtp' out"
            raise ModelError(msg)
        if not options.vocab_only:
            if not (options.embedding or self._writes_text(model)):
                self._free_model(model)
                msg = f"{path}: {self.family} says that this model does not continue a text; take a decoder-only model"
                raise ModelError(msg)
            if options.n_parallel > 1:
                # Each request has a context of its own.
                each = options.n_ctx or int(self.api.llama_n_ctx_train(model))
                context_params.n_ctx = each * options.n_parallel
            self.log.forget()
            try:
                if options.embedding:
                    plan = EmbeddingPlan.made(self.loaded, model, options, context_params)
                    plan.fill(self.loaded, context_params)
                self._check_context(path, model, options, context_params)
            except BaseException:
                self._free_model(model)
                raise
            context = self.api.llama_init_from_model(model, context_params)
            if not context:
                self._free_model(model)
                size = options.n_ctx or "the model maximum of"
                what = f"{self.family} cannot make a context of {size} tokens for {path}"
                self.numa.check_placed(what, options.numa)
                msg = f"{what}: {self.log.complaints() or 'it gives no reason'}; try a smaller n_ctx or n_batch"
                raise EngineError(msg)
            self.numa.warn_unplaced(complaints)
        servers = tuple(options.rpc_servers)
        self.rpc.use(servers)

        def release(model: Handle) -> None:
            self._free_model(model)
            self.rpc.leave(servers)
            self.numa.leave()

        session = self._session(model, context, options, release)
        if plan is not None:
            session.embedder = Embedder(session, plan)
        if options.own_guesses:
            try:
                session.own_guesses = OwnGuesses(self.loaded, context, context_params, options.guesses)
            except BaseException:
                session.close()
                raise
        return session

    @abstractmethod
    def _cannot_guess(self, model: Handle) -> str | None:
        """Why the model cannot guess further tokens by layers of its own."""

    def _writes_text(self, model: Handle) -> bool:
        """What the engine says of its architectures, for those made after the file check's table."""
        for name, answer in _OF_A_DECODER:
            # Not every family has all of these functions.
            function = getattr(self.api, name, None)
            if function is not None and bool(function(model)) is not answer:
                return False
        return True

    def _check_context(self, path: Path, model: Handle, options: ModelOptions, params: Params) -> None:
        """Refuse a context that the engine would end the process over instead of refusing it itself."""
        key_bytes, value_bytes = (
            self.api.ggml_type_size(kind) / self.api.ggml_blck_size(kind) for kind in (params.type_k, params.type_v)
        )
        needed = least_bytes(
            lambda key: self.loaded.metadata(model, key), options.n_ctx * options.n_parallel, key_bytes, value_bytes
        )
        if options.embedding:
            outputs = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(model))
            needed += batch_bytes(self.loaded.metadata(model, "general.architecture"), params.n_ubatch, outputs)
        there = available_bytes()
        if there is not None and needed > there:
            size = f"of {options.n_ctx} tokens" if options.n_ctx else "of the model's own size"
            msg = (
                f"a context {size} for {path} takes at least {needed / 2**30:.1f} GiB, the system has"
                f" {there / 2**30:.1f} GiB left; give a smaller n_ctx, or smaller cache types (type_k, type_v)"
            )
            raise EngineError(msg)

    def _set_numa_strategy(self, name: str) -> None:
        if name == "split":
            # A macro of the stack's header, not a member of upstream's enum.
            number = self.abi.GGML_NUMA_STRATEGY_SPLIT
        else:
            number = self._enum("ggml_numa_strategy", f"GGML_NUMA_STRATEGY_{name.upper()}", "numa")
        self.api.llama_numa_init(number)

    def _fill_model_params(self, params: Params, options: ModelOptions) -> object:
        """Set the members both families share; returns what must outlive the loading call."""
        remote = self.remote_devices(options.rpc_servers)
        self._check_gpu(options, remote)
        # The families disagree on what a negative number means; a model has fewer layers than this.
        params.n_gpu_layers = _ALL_LAYERS if options.n_gpu_layers == -1 else options.n_gpu_layers
        params.main_gpu = options.main_gpu
        params.check_tensors = options.check_tensors
        params.vocab_only = options.vocab_only
        if options.split_mode is not None:
            name = choice(self.family, "split_mode", "split_mode", options.split_mode)
            params.split_mode = self._enum("llama_split_mode", f"LLAMA_SPLIT_MODE_{name.upper()}", "split_mode")
        if options.devices is None and not (options.tensor_split or options.main_gpu or remote):
            return None
        used = self.gpus(options.devices, remote)
        # By name: what the engine takes by itself may be others, and with RPC those of another model's servers.
        named = self._name_devices(params, used)
        devices = int(self.api.llama_max_devices())
        if options.main_gpu >= devices:
            msg = f"main_gpu is {options.main_gpu}, this payload knows at most {devices} devices, from 0 on"
            raise UsageError(msg)
        if max(len(options.tensor_split), len(used)) > devices:
            what = (
                f"tensor_split has {len(options.tensor_split)} parts"
                if options.tensor_split
                else f"{len(used)} are used"
            )
            msg = f"{what}, this payload knows at most {devices} devices"
            raise UsageError(msg)
        names = ", ".join(device.name for device in used) or "none"
        if options.main_gpu and options.main_gpu >= len(used):
            msg = f"main_gpu is {options.main_gpu}, and the devices used are {names}: it counts them from 0 on"
            raise UsageError(msg)
        if not options.tensor_split:
            return named
        if len(options.tensor_split) != len(used):
            msg = (
                f"tensor_split has {len(options.tensor_split)} parts, and the devices used are {names}: give one part"
                " for each, in that order, or choose devices by name (devices=[...])"
            )
            raise UsageError(msg)
        # The engine reads one value per possible device, whatever the length given.
        shares = (ctypes.c_float * devices)(*options.tensor_split)
        params.tensor_split = shares
        return named, shares

    def remote_devices(self, servers: Sequence[str]) -> tuple[Device, ...]:
        """The devices of the RPC servers at these addresses, each server's in its own order.

        Raises:
            UnsupportedOption: this payload has no RPC.
            EngineError: a server is not there, or none that this payload can work with.
        """
        if servers and not self.payload.remote:
            others = [other for other in discover() if other.remote]
            there = " or ".join(f"engine={other.distribution!r}" for other in others)
            msg = (
                f"rpc_servers={list(servers)!r} needs a payload with RPC, and {self.payload.distribution} has none;"
                f" take {there or 'one of the variant rpc (none is installed; `nox -s build-rpc` builds it)'}"
            )
            raise UnsupportedOption(msg)
        if servers:
            self.start()
        return tuple(one for address in servers for one in self._server_devices(address, self.rpc.greet(address)))

    def _server_devices(self, address: str, count: int) -> Sequence[Device]:
        """The ``count`` devices of an RPC server that was greeted."""
        msg = f"the RPC server at {address}: {self.family} calls none from here; take engine='llama.cpp'"
        raise UnsupportedOption(msg)

    def gpus(self, names: Sequence[str] | None = None, remote: Sequence[Device] = ()) -> tuple[Device, ...]:
        """The devices called ``names`` that layers can be kept on, in that order; for None ``remote``, then all GPUs.

        Raises:
            UsageError: there is none of such a name.
        """
        own = (device for device in self.devices() if device.kind in GPU_KINDS)
        there = {device.name: device for device in (*remote, *own)}
        for name in names or ():
            if name not in there:
                msg = f"{self.payload.title} has no GPU {name!r} here; it has: {', '.join(there) or 'none'}"
                raise UsageError(msg)
        return tuple(there.values() if names is None else (there[name] for name in names))

    @abstractmethod
    def _name_devices(self, params: Params, devices: Sequence[Device]) -> object:
        """Have the model use these GPUs alone; returns what must outlive the loading call."""

    def _check_gpu(self, options: ModelOptions, remote: Sequence[Device]) -> None:
        """Refuse what only a GPU, or another machine, can do, where the engine has none to do it with."""
        if options.split_mode is not None:
            choice(self.family, "split_mode", "split_mode", options.split_mode)
        if remote and not options.n_gpu_layers:
            msg = "RPC servers compute only layers that are kept on them; give n_gpu_layers, -1 for all"
            raise UsageError(msg)
        given = {
            "n_gpu_layers": options.n_gpu_layers,
            "devices": options.devices,
            "main_gpu": options.main_gpu,
            "split_mode": options.split_mode,
            "tensor_split": options.tensor_split,
        }
        asked = [f"{name}={value!r}" for name, value in given.items() if value]
        if not asked:
            return
        if self._has_gpu() or remote:
            self._check_gpu_cache(options)
            return
        payload = self.payload
        why = (
            f"finds no GPU here ({self.no_gpu})"
            if payload.for_gpu
            else "has none but those of RPC servers (rpc_servers)"
            if payload.remote
            else f"is built for CPUs only (variant {payload.variant})"
        )
        others = [other for other in discover() if other.for_gpu and other.distribution != payload.distribution]
        there = ", ".join(f"engine={other.distribution!r}" for other in others)
        advice = f"installed payloads for GPUs: {there}" if there else _NO_GPU_PAYLOAD
        msg = f"{', '.join(asked)} needs a GPU, and {payload.distribution} {why}; {advice}; or leave it out"
        raise UnsupportedOption(msg)

    def _check_gpu_cache(self, options: ModelOptions) -> None:
        """Refuse cache types whose attention the engine would compute on the CPU without a word."""
        fitting = (self.payload.manifest.get("backend") or {}).get("cache_types")
        if not fitting or not options.n_gpu_layers or not options.offload_kqv:
            return
        for name, value in (("type_k", options.type_k), ("type_v", options.type_v)):
            if value is not None and value.lower() not in fitting:
                msg = (
                    f"{name}={value!r}: {self.payload.distribution} has no attention for it on the GPU (it has"
                    f" {', '.join(fitting)}); take one of them, or offload_kqv=False for attention on the CPU"
                )
                raise UnsupportedOption(msg)

    def _fill_context_params(self, params: Params, options: ModelOptions) -> None:
        params.n_ctx = options.n_ctx
        params.n_batch = options.n_batch
        params.n_ubatch = min(options.n_ubatch or params.n_ubatch, options.n_batch)
        params.n_threads = options.n_threads
        params.n_threads_batch = options.n_threads_batch
        params.rope_freq_base = options.rope_freq_base
        params.rope_freq_scale = options.rope_freq_scale
        params.offload_kqv = options.offload_kqv
        params.n_seq_max = options.n_parallel
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

    def _set_engine_options(self, model_params: Params, context_params: Params, own: Mapping[str, object]) -> None:
        for name, value in own.items():
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
    def _session(
        self, model: Handle, context: Handle, options: ModelOptions, release: Callable[[Handle], None]
    ) -> Session:
        """The session of a loaded model; closing it calls ``release``."""
