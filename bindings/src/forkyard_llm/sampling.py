"""How the next token is chosen: the parameters, checked once, for both engines."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict

from .checks import INT_MAX, flag, integer, number, shown
from .errors import UsageError
from .text import to_engine

__all__ = ["RANDOM_SEED", "SamplingOptions", "SamplingParams", "fresh_seed"]

RANDOM_SEED = 0xFFFFFFFF
"""The engines' own spelling of "any seed"; never handed to them, so that the seed used is always known."""

# Whatever is combined within these, no logit becomes infinite in a C float: ik_llama.cpp ends the process over one.
_SMALLEST, _LARGEST, _LARGEST_BIAS = 1e-6, 1e6, 1e9


_BREAKERS = ("\n", ":", '"', "*")
_BASIC = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repeat_penalty",
    "frequency_penalty",
    "presence_penalty",
    "penalty_last_n",
    "seed",
    "logit_bias",
)
"""What the samplers that each engine has in its own C API do; all else is done by those of the stack common-c-api."""


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
        typical_p: keep tokens that are as surprising as the distribution is on average, up to this sum; 1 keeps all.
        tfs_z: tail-free sampling; 1 keeps all. ik_llama.cpp only.
        top_n_sigma: keep logits within so many standard deviations of the largest; negative keeps all.
        xtc_probability, xtc_threshold: how often the most likely tokens above the threshold are left out but one.
        dynatemp_range, dynatemp_exponent: let the temperature vary with the entropy, by as much up and down.
        dry_multiplier, dry_base, dry_allowed_length, dry_penalty_last_n, dry_sequence_breakers: the penalty for going
            on as earlier text did (multiplier * base ** (length - allowed length)); 0 for none, -1 for the context.
        mirostat_mode, mirostat_tau, mirostat_eta: 1 or 2 instead of the samplers above; target entropy, learning rate.
        adaptive_target, adaptive_decay: choose tokens near this probability; negative for no target.
        min_keep: how many tokens every sampler leaves at least.
        samplers: names of the samplers in their order; None for the engine's.
        ignore_eos: never end the text.
        grammar: GBNF that the text follows; empty for none.
        reasoning_budget, reasoning_budget_message: tokens of reasoning before it is ended, by this text; -1 for no
            limit. llama.cpp only.
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
    typical_p: float = 1.0
    tfs_z: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: Sequence[str] = _BREAKERS
    mirostat_mode: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    adaptive_target: float = -1.0
    adaptive_decay: float = 0.9
    min_keep: int = 0
    samplers: Sequence[str] | None = None
    ignore_eos: bool = False
    grammar: str = ""
    reasoning_budget: int = -1
    reasoning_budget_message: str = ""

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
        for name, (low, high) in _NUMBERS.items():
            self._set(name, number(name, getattr(self, name), low, high))
        for name, (least, most) in _INTEGERS.items():
            self._set(name, integer(name, getattr(self, name), least, most))
        self._set("ignore_eos", flag("ignore_eos", self.ignore_eos))
        self._set("dry_sequence_breakers", _texts("dry_sequence_breakers", self.dry_sequence_breakers))
        if self.samplers is not None:
            self._set("samplers", _texts("samplers", self.samplers))
        for name in ("grammar", "reasoning_budget_message"):
            to_engine(getattr(self, name), name, nul=False)

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
    def basic(self) -> bool:
        """Whether the samplers of the engines' own C APIs are enough."""
        return all(one.name in _BASIC or getattr(self, one.name) == one.default for one in fields(self))

    def settings(self) -> dict[str, Any]:
        """The parameters as the samplers of ``common`` take them: JSON.

        All of them: the engines' own defaults are others, and differ from one another.
        """
        chosen = {one.name: getattr(self, one.name) for one in fields(self)}
        if self.tfs_z == 1.0:
            # Only one engine has it.
            del chosen["tfs_z"]
        chosen["seed"] = self.resolved_seed()
        chosen["logit_bias"] = [[token, None if bias == -math.inf else bias] for token, bias in self.logit_bias.items()]
        chosen["mirostat"] = chosen.pop("mirostat_mode")
        return chosen

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


_NUMBERS = {
    "typical_p": (0.0, 1.0),
    "tfs_z": (0.0, 1.0),
    "top_n_sigma": (-1.0, _LARGEST),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 1.0),
    "dynatemp_range": (0.0, _LARGEST),
    "dynatemp_exponent": (0.0, _LARGEST),
    "dry_multiplier": (0.0, _LARGEST),
    "dry_base": (1.0, _LARGEST),
    "mirostat_tau": (0.0, _LARGEST),
    "mirostat_eta": (0.0, _LARGEST),
    "adaptive_target": (-1.0, 1.0),
    "adaptive_decay": (0.0, 0.99),
}
_INTEGERS = {
    "dry_allowed_length": (0, INT_MAX),
    "dry_penalty_last_n": (-1, INT_MAX),
    "mirostat_mode": (0, 2),
    "min_keep": (0, INT_MAX),
    "reasoning_budget": (-1, INT_MAX),
}


def _texts(name: str, given: object) -> tuple[str, ...]:
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
        msg = f"{name} must be a sequence of texts; got {shown(given)}"
        raise UsageError(msg)
    for one in given:
        to_engine(one, f"one of {name}", nul=False)
    return tuple(map(str, given))


class SamplingOptions(TypedDict, total=False):
    """The members of :class:`SamplingParams` as keyword arguments."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    penalty_last_n: int
    seed: int | None
    logit_bias: Mapping[int, float] | None
    typical_p: float
    tfs_z: float
    top_n_sigma: float
    xtc_probability: float
    xtc_threshold: float
    dynatemp_range: float
    dynatemp_exponent: float
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_sequence_breakers: Sequence[str]
    mirostat_mode: int
    mirostat_tau: float
    mirostat_eta: float
    adaptive_target: float
    adaptive_decay: float
    min_keep: int
    samplers: Sequence[str] | None
    ignore_eos: bool
    grammar: str
    reasoning_budget: int
    reasoning_budget_message: str
