"""Run generations on a session, one at a time, and know what its KV cache holds."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from ..errors import EngineError, UsageError
from ..sampling import SamplingParams
from .session import Sampler, Session
from .threads import check_model

__all__ = ["Generation", "common_length"]

Result = TypeVar("Result")

_BUSY = (
    "this Llama is in the middle of a generation; exhaust or close that stream first, or use another Llama"
    " (one Llama does one generation at a time)"
)
_INSIDE = (
    "this Llama is in the middle of a call that this thread makes; a signal handler, a log handler or a finalizer must"
    " not use it meanwhile"
)


class Generation:
    """The owner of a session: two locks, and the tokens whose keys and values the cache holds.

    One lock is held for the length of a generation and never waited for; the other for the length of one call into the
    engine, and everything that touches the session waits for that. Both belong to the process that made this object: a
    child forked from it gets an error before it comes to them.

    Args:
        reuse: keep what a new prompt shares with the evaluated tokens instead of starting from nothing.
        name: how messages call the model.
    """

    def __init__(self, session: Session, *, reuse: bool, name: str) -> None:
        self._session: Session | None = session
        self._reuse = reuse
        self._name = name
        self._process = os.getpid()
        self._turn = threading.Lock()
        # One that its own thread can take again: that thread finds `_inside` set then, and is refused.
        self._step = threading.RLock()
        self._inside = False
        self._evaluated: list[int] = []
        self._stale = False

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
            self._inside = True
            try:
                return function(self.open_session())
            finally:
                self._inside = False

    def tokens(self, prompt: Sequence[int], params: SamplingParams) -> Iterator[int]:
        """Tokens that follow ``prompt`` until the context is full; the turn is taken at the first ``next``.

        Raises:
            EngineError: another generation is going on, the engine failed, the session was closed meanwhile, or another
                process loaded it.
            UsageError: no prompt, one that does not fit, or one with tokens outside the vocabulary.
        """
        self._take_turn()
        sampler = None
        try:
            sampler = self.call(lambda session: self._begin(session, prompt, params))
            while True:
                token = self.call(lambda _: sampler.sample())
                yield token
                if not self.call(functools.partial(self._advance, token)):
                    return
        except GeneratorExit:
            raise
        except BaseException:
            # Interrupted between the engine and the line after it: what the cache holds is not known any more.
            self._stale = True
            raise
        finally:
            if sampler is not None and os.getpid() == self._process:
                sampler.close()
            self._turn.release()

    def piece(self, token: int) -> bytes:
        """The bytes ``token`` adds to a text; raises as :meth:`call` does."""
        return self.call(lambda session: session.piece(token))

    def is_end(self, token: int) -> bool:
        """Whether ``token`` ends a generation; raises as :meth:`call` does."""
        return self.call(lambda session: session.is_end(token))

    def reset(self) -> None:
        """Empty the cache and set the engine's counters to zero.

        Raises:
            EngineError: a generation is going on, the session is closed, or another process loaded it.
        """
        self._take_turn()
        try:
            self.call(self._forget)
        finally:
            self._turn.release()

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

    def _take_turn(self) -> None:
        check_model(self._process, self._name)
        if not self._turn.acquire(blocking=False):
            raise EngineError(_BUSY)

    def _refuse_inside(self) -> None:
        if self._inside:
            raise EngineError(_INSIDE)

    def _forget(self, session: Session) -> None:
        session.forget()
        session.reset_perf()
        self._evaluated = []
        self._stale = False

    def _begin(self, session: Session, prompt: Sequence[int], params: SamplingParams) -> Sampler:
        self._evaluate(session, prompt)
        return session.sampler(params, prompt)

    def _advance(self, token: int, session: Session) -> bool:
        """Put ``token`` behind the evaluated ones; False if there is no room."""
        position = len(self._evaluated)
        if position >= session.n_ctx:
            return False
        session.decode_one(token, position)
        self._evaluated.append(token)
        return True

    def _evaluate(self, session: Session, prompt: Sequence[int]) -> None:
        """Bring the context to the end of ``prompt``, with the logits of its last token."""
        check_prompt(session, prompt)
        kept = common_length(self._evaluated, prompt) if self._reuse and not self._stale else 0
        self._stale = True
        if kept == 0 or not session.truncate(kept):
            kept = 0
            session.forget()
        session.decode(prompt[kept:], kept)
        self._evaluated = list(prompt)
        self._stale = False


def check_prompt(session: Session, prompt: Sequence[int]) -> None:
    """Refuse a prompt the context of ``session`` cannot hold.

    Raises:
        UsageError: it is empty, too long, or has tokens outside the vocabulary.
    """
    if not prompt:
        msg = "there is nothing to continue: the prompt has no token"
        raise UsageError(msg)
    if len(prompt) > session.n_ctx:
        msg = f"the prompt has {len(prompt)} tokens, the context {session.n_ctx}; raise n_ctx or shorten the prompt"
        raise UsageError(msg)
    session.check_tokens(prompt)


def common_length(evaluated: Sequence[int], prompt: Sequence[int]) -> int:
    """How many tokens both begin with, leaving at least one of ``prompt`` to compute logits from."""
    length = 0
    for known, wanted in zip(evaluated, prompt[:-1], strict=False):
        if known != wanted:
            break
        length += 1
    return length
