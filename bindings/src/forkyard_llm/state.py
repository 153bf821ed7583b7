"""What a model has read, saved: the keys and values of its tokens, in memory, in files and in caches of prompts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .errors import ModelError

__all__ = ["DiskCache", "LlamaState", "PromptCache", "RamCache"]

_MAGIC = b"forkyard-llm state 1\n"
_LONGEST_HEADER = 64 << 20


@dataclass(frozen=True)
class LlamaState:
    """What a context holds of a sequence of tokens.

    Attributes:
        tokens: the tokens.
        data: the engine's own bytes.
        origin: what must be the same where it is loaded: payload, model, types of the cache.
        digest: sha256 of the others. The engines end the process over bytes that they did not write, so a state that is
            not as it was saved is refused. It is no signature: load states of people you trust.
    """

    tokens: tuple[int, ...]
    data: bytes
    origin: str
    digest: str

    @classmethod
    def of(cls, tokens: Sequence[int], data: bytes, origin: str) -> LlamaState:
        """A state with its digest."""
        return cls(tuple(tokens), data, origin, _digest(tokens, data, origin))

    @property
    def whole(self) -> bool:
        """Whether it is as it was saved."""
        return self.digest == _digest(self.tokens, self.data, self.origin)

    @property
    def size(self) -> int:
        """Bytes of the engine's data."""
        return len(self.data)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, by rename."""
        target = Path(path)
        header = json.dumps({"tokens": self.tokens, "origin": self.origin, "sha256": self.digest}).encode()
        descriptor, part = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_MAGIC + b"%d\n" % len(header) + header + self.data)
            os.replace(part, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LlamaState:
        """Read a file that :meth:`save` wrote.

        Raises:
            ModelError: it is none, or damaged.
        """
        try:
            with open(path, "rb") as file:
                if file.read(len(_MAGIC)) != _MAGIC:
                    raise ValueError("it does not begin as one")
                length = int(file.readline(32))
                if not 0 < length <= _LONGEST_HEADER:
                    raise ValueError("its header has no length")
                header = json.loads(file.read(length))
                tokens = tuple(int(token) for token in header["tokens"])
                state = cls(tokens, file.read(), str(header["origin"]), str(header["sha256"]))
            if not state.whole:
                raise ValueError("its checksum is not that of its bytes")
        except (OSError, ValueError, KeyError, TypeError) as error:
            msg = f"{os.fspath(path)} is no saved state of forkyard-llm, or is damaged: {error}"
            raise ModelError(msg) from error
        return state


def _digest(tokens: Sequence[int], data: bytes, origin: str) -> str:
    digest = hashlib.sha256(json.dumps([list(tokens), origin]).encode())
    digest.update(data)
    return digest.hexdigest()


class PromptCache(Protocol):
    """Keeps states of prompts; :meth:`forkyard_llm.Llama.set_cache` takes one."""

    def find(self, tokens: Sequence[int], origin: str) -> LlamaState | None:
        """The state of that origin which has most of the tokens' beginning, if there is one."""

    def add(self, state: LlamaState) -> None:
        """Keep a state."""


class RamCache:
    """States in memory; the ones used least lately go first.

    Args:
        capacity_bytes: of the engine's data in it.
    """

    def __init__(self, capacity_bytes: int = 2 << 30) -> None:
        self.capacity_bytes = capacity_bytes
        self._states: OrderedDict[tuple[str, tuple[int, ...]], LlamaState] = OrderedDict()

    @property
    def size(self) -> int:
        """Bytes in it."""
        return sum(state.size for state in self._states.values())

    def origins(self) -> set[str]:
        """Where the states in it are from."""
        return {origin for origin, _ in self._states}

    def find(self, tokens: Sequence[int], origin: str) -> LlamaState | None:
        """See :class:`PromptCache`."""
        best = max(
            (key for key in self._states if key[0] == origin), key=lambda key: _shared(key[1], tokens), default=None
        )
        if best is None or not _shared(best[1], tokens):
            return None
        self._states.move_to_end(best)
        return self._states[best]

    def add(self, state: LlamaState) -> None:
        """See :class:`PromptCache`."""
        key = (state.origin, state.tokens)
        self._states[key] = state
        self._states.move_to_end(key)
        while self._states and self.size > self.capacity_bytes:
            self._states.popitem(last=False)


class DiskCache:
    """States as files of a folder; the ones used least lately go first. Several processes may share it.

    Args:
        capacity_bytes: of all files.
    """

    def __init__(self, folder: str | os.PathLike[str], capacity_bytes: int = 10 << 30) -> None:
        self.folder = Path(folder)
        self.capacity_bytes = capacity_bytes
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(map(_size, self._files()))

    def origins(self) -> set[str]:
        """Where the states in it are from."""
        return {state.origin for state in self._sound()}

    def find(self, tokens: Sequence[int], origin: str) -> LlamaState | None:
        """See :class:`PromptCache`; damaged files are removed."""
        best: LlamaState | None = None
        for state in self._sound():
            if state.origin == origin and _shared(state.tokens, tokens) > (_shared(best.tokens, tokens) if best else 0):
                best = state
        if best is not None:
            with contextlib.suppress(OSError):
                os.utime(self._path(best))
        return best

    def add(self, state: LlamaState) -> None:
        """See :class:`PromptCache`."""
        state.save(self._path(state))
        files = sorted(self._files(), key=_used)
        total = sum(_size(path) for path in files)
        for path in files:
            if total <= self.capacity_bytes:
                break
            total -= _size(path)
            path.unlink(missing_ok=True)

    def _sound(self) -> Iterator[LlamaState]:
        """What is in the files; damaged ones are removed."""
        for path in self._files():
            try:
                yield LlamaState.load(path)
            except ModelError:
                path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return list(self.folder.glob("*.state"))

    def _path(self, state: LlamaState) -> Path:
        name = _digest(state.tokens, b"", state.origin)
        return self.folder / f"{name}.state"


def _shared(known: Sequence[int], tokens: Sequence[int]) -> int:
    """How many tokens both begin with."""
    length = 0
    for one, other in zip(known, tokens, strict=False):
        if one != other:
            break
        length += 1
    return length


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
