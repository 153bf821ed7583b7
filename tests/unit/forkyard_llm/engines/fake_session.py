"""A session of nothing: its next token is one more than the last one, and it checks what it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

from forkyard_llm.engines.media import Piece
from forkyard_llm.engines.session import Perf, Row, Sampler, Session
from forkyard_llm.errors import EngineError, UsageError
from forkyard_llm.sampling import SamplingParams


class FakeSampler(Sampler):
    def __init__(self, session: FakeSession) -> None:
        self.session = session
        self.closed = False

    def sample(self, index: int = -1) -> int:
        return self.session.rows[index].token + 1

    def close(self) -> None:
        self.closed = True


class FakeSession(Session):
    def __init__(
        self, n_ctx: int = 8, *, truncates: bool = True, n_batch: int = 4, end: int | None = None, sequences: int = 1
    ) -> None:
        self.n_ctx = n_ctx
        self.n_vocab = 1000
        self.n_batch = n_batch
        self.n_ubatch = n_batch
        self.caches: list[list[int]] = [[] for _ in range(sequences)]
        self.decoded: list[list[int]] = []
        self.batches: list[list[Row]] = []
        self.rows: list[Row] = []
        self.samplers: list[FakeSampler] = []
        self.fails_at: int | None = None
        self.truncates = truncates
        self.end = end
        self.closed = False
        self.loaded = cast("Any", SimpleNamespace(family="fake"))
        self.before_batch: Callable[[], object] = lambda: None

    @property
    def cache(self) -> list[int]:
        return self.caches[0]

    def _decode_batch(self, tokens: Sequence[int], position: int) -> None:
        self.decode_rows([Row(token, position + index, 0, True) for index, token in enumerate(tokens)])

    def decode_one(self, token: int, position: int) -> None:
        self._decode_batch([token], position)

    def decode_rows(self, rows: Sequence[Row]) -> None:
        self.before_batch()
        assert 0 < len(rows) <= self.n_batch
        for row in rows:
            cache = self.caches[row.sequence]
            assert row.position == len(cache), "a token was put at the wrong position"
            if self.fails_at is not None and row.position >= self.fails_at:
                raise KeyboardInterrupt
            cache.append(row.token)
            assert len(cache) <= self.n_ctx
        self.rows = list(rows)
        self.batches.append(self.rows)
        self.decoded.append([row.token for row in rows])

    def decode_piece(self, piece: Piece, position: int, sequence: int = 0) -> None:
        self.before_batch()
        cache = self.caches[sequence]
        assert position == len(cache), "an image was put at the wrong position"
        if self.fails_at is not None and position >= self.fails_at:
            msg = "the image cannot be computed"
            raise EngineError(msg)
        cache.extend([piece.number] * piece.positions)
        self.decoded.append([piece.number])

    def sampler(self, params: SamplingParams, history: Sequence[int], answer: object = None) -> Sampler:
        if params.top_k == 13:
            msg = "13 brings bad luck"
            raise UsageError(msg)
        self.samplers.append(FakeSampler(self))
        return self.samplers[-1]

    def is_end(self, token: int) -> bool:
        return token == self.end

    def forget(self) -> None:
        for cache in self.caches:
            cache.clear()

    def truncate(self, position: int, sequence: int = 0) -> bool:
        if self.truncates or position == 0:
            del self.caches[sequence][position:]
            return True
        return False

    def copy_sequence(self, source: int, target: int) -> None:
        assert not self.caches[target]
        self.caches[target] = list(self.caches[source])

    def state(self, *, growing: bool = False) -> bytes:
        return bytes(self.cache)

    def restore(self, data: bytes, *, growing: bool = False) -> None:
        self.caches[0] = list(data)

    def perf(self) -> Perf:
        return Perf(0, 0, 0, 0, 0)

    def reset_perf(self) -> None:
        pass

    def close(self) -> None:
        assert not self.closed
        self.closed = True


FakeSession.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]


class Gate:
    """Holds a session's batches back until it is opened."""

    def __init__(self, session: FakeSession) -> None:
        self._open = threading.Event()
        session.before_batch = self._open.wait

    def open(self) -> None:
        self._open.set()
