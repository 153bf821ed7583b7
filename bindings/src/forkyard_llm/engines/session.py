"""What a loaded model offers on every engine: a session, a sampler on a session, and the values both deal in."""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import EngineError, ModelError, UsageError
from ..sampling import SamplingParams
from ..text import to_engine
from .candidates import Candidates
from .options import ModelOptions
from .threads import note_threads

if TYPE_CHECKING:
    from .base import Engine

__all__ = ["NO_TOKEN", "Api", "Buffer", "ChatMessage", "Handle", "Params", "Perf", "Sampler", "Session"]

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

    _threads = 1
    _servers: tuple[str, ...] = ()

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
        kinds = engine.abi.ENUMS["llama_vocab_type"]
        self._has_tokenizer = engine.api.llama_vocab_type(self._vocab) != kinds["LLAMA_VOCAB_TYPE_NONE"]
        self.candidates = Candidates(engine.abi, engine.probe, self.n_vocab, engine.log.complaints)
        self.adds_bos = bool(engine.api.llama_vocab_get_add_bos(self._vocab))
        self._threads = max(options.n_threads, options.n_threads_batch)
        self._servers = tuple(options.rpc_servers)
        engine.rpc.use(self._servers)
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._piece_buffer = ctypes.create_string_buffer(256)

    def tokenize(self, text: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """Tokens of ``text`` (UTF-8).

        Args:
            add_special: add BOS and EOS where the model is configured to.
            parse_special: take the spelling of a special token for that token instead of for plain text.

        Raises:
            ModelError: the model has no tokenizer.
        """
        self._need_tokenizer()
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
        self._need_tokenizer()
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
        self._need_tokenizer()
        buffer = self._piece_buffer
        count = self._token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = self._token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        # Pieces never change, and asking again costs more than a dictionary look-up on every token.
        piece = self._pieces[token, special] = buffer.raw[: max(count, 0)]
        return piece

    def _need_tokenizer(self) -> None:
        # The engines answer with an abort.
        if not self._has_tokenizer:
            msg = "this model has no tokenizer (tokenizer.ggml.model says so): it takes and gives token numbers only"
            raise ModelError(msg)

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Refuse token ids outside the vocabulary: the engines answer those with an abort.

        Raises:
            UsageError: naming the first one.
        """
        for token in tokens:
            if not 0 <= token < self.n_vocab:
                msg = f"token {token} is outside the vocabulary (0 .. {self.n_vocab - 1})"
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
        return self.engine.metadata(self._model, key)

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
            slot.role = to_engine(message.role, "a message's role", nul=False)
            slot.content = to_engine(message.content, "a message", nul=False)
        size = 256 + 2 * sum(len(slot.role) + len(slot.content) for slot in chat)
        while True:
            buffer = ctypes.create_string_buffer(size)
            apply = self._api.llama_chat_apply_template
            count = int(
                apply(to_engine(template, "the chat template", nul=False), chat, len(messages), True, buffer, size)
            )
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
        note_threads(self._threads)
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
            self.engine.rpc.leave(self._servers)
            self.engine.numa.leave()

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
