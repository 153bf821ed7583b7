"""Many requests at a time on one context: a thread of its own computes them together, a batch after the other.

Each request has a sequence of the context. A batch holds the next token of each request that generates, and, after
those, parts of prompts, so that a long prompt does not hold the others up. A request begins with what its sequence, or
another one, already holds of its prompt.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, TypeVar

from ..errors import EngineError, QueueFull
from .adapters import Scaled
from .request import Request, Token, check_prompt, choose, common_length, reusable, scores, spare_cells
from .session import Row, Sampler, Session
from .threads import check_model, end_threads

__all__ = ["Scheduler"]

Result = TypeVar("Result")

PROMPT_CHUNK = 256
"""Tokens of prompts in a batch while others generate: their next token waits for these."""
_WORTH_COPYING = 16
"""Tokens more that another sequence must share with a prompt before it is copied."""
_STACK_BYTES = 64 << 20
"""Patterns of tool calls are matched by functions that call themselves, once for each character."""


class _Job:
    """A request in the hands of the scheduler; ``out`` takes tokens, then None or what went wrong."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.out: queue.SimpleQueue[Token | BaseException | None] = queue.SimpleQueue()
        self.cancelled = False
        self.ended = False


class _Slot:
    """One sequence of the context."""

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.job: _Job | None = None
        self.sampler: Sampler | None = None
        self.cached: list[int] = []
        """Tokens whose keys and values the context holds."""
        self.tokens: list[int] = []
        """The prompt and what was generated; what of it is not cached is computed next."""
        self.generated = 0

    def text_end(self) -> int:
        """Where the text ends that comes next: at an image or a sound, or at the end."""
        assert self.job is not None
        pieces = self.job.request.pieces
        return min((at for at in pieces if at >= len(self.cached)), default=len(self.tokens))


class Scheduler:
    """Takes requests of any thread and computes up to ``parallel`` of them together.

    Args:
        limit: how many requests may wait for a sequence; another one is refused.
        name: how messages call the model.
    """

    def __init__(self, session: Session, *, parallel: int, limit: int, name: str) -> None:
        self._session: Session | None = session
        self._limit = limit
        self._name = name
        self._process = os.getpid()
        self._slots = [_Slot(number) for number in range(parallel)]
        self._waiting: deque[_Job] = deque()
        self._given = 0
        """Requests that wait for a sequence, or have one."""
        self._calls: deque[tuple[Callable[[Session], Any], Future[Any]]] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._first = 0
        self._adapters: Scaled = ()

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closing

    def open_session(self) -> Session:
        """The session, for what needs no turn.

        Raises:
            EngineError: it is closed, or another process loaded it.
        """
        check_model(self._process, self._name)
        session = self._session
        if session is None or self._closing:
            msg = f"this Llama is closed ({self._name}); make a new one"
            raise EngineError(msg)
        return session

    def call(self, function: Callable[[Session], Result]) -> Result:
        """``function`` of the session, between two batches; in a function that a request gave, at once.

        Raises:
            EngineError: the session is closed, or another process loaded it.
        """
        session = self.open_session()
        if threading.current_thread() is self._thread:
            return function(session)
        future: Future[Result] = Future()
        with self._wake:
            self._refuse_closed()
            self._calls.append((function, future))
            self._start()
        return future.result()

    read = call

    def tokens(self, request: Request) -> Generator[Token, None, None]:
        """Tokens that follow a prompt; the request is made at the first ``next``. Closing the iterator ends it.

        Raises:
            QueueFull: as many requests wait as may.
            EngineError: the engine failed, the session was closed meanwhile, or another process loaded it.
            UsageError: a prompt that does not fit, or cannot be sampled as asked.
        """
        check_prompt(self.open_session(), request.prompt, request.pieces)
        if threading.current_thread() is self._thread:
            msg = "a function that a request gave (logits_processor, progress) cannot make another request of its Llama"
            raise EngineError(msg)
        job = _Job(request)
        with self._wake:
            self._refuse_closed()
            if self._given >= len(self._slots) + self._limit:
                msg = (
                    f"{self._given - len(self._slots)} requests wait for this Llama already ({self._name}); try again"
                    " later, or give a larger max_waiting"
                )
                raise QueueFull(msg)
            self._given += 1
            self._waiting.append(job)
            self._start()
        try:
            while True:
                item = job.out.get()
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            job.cancelled = True
            if not job.ended and os.getpid() == self._process:
                with self._wake:
                    self._wake.notify()

    def bytes_of(self, token: int, *, special: bool = False) -> bytes | None:
        """The bytes ``token`` adds to a text, or None if it ends it."""
        return self.open_session().bytes_of(token, special=special)

    def reset(self) -> None:
        """Empty the cache and set the engine's counters to zero.

        Raises:
            EngineError: requests are being computed, the session is closed, or another process loaded it.
        """

        def forget(session: Session) -> None:
            self._drop()
            if any(slot.job for slot in self._slots):
                msg = "this Llama is computing requests; wait for their end, or close their streams, before a reset"
                raise EngineError(msg)
            self._forget(session)
            session.reset_perf()

        self.call(forget)

    def close(self) -> None:
        """Close the session, after the batch being computed; harmless the second time.

        In a forked child this frees nothing: the thread it would wait for is gone.
        """
        if os.getpid() != self._process:
            self._session = None
            return
        with self._wake:
            self._closing = True
            thread = self._thread
            self._wake.notify()
        if thread is None:
            self._end()
        elif thread is not threading.current_thread():
            thread.join()

    # -- what follows runs in the scheduler's thread, but where it says so

    def _start(self) -> None:
        """With the lock held, in any thread."""
        if self._thread is None:
            before = threading.stack_size(_STACK_BYTES)
            try:
                self._thread = threading.Thread(target=self._run, name=f"Llama {self._name}", daemon=True)
                self._thread.start()
            finally:
                threading.stack_size(before)
        self._wake.notify()

    def _refuse_closed(self) -> None:
        if self._closing:
            msg = f"this Llama is closed ({self._name}); make a new one"
            raise EngineError(msg)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._closing or self._calls or self._waiting or any(slot.job for slot in self._slots)):
                    end_threads()
                    self._wake.wait()
                if self._closing:
                    break
                calls = list(self._calls)
                self._calls.clear()
            session = self.open_session()
            for function, future in calls:
                try:
                    future.set_result(function(session))
                except BaseException as error:  # noqa: BLE001 - the caller gets it
                    future.set_exception(error)
            self._admit(session)
            if any(slot.job for slot in self._slots):
                self._step(session)
        self._end()

    def _end(self) -> None:
        msg = f"this Llama was closed ({self._name})"
        for slot in self._slots:
            self._finish(slot, EngineError(msg))
        with self._wake:
            waiting, calls = list(self._waiting), list(self._calls)
            self._waiting.clear()
            self._calls.clear()
        for job in waiting:
            job.out.put(EngineError(msg))
        for _, future in calls:
            future.set_exception(EngineError(msg))
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _admit(self, session: Session) -> None:
        """Give waiting requests, the oldest first, the sequences that nobody uses."""
        self._drop()
        while True:
            idle = [slot for slot in self._slots if slot.job is None]
            with self._wake:
                if not idle or not self._waiting:
                    return
                job = self._waiting[0]
                busy = len(idle) < len(self._slots)
                if busy and job.request.adapters != self._adapters and not job.cancelled:
                    # Those that are computed now must end before others' adapters are used.
                    return
                self._waiting.popleft()
            if job.cancelled:
                self._over(job)
                continue
            prompt = job.request.prompt
            slot = max(idle, key=lambda one: (common_length(one.cached, prompt), -len(one.cached)))
            try:
                self._adapters = job.request.adapters
                if session.use(job.request.adapters):
                    self._forget(session)
                slot.sampler = session.sampler(job.request.params, job.request.history, job.request.answer)
                self._reuse(session, slot, job.request)
            except BaseException as error:  # noqa: BLE001 - the caller gets it
                if slot.sampler is not None:
                    slot.sampler.close()
                    slot.sampler = None
                self._over(job, error)
                continue
            slot.job = job
            slot.tokens = list(prompt)
            slot.generated = 0

    def _drop(self) -> None:
        """End requests whose streams were closed."""
        for slot in self._slots:
            if slot.job is not None and slot.job.cancelled:
                self._finish(slot)

    def _reuse(self, session: Session, slot: _Slot, request: Request) -> None:
        """Leave in the sequence what it, or another one, shares with the prompt."""
        kept = 0 if request.scored else reusable(slot.cached, request)
        best = max(self._slots, key=lambda one: reusable(one.cached, request))
        shared = 0 if request.scored else reusable(best.cached, request)
        if best is not slot and shared >= kept + _WORTH_COPYING:
            session.truncate(0, slot.sequence)
            session.copy_sequence(best.sequence, slot.sequence)
            slot.cached = list(best.cached)
            kept = shared
        if kept == 0 or not session.truncate(kept, slot.sequence):
            session.truncate(0, slot.sequence)
            kept = 0
        del slot.cached[kept:]

    def _step(self, session: Session) -> None:
        """Compute one batch, and choose a token for each request that it brought to the end of its text."""
        for slot in self._slots:
            self._look(session, slot)
        active = [slot for slot in self._slots if slot.job is not None]
        generating = [slot for slot in active if slot.generated]
        rows = [Row(slot.tokens[-1], len(slot.cached), slot.sequence, wanted=True) for slot in generating]
        ready = list(generating)
        room = min(session.n_batch - len(rows), PROMPT_CHUNK if generating else session.n_batch)
        reading = [slot for slot in active if not slot.generated]
        parts: list[tuple[_Slot, int, int]] = []
        for number in range(len(reading)):
            slot = reading[(self._first + number) % len(reading)]
            start = len(slot.cached)
            end = min(start + room, slot.text_end())
            part = slot.tokens[start:end]
            if not part:
                continue
            room -= len(part)
            whole = start + len(part) == len(slot.tokens)
            scored = slot.job is not None and slot.job.request.scored
            parts.append((slot, len(rows), len(part)))
            rows += [
                Row(token, start + index, slot.sequence, scored or (whole and index == len(part) - 1))
                for index, token in enumerate(part)
            ]
            if whole:
                ready.append(slot)
        self._first += 1
        if not rows:
            return
        try:
            session.decode_rows(rows)
        except BaseException as error:  # noqa: BLE001 - the callers get it
            # What the context holds now is not known.
            for slot in active:
                self._finish(slot, EngineError(str(error)))
            self._forget(session)
            return
        for slot in generating:
            slot.cached.append(slot.tokens[-1])
        for slot, first, count in parts:
            self._score(session, slot, first, count)
            slot.cached += slot.tokens[len(slot.cached) : len(slot.cached) + count]
        place = {row.sequence: index for index, row in enumerate(rows) if row.wanted}
        for slot, _, _ in parts:
            self._tell_progress(slot)
        for slot in ready:
            if slot.job is not None:
                self._choose(session, slot, place[slot.sequence])

    def _look(self, session: Session, slot: _Slot) -> None:
        """Compute the image or the sound that comes next in a request's prompt, if it is one."""
        at = len(slot.cached)
        piece = slot.job.request.pieces.get(at) if slot.job is not None and not slot.generated else None
        if piece is None:
            return
        try:
            session.decode_piece(piece, at, slot.sequence)
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            # What the sequence holds now is not known.
            self._finish(slot, error)
            session.truncate(0, slot.sequence)
            slot.cached = []
            return
        slot.cached += slot.tokens[at : at + piece.positions]
        self._tell_progress(slot)

    def _score(self, session: Session, slot: _Slot, first: int, count: int) -> None:
        """Give out what the model makes of a prompt's tokens, whose rows begin with the ``first`` of the batch."""
        job = slot.job
        if job is None or not job.request.scored:
            return
        start = len(slot.cached)
        if start == 0:
            job.out.put(Token(slot.tokens[0]))
        try:
            for token in scores(session, job.request, start, count, first):
                job.out.put(token)
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            self._finish(slot, error)

    def _tell_progress(self, slot: _Slot) -> None:
        job = slot.job
        if job is None or job.request.progress is None:
            return
        try:
            job.request.progress(len(slot.cached), len(slot.tokens))
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            self._finish(slot, error)

    def _choose(self, session: Session, slot: _Slot, index: int) -> None:
        job, sampler = slot.job, slot.sampler
        assert job is not None
        assert sampler is not None
        try:
            token = choose(session, sampler, job.request, index, slot.tokens)
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            self._finish(slot, error)
            return
        job.out.put(token)
        slot.tokens.append(token.id)
        slot.generated += 1
        limit = job.request.limit
        if (
            (limit is not None and slot.generated >= limit)
            or len(slot.tokens) + spare_cells(job.request.pieces) > session.n_ctx
            or (not job.request.past_end and session.is_end(token.id))
        ):
            self._finish(slot)

    def _finish(self, slot: _Slot, error: BaseException | None = None) -> None:
        job, sampler = slot.job, slot.sampler
        slot.job = slot.sampler = None
        if sampler is not None:
            sampler.close()
        if job is not None:
            self._over(job, error)

    def _over(self, job: _Job, error: BaseException | None = None) -> None:
        """Tell a request that nothing more comes of it; there is room for another one."""
        job.ended = True
        with self._wake:
            self._given -= 1
        job.out.put(error)

    def _forget(self, session: Session) -> None:
        session.forget()
        for slot in self._slots:
            slot.cached = []
