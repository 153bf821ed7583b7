"""The NUMA strategy of an engine: what can be asked for, and that an engine takes one strategy in a process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from ..errors import EngineError, UnsupportedOption, UsageError
from ..payloads import Payload, discover
from .numa_mirror import CAPABILITY, NumaFailure, NumaMirror, NumaNode, NumaReport

__all__ = ["STRATEGIES", "WORDS", "Numa", "NumaChoice", "numa_choice"]

STRATEGIES = ("distribute", "isolate", "numactl", "mirror", "split")
"""Those of upstream, then those of the stack `numa-mirror`."""

WORDS = ("weights", "kv", "all", "none", "best-effort")
"""What `numa_mirror` may say. The engine's own parser reads the words; here is only what can be refused before."""

_OURS = ("mirror", "split")
_DEFAULTS = {"mirror": ("all",), "split": ("weights",)}
_OFF = "off"
_BEST_EFFORT = "best-effort"
_GO_ON = f"go on without (numa_mirror={_BEST_EFFORT!r})"
_LESS = f"free memory on that node, copy less (numa_mirror='weights' or 'kv'), take numa='split', or {_GO_ON}"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NumaChoice:
    """What one model asks for."""

    strategy: str | None = None
    """One of :data:`STRATEGIES`, ``off``, or None for whatever the process has."""
    words: tuple[str, ...] | None = None
    """Those of :data:`WORDS` that say what is mirrored; None for the strategy's default: all with mirror, the weights
    with split."""


def numa_choice(numa: str | bool | None, words: str | Sequence[str] | None = None) -> NumaChoice:
    """The choice that the arguments `numa` and `numa_mirror` of a model stand for.

    Raises:
        UsageError: a strategy or a word that does not exist, or words that do not go together.
    """
    strategy = _strategy(numa)
    if words is None:
        return NumaChoice(strategy)
    if strategy not in _OURS:
        msg = f"numa_mirror={words!r} says what to copy and needs numa='mirror' or numa='split'; numa is {numa!r}"
        raise UsageError(msg)
    return NumaChoice(strategy, _checked(words))


def _strategy(numa: str | bool | None) -> str | None:
    if numa is None:
        return None
    if numa is False:
        return _OFF
    name = numa.lower() if isinstance(numa, str) else numa
    if name in STRATEGIES:
        return str(name)
    msg = f"numa must be one of {', '.join(STRATEGIES)}, False or None; got {numa!r}"
    raise UsageError(msg)


def _checked(words: str | Sequence[str]) -> tuple[str, ...]:
    given = words.split(",") if isinstance(words, str) else list(words)
    names = [word.strip().lower() if isinstance(word, str) else word for word in given]
    wrong = [word for word in names if word not in WORDS]
    if wrong or not names:
        msg = f"numa_mirror takes {', '.join(WORDS)}; got {words!r}"
        raise UsageError(msg)
    if "none" in names and set(names) - {"none", _BEST_EFFORT}:
        msg = f"numa_mirror={words!r}: none and something do not go together"
        raise UsageError(msg)
    return tuple(names)


class Numa:
    """The strategy of one loaded engine.

    An engine takes a strategy once, for the whole process, and before threads and buffers exist; upstream ignores a
    second one silently. So the first model that names one decides, while no other model of that engine is open, and a
    model that names another is refused.

    Args:
        initialise: hands the strategy of that name to the engine.
    """

    def __init__(self, payload: Payload, mirror: NumaMirror | None, initialise: Callable[[str], None]) -> None:
        self._payload = payload
        self._mirror = mirror
        self._initialise = initialise
        self._strategy = _OFF
        self._models = 0
        self._state = threading.Lock()
        # What to mirror is a setting of the process as well: with mirror or split on, one model is loaded at a time.
        self._loading = threading.Lock()

    @property
    def available(self) -> bool:
        """Whether the engine has the strategies of the stack `numa-mirror`."""
        return self._mirror is not None

    @property
    def strategy(self) -> str | None:
        """The strategy this process runs the engine with, or None."""
        return None if self._strategy == _OFF else self._strategy

    def check(self, choice: NumaChoice) -> None:
        """Refuse a choice this payload cannot take.

        Raises:
            UnsupportedOption: naming the installed payloads that can.
        """
        if choice.strategy not in _OURS or self._mirror is not None:
            return
        if CAPABILITY in self._payload.capabilities:
            msg = (
                f"{self._payload.distribution} has the stack numa-mirror, but its generated module does not describe"
                f" its functions, so numa={choice.strategy!r} is not possible; build it with a newer forkyard"
            )
            raise UnsupportedOption(msg)
        able = [other.distribution for other in discover() if CAPABILITY in other.capabilities]
        if able:
            where = f"installed with it: {', '.join(able)} (engine={able[0]!r})"
        else:
            where = "none of the installed payloads has it; install one built with the stack numa-mirror"
        msg = (
            f"{self._payload.distribution} has no numa={choice.strategy!r} (capability {CAPABILITY!r}):"
            f" its engine was built without the stack numa-mirror; {where}"
        )
        raise UnsupportedOption(msg)

    @contextmanager
    def admit(self, choice: NumaChoice) -> Iterator[None]:
        """Load a model that made this choice; it counts until :meth:`leave`, unless the block raises.

        Raises:
            UsageError: the engine runs with another strategy, or it is too late for one.
            UnsupportedOption: the payload has no such strategy.
        """
        self.check(choice)
        with self._state:
            self._decide(choice)
            self._models += 1
        try:
            with self._loading if self._strategy in _OURS else nullcontext():
                self._set_words(self._strategy, choice)
                yield
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """A model was closed."""
        with self._state:
            self._models -= 1

    def _decide(self, choice: NumaChoice) -> None:
        wanted = choice.strategy
        if wanted in (None, self._strategy):
            return
        name, asked = self._payload.distribution, "numa=False" if wanted == _OFF else f"numa={wanted!r}"
        if self._strategy != _OFF:
            msg = (
                f"{asked} is not possible: {name} runs with numa={self._strategy!r} in this process since the first"
                " Llama that asked for it, and an engine takes a strategy only once; leave numa out to share it,"
                " or use another process"
            )
            raise UsageError(msg)
        if self._models:
            msg = (
                f"{asked} is not possible now: {name} has {self._models} model(s) open in this process that were"
                " loaded without a strategy; close them first, or give numa to the first Llama"
            )
            raise UsageError(msg)
        assert wanted is not None
        self._set_words(wanted, choice)
        self._initialise(wanted)
        self._strategy = wanted
        # Also learns the nodes' ids, at no cost while nothing is loaded.
        if self._mirror is not None and wanted in _OURS and not self._mirror.counters():
            failure = self._mirror.take_failure()
            log.warning("%s has no effect%s", asked, f": {failure.reason}" if failure else "")

    def _set_words(self, strategy: str, choice: NumaChoice) -> None:
        if self._mirror is not None and strategy in _OURS:
            self._mirror.set(_DEFAULTS[strategy] if choice.words is None else choice.words)

    def warn_unplaced(self, complaints: list[str]) -> None:
        """Say what a load that succeeded went on without; ``complaints`` loses the engine's own line about it."""
        failure = self._take_failure()
        if failure is not None:
            log.warning("%s; going on without, as numa_mirror='best-effort' asks for", failure.reason)
            complaints[:] = [line for line in complaints if failure.reason not in line]

    def check_placed(self, what: str, choice: NumaChoice) -> None:
        """Raise what ended a load, if it is that weights or state could not be placed.

        Args:
            what: the beginning of the message.

        Raises:
            EngineError: with the engine's own reason and what to do; ``details()`` has node and bytes.
        """
        failure = self._take_failure()
        if failure is None or _BEST_EFFORT in (choice.words or ()):
            return
        advice = f"free memory, or {_GO_ON}" if self._strategy == "split" else _LESS
        if failure.cause in ("refused", "no_access"):
            advice = f"allow it, or {_GO_ON}"
        msg = f"{what}: {failure.reason}; {advice}"
        raise EngineError(msg, {"numa": {"cause": failure.cause, "node": failure.node, "lacks_bytes": failure.lacks}})

    def _take_failure(self) -> NumaFailure | None:
        return None if self._mirror is None else self._mirror.take_failure()

    def counters(self, *, reset: bool = False) -> list[NumaNode]:
        """Bytes each node's threads read, of all models of this engine; ``reset`` sets them to zero afterwards.

        Raises:
            UnsupportedOption: the payload does not count.
        """
        mirror = self._functions("numa_counters")
        nodes = mirror.counters()
        if reset:
            mirror.reset_counters()
        return nodes

    def report(self) -> NumaReport:
        """Where everything is, asked of the kernel now.

        Raises:
            UnsupportedOption: the payload has no report.
        """
        return self._functions("numa_report").report()

    def _functions(self, what: str) -> NumaMirror:
        if self._mirror is None:
            msg = (
                f"{self._payload.distribution} has no {what} (capability {CAPABILITY!r}): its engine was built without"
                " the stack numa-mirror"
            )
            raise UnsupportedOption(msg)
        return self._mirror
