"""The adapter for payloads of the llama.cpp family."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import EngineError, UnsupportedOption, UsageError
from ..sampling import SamplingParams
from .base import NO_LAYERS, Engine
from .devices import KINDS, REMOTE, Device
from .loaded import Api, Buffer, Handle, Loaded, Params
from .media import Piece, Projector
from .options import ModelOptions
from .session import NO_TOKEN, Perf, Row, Sampler, Session

__all__ = ["LlamaCppEngine"]


class LlamaCppEngine(Engine):
    """llama.cpp: vocabulary functions take the vocabulary, the KV cache is a memory object, sampling is a chain."""

    family = "llama.cpp"
    # RPC_CONN_CAPS_SIZE of transport.h: no RDMA.
    rpc_greeting = bytes(24)

    def _register_backends(self) -> None:
        # Only a payload built with loadable backends has none yet. By path: the engine's own search also looks into the
        # working directory, and would run whatever library lies there.
        if self.api.ggml_backend_reg_count() == 0:
            gpu = self.payload.gpu_library
            if gpu is not None:
                # Without what it needs of a driver there is no GPU, and the CPU computes.
                self.api.ggml_backend_load(os.fsencode(gpu))
            path = self.payload.library("ggml-cpu")
            if not self.api.ggml_backend_load(os.fsencode(path)):
                why = self.log.complaints() or "it does not say why"
                msg = f"{self.payload.title}: llama.cpp cannot load {path}: {why}"
                raise EngineError(msg)

    def devices(self) -> tuple[Device, ...]:
        """Its devices, the CPU among them."""
        self.start()
        kinds = {
            number: KINDS.get(kind := name.removeprefix("GGML_BACKEND_DEVICE_TYPE_"), kind.lower())
            for name, number in self.abi.ENUMS["ggml_backend_dev_type"].items()
        }
        handles = [self.api.ggml_backend_dev_get(index) for index in range(self.api.ggml_backend_dev_count())]
        return tuple(self._device(handle, kinds[self.api.ggml_backend_dev_type(handle)]) for handle in handles)

    def _server_devices(self, address: str, count: int) -> Sequence[Device]:
        # Not registered with the engine: it would use them for models that do not ask for them.
        registry = self.api.ggml_backend_rpc_add_server(address.encode())
        known = self.api.ggml_backend_reg_dev_count(registry) if registry else 0
        if known != count:
            msg = (
                f"the RPC server at {address} has {count} devices, and had {known} when this process called it first:"
                " it takes another process to use it"
            )
            raise EngineError(msg)
        handles = [self.api.ggml_backend_reg_dev_get(registry, index) for index in range(count)]
        found = [self._device(handle, REMOTE) for handle in handles]
        self._remote.update(zip((one.name for one in found), handles, strict=True))
        return found

    @functools.cached_property
    def _remote(self) -> dict[str, Handle]:
        """The devices of RPC servers, by name."""
        return {}

    def _device(self, handle: Handle, kind: str) -> Device:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.api.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
        name, description = (
            bytes(function(handle)).decode("utf-8", "replace")
            for function in (self.api.ggml_backend_dev_name, self.api.ggml_backend_dev_description)
        )
        # 0 means that the backend cannot tell.
        known = (free.value, total.value) if total.value else (None, None)
        return Device(name, description.strip(), kind, *known)

    def _name_devices(self, params: Params, devices: Sequence[Device]) -> object:
        handles = [
            self._remote[device.name]
            if device.kind == REMOTE
            else self.api.ggml_backend_dev_by_name(os.fsencode(device.name))
            for device in devices
        ]
        # The list ends with a null pointer.
        kind = dict(type(params)._fields_)["devices"]._type_
        listed = (kind * (len(handles) + 1))(*handles)
        params.devices = listed
        return listed

    def _fill_model_params(self, params: Params, options: ModelOptions) -> object:
        keep = super()._fill_model_params(params, options)
        self._check_split(options)
        if options.own_guesses:
            params.load_mtp = True
        mode = self._load_mode(options)
        if "llama_load_mode" not in self.abi.ENUMS:
            # An older pin has a switch for each.
            params.use_mmap, params.use_mlock = options.use_mmap, options.use_mlock
            params.use_direct_io = mode == "DIRECT_IO"
        elif mode is not None:
            params.load_mode = self._enum("llama_load_mode", f"LLAMA_LOAD_MODE_{mode}", "use_mmap/use_mlock/direct_io")
        return keep

    @staticmethod
    def _check_split(options: ModelOptions) -> None:
        """Refuse what the engine says only after the model is loaded."""
        if options.split_mode is not None and options.split_mode.lower() == "tensor" and options.flash_attn is False:
            msg = (
                "llama.cpp's split_mode 'tensor' computes attention by flash attention alone: leave flash_attn=False"
                " out, or take split_mode='layer'"
            )
            raise UnsupportedOption(msg)

    @staticmethod
    def _load_mode(options: ModelOptions) -> str | None:
        if options.engine_options.get("direct_io"):
            if options.use_mlock:
                msg = "direct_io and use_mlock exclude each other: llama.cpp has one loading mode"
                raise UsageError(msg)
            return "DIRECT_IO"
        if options.use_mmap:
            return "MMAP_MLOCK" if options.use_mlock else None
        return "MLOCK" if options.use_mlock else "NONE"

    def _fill_context_params(self, params: Params, options: ModelOptions) -> None:
        super()._fill_context_params(params, options)
        params.no_perf = False
        if hasattr(type(params), "n_rs_seq"):
            # What only grows, the state of recurrent layers, is kept before each guess.
            params.n_rs_seq = options.guesses
        if options.flash_attn is not None:
            name = "ENABLED" if options.flash_attn else "DISABLED"
            params.flash_attn_type = self._enum("llama_flash_attn_type", f"LLAMA_FLASH_ATTN_TYPE_{name}", "flash_attn")

    def _cannot_guess(self, model: Handle) -> str | None:
        return None if self.api.llama_model_n_layer_nextn(model) > 0 else NO_LAYERS

    def _free_model(self, model: Handle) -> None:
        self.api.llama_model_free(model)

    def _session(
        self, model: Handle, context: Handle, options: ModelOptions, release: Callable[[Handle], None]
    ) -> Session:
        return LlamaCppSession(self.loaded, model, context, options, release)


class LlamaCppSession(Session):
    """One llama.cpp model and context."""

    def __init__(
        self, loaded: Loaded, model: Handle, context: Handle, options: ModelOptions, release: Callable[[Handle], None]
    ) -> None:
        super().__init__(loaded, model, context, options, release)
        self._memory = self._api.llama_get_memory(context) if context else None
        self._one_token = (ctypes.c_int32 * 1)()
        self._one_batch = self._api.llama_batch_get_one(self._one_token, 1)
        self._threadpools = self._attach_threadpools(options) if context else []

    def _attach_threadpools(self, options: ModelOptions) -> list[Any]:
        """Give the context threads that live as long as it does.

        Without them an engine built without OpenMP starts and joins threads for every single token.
        """
        api = self._api
        if "ggml_threadpool_new" in api.missing:
            return []
        counts = [options.n_threads]
        if options.n_threads_batch != options.n_threads:
            counts.append(options.n_threads_batch)
        pools: list[Any] = []
        for count in counts:
            params = api.ggml_threadpool_params_default(count)
            # Only one pool works at a time; the engine resumes a paused one when it needs it.
            params.paused = bool(pools)
            pool = api.ggml_threadpool_new(ctypes.byref(params))
            if not pool:
                for made in pools:
                    api.ggml_threadpool_free(made)
                msg = f"llama.cpp could not start {count} threads; try a smaller n_threads"
                raise EngineError(msg)
            pools.append(pool)
        api.llama_attach_threadpool(self._context, pools[0], pools[1] if len(pools) > 1 else None)
        return pools

    def _release(self) -> None:
        pools, self._threadpools = self._threadpools, []
        for pool in pools:
            self._api.ggml_threadpool_free(pool)

    def _tokenize(
        self, vocab: Handle, text: bytes, length: int, tokens: Buffer, size: int, add: bool, parse: bool
    ) -> int:
        return int(self._api.llama_tokenize(vocab, text, length, tokens, size, add, parse))

    def _token_to_piece(self, vocab: Handle, token: int, buffer: Buffer, size: int, lstrip: int, special: bool) -> int:
        return int(self._api.llama_token_to_piece(vocab, token, buffer, size, lstrip, special))

    def _decode_batch(self, tokens: Sequence[int], position: int) -> None:
        if self.projector is not None and self.projector.mrope:
            self._decode_at(tokens, position)
            return
        given = (ctypes.c_int32 * len(tokens))(*tokens)
        batch = self._api.llama_batch_get_one(given, len(tokens))
        self._check_decoded(self._api.llama_decode(self._context, batch), position)

    def _decode_at(self, tokens: Sequence[int], position: int) -> None:
        """As `_decode_batch`, where the next position is not the one behind the last: after an image of M-RoPE."""
        last = len(tokens) - 1
        self.decode_rows([Row(token, position + at, 0, at == last) for at, token in enumerate(tokens)])

    def decode_one(self, token: int, position: int) -> None:
        if self.projector is not None and self.projector.mrope:
            self._decode_at((token,), position)
            return
        self._one_token[0] = token
        code = self._api.llama_decode(self._context, self._one_batch)
        if code:
            self._check_decoded(code, position)

    def _decode_vectors(self, projector: Projector, piece: Piece, vectors: Handle, position: int, sequence: int) -> int:
        decode, after = self._api.mtmd_helper_decode_image_chunk, ctypes.c_int32()
        # A newer pin has a callback.
        more = [kind() for kind in decode.argtypes[8:]]
        return int(
            decode(
                projector.handle, self._context, piece.chunk, vectors, position, sequence, self.n_batch,
                ctypes.byref(after), *more,
            )
        )  # fmt: skip

    def _basic_sampler(self, params: SamplingParams, history: Sequence[int]) -> Sampler:
        return _ChainSampler(self, params, history)

    def _state_functions(self) -> tuple[Api, Api, Api]:
        api = self._api
        return api.llama_state_seq_get_size_ext, api.llama_state_seq_get_data_ext, api.llama_state_seq_set_data_ext

    def _forget(self) -> None:
        self._api.llama_memory_clear(self._memory, False)

    def _truncate(self, position: int, sequence: int) -> bool:
        return bool(self._api.llama_memory_seq_rm(self._memory, sequence, position, -1))

    def infill_tokens(self) -> tuple[int, int, int] | None:
        api, vocab = self._api, self._vocab
        marks = (api.llama_vocab_fim_pre(vocab), api.llama_vocab_fim_suf(vocab), api.llama_vocab_fim_mid(vocab))
        return None if NO_TOKEN in marks else marks

    def _layers(self) -> int:
        return int(self._api.llama_model_n_layer(self._model))

    def _load_lora(self, path: bytes) -> Handle:
        return self._api.llama_adapter_lora_init(self._model, path)

    def _set_loras(self, loras: Sequence[tuple[Handle, float]]) -> None:
        kind = ctypes.POINTER(self.loaded.abi.llama_adapter_lora)
        handles = (kind * len(loras))(*(handle for handle, _ in loras))
        scales = (ctypes.c_float * len(loras))(*(scale for _, scale in loras))
        if self._api.llama_set_adapters_lora(self._context, handles, len(loras), scales):
            msg = f"llama.cpp refuses the adapters: {self.loaded.log.complaints()}"
            raise EngineError(msg)

    def _set_control_vector(self, values: Buffer, size: int, n_embd: int, first: int, last: int) -> int:
        return int(self._api.llama_set_adapter_cvec(self._context, values, size, n_embd, first, last))

    def copy_sequence(self, source: int, target: int) -> None:
        self._api.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def perf(self) -> Perf:
        data = self._api.llama_perf_context(self._context)
        return Perf(data.t_load_ms, data.n_p_eval, data.t_p_eval_ms, data.n_eval, data.t_eval_ms)

    def reset_perf(self) -> None:
        self._api.llama_perf_context_reset(self._context)


class _ChainSampler(Sampler):
    """A sampler chain over the candidates.

    Not ``llama_sampler_sample``: that copies and scans the whole vocabulary, where top-k makes a short list of it.
    """

    def __init__(self, session: LlamaCppSession, params: SamplingParams, history: Sequence[int]) -> None:
        self._api = session._api
        self._context = session._context
        session.check_tokens(tuple(params.logit_bias))
        self._candidates = session.candidates
        self._params = params
        self._one_is_left = params.greedy and not params.penalizes
        self._chain = self._api.llama_sampler_chain_init(self._api.llama_sampler_chain_default_params())
        try:
            self._fill(session, params)
            if params.penalizes:
                for token in history[-params.penalty_last_n :]:
                    self._api.llama_sampler_accept(self._chain, token)
        except BaseException:
            self.close()
            raise

    def _fill(self, session: LlamaCppSession, params: SamplingParams) -> None:
        api = self._api
        if params.penalizes:
            self._add(
                api.llama_sampler_init_penalties(
                    session.n_vocab,
                    # The engine makes room for as many.
                    min(params.penalty_last_n, session.n_ctx),
                    params.repeat_penalty,
                    params.frequency_penalty,
                    params.presence_penalty,
                )
            )
        if params.greedy:
            self._add(api.llama_sampler_init_greedy())
            return
        self._add(api.llama_sampler_init_top_k(params.top_k))
        self._add(api.llama_sampler_init_top_p(params.top_p, 1))
        self._add(api.llama_sampler_init_min_p(params.min_p, 1))
        self._add(api.llama_sampler_init_temp(params.temperature))
        self._add(api.llama_sampler_init_dist(params.resolved_seed()))

    def _add(self, sampler: Handle) -> None:
        if not sampler:
            msg = "llama.cpp could not make a sampler"
            raise EngineError(msg)
        # The chain owns it from here on and frees it with itself.
        self._api.llama_sampler_chain_add(self._chain, sampler)

    def sample(self, index: int = -1) -> int:
        candidates = self._candidates
        candidates.fill(self._api.llama_get_logits_ith(self._context, index), self._params)
        if self._one_is_left:
            return candidates.first()
        self._api.llama_sampler_apply(self._chain, candidates.reference)
        token = candidates.selected()
        self._api.llama_sampler_accept(self._chain, token)
        return token

    def close(self) -> None:
        chain, self._chain = self._chain, None
        if chain:
            self._api.llama_sampler_free(chain)
