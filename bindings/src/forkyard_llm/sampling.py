"""How the next token is chosen: the parameters, checked once, for both engines."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import UsageError

__all__ = ["RANDOM_SEED", "SamplingParams", "fresh_seed"]

RANDOM_SEED = 0xFFFFFFFF
"""The engines' own spelling of "any seed"; never handed to them, so that the seed used is always known."""


def fresh_seed() -> int:
    """A random seed in 0 .. 2**32 - 2."""
    return secrets.randbelow(RANDOM_SEED)


@dataclass(frozen=True)
class SamplingParams:
    """One request's sampling, in the order it is applied.

    Attributes:
        temperature: 0 takes the most likely token (greedy) and makes the fields below it meaningless.
        top_k: keep the k most likely tokens; 0 or less keeps all.
        top_p: keep the smallest set of tokens whose probabilities reach this sum; 1 keeps all.
        min_p: drop tokens less likely than this fraction of the most likely one; 0 drops none.
        repeat_penalty: divides the logits of recent tokens; 1 does nothing.
        frequency_penalty: subtracted from a recent token's logit once per occurrence.
        presence_penalty: subtracted from a recent token's logit once.
        penalty_last_n: how many recent tokens, prompt included, the three penalties look at.
        seed: 0 .. 2**32 - 2; None, -1 or 2**32 - 1 mean a fresh one.
        logit_bias: added to the logits of single tokens before anything else; ``-inf`` forbids a token.
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
        _check_number("temperature", self.temperature, 0.0, None)
        _check_number("top_p", self.top_p, 0.0, 1.0)
        _check_number("min_p", self.min_p, 0.0, 1.0)
        _check_number("repeat_penalty", self.repeat_penalty, 0.0, None)
        if self.repeat_penalty == 0.0:
            msg = "repeat_penalty must be greater than 0 (1 does nothing); got 0"
            raise UsageError(msg)
        _check_number("frequency_penalty", self.frequency_penalty, None, None)
        _check_number("presence_penalty", self.presence_penalty, None, None)
        _check_integer("top_k", self.top_k, -(2**31), 2**31 - 1)
        _check_integer("penalty_last_n", self.penalty_last_n, 0, 2**31 - 1)
        if self.seed is not None:
            _check_integer("seed", self.seed, -1, RANDOM_SEED)
        for token, bias in self.logit_bias.items():
            _check_integer("a logit_bias token", token, 0, 2**31 - 1)
            if isinstance(bias, bool) or not isinstance(bias, (int, float)) or math.isnan(bias) or bias == math.inf:
                msg = f"logit_bias of token {token} must be a number or -inf; got {bias!r}"
                raise UsageError(msg)

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


def _check_number(name: str, value: float, low: float | None, high: float | None) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        msg = f"{name} must be a finite number; got {value!r}"
        raise UsageError(msg)
    if (low is not None and value < low) or (high is not None and value > high):
        upper = "" if high is None else f" and at most {high:g}"
        msg = f"{name} must be at least {low:g}{upper}; got {value!r}"
        raise UsageError(msg)


def _check_integer(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        msg = f"{name} must be an integer from {low} to {high}; got {value!r}"
        raise UsageError(msg)
