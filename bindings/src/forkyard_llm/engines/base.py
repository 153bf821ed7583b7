"""What every engine adapter offers: an engine that opens models, a session on one model, a sampler on a session."""

from __future__ import annotations

import ctypes
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeAlias

from ..errors import EngineError, ModelError, UnsupportedOption, UsageError
from ..payloads import Payload
from ..sampling import SamplingParams
from .candidates import Candidates
from .log import EngineLog
from .options import CAPABILITIES, ENGINE_OPTIONS, ModelOptions, check_engine_options, choice

__all__ = ["Api", "Buffer", "ChatMessage", "Engine", "Handle", "Params", "Perf", "Sampler", "Session"]

# What a payload's generated module defines is known only when it is loaded, so these say what is meant, not what is
# checked; ctypes checks the types of every call.
Api: TypeAlias = Any
"""The functions bound from a payload's libraries."""
Handle: TypeAlias = Any
"""A pointer to something the engine owns."""
Params: TypeAlias = Any
"""A params struct, from one of the engine's default functions."""
Buffer: TypeAlias = Any
"""A ctypes array the engine reads or fills."""

NO_TOKEN = -1
"""What the engines return for a special token the vocabulary does not have."""

_MAX_TEXT_BYTES = 2**31 - 1


@dataclass(frozen=True)
class ChatMessage:
    """One message of a conversation, as the engines' template function takes it."""

    role: str
    content: str


@dataclass(frozen=True)
class Perf:
    """The engine's own counters since the context was made or last reset; times in milliseconds."""

    load_ms: float
    prompt_tokens: int
    prompt_ms: float
    generated_tokens: int
    generation_ms: float


class Engine(ABC):
    """One loaded payload: its libraries, its generated ABI module and the functions bound from it."""

    family: ClassVar[str]

    def __init__(self, payload: Payload, abi: ModuleType, api: Api, probe: ctypes.CDLL) -> None:
        self.payload = payload
        self.abi = abi
        self.api = api
        self.probe = probe
        self.log = EngineLog(abi, api)
        self._started = False

    @property
    def capabilities(self) -> frozenset[str]:
        """What this payload can do: its family's abilities and those its patch stacks add."""
        return CAPABILITIES[self.family] | frozenset(self.payload.capabilities)

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
            EngineError: the context cannot be made (memory, mostly).
        """
        check_engine_options(self.family, options.engine_options)
        self.log.verbose = verbose
        self.start()
        model_params = self.api.llama_model_default_params()
        context_params = self.api.llama_context_default_params()
        keep = self._fill_model_params(model_params, options)
        self._fill_context_params(context_params, options)
        self._set_engine_options(model_params, context_params, options)
        self.log.forget()
        model = self.api.llama_model_load_from_file(os.fsencode(path), model_params)
        del keep
        if not model:
            msg = f"{self.family} cannot load {path}: {self.log.complaints() or 'it gives no reason'}"
            raise ModelError(msg)
        context = None
        if not options.vocab_only:
            self.log.forget()
            context = self.api.llama_init_from_model(model, context_params)
            if not context:
                self._free_model(model)
                msg = (
                    f"{self.family} cannot make a context of {options.n_ctx or 'the model maximum of'} tokens for"
                    f" {path}: {self.log.complaints() or 'it gives no reason'}; try a smaller n_ctx or n_batch"
                )
                raise EngineError(msg)
        return self._session(model, context, options)

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


class Sampler(ABC):
    """Chooses tokens for one generation; made by :meth:`Session.sampler`, to be closed afterwards."""

    @abstractmethod
    def sample(self) -> int:
        """The next token, from the logits of the last decoded one."""

    @abstractmethod
    def close(self) -> None:
        """Free what the engine holds; harmless the second time."""


class Session(ABC):
    """A model and its context. Not thread-safe, except for the vocabulary functions; its owner takes care of that."""

    def __init__(self, engine: Engine, model: Handle, context: Handle, options: ModelOptions) -> None:
        self.engine = engine
        self._api = engine.api
        self._model = model
        self._context = context
        self._vocab = engine.api.llama_model_get_vocab(model)
        self.n_vocab = int(engine.api.llama_vocab_n_tokens(self._vocab))
        self.n_ctx = int(engine.api.llama_n_ctx(context)) if context else 0
        self.n_batch = int(engine.api.llama_n_batch(context)) if context else options.n_batch
        self.bos = int(engine.api.llama_vocab_bos(self._vocab))
        self.eos = int(engine.api.llama_vocab_eos(self._vocab))
        self.candidates = Candidates(engine.abi, engine.probe, self.n_vocab)
        self.adds_bos = bool(engine.api.llama_vocab_get_add_bos(self._vocab))
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._piece_buffer = ctypes.create_string_buffer(256)

    def tokenize(self, text: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """Tokens of ``text`` (UTF-8).

        Args:
            add_special: add BOS and EOS where the model is configured to.
            parse_special: take the spelling of a special token for that token instead of for plain text.
        """
        if len(text) > _MAX_TEXT_BYTES:
            msg = f"the text has {len(text)} bytes, an engine takes at most {_MAX_TEXT_BYTES}"
            raise UsageError(msg)
        size = len(text) + 2
        while True:
            tokens = (ctypes.c_int32 * size)()
            count = self._tokenize(self._vocab, text, len(text), tokens, size, add_special, parse_special)
            if count >= 0:
                return list(tokens[:count])
            if -count <= size:
                msg = f"the engine cannot tokenize this text of {len(text)} bytes"
                raise EngineError(msg)
            size = -count

    def detokenize(self, tokens: Sequence[int], *, special: bool) -> bytes:
        """Text of ``tokens`` as bytes, not always whole UTF-8; special tokens are spelled out if ``special``."""
        if not tokens:
            return b""
        self.check_tokens(tokens)
        given = (ctypes.c_int32 * len(tokens))(*tokens)
        size = 8 * len(tokens) + 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._api.llama_detokenize(self._vocab, given, len(tokens), buffer, size, False, special)
            if count >= 0:
                return buffer.raw[:count]
            if -count <= size:
                msg = f"the engine cannot detokenize these {len(tokens)} tokens"
                raise EngineError(msg)
            size = -count

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes ``token`` adds to a text; a control token adds none unless ``special``."""
        known = self._pieces.get((token, special))
        if known is not None:
            return known
        buffer = self._piece_buffer
        count = self._token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = self._token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        # Pieces never change, and asking again costs more than a dictionary look-up on every token.
        piece = self._pieces[token, special] = buffer.raw[: max(count, 0)]
        return piece

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Refuse token ids outside the vocabulary: the engines answer those with an abort.

        Raises:
            UsageError: naming the first one.
        """
        for token in tokens:
            if not isinstance(token, int) or not 0 <= token < self.n_vocab:
                msg = f"token {token!r} is outside the vocabulary (0 .. {self.n_vocab - 1})"
                raise UsageError(msg)

    def is_end(self, token: int) -> bool:
        """Whether ``token`` ends a generation (EOS, end of turn and the like)."""
        return bool(self._api.llama_vocab_is_eog(self._vocab, token))

    def description(self) -> str:
        """The engine's short description of the model."""
        buffer = ctypes.create_string_buffer(256)
        self._api.llama_model_desc(self._model, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    def metadata(self, key: str) -> str | None:
        """A scalar value of the model file's metadata as text, or None."""
        name = key.encode()
        size = int(self._api.llama_model_meta_val_str(self._model, name, ctypes.create_string_buffer(1), 1))
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        self._api.llama_model_meta_val_str(self._model, name, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    def chat_template(self) -> str | None:
        """The model's own chat template (Jinja source), or None."""
        template = self._api.llama_model_chat_template(self._model, None)
        return None if template is None else bytes(template).decode("utf-8", "replace")

    def apply_chat_template(self, template: str, messages: Sequence[ChatMessage]) -> str | None:
        """The prompt the engine's C API makes of ``messages``, or None if it does not know this template.

        The C API recognises well-known templates; it does not run Jinja.
        """
        chat = (self.engine.abi.llama_chat_message * len(messages))()
        for slot, message in zip(chat, messages, strict=True):
            slot.role = message.role.encode()
            slot.content = message.content.encode()
        size = 256 + 2 * sum(len(m.role.encode()) + len(m.content.encode()) for m in messages)
        while True:
            buffer = ctypes.create_string_buffer(size)
            apply = self._api.llama_chat_apply_template
            count = int(apply(template.encode(), chat, len(messages), True, buffer, size))
            if count < 0:
                return None
            if count <= size:
                return buffer.raw[:count].decode("utf-8", "replace")
            size = count

    def decode(self, tokens: Sequence[int], position: int) -> None:
        """Run the model over ``tokens`` that stand at ``position`` onwards; leaves the last one's logits.

        Raises:
            EngineError: the engine failed, or the context is full.
        """
        for start in range(0, len(tokens), self.n_batch):
            self._decode_batch(tokens[start : start + self.n_batch], position + start)

    def _check_decoded(self, code: int, position: int) -> None:
        if code == 0:
            return
        reasons = {1: "no room in its KV cache", 2: "it was aborted"}
        reason = reasons.get(code) or f"code {code}; {self.engine.log.complaints() or 'it gives no reason'}"
        msg = f"{self.engine.family} could not decode at position {position} of {self.n_ctx}: {reason}"
        raise EngineError(msg)

    def close(self) -> None:
        """Free context and model; harmless the second time."""
        context, self._context = self._context, None
        model, self._model = self._model, None
        if context:
            self._api.llama_free(context)
        self._release()
        if model:
            self.engine._free_model(model)

    @abstractmethod
    def _tokenize(
        self, vocab: Handle, text: bytes, length: int, tokens: Buffer, size: int, add: bool, parse: bool
    ) -> int: ...

    @abstractmethod
    def _token_to_piece(
        self, vocab: Handle, token: int, buffer: Buffer, size: int, lstrip: int, special: bool
    ) -> int: ...

    @abstractmethod
    def _release(self) -> None:
        """Free what the family holds beside context and model, after the former and before the latter."""

    @abstractmethod
    def _decode_batch(self, tokens: Sequence[int], position: int) -> None: ...

    @abstractmethod
    def decode_one(self, token: int, position: int) -> None:
        """:meth:`decode` for a single token, without allocating anything."""

    @abstractmethod
    def sampler(self, params: SamplingParams, history: Sequence[int]) -> Sampler:
        """A sampler for one generation; ``history`` is what stands before it, for the penalties."""

    @abstractmethod
    def forget(self) -> None:
        """Empty the KV cache."""

    @abstractmethod
    def truncate(self, position: int) -> bool:
        """Drop the KV cache from ``position`` on; False if this model's cache cannot (then forget everything)."""

    @abstractmethod
    def perf(self) -> Perf:
        """The engine's counters."""

    @abstractmethod
    def reset_perf(self) -> None:
        """Set the engine's counters to zero."""
