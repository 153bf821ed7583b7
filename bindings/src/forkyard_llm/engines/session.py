"""What a loaded model offers on every engine: a session, a sampler on a session, and the values both deal in."""

from __future__ import annotations

import ctypes
import functools
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..errors import EngineError, ModelError, UsageError
from ..sampling import SamplingParams
from .adapters import ControlVector, Lora, Scaled, combined
from .candidates import Candidates
from .common import (
    CAPABILITY,
    AnswerParser,
    ChatPlan,
    CommonSampler,
    OwnGuesses,
    Templates,
    control_vector_of,
    logprobs_of,
    schema_to_grammar,
)
from .loaded import Api, Buffer, Handle, Loaded
from .media import Piece, Projector, Prompt
from .options import ModelOptions
from .threads import note_threads

if TYPE_CHECKING:
    from .embedding import Embedder

__all__ = ["NO_TOKEN", "Perf", "Row", "Sampler", "Session"]

NO_TOKEN = -1
"""What the engines return for a special token the vocabulary does not have."""

_MAX_TEXT_BYTES = 2**31 - 1
_GREEDY = SamplingParams(temperature=0)


class Row(NamedTuple):
    """One token of a batch."""

    token: int
    position: int
    sequence: int
    wanted: bool
    """Whether its logits are."""


@dataclass(frozen=True)
class Perf:
    """The engine's own counters since the context was made or last reset; times in milliseconds."""

    load_ms: float
    prompt_tokens: int
    prompt_ms: float
    generated_tokens: int
    generation_ms: float


class Sampler(Protocol):
    """Chooses tokens for one generation; made by :meth:`Session.sampler`, to be closed afterwards."""

    def sample(self, index: int = -1) -> int:
        """The next token, from the ``index``-th row of the last batch, which wanted its logits; -1 is the last one."""

    def close(self) -> None:
        """Free what the engine holds; harmless the second time."""


class Session(ABC):
    """A model and its context. Not thread-safe, except for the vocabulary functions; its owner takes care of that."""

    _threads = 1
    _parallel = 1
    _adapters: Scaled = ()
    own_guesses: OwnGuesses | None = None
    """Set by who made the context for them."""
    _hears = True
    projector: Projector | None = None
    """Set by :meth:`load_projector`."""

    def __init__(
        self, loaded: Loaded, model: Handle, context: Handle, options: ModelOptions, release: Callable[[Handle], None]
    ) -> None:
        self.loaded = loaded
        self._api = loaded.api
        self._model = model
        self._context = context
        self._release_model = release
        self._vocab = loaded.api.llama_model_get_vocab(model)
        self.n_vocab = int(loaded.api.llama_vocab_n_tokens(self._vocab))
        self.n_ctx = int(loaded.api.llama_n_ctx(context)) // options.n_parallel if context else 0
        self.n_batch = int(loaded.api.llama_n_batch(context)) if context else options.n_batch
        self.n_ubatch = int(loaded.api.llama_n_ubatch(context)) if context else 0
        self.bos = int(loaded.api.llama_vocab_bos(self._vocab))
        self.eos = int(loaded.api.llama_vocab_eos(self._vocab))
        kinds = loaded.abi.ENUMS["llama_vocab_type"]
        self._has_tokenizer = loaded.api.llama_vocab_type(self._vocab) != kinds["LLAMA_VOCAB_TYPE_NONE"]
        self.candidates = Candidates(loaded.abi, loaded.probe, self.n_vocab, loaded.log.complaints)
        self.adds_bos = bool(loaded.api.llama_vocab_get_add_bos(self._vocab))
        self._threads = max(options.n_threads, options.n_threads_batch)
        self._parallel = options.n_parallel
        encodes = options.embedding and bool(loaded.api.llama_model_has_encoder(model))
        self._run = loaded.api.llama_encode if encodes else loaded.api.llama_decode
        self.embedder: Embedder | None = None
        """Set by who made the context for embeddings."""
        self._templates: dict[str, Templates] = {}
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._read: dict[tuple[int, bool], bytes | None] = {}

    def tokenize(self, text: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """Tokens of ``text`` (UTF-8).

        Args:
            add_special: add BOS and EOS where the model is configured to.
            parse_special: take the spelling of a special token for that token instead of for plain text.

        Raises:
            ModelError: the model has no tokenizer.
        """
        self._need_tokenizer(add_special=add_special)
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
        # One of its own: several threads may ask.
        buffer = ctypes.create_string_buffer(256)
        count = self._token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = self._token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        # Pieces never change, and asking again costs more than a dictionary look-up on every token.
        piece = self._pieces[token, special] = buffer.raw[: max(count, 0)]
        return piece

    def bytes_of(self, token: int, *, special: bool = False) -> bytes | None:
        """What :meth:`piece` gives for ``token``, or None if it ends a generation."""
        try:
            return self._read[token, special]
        except KeyError:
            known = self._read[token, special] = None if self.is_end(token) else self.piece(token, special=special)
            return known

    def _need_tokenizer(self, *, add_special: bool = False) -> None:
        # The engines answer with an abort.
        if not self._has_tokenizer:
            msg = "this model has no tokenizer (tokenizer.ggml.model says so): it takes and gives token numbers only"
            raise ModelError(msg)
        if add_special and self._lacks:
            msg = f"the tokenizer of this model adds a {self._lacks} that its vocabulary does not have: it is damaged"
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

    def ends_text(self, token: int) -> bool:
        """Whether tokenizing puts ``token`` behind a text."""
        return token in (self.eos, self._separator)

    @functools.cached_property
    def _separator(self) -> int:
        """The token between texts, or NO_TOKEN."""
        of_vocab = getattr(self._api, "llama_vocab_sep", None)
        return int(of_vocab(self._vocab) if of_vocab is not None else self._api.llama_token_sep(self._model))

    @functools.cached_property
    def _lacks(self) -> str | None:
        """What tokenizing puts around a text, and the vocabulary does not have: the engines answer with an abort."""
        kinds = self.loaded.abi.ENUMS["llama_vocab_type"]
        # The tokenizer of BERT always adds both.
        both = self._api.llama_vocab_type(self._vocab) == kinds["LLAMA_VOCAB_TYPE_WPM"]
        if self.bos == NO_TOKEN and (both or self.adds_bos):
            return "token for the beginning of a text (bos_token_id)"
        if both and self._separator == NO_TOKEN:
            return "token for the end of a text (seperator_token_id)"
        if self.eos == NO_TOKEN and self._api.llama_vocab_get_add_eos(self._vocab):
            return "token for the end of a text (eos_token_id)"
        return None

    def description(self) -> str:
        """The engine's short description of the model."""
        buffer = ctypes.create_string_buffer(256)
        self._api.llama_model_desc(self._model, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    def metadata(self, key: str) -> str | None:
        """A scalar value of the model file's metadata as text, or None."""
        return self.loaded.metadata(self._model, key)

    def all_metadata(self) -> dict[str, str]:
        """All scalars of the model file's metadata as texts, by name."""
        return self.loaded.all_metadata(self._model)

    def newline(self) -> int:
        """The token of a line's end, or NO_TOKEN."""
        self._need_tokenizer()
        of_vocab = getattr(self._api, "llama_vocab_nl", None)
        return int(of_vocab(self._vocab) if of_vocab is not None else self._api.llama_token_nl(self._model))

    def templates(self, own: str = "") -> Templates:
        """The chat templates of the model, or the Jinja text ``own`` instead.

        Raises:
            UnsupportedOption: the payload lacks the stack common-c-api.
            UsageError: a template that cannot be read.
        """
        known = self._templates.get(own)
        if known is None:
            self.loaded.need(CAPABILITY, "chat")
            known = self._templates[own] = Templates(self.loaded, self._model, own)
        return known

    def answer_parser(self, plan: ChatPlan) -> AnswerParser:
        """A parser of the answer to a conversation."""
        return AnswerParser(self.loaded, plan)

    @abstractmethod
    def infill_tokens(self) -> tuple[int, int, int] | None:
        """The tokens before a prefix, a suffix, and what is to be filled in; None if the vocabulary lacks one."""

    def schema_to_grammar(self, schema: str) -> str:
        """The GBNF grammar of a JSON schema. Raises UsageError for one that cannot be turned into a grammar."""
        self.loaded.need(CAPABILITY, "a JSON schema")
        return schema_to_grammar(self.loaded, schema)

    def row_of_logits(self, index: int = -1) -> Buffer:
        """The logits of a row of the last batch: the engine's own memory, until the next batch.

        Raises:
            EngineError: there are none.
        """
        row = self._api.llama_get_logits_ith(self._context, index)
        if not row:
            msg = "the engine has no logits of this token"
            raise EngineError(msg)
        return ctypes.cast(row, ctypes.POINTER(ctypes.c_float * self.n_vocab)).contents

    def logprobs(self, row: Buffer, token: int, count: int) -> list[tuple[int, float]]:
        """Tokens and logarithms of their probabilities: of ``token`` first, then of the ``count`` most likely ones."""
        self.loaded.need(CAPABILITY, "logprobs")
        return logprobs_of(self.loaded, row, self.n_vocab, token, count)

    def decode(
        self, tokens: Sequence[int], position: int, progress: Callable[[int, int], object] | None = None
    ) -> None:
        """Run the model over ``tokens`` that stand at ``position`` onwards; leaves the last one's logits.

        ``progress`` is told after each batch how many tokens of the sequence are computed, and how many there are.

        Raises:
            EngineError: the engine failed, or the context is full.
        """
        note_threads(self._threads)
        for start in range(0, len(tokens), self.n_batch):
            part = tokens[start : start + self.n_batch]
            self._decode_batch(part, position + start)
            if self.own_guesses is not None:
                self.own_guesses.computed(part, position + start)
            if progress is not None:
                progress(position + start + len(part), position + len(tokens))

    def decode_rows(self, rows: Sequence[Row]) -> None:
        """Run the model over tokens of several sequences, at most ``n_batch``.

        Raises:
            EngineError: the engine failed, or there is no room.
        """
        note_threads(self._threads)
        batch = self._batch
        for index, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = wanted
        batch.n_tokens = len(rows)
        code = self._run(self._context, batch)
        if code:
            self._check_decoded(code, rows[0].position)
        if self.own_guesses is not None:
            self.own_guesses.computed([row.token for row in rows], rows[0].position)

    def load_projector(self, path: Path, options: ModelOptions) -> Projector:
        """Give the model eyes or ears, which are closed with it.

        Raises:
            ModelError: the engine refuses the file, or it is another model's.
        """
        note_threads(self._threads)
        self.projector = Projector(self.loaded, self._model, path, options, hears=self._hears)
        return self.projector

    def media_prompt(self, text: bytes, files: Sequence[bytes]) -> Prompt:
        """The prompt that ``text`` is with ``files`` for its markers; see :meth:`Projector.prompt`."""
        assert self.projector is not None
        self._need_tokenizer(add_special=True)
        return self.projector.prompt(text, files, self.bos if self.adds_bos else None)

    def decode_piece(self, piece: Piece, position: int, sequence: int = 0) -> None:
        """Run the model over an image or a sound; leaves no logits.

        Raises:
            EngineError: the engine failed, or there is no room.
        """
        assert self.projector is not None
        note_threads(self._threads)
        vectors = self.projector.embeddings(piece)
        self._check_decoded(self._decode_vectors(self.projector, piece, vectors, position, sequence), position)

    @abstractmethod
    def _decode_vectors(self, projector: Projector, piece: Piece, vectors: Handle, position: int, sequence: int) -> int:
        """0 if it is done."""

    @property
    def n_embd(self) -> int:
        """Numbers in the vector of a token."""
        size = getattr(self._api, "llama_model_n_embd_out", None) or self._api.llama_model_n_embd
        return int(size(self._model))

    def rank_prompt(self, query: bytes, document: bytes) -> list[int]:
        """The tokens that a model with the pooling ``rank`` takes for a query and a document.

        As llama-server has them: by the model's own template for that, or one text after the other, each with its end.
        """
        api, vocab, separator = self._api, self._vocab, self._separator
        template = api.llama_model_chat_template(self._model, b"rerank")
        if template is not None:
            given = {b"{query}": query, b"{document}": document}
            prompt = re.sub(rb"\{(?:query|document)\}", lambda found: given[found[0]], template)
            return self.tokenize(prompt, add_special=False, parse_special=True)
        texts = [self.tokenize(text, add_special=False, parse_special=False) for text in (query, document)]
        end = [self.eos if self.eos != NO_TOKEN else separator] if api.llama_vocab_get_add_eos(vocab) else []
        between = [separator] if api.llama_vocab_get_add_sep(vocab) else []
        begin = [self.bos] if self.adds_bos else []
        tokens = [*begin, *texts[0], *end, *between, *texts[1], *end]
        return [token for token in tokens if token != NO_TOKEN]

    @functools.cached_property
    def _batch(self) -> Buffer:
        return self._api.llama_batch_init(self.n_batch, 0, 1)

    def sampler(
        self, params: SamplingParams, history: Sequence[int], answer: Mapping[str, Any] | None = None
    ) -> Sampler:
        """A sampler for one generation.

        Args:
            history: what stands before it, for the penalties.
            answer: the ``sampling`` of a :class:`ChatPlan`, if the answer to a conversation is sampled.

        Raises:
            UnsupportedOption: it takes more than this payload has.
            UsageError: a parameter that makes no sense here.
        """
        plain = not answer or not ("grammar" in answer or params.reasoning_budget >= 0)
        if plain and params.basic and (self._parallel == 1 or params.greedy):
            return self._basic_sampler(params, history)
        self.check_tokens(tuple(params.logit_bias))
        self.loaded.need(CAPABILITY, "sampling with a grammar, several requests at a time, or these samplers")
        return CommonSampler(self.loaded, self._context, {**params.settings(), **(answer or {})}, history)

    def state(self, *, growing: bool = False) -> bytes:
        """What the context holds of its first sequence, as the engine writes it.

        Args:
            growing: only what stands for all tokens at once, as the state of recurrent layers does.
        """
        size_of, read, _ = self._state_functions()
        flags = self._state_flags(growing)
        size = int(size_of(self._context, 0, flags))
        buffer = (ctypes.c_uint8 * size)()
        written = int(read(self._context, buffer, size, 0, flags))
        if written != size:
            msg = f"{self.loaded.family} wrote {written} of {size} bytes of its state: {self.loaded.log.complaints()}"
            raise EngineError(msg)
        return bytes(buffer)

    def restore(self, data: bytes, *, growing: bool = False) -> None:
        """Let the first sequence be what :meth:`state` gave.

        Raises:
            EngineError: the engine refuses it; the sequence is empty then.
        """
        self.loaded.log.forget()
        flags = self._state_flags(growing)
        given = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        if not self._state_functions()[2](self._context, given, len(data), 0, flags):
            self.forget()
            msg = f"{self.loaded.family} refuses this state: {self.loaded.log.complaints() or 'it gives no reason'}"
            raise EngineError(msg)

    def _state_flags(self, growing: bool) -> int:
        return int(self.loaded.abi.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) if growing else 0

    def load_lora(self, path: str) -> Lora:
        """A LoRA adapter for this model, freed with it.

        Raises:
            ModelError: the engine refuses it.
        """
        self.loaded.log.forget()
        handle = self._load_lora(os.fsencode(path))
        if not handle:
            msg = f"{self.loaded.family} cannot use the LoRA adapter {path}: {self.loaded.log.complaints()}"
            raise ModelError(msg)
        return Lora(path, handle, self._model)

    def load_control_vector(self, path: str, layers: tuple[int, int] | None) -> ControlVector:
        """A control vector for this model, for all layers or the first and the last of ``layers``.

        Raises:
            ModelError: the file holds none, or one of another model.
        """
        self.loaded.need(CAPABILITY, "a control vector")
        values, n_embd = control_vector_of(self.loaded, path)
        own = int(self._api.llama_model_n_embd(self._model))
        if n_embd != own:
            msg = f"{path} has {n_embd} numbers a layer, this model {own}: it is for another model"
            raise ModelError(msg)
        return ControlVector(path, values, n_embd, layers or (1, self._layers() - 1), self._model)

    def use(self, adapters: Scaled) -> bool:
        """Compute with these adapters from now on; whether that is a change, after which the KV cache is of no use.

        Raises:
            ModelError: one was loaded for another model.
        """
        if adapters == self._adapters:
            return False
        for adapter, _ in adapters:
            if adapter.model is not self._model:
                msg = f"{adapter.path} was loaded for another Llama: load it with the one that is to use it"
                raise ModelError(msg)
        vector = combined([(one, scale) for one, scale in adapters if isinstance(one, ControlVector)])
        self._set_loras([(one.handle, scale) for one, scale in adapters if isinstance(one, Lora)])
        values, n_embd, first, last = vector or (None, 0, 0, 0)
        if self._set_control_vector(values, len(values) if values else 0, n_embd, first, last):
            msg = f"{self.loaded.family} refuses the control vector: {self.loaded.log.complaints()}"
            raise EngineError(msg)
        self._adapters = adapters
        return True

    def best_token(self) -> int:
        """The most likely token after the last decoded one."""
        self.candidates.fill(self._api.llama_get_logits_ith(self._context, -1), _GREEDY)
        return self.candidates.first()

    @abstractmethod
    def _layers(self) -> int: ...

    @abstractmethod
    def _load_lora(self, path: bytes) -> Handle: ...

    @abstractmethod
    def _set_loras(self, loras: Sequence[tuple[Handle, float]]) -> None: ...

    @abstractmethod
    def _set_control_vector(self, values: Buffer, size: int, n_embd: int, first: int, last: int) -> int:
        """0 if it is done; no values for none."""

    def _check_decoded(self, code: int, position: int) -> None:
        if code == 0:
            return
        reasons = {1: "no room in its KV cache", 2: "it was aborted"}
        reason = reasons.get(code) or f"code {code}; {self.loaded.log.complaints() or 'it gives no reason'}"
        msg = f"{self.loaded.family} could not decode at position {position} of {self.n_ctx}: {reason}"
        raise EngineError(msg)

    def close(self) -> None:
        """Free context and model; harmless the second time."""
        context, self._context = self._context, None
        model, self._model = self._model, None
        if self.own_guesses is not None:
            self.own_guesses.close()
        templates, self._templates = self._templates, {}
        for one in templates.values():
            one.close()
        if "_batch" in self.__dict__:
            self._api.llama_batch_free(self.__dict__.pop("_batch"))
        if self.projector is not None:
            self.projector.close()
        if context:
            self._api.llama_free(context)
        self._release()
        if model:
            self._release_model(model)

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
    def _basic_sampler(self, params: SamplingParams, history: Sequence[int]) -> Sampler:
        """A sampler of the engine's own C API, the fastest."""

    def forget(self) -> None:
        """Empty the KV cache."""
        self._forget()
        if self.own_guesses is not None:
            self.own_guesses.truncate(0)

    def truncate(self, position: int, sequence: int = 0) -> bool:
        """Drop a sequence's KV cache from ``position`` on; False if this model's cache cannot (then drop all of it)."""
        done = self._truncate(position, sequence)
        if done and self.own_guesses is not None:
            self.own_guesses.truncate(position)
        return done

    @abstractmethod
    def _state_functions(self) -> tuple[Api, Api, Api]:
        """Those that size, read and write the state of a sequence; they take flags."""

    @abstractmethod
    def _forget(self) -> None: ...

    @abstractmethod
    def _truncate(self, position: int, sequence: int) -> bool: ...

    @abstractmethod
    def copy_sequence(self, source: int, target: int) -> None:
        """Let an empty sequence begin as ``source`` does."""

    @abstractmethod
    def perf(self) -> Perf:
        """The engine's counters."""

    @abstractmethod
    def reset_perf(self) -> None:
        """Set the engine's counters to zero."""
