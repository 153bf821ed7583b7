"""How the next token is chosen: the parameters, checked once, for both engines."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from .checks import INT_MAX, integer, number
from .errors import UsageError

__all__ = ["RANDOM_SEED", "SamplingParams", "fresh_seed"]

RANDOM_SEED = 0xFFFFFFFF
"""The engines' own spelling of "any seed"; never handed to them, so that the seed used is always known."""

# Whatever is combined within these, no logit becomes infinite in a C float: ik_llama.cpp ends the process over one.
_SMALLEST, _LARGEST, _LARGEST_BIAS = 1e-6, 1e6, 1e9


def fresh_seed() -> int:
    """A random seed in 0 .. 2**32 - 2."""
    return secrets.randbelow(RANDOM_SEED)


@dataclass(frozen=True)
class SamplingParams:
    """One request's sampling, in the order it is applied.

    Attributes:
        temperature: 0 takes the most likely token (greedy) and makes the fields below it meaningless.
            Else 1e-6 or more.
        top_k: keep the k most likely tokens; 0 or less keeps all.
        top_p: keep the smallest set of tokens whose probabilities reach this sum; 1 keeps all.
        min_p: drop tokens less likely than this fraction of the most likely one; 0 drops none.
        repeat_penalty: divides the logits of recent tokens, 1e-6 .. 1e6; 1 does nothing.
        frequency_penalty: subtracted from a recent token's logit once per occurrence, -1e6 .. 1e6.
        presence_penalty: subtracted from a recent token's logit once, -1e6 .. 1e6.
        penalty_last_n: how many recent tokens, prompt included, the three penalties look at.
        seed: 0 .. 2**32 - 2; None, -1 or 2**32 - 1 mean a fresh one.
        logit_bias: added to the logits of single tokens before anything else, -1e9 .. 1e9; ``-inf`` forbids a token.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._set("temperature", number("temperature", self.temperature, 0))
        if 0 < self.temperature < _SMALLEST:
            msg = f"temperature must be 0 or at least {_SMALLEST:g}; got {self.temperature!r}"
            raise UsageError(msg)
        self._set("repeat_penalty", number("repeat_penalty", self.repeat_penalty, _SMALLEST, _LARGEST))
        for name in ("top_p", "min_p"):
            self._set(name, number(name, getattr(self, name), 0, 1))
        for name in ("frequency_penalty", "presence_penalty"):
            self._set(name, number(name, getattr(self, name), -_LARGEST, _LARGEST))
        self._set("top_k", integer("top_k", self.top_k, -INT_MAX - 1))
        self._set("penalty_last_n", integer("penalty_last_n", self.penalty_last_n, 0))
        if self.seed is not None:
            self._set("seed", integer("seed", self.seed, -1, RANDOM_SEED))
        if not isinstance(self.logit_bias, Mapping):
            msg = f"logit_bias must map token ids to numbers; got {self.logit_bias!r}"
            raise UsageError(msg)
        self._set("logit_bias", dict(_bias(token, bias) for token, bias in self.logit_bias.items()))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0

    @property
    def penalizes(self) -> bool:
        """Whether any of the three penalties does something."""
        active = self.repeat_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0
        return active and self.penalty_last_n > 0

    @property
    def shortlist(self) -> int:
        """How many of the most likely tokens, biases applied, surely hold all that can be chosen; 0 for all tokens.

        Penalties that only lower logits push at most ``penalty_last_n`` tokens out of the best ``top_k``.
        """
        best = 1 if self.greedy else max(self.top_k, 0)
        if not best or not self.penalizes:
            return best
        lowering = self.repeat_penalty >= 1.0 and self.frequency_penalty >= 0.0 and self.presence_penalty >= 0.0
        return best + self.penalty_last_n if lowering else 0

    def resolved_seed(self) -> int:
        """The seed to use: the given one, or a fresh one each time this is called."""
        return fresh_seed() if self.seed in (None, -1, RANDOM_SEED) else int(self.seed or 0)


def _bias(token: object, bias: object) -> tuple[int, float]:
    plain = integer("a logit_bias token", token, 0)
    if isinstance(bias, float) and bias == -math.inf:
        return plain, bias
    return plain, number(f"logit_bias of token {plain}", bias, -_LARGEST_BIAS, _LARGEST_BIAS)
