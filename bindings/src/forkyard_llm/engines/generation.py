"""Run generations on a session, one at a time, and know what its KV cache holds."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

from ..errors import EngineError
from ..sampling import SamplingParams
from .drafts import Draft
from .loaded import Buffer
from .request import (
    Progress,
    Request,
    Token,
    check_prompt,
    choose,
    reusable,
    scores,
    spare_cells,
    stretches,
)
from .session import Row, Sampler, Session
from .threads import check_model, end_threads

__all__ = ["Generation"]

Result = TypeVar("Result")

_ANY = SamplingParams()

_BUSY = (
    "this Llama is in the middle of a generation; exhaust or close that stream first, or use another Llama"
    " (one Llama does one generation at a time)"
)
_INSIDE = (
    "this Llama is in the middle of a call that this thread makes; a signal handler, a log handler or a finalizer must"
    " not use it meanwhile"
)


class Generation:
    """The owner of a session: whose turn it is, a lock, and the tokens whose keys and values the cache holds.

    A generation has the turn for its length, and nobody waits for it; the lock is held for the length of one call into
    the engine, and everything that touches the session waits for that. Both belong to the process that made this
    object: a child forked from it gets an error before it comes to them.

    Args:
        reuse: keep what a new prompt shares with the evaluated tokens instead of starting from nothing.
        draft: what guesses tokens, of which the session then checks ``guesses`` at a time.
        name: how messages call the model.
    """

    def __init__(
        self, session: Session, *, reuse: bool, name: str, draft: Draft | None = None, guesses: int = 0
    ) -> None:
        self._session: Session | None = session
        self.reuse = reuse
        self._name = name
        self._process = os.getpid()
        # Whose generation is going on. Not a lock that is taken and released: Ctrl-C, or the cancelling of a call in an
        # isolated process, may come right after the one and right before the other.
        self._holder: object = None
        self._taking = threading.Lock()
        # One that its own thread can take again: that thread finds `_inside` set then, and is refused.
        self._step = threading.RLock()
        self._inside = False
        self._evaluated: list[int] = []
        self._stale = False
        # Whether the session still has the logits of the last of them.
        self._fresh = False
        self._draft = draft
        # Whether its cache drops no tokens at its end: found out when guesses are wrong for the first time.
        self._grows = False
        self._guesses = guesses

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._session is None

    def open_session(self) -> Session:
        """The session, for what needs no lock.

        Raises:
            EngineError: it is closed, or another process loaded it.
        """
        check_model(self._process, self._name)
        return self._opened()

    def _opened(self) -> Session:
        session = self._session
        if session is None:
            msg = f"this Llama is closed ({self._name}); make a new one"
            raise EngineError(msg)
        return session

    def call(self, function: Callable[[Session], Result]) -> Result:
        """``function`` of the session, after the token being computed, if any.

        Raises:
            EngineError: the session is closed, another process loaded it, or this thread is in a call already.
        """
        check_model(self._process, self._name)
        with self._step:
            self._refuse_inside()
            return self._run(function)

    def read(self, function: Callable[[Session], Result]) -> Result:
        """:meth:`call` for what uses the vocabulary alone: a logits_processor may do that, within a call of its thread.

        Raises:
            EngineError: the session is closed, or another process loaded it.
        """
        check_model(self._process, self._name)
        with self._step:
            return self._run(function)

    def _run(self, function: Callable[[Session], Result]) -> Result:
        before, self._inside = self._inside, True
        try:
            return function(self._opened())
        finally:
            self._inside = before

    def tokens(self, request: Request) -> Generator[Token, None, None]:
        """Tokens that follow a prompt, until the context is full; the turn is taken at the first ``next``.

        Of ``request`` its end and its limit are left to the caller.

        Raises:
            EngineError: another generation is going on, the engine failed, the session was closed meanwhile, or another
                process loaded it.
            UsageError: no prompt, one that does not fit, or one with tokens outside the vocabulary.
        """
        me, sampler = object(), None
        try:
            self._take_turn(me)
            sampler = self.call(lambda session: self._begin(session, request))
            if request.scored:
                yield from self._scores(request)
            token = self.call(functools.partial(self._choose, sampler, request))
            yield token
            if self._draft is not None:
                yield from self._drafted(sampler, request, token.id)
                return
            while (after := self.call(functools.partial(self._advance, sampler, request, token.id))) is not None:
                yield after
                token = after
        except GeneratorExit:
            raise
        except BaseException:
            # Interrupted between the engine and the line after it: what the cache holds is not known any more.
            self._stale = self._stale or self._holder is me
            raise
        finally:
            try:
                if os.getpid() == self._process:
                    if sampler is not None:
                        sampler.close()
                    end_threads()
            finally:
                if self._holder is me:
                    self._holder = None

    def _drafted(self, sampler: Sampler, request: Request, token: int) -> Iterator[Token]:
        """The tokens after ``token``, guessed and checked until the context is full."""
        while True:
            chosen = self.call(functools.partial(self._check_guesses, sampler, request, token))
            if not chosen:
                return
            yield from chosen
            token = chosen[-1].id

    def _check_guesses(self, sampler: Sampler, request: Request, token: int, session: Session) -> list[Token]:
        """What follows ``token``: the guesses that are right, and one more."""
        assert self._draft is not None
        position = len(self._evaluated)
        room = session.n_ctx - position
        if room <= 0:
            return []
        text = [*self._evaluated, token]
        count = min(self._guesses, room - 1, session.n_batch - 1)
        guesses = list(self._draft.propose(text, count))[:count] if count > 0 else []
        rows = [Row(one, position + index, 0, wanted=True) for index, one in enumerate([token, *guesses])]
        before = session.state(growing=True) if self._grows and guesses else None
        session.decode_rows(rows)
        chosen: list[Token] = []
        for index in range(len(rows)):
            chosen.append(choose(session, sampler, request, index, [*text, *(one.id for one in chosen)]))
            if index == len(guesses) or chosen[-1].id != guesses[index]:
                break
        self._evaluated += [token, *guesses[: len(chosen) - 1]]
        self._fresh = False
        if len(chosen) <= len(guesses):
            self._take_back(session, before, position)
        return chosen

    def _take_back(self, session: Session, before: bytes | None, position: int) -> None:
        """Forget the guesses behind the evaluated tokens; ``before`` is the state at ``position``, if it was kept."""
        if before is None and session.truncate(len(self._evaluated)):
            return
        self._grows = True
        if before is None:
            position = 0
            session.forget()
        else:
            session.restore(before, growing=True)
            session.truncate(position)
        session.decode(self._evaluated[position:], position)

    # -- step by step

    @property
    def evaluated(self) -> tuple[int, ...]:
        """The tokens that the cache holds; none where images or sounds are among them."""
        return () if self._stale or min(self._evaluated, default=0) < 0 else tuple(self._evaluated)

    def extend(self, tokens: Sequence[int], progress: Progress | None = None) -> None:
        """Compute more tokens behind the evaluated ones. Raises as :meth:`tokens` does."""

        def more(session: Session) -> None:
            whole = [*self.evaluated, *tokens]
            check_prompt(session, whole)
            self._evaluate(session, Request(whole, _ANY, progress=progress), reuse=True)

        self._at_once(more)

    def sample(self, request: Request) -> Token:
        """A token that may follow the evaluated ones; the cache stays as it is. Raises as :meth:`tokens` does."""

        def one(session: Session) -> Token:
            known = self._have_logits(session)
            sampler = session.sampler(request.params, known)
            try:
                return self._choose(sampler, request, session)
            finally:
                sampler.close()

        return self._at_once(one)

    def logits(self) -> Buffer:
        """A copy of the logits of the last evaluated token. Raises as :meth:`tokens` does."""

        def copied(session: Session) -> Buffer:
            self._have_logits(session)
            row = session.row_of_logits()
            return type(row).from_buffer_copy(row)

        return self._at_once(copied)

    def _have_logits(self, session: Session) -> tuple[int, ...]:
        """The evaluated tokens, computed once more if the engine has no logits of the last one."""
        known = self.evaluated
        check_prompt(session, known)
        if not self._fresh:
            self._evaluate(session, Request(known, _ANY), reuse=True)
        return known

    def state(self) -> tuple[tuple[int, ...], bytes]:
        """The evaluated tokens, and what the session holds of them."""
        return self._at_once(lambda session: (self.evaluated, session.state() if self.evaluated else b""))

    def restore(self, tokens: Sequence[int], data: bytes) -> None:
        """Let the cache be what :meth:`state` gave.

        Raises:
            EngineError: the engine refuses it; the cache is empty then.
        """

        def back(session: Session) -> None:
            self._forget(session)
            if tokens:
                session.restore(data)
                self._evaluated = list(tokens)

        self._at_once(back)

    def _at_once(self, function: Callable[[Session], Result]) -> Result:
        me = object()
        try:
            self._take_turn(me)
            return self.call(function)
        except BaseException:
            self._fresh = self._fresh and self._holder is not me
            raise
        finally:
            end_threads(shared=True)
            if self._holder is me:
                self._holder = None

    def bytes_of(self, token: int, *, special: bool = False) -> bytes | None:
        """The bytes ``token`` adds to a text, or None if it ends it; raises as :meth:`call` does."""
        return self.call(lambda session: session.bytes_of(token, special=special))

    def reset(self) -> None:
        """Empty the cache and set the engine's counters to zero.

        Raises:
            EngineError: a generation is going on, the session is closed, or another process loaded it.
        """
        me = object()
        try:
            self._take_turn(me)
            self.call(self._forget)
        finally:
            if self._holder is me:
                self._holder = None

    def close(self) -> None:
        """Close the session, after the token being computed; harmless the second time.

        In a forked child this frees nothing: the threads it would wait for are gone.

        Raises:
            EngineError: this thread is in a call of the session.
        """
        if os.getpid() != self._process:
            self._session = None
            return
        with self._step:
            self._refuse_inside()
            session, self._session = self._session, None
            if session is not None:
                session.close()
            if self._draft is not None:
                self._draft.close()

    def _take_turn(self, me: object) -> None:
        check_model(self._process, self._name)
        with self._taking:
            if self._holder is None:
                self._holder = me
        if self._holder is not me:
            raise EngineError(_BUSY)

    def _refuse_inside(self) -> None:
        if self._inside:
            raise EngineError(_INSIDE)

    def _forget(self, session: Session) -> None:
        session.forget()
        session.reset_perf()
        self._evaluated = []
        self._stale = self._fresh = False

    def _begin(self, session: Session, request: Request) -> Sampler:
        check_prompt(session, request.prompt, request.pieces)
        if session.use(request.adapters):
            self._stale = True
        # Before the work: what cannot be sampled is refused at once.
        sampler = session.sampler(request.params, request.history, request.answer)
        try:
            if request.scored:
                self._stale, self._fresh = True, False
                session.forget()
            else:
                self._evaluate(session, request)
        except BaseException:
            sampler.close()
            raise
        return sampler

    def _scores(self, request: Request) -> Iterator[Token]:
        """Bring the context to the end of the prompt, and give out what it makes of each of its tokens."""
        yield Token(request.prompt[0])
        for start in range(0, len(request.prompt), self.open_session().n_batch):
            yield from self.call(functools.partial(self._score, request, start))
        self._evaluated = list(request.prompt)
        self._stale = False

    @staticmethod
    def _score(request: Request, start: int, session: Session) -> list[Token]:
        part = request.prompt[start : start + session.n_batch]
        session.decode_rows([Row(token, start + index, 0, wanted=True) for index, token in enumerate(part)])
        return list(scores(session, request, start, len(part)))

    def _choose(self, sampler: Sampler, request: Request, session: Session) -> Token:
        # Choosing may change the logits.
        self._fresh = False
        return choose(session, sampler, request, -1, self._evaluated)

    def _advance(self, sampler: Sampler, request: Request, token: int, session: Session) -> Token | None:
        """Put ``token`` behind the evaluated ones, and choose the one after it; None if there is no room."""
        position = len(self._evaluated)
        if position + spare_cells(request.pieces) >= session.n_ctx:
            return None
        session.decode_one(token, position)
        self._evaluated.append(token)
        return self._choose(sampler, request, session)

    def _evaluate(self, session: Session, request: Request, *, reuse: bool = False) -> None:
        """Bring the context to the end of the prompt, with the logits of its last token."""
        wanted = self.reuse or reuse
        kept = reusable(self._evaluated, request) if wanted and not self._stale else 0
        self._stale = True
        self._fresh = False
        # Not to forget where nothing is kept: ik_llama.cpp then writes zeros into all of the cache.
        if not session.truncate(kept):
            kept = 0
            session.forget()
        prompt, progress = request.prompt, request.progress
        told = None if progress is None else lambda done, _: progress(done, len(prompt))
        for start, end, piece in stretches(request, kept):
            if piece is None:
                session.decode(prompt[start:end], start, told)
                continue
            session.decode_piece(piece, start)
            if told is not None:
                told(end, end)
        self._evaluated = list(prompt)
        self._stale = False
        self._fresh = True
