"""The engines' own chat templates, answer parsers, grammars and samplers, through the stack ``common-c-api``.

JSON goes in and comes out.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import EngineError, ModelError, UsageError
from ..text import to_engine
from .loaded import Buffer, Handle, Loaded, Params

__all__ = [
    "CAPABILITY",
    "AnswerParser",
    "ChatPlan",
    "CommonSampler",
    "OwnGuesses",
    "Templates",
    "control_vector_of",
    "logprobs_of",
    "schema_to_grammar",
]

CAPABILITY = "common-c-api"
_ENDS = {None: "NONE", "length": "CUT"}


@dataclass(frozen=True)
class ChatPlan:
    """What a conversation becomes: the prompt, and what its answer needs."""

    prompt: str
    stops: tuple[str, ...] = ()
    preserved_tokens: tuple[str, ...] = ()
    """Texts of special tokens that are part of the answer's text: those that tool calls begin with, say."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    parsing: Mapping[str, Any] = field(default_factory=dict)


def _reason(loaded: Loaded) -> str:
    return bytes(loaded.api.common_c_error()).decode("utf-8", "replace").strip() or "it gives no reason"


def _json(value: object, what: str) -> bytes:
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"{what} cannot be written as JSON: {error}"
        raise UsageError(msg) from error
    # Half a surrogate pair is an escape in it, which C++ refuses with an error of its own.
    return text.encode()


class Templates:
    """The chat templates of a model.

    Raises:
        UsageError: a template that cannot be read.
    """

    def __init__(self, loaded: Loaded, model: Handle, own: str) -> None:
        self._loaded = loaded
        self._api = loaded.api
        given = to_engine(own, "the chat template", nul=False) if own else None
        self._handle = self._api.common_c_chat_init(model, given)
        if not self._handle:
            msg = f"{loaded.family} cannot read the chat template: {_reason(loaded)}"
            raise UsageError(msg)

    def describe(self) -> dict[str, Any]:
        """``source`` (Jinja), ``explicit`` (it is no default), ``thinking`` (it can be turned off), ``caps``."""
        text = self._api.common_c_chat_describe(self._handle)
        if text is None:
            raise EngineError(_reason(self._loaded))
        about: dict[str, Any] = json.loads(text)
        return about

    def apply(self, request: Mapping[str, Any]) -> ChatPlan:
        """The prompt of a conversation.

        Raises:
            UsageError: the template, or the engine, cannot make one of it.
        """
        text = self._api.common_c_chat_apply(self._handle, _json(request, "the conversation"))
        if text is None:
            msg = f"{self._loaded.family} cannot make a prompt of this conversation: {_reason(self._loaded)}"
            raise UsageError(msg)
        made = json.loads(text)
        return ChatPlan(
            made["prompt"], tuple(made["stops"]), tuple(made["preserved_tokens"]), made["sampling"], made["parsing"]
        )

    def close(self) -> None:
        """Free it; harmless the second time."""
        handle, self._handle = self._handle, None
        if handle:
            self._api.common_c_chat_free(handle)


class AnswerParser:
    """Reads one answer while it comes: reasoning, tool calls, content."""

    def __init__(self, loaded: Loaded, plan: ChatPlan) -> None:
        self._loaded = loaded
        self._api = loaded.api
        self._handle = self._api.common_c_parser_init(_json(plan.parsing, "the parser"))
        if not self._handle:
            raise EngineError(_reason(loaded))

    def add(self, text: str, finish_reason: str | None = None) -> dict[str, Any]:
        """``deltas``, OpenAI's, that the text adds, and, of the last one, the whole ``message``.

        Args:
            finish_reason: why there is no more; None if there is.

        Raises:
            EngineError: the text cannot be read.
        """
        raw = text.encode("utf-8", "replace")
        end = self._loaded.abi.ENUMS["common_c_end"][f"COMMON_C_END_{_ENDS.get(finish_reason, 'WHOLE')}"]
        said = self._api.common_c_parser_add(self._handle, raw, len(raw), end)
        if said is None:
            msg = f"{self._loaded.family} cannot read the model's answer: {_reason(self._loaded)}"
            raise EngineError(msg)
        parsed: dict[str, Any] = json.loads(said)
        return parsed

    def close(self) -> None:
        """Free it; harmless the second time."""
        handle, self._handle = self._handle, None
        if handle:
            self._api.common_c_parser_free(handle)


def schema_to_grammar(loaded: Loaded, schema: str) -> str:
    """The GBNF grammar of a JSON schema (a JSON text).

    Raises:
        UsageError: it is no JSON, or nothing a grammar can be made of.
    """
    grammar = loaded.api.common_c_schema_to_grammar(to_engine(schema, "the JSON schema", nul=False))
    if grammar is None:
        msg = f"no grammar can be made of this JSON schema: {_reason(loaded)}"
        raise UsageError(msg)
    return bytes(grammar).decode()


def control_vector_of(loaded: Loaded, path: str) -> tuple[Buffer, int]:
    """The numbers of a control vector's file, and how many a layer has.

    Raises:
        ModelError: the file holds none.
    """
    n_embd, size = ctypes.c_int32(), ctypes.c_int32()
    values = loaded.api.common_c_control_vector(os.fsencode(path), ctypes.byref(n_embd), ctypes.byref(size))
    if not values:
        msg = f"{path} cannot be read as a control vector: {_reason(loaded)}"
        raise ModelError(msg)
    return (ctypes.c_float * size.value)(*values[: size.value]), n_embd.value


def logprobs_of(loaded: Loaded, row: Buffer, n_vocab: int, token: int, count: int) -> list[tuple[int, float]]:
    """The natural logarithm of the probability of ``token``, then of the ``count`` most likely tokens.

    Raises:
        EngineError: the row is not of numbers.
    """
    ids, values = (ctypes.c_int32 * (count + 1))(), (ctypes.c_float * (count + 1))()
    found = loaded.api.common_c_logprobs(row, n_vocab, token, count, ids, values)
    if found < 0:
        raise EngineError(_reason(loaded))
    return list(zip(ids[:found], values[:found], strict=True))


class CommonSampler:
    """A sampler of ``common``: every sampler the engine has, with a grammar.

    Raises:
        UsageError: a parameter that this engine lacks, or a grammar that cannot be used.
    """

    def __init__(self, loaded: Loaded, context: Handle, settings: Mapping[str, Any], history: Sequence[int]) -> None:
        self._loaded = loaded
        self._api = loaded.api
        self._context = context
        self._handle = self._api.common_c_sampler_init(context, _json(settings, "the sampling parameters"))
        if not self._handle:
            msg = f"{loaded.family} cannot sample as asked: {_reason(loaded)}"
            raise UsageError(msg)
        given = (ctypes.c_int32 * len(history))(*history)
        if not self._api.common_c_sampler_accept(self._handle, context, given, len(history)):
            self.close()
            raise EngineError(_reason(loaded))

    def sample(self, index: int = -1) -> int:
        """The next token; see :class:`forkyard_llm.engines.session.Sampler`.

        Raises:
            EngineError: no token fits, or the model computed no numbers.
        """
        token = int(self._api.common_c_sampler_sample(self._handle, self._context, index))
        if token < 0:
            msg = f"{self._loaded.family} cannot choose a token: {_reason(self._loaded)}"
            raise EngineError(msg)
        return token

    def close(self) -> None:
        """Free it; harmless the second time."""
        handle, self._handle = self._handle, None
        if handle:
            self._api.common_c_sampler_free(handle)


class OwnGuesses:
    """Guesses by the layers that a model has for that (multi-token prediction): a ``Draft`` of one sequence.

    It must be told of all that the context computes and forgets.

    Raises:
        EngineError: the engine cannot make a context for these layers.
    """

    def __init__(self, loaded: Loaded, context: Handle, params: Params, most: int) -> None:
        self._loaded = loaded
        self._api = loaded.api
        loaded.log.forget()
        self._handle = self._api.common_c_mtp_init(context, params, most)
        if not self._handle:
            msg = f"{loaded.family} cannot let this model guess: {_reason(loaded)}; {loaded.log.complaints()}"
            raise EngineError(msg)

    def propose(self, tokens: Sequence[int], count: int) -> Sequence[int]:
        """See :class:`forkyard_llm.engines.drafts.Draft`; all tokens but the last must be computed."""
        guesses = (ctypes.c_int32 * count)()
        found = self._api.common_c_mtp_guess(self._handle, tokens[-1], len(tokens) - 1, guesses, count)
        self._check(found >= 0)
        return guesses[:found]

    def computed(self, tokens: Sequence[int], position: int) -> None:
        """Hear of the tokens of the context's last batch."""
        given = (ctypes.c_int32 * len(tokens))(*tokens)
        self._check(self._api.common_c_mtp_add(self._handle, given, len(tokens), position))

    def truncate(self, position: int) -> None:
        """Hear that the context forgot what stands at ``position`` and behind it."""
        self._check(self._api.common_c_mtp_truncate(self._handle, position))

    def _check(self, done: bool) -> None:
        if not done:
            msg = f"{self._loaded.family} cannot guess: {_reason(self._loaded)}; {self._loaded.log.complaints()}"
            raise EngineError(msg)

    def close(self) -> None:
        """Free it; harmless the second time."""
        handle, self._handle = self._handle, None
        if handle:
            self._api.common_c_mtp_free(handle)
