"""The adapter for payloads of the ik_llama.cpp family."""

from __future__ import annotations

import ctypes
import logging
import os
import re
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import EngineError, UnsupportedOption
from ..sampling import SamplingParams
from .base import NO_LAYERS, Engine
from .devices import CPU, Device
from .loaded import Api, Buffer, Handle, Loaded, Params
from .media import Piece, Projector
from .options import FLASH_CACHE, ModelOptions
from .session import NO_TOKEN, Perf, Sampler, Session

__all__ = ["IkLlamaEngine"]

_HEADS = ("embedding_length", "attention.head_count")

log = logging.getLogger(__name__)


class IkLlamaEngine(Engine):
    """ik_llama.cpp: the KV cache belongs to the context, positions are given, sampling works on a candidate array."""

    family = "ik_llama.cpp"
    # Built without a GPU backend it still compares the memory of the GPU that is not there with what it would need.
    idle_talk = re.compile("Free memory 0 MiB on device")
    flash_attn_with_lora = False

    def _register_backends(self) -> None:
        """Nothing to do: this family's backends are compiled in."""

    def devices(self) -> tuple[Device, ...]:
        """Its devices, the CPU among them; the engine says neither what they are called elsewhere nor their memory."""
        self.start()
        count = int(self.api.ggml_backend_reg_get_count())
        names = [bytes(self.api.ggml_backend_reg_get_name(index)).decode("utf-8", "replace") for index in range(count)]
        return tuple(Device(name, "", CPU if name == "CPU" else "gpu", None, None) for name in names)

    def _has_gpu(self) -> bool:
        # The engine's own function only says what it was compiled for.
        return any(device.kind != CPU for device in self.devices())

    def _name_devices(self, params: Params, devices: Sequence[Device]) -> object:
        params.devices = ",".join(device.name for device in devices).encode()
        return params.devices

    def _fill_model_params(self, params: Params, options: ModelOptions) -> object:
        keep = super()._fill_model_params(params, options)
        params.use_mmap = options.use_mmap
        params.use_mlock = options.use_mlock
        params.mtp = options.own_guesses
        if options.flash_attn is not None:
            params.flash_attn = options.flash_attn
        for name, value in (("type_k", options.type_k), ("type_v", options.type_v)):
            if value is not None:
                setattr(params, name, self.cache_type(name, value))
        return keep

    def _fill_context_params(self, params: Params, options: ModelOptions) -> None:
        super()._fill_context_params(params, options)
        if options.own_guesses:
            params.mtp = params.embeddings = True
            params.pooling_type = self._enum("llama_pooling_type", "LLAMA_POOLING_TYPE_NONE", "draft_model")
        if options.flash_attn is not None:
            params.flash_attn = options.flash_attn

    def _check_context(self, path: Path, model: Handle, options: ModelOptions, params: Params) -> None:
        super()._check_context(path, model, options, params)
        if options.n_parallel > 1 and self.api.llama_model_has_recurrent(model):
            # It ends the process over a batch with parts of several texts, and mixes up the states of single tokens.
            msg = (
                f"ik_llama.cpp computes one text at a time with a model that has recurrent layers, as {path} has: leave"
                " n_parallel out, or take llama.cpp (engine='llama.cpp')"
            )
            raise UnsupportedOption(msg)
        given = {name: (getattr(options, name) or "f16").lower() for name in FLASH_CACHE}
        if params.flash_attn and not self._has_gpu():
            both_bf16 = set(given.values()) == {"bf16"} and "avx512_bf16" in self.payload.cpu_features
            for name, fitting in FLASH_CACHE.items() if not both_bf16 else ():
                if given[name] not in fitting:
                    msg = (
                        f"ik_llama.cpp's flash attention has no {name}={given[name]!r} on this CPU (it has"
                        f" {', '.join(sorted(fitting))}); take one of them, or flash_attn=False with type_v='f16'"
                    )
                    raise UnsupportedOption(msg)
        for name, key, kind in (("type_k", "key_length", params.type_k), ("type_v", "value_length", params.type_v)):
            size, block = self._head_size(model, key), int(self.api.ggml_blck_size(kind))
            if size % block:
                msg = (
                    f"{name}={given[name]!r} packs {block} numbers at a time, and the attention heads of {path} have"
                    f" {size}; take {name}='f16'"
                )
                raise UnsupportedOption(msg)

    def _head_size(self, model: Handle, key: str) -> int:
        """Numbers in a key or value of one head; 0 where the metadata does not say."""
        architecture = self.loaded.metadata(model, "general.architecture")
        words = [self.loaded.metadata(model, f"{architecture}.{name}") for name in _HEADS]
        width, heads = (int(word) if word and word.isdecimal() else 0 for word in words)
        own = self.loaded.metadata(model, f"{architecture}.attention.{key}")
        if own is not None and own.isdecimal():
            return int(own)
        return width // heads if heads else 0

    def _cannot_guess(self, model: Handle) -> str | None:
        if self.api.llama_model_n_nextn_layer(model) <= 0:
            return NO_LAYERS
        architecture = self.loaded.metadata(model, "general.architecture")
        return None if architecture == "glm4moe" else f"ik_llama.cpp lets no {architecture} do that, llama.cpp may"

    def _free_model(self, model: Handle) -> None:
        self.api.llama_free_model(model)

    def _session(
        self, model: Handle, context: Handle, options: ModelOptions, release: Callable[[Handle], None]
    ) -> Session:
        session = IkLlamaSession(self.loaded, model, context, options, release)
        # llama.cpp says so itself.
        trained = int(self.api.llama_n_ctx_train(model))
        if options.n_ctx > trained > 0:
            log.warning(
                "n_ctx is %d, the model was trained for %d tokens: text may lose its sense beyond",
                options.n_ctx,
                trained,
            )
        return session


class IkLlamaSession(Session):
    """One ik_llama.cpp model and context."""

    # It has no function for what its encoders of sounds compute with (GELU with erf), and ends the process over it.
    _hears = False

    def __init__(
        self, loaded: Loaded, model: Handle, context: Handle, options: ModelOptions, release: Callable[[Handle], None]
    ) -> None:
        super().__init__(loaded, model, context, options, release)
        default = bool(loaded.api.llama_context_default_params().flash_attn)
        self._flash_attn = default if options.flash_attn is None else options.flash_attn
        self._one_token = (ctypes.c_int32 * 1)()
        self._one_batch = self._api.llama_batch_get_one(self._one_token, 1, 0, 0)

    def _tokenize(
        self, vocab: Handle, text: bytes, length: int, tokens: Buffer, size: int, add: bool, parse: bool
    ) -> int:
        return int(self._api.llama_vocab_tokenize(vocab, text, length, tokens, size, add, parse))

    def _token_to_piece(self, vocab: Handle, token: int, buffer: Buffer, size: int, lstrip: int, special: bool) -> int:
        return int(self._api.llama_token_to_piece_vocab(vocab, token, buffer, size, lstrip, special))

    def _decode_batch(self, tokens: Sequence[int], position: int) -> None:
        given = (ctypes.c_int32 * len(tokens))(*tokens)
        batch = self._api.llama_batch_get_one(given, len(tokens), position, 0)
        self._check_decoded(self._api.llama_decode(self._context, batch), position)

    def decode_one(self, token: int, position: int) -> None:
        self._one_token[0] = token
        self._one_batch.all_pos_0 = position
        code = self._api.llama_decode(self._context, self._one_batch)
        if code:
            self._check_decoded(code, position)

    def load_projector(self, path: Path, options: ModelOptions) -> Projector:
        projector = super().load_projector(path, options)
        if self._api.mtmd_decode_use_non_causal(projector.handle):
            # Its mask of what sees what has other columns than its cache then, and with flash attention twice the room.
            msg = (
                f"ik_llama.cpp computes the images of {path} wrongly, of which each part sees all the others, and"
                " writes beyond its memory; llama.cpp does them (engine='llama.cpp')"
            )
            raise UnsupportedOption(msg)
        return projector

    def _decode_vectors(self, projector: Projector, piece: Piece, vectors: Handle, position: int, sequence: int) -> int:
        # Its own helper does the same, and writes about it to standard output.
        api, count = self._api, piece.cells
        width = int(api.llama_model_n_embd_inp(self._model))
        places = [[position + index for index in range(count)]]
        if projector.mrope:
            columns = int(api.mtmd_image_tokens_get_nx(api.mtmd_input_chunk_get_tokens_image(piece.chunk)))
            rows = [position + index // columns for index in range(count)]
            places = [[position] * count, rows, [position + index % columns for index in range(count)], [0] * count]
        row = ctypes.POINTER(ctypes.c_int32)
        of_sequence = (ctypes.c_int32 * 1)(sequence)
        for start in range(0, count, self.n_batch):
            size = min(self.n_batch, count - start)
            batch = self.loaded.abi.llama_batch(
                n_tokens=size,
                embd=ctypes.cast(ctypes.addressof(vectors.contents) + 4 * width * start, type(vectors)),
                pos=(ctypes.c_int32 * (len(places) * size))(
                    *(place for section in places for place in section[start : start + size])
                ),
                n_seq_id=(ctypes.c_int32 * size)(*[1] * size),
                seq_id=(row * (size + 1))(*[ctypes.cast(of_sequence, row)] * size),
                logits=(ctypes.c_int8 * size)(),
            )
            code = int(api.llama_decode(self._context, batch))
            if code:
                return code
        return 0

    def _release(self) -> None:
        """Nothing more to free."""

    def _basic_sampler(self, params: SamplingParams, history: Sequence[int]) -> Sampler:
        return _CandidateSampler(self, params, history)

    def _state_functions(self) -> tuple[Api, Api, Api]:
        api = self._api
        return api.llama_state_seq_get_size, api.llama_state_seq_get_data, api.llama_state_seq_set_data

    def _forget(self) -> None:
        self._api.llama_kv_cache_clear(self._context)

    def _truncate(self, position: int, sequence: int) -> bool:
        more = self._api.llama_kv_cache_seq_pos_max(self._context, sequence) >= position > 0
        done = bool(self._api.llama_kv_cache_seq_rm(self._context, sequence, position, -1))
        # It says so of recurrent layers, too, whose state stays what it was.
        return done and not (more and self._api.llama_model_has_recurrent(self._model))

    def infill_tokens(self) -> tuple[int, int, int] | None:
        api, model = self._api, self._model
        marks = (api.llama_token_prefix(model), api.llama_token_suffix(model), api.llama_token_middle(model))
        return None if NO_TOKEN in marks else marks

    def _layers(self) -> int:
        return int(self._api.llama_n_layer(self._model))

    def _load_lora(self, path: bytes) -> Handle:
        if self._flash_attn:
            msg = (
                f"ik_llama.cpp's flash attention takes no LoRA adapter ({os.fsdecode(path)}): open the model with"
                " flash_attn=False, or with lora_path"
            )
            raise UnsupportedOption(msg)
        return self._api.llama_lora_adapter_init(self._model, path)

    def _set_loras(self, loras: Sequence[tuple[Handle, float]]) -> None:
        self._api.llama_lora_adapter_clear(self._context)
        for handle, scale in loras:
            if self._api.llama_lora_adapter_set(self._context, handle, scale):
                why = self.loaded.log.complaints()
                hint = "; make a Llama with flash_attn=False for them" if "flash_attn" in why else ""
                msg = f"ik_llama.cpp refuses the adapters: {why}{hint}"
                raise EngineError(msg)

    def _set_control_vector(self, values: Buffer, size: int, n_embd: int, first: int, last: int) -> int:
        return int(self._api.llama_control_vector_apply(self._context, values, size, n_embd, first, last))

    def copy_sequence(self, source: int, target: int) -> None:
        self._api.llama_kv_cache_seq_cp(self._context, source, target, -1, -1)

    def perf(self) -> Perf:
        data = self._api.llama_get_timings(self._context)
        return Perf(data.t_load_ms, data.n_p_eval, data.t_p_eval_ms, data.n_eval, data.t_eval_ms)

    def reset_perf(self) -> None:
        self._api.llama_reset_timings(self._context)


class _CandidateSampler(Sampler):
    """The engine's sampling functions called one after another, in the order llama.cpp's chain has."""

    def __init__(self, session: IkLlamaSession, params: SamplingParams, history: Sequence[int]) -> None:
        session.check_tokens(tuple(params.logit_bias))
        self._api = session._api
        self._context = session._context
        self._candidates = session.candidates
        self._params = params
        self._recent: deque[int] = deque(history, maxlen=params.penalty_last_n if params.penalizes else 0)
        if not params.greedy:
            self._api.llama_set_rng_seed(self._context, params.resolved_seed())

    def sample(self, index: int = -1) -> int:
        api, context, params, candidates = self._api, self._context, self._params, self._candidates
        candidates.fill(api.llama_get_logits_ith(context, index), params)
        array = candidates.reference
        if self._recent:
            self._penalize()
        if params.greedy:
            token = int(api.llama_sample_token_greedy(context, array)) if params.penalizes else candidates.first()
        else:
            api.llama_sample_top_k(context, array, params.top_k, 1)
            api.llama_sample_top_p(context, array, params.top_p, 1)
            api.llama_sample_min_p(context, array, params.min_p, 1)
            api.llama_sample_temp(context, array, params.temperature)
            token = int(api.llama_sample_token(context, array))
        self._recent.append(token)
        return token

    def _penalize(self) -> None:
        params = self._params
        self._api.llama_sample_repetition_penalties(
            self._context,
            self._candidates.reference,
            (ctypes.c_int32 * len(self._recent))(*self._recent),
            len(self._recent),
            params.repeat_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        )

    def close(self) -> None:
        """Nothing to free: the candidate array belongs to the session."""
