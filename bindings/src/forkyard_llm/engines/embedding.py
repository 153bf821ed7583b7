"""Embeddings and ranks: how a context for them is made, and how several texts are computed in one batch.

The engines end the process over a text that must be computed at once and is longer than a micro-batch, over a position
that the model has no vector for, and over some models that they can only generate with. That is refused before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ..errors import EngineError, UnsupportedOption, UsageError
from ..gguf_purpose import ENCODERS
from .loaded import Handle, Loaded, Params
from .options import NO_POOLING, RANK, ModelOptions, choice
from .session import Row, Session

__all__ = ["IDLE_TALK", "Embedder", "EmbeddingPlan", "Vectors"]

Vectors = list[list[float]]
"""What a text becomes: one vector, or one for each of its tokens."""

IDLE_TALK: Final = re.compile(
    "special_eos_id is not in special_eog_ids|tensor with strange name|model default pooling_type is"
)
"""Warnings that mean nothing for embeddings."""

_MOST_TEXTS: Final = 64
"""In one batch. llama.cpp ends the process where that is more than the tokens of a batch."""
_TOGETHER_IN_IK: Final = 128
"""Tokens of encoders: it multiplies all queries of a batch with all keys, also those of other texts. With 512,
MiniLM takes 1.4 times as long on one thread."""
_IN_PARTS: Final = (NO_POOLING, "last")
"""Poolings for which a causal model can compute a text part by part."""
_OF_ANOTHER_WIDTH: Final = ("deepseek4", "qwen4exp")
"""Architectures of llama.cpp that say that a vector has more numbers than it has: it reads behind them."""


@dataclass(frozen=True)
class EmbeddingPlan:
    """What a context for embeddings is like.

    Attributes:
        pooling: how the vectors of a text's tokens become one.
        whole: whether a text is computed at once.
        longest: tokens of the longest text.
        n_ctx: tokens that the context holds.
        n_batch, n_ubatch: tokens handed over, and computed, at once.
        texts: how many a batch may have.
        together: how many tokens a batch of several texts may have.
        limit: what the longest text is limited by, for messages.
    """

    pooling: str
    whole: bool
    longest: int
    n_ctx: int
    n_batch: int
    n_ubatch: int
    texts: int
    together: int
    limit: str

    @classmethod
    def made(cls, loaded: Loaded, model: Handle, options: ModelOptions, params: Params) -> EmbeddingPlan:
        """The plan for a model, with ``params`` as they would be without it.

        Raises:
            UnsupportedOption: the engine cannot make embeddings of this model, or not in this way.
        """
        api = loaded.api
        pooling = choice(loaded.family, "pooling", "pooling", options.pooling or NO_POOLING)
        architecture = loaded.metadata(model, "general.architecture") or ""
        causal = loaded.metadata(model, f"{architecture}.attention.causal") != "false"
        if loaded.family == "ik_llama.cpp":
            _refuse_for_ik(loaded, model, options, architecture, causal)
        elif architecture in _OF_ANOTHER_WIDTH:
            msg = f"llama.cpp makes no embeddings of a model with the architecture {architecture}; take another model"
            raise UnsupportedOption(msg)
        encodes = architecture in ENCODERS
        whole = encodes or not causal or pooling not in _IN_PARTS
        longest, limit = options.n_ctx or int(api.llama_n_ctx_train(model)), "n_ctx"
        if 0 < options.positions < longest:
            longest, limit = options.positions, "the positions that the model has"
        if whole and options.n_ubatch is not None and options.n_ubatch < longest:
            longest, limit = options.n_ubatch, "n_ubatch"
        # Each text has a state of its own there, as large as that of a long one.
        states = api.llama_model_is_recurrent(model) or api.llama_model_is_hybrid(model)
        texts = 1 if states else min(_MOST_TEXTS, longest, params.n_batch)
        # llama.cpp plans for batches of that many texts of equal length.
        n_ctx = -(-longest // texts) * texts
        n_batch, n_ubatch = (n_ctx, n_ctx) if whole else (min(params.n_batch, n_ctx), min(params.n_ubatch, n_ctx))
        together = min(options.n_batch, n_ubatch)
        if encodes and loaded.family == "ik_llama.cpp":
            together = min(together, _TOGETHER_IN_IK)
        return cls(pooling, whole, longest, n_ctx, n_batch, n_ubatch, texts, together, limit)

    def fill(self, loaded: Loaded, params: Params) -> None:
        """Set the members of the params struct."""
        params.embeddings = True
        params.pooling_type = loaded.abi.ENUMS["llama_pooling_type"][f"LLAMA_POOLING_TYPE_{self.pooling.upper()}"]
        params.n_ctx, params.n_batch, params.n_ubatch = self.n_ctx, self.n_batch, self.n_ubatch
        params.n_seq_max = self.texts
        if hasattr(type(params), "kv_unified"):
            # One text may take all of the cache.
            params.kv_unified = True


def _refuse_for_ik(loaded: Loaded, model: Handle, options: ModelOptions, architecture: str, causal: bool) -> None:
    """Refuse what ik_llama.cpp ends the process over, or computes as if it were something else."""
    guesses = loaded.metadata(model, f"{architecture}.nextn_predict_layers") or "0"
    encodes = architecture in ENCODERS
    why = None
    if architecture == "t5encoder":
        why = "an encoder of T5"
    elif encodes and causal:
        why = f"{architecture} with causal attention"
    elif not encodes and not causal:
        why = f"{architecture} without causal attention"
    elif guesses != "0":
        why = f"a model with layers that predict further tokens (nextn_predict_layers is {guesses})"
    elif (options.split_mode or "").lower() in ("attn", "graph"):
        why = f"split_mode={options.split_mode!r}"
    if why is not None:
        msg = f"ik_llama.cpp makes no embeddings with {why}; llama.cpp does (engine='llama.cpp')"
        raise UnsupportedOption(msg)


class Embedder:
    """Makes embeddings with a session whose context was made for that. Its owner takes care of threads."""

    def __init__(self, session: Session, plan: EmbeddingPlan) -> None:
        self._session = session
        self._api = session.loaded.api
        self.pooling = plan.pooling
        self.limit = plan.limit
        self._texts = plan.texts
        room = int(self._api.llama_n_ubatch(session._context))
        self.longest = plan.longest
        if not plan.whole and not self._in_parts():
            # An architecture that is newer than the file check's table.
            self.longest, self.limit = min(self.longest, room), "n_ubatch"
        self._together = min(room, plan.together)
        self._size = 1 if plan.pooling == RANK else session.n_embd

    def _in_parts(self) -> bool:
        """Whether the engine says that it computes a text part by part."""
        context = self._session._context
        causal = getattr(self._api, "llama_get_causal_attn", None)
        memory = getattr(self._api, "llama_get_memory", None)
        return (causal is None or bool(causal(context))) and (memory is None or bool(memory(context)))

    def check(self, name: str, tokens: Sequence[int]) -> None:
        """Refuse a text that cannot be computed.

        Raises:
            UsageError: it is empty, too long, or has tokens outside the vocabulary.
        """
        if not tokens:
            msg = f"{name} has no token: this model makes nothing of it"
            raise UsageError(msg)
        if len(tokens) > self.longest:
            msg = f"{name} has {len(tokens)} tokens, and a text may have {self.longest} (limited by {self.limit})"
            raise UsageError(msg)
        self._session.check_tokens(tokens)

    def batches(self, texts: Sequence[Sequence[int]]) -> Iterator[Sequence[Sequence[int]]]:
        """The texts, in their order, as many at a time as are computed together."""
        batch: list[Sequence[int]] = []
        total = 0
        for text in texts:
            if batch and (total + len(text) > self._together or len(batch) == self._texts):
                yield batch
                batch, total = [], 0
            batch.append(text)
            total += len(text)
        if batch:
            yield batch

    def compute(self, batch: Sequence[Sequence[int]]) -> list[Vectors]:
        """The vectors of each text of a batch.

        Raises:
            EngineError: the engine failed, or the model makes something of a text that is no number.
        """
        self._session.forget()
        if len(batch) == 1:
            return [self._one(batch[0])]
        rows = [
            Row(token, at, number, wanted=True) for number, text in enumerate(batch) for at, token in enumerate(text)
        ]
        self._session.decode_rows(rows)
        if self.pooling != NO_POOLING:
            return [[self._pooled(number)] for number in range(len(batch))]
        found = iter(range(len(rows)))
        return [[self._of_token(next(found)) for _ in text] for text in batch]

    def _one(self, text: Sequence[int]) -> Vectors:
        vectors: Vectors = []
        step = self._session.n_batch
        for start in range(0, len(text), step):
            part = text[start : start + step]
            self._session.decode_rows([Row(token, start + at, 0, wanted=True) for at, token in enumerate(part)])
            if self.pooling == NO_POOLING:
                vectors += [self._of_token(index) for index in range(len(part))]
        return vectors or [self._pooled(0)]

    def _of_token(self, index: int) -> list[float]:
        return self._read(self._api.llama_get_embeddings_ith(self._session._context, index))

    def _pooled(self, sequence: int) -> list[float]:
        return self._read(self._api.llama_get_embeddings_seq(self._session._context, sequence))

    def _read(self, vector: Handle) -> list[float]:
        if not vector:
            msg = f"{self._session.loaded.family} has no embedding of a text that it computed"
            raise EngineError(msg)
        return list(vector[: self._size])
