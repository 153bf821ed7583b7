"""Caches of prompts' states: forkyard_llm's, as mappings from tokens to states."""

from __future__ import annotations

import abc
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import forkyard_llm.state as kept

if TYPE_CHECKING:
    from .llama import LlamaState

__all__ = ["BaseLlamaCache", "LlamaCache", "LlamaDiskCache", "LlamaRAMCache", "as_prompt_cache"]


class BaseLlamaCache(abc.ABC):
    """A mapping from tokens to states, whose key may be longer or shorter than what it finds."""

    def __init__(self, capacity_bytes: int = 2 << 30) -> None:
        self.capacity_bytes = capacity_bytes

    @property
    @abc.abstractmethod
    def cache_size(self) -> int:
        """Bytes in it."""

    @abc.abstractmethod
    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        """The state that has most of the beginning of ``key``; KeyError if none has any."""

    @abc.abstractmethod
    def __contains__(self, key: Sequence[int]) -> bool:
        """Whether there is a state with some of the beginning of ``key``."""

    @abc.abstractmethod
    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        """Keep a state."""


class _Kept(BaseLlamaCache):
    """One of forkyard_llm's caches, which know states of several models apart."""

    _cache: kept.RamCache | kept.DiskCache

    def _found(self, key: Sequence[int]) -> kept.LlamaState | None:
        found = [self._cache.find(key, origin) for origin in sorted(self._cache.origins())]
        return next((state for state in found if state is not None), None)

    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        from .llama import LlamaState

        state = self._found(key)
        if state is None:
            msg = "no state in this cache begins as these tokens do"
            raise KeyError(msg)
        return LlamaState.of(state)

    def __contains__(self, key: Sequence[int]) -> bool:
        return self._found(key) is not None

    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        self._cache.add(value.kept())


class LlamaRAMCache(_Kept):
    """States in memory."""

    def __init__(self, capacity_bytes: int = 2 << 30) -> None:
        super().__init__(capacity_bytes)
        self._cache = kept.RamCache(capacity_bytes)

    @property
    def cache_size(self) -> int:
        """Bytes in it."""
        return self._cache.size


LlamaCache = LlamaRAMCache


class LlamaDiskCache(_Kept):
    """States as files of a folder."""

    def __init__(self, cache_dir: str | os.PathLike[str] = ".cache/llama_cache", capacity_bytes: int = 2 << 30) -> None:
        super().__init__(capacity_bytes)
        self._cache = kept.DiskCache(cache_dir, capacity_bytes)

    @property
    def cache_size(self) -> int:
        """Bytes in it."""
        return self._cache.size


class _OfAMapping:
    """A cache that somebody else wrote, as forkyard_llm asks caches."""

    def __init__(self, cache: BaseLlamaCache) -> None:
        self._cache = cache

    def find(self, tokens: Sequence[int], origin: str) -> kept.LlamaState | None:
        """See :class:`forkyard_llm.state.PromptCache`."""
        try:
            state = self._cache[tokens].kept()
        except KeyError:
            return None
        return state if state.origin == origin else None

    def add(self, state: kept.LlamaState) -> None:
        """See :class:`forkyard_llm.state.PromptCache`."""
        from .llama import LlamaState

        self._cache[state.tokens] = LlamaState.of(state)


def as_prompt_cache(cache: BaseLlamaCache | None) -> kept.PromptCache | None:
    """``cache`` as forkyard_llm.Llama.set_cache takes it."""
    if cache is None:
        return None
    return cache._cache if isinstance(cache, _Kept) else _OfAMapping(cache)
