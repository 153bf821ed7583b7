from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest
from forkyard_llm.engines.generation import Generation
from forkyard_llm.engines.request import Request, common_length
from forkyard_llm.engines.session import Session
from forkyard_llm.errors import EngineError, UsageError
from forkyard_llm.sampling import SamplingParams
from hypothesis import given
from hypothesis import strategies as st

from .fake_session import FakeSession

GREEDY = SamplingParams(temperature=0)


class Numbers(Generation):
    """A generation that is asked with a prompt, and gives out numbers."""

    def tokens(self, prompt: Sequence[int], params: SamplingParams) -> Iterator[int]:  # type: ignore[override]
        return (token.id for token in super().tokens(Request(prompt, params)))


def make(session: FakeSession, *, reuse: bool = False) -> Generation:
    return Numbers(session, reuse=reuse, name="m.gguf")


def test_tokens_come_until_the_context_is_full():
    session = FakeSession(n_ctx=5)
    assert list(make(session).tokens([1, 2, 3], GREEDY)) == [4, 5, 6]
    assert session.cache == [1, 2, 3, 4, 5]
    assert session.samplers[0].closed


def test_a_long_prompt_goes_in_batches():
    session = FakeSession(n_ctx=16)
    next(make(session).tokens(list(range(10)), GREEDY))
    assert session.decoded == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_the_last_token_is_not_decoded_before_it_is_needed():
    session = FakeSession()
    stream = make(session).tokens([1], GREEDY)
    assert next(stream) == 2
    assert session.cache == [1]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "no token"), (list(range(9)), "has 9 tokens, the context 8"), ([1, 1000], "token 1000")],
)
def test_prompts_the_context_cannot_hold_are_refused(prompt: list[int], message: str):
    generation = make(FakeSession())
    with pytest.raises(UsageError, match=message):
        next(generation.tokens(prompt, GREEDY))
    assert next(generation.tokens([5], GREEDY)) == 6


def test_a_second_generation_beside_an_open_one_is_refused_at_once():
    generation = make(FakeSession())
    stream = generation.tokens([1], GREEDY)
    assert next(stream) == 2
    with pytest.raises(EngineError, match="in the middle of a generation"):
        next(generation.tokens([1], GREEDY))
    with pytest.raises(EngineError, match="in the middle of a generation"):
        generation.reset()
    assert next(stream) == 3
    stream.close()
    assert next(generation.tokens([7], GREEDY)) == 8


def test_an_abandoned_stream_gives_its_turn_back():
    generation = make(FakeSession())
    for _ in generation.tokens([1], GREEDY):
        break
    assert next(generation.tokens([1], GREEDY)) == 2


def test_another_thread_is_refused_as_well():
    generation = make(FakeSession())
    stream = generation.tokens([1], GREEDY)
    next(stream)
    errors: list[BaseException] = []

    def other() -> None:
        try:
            next(generation.tokens([1], GREEDY))
        except EngineError as error:
            errors.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join(timeout=10)
    assert len(errors) == 1
    assert next(stream) == 3


def test_an_interrupt_leaves_everything_usable():
    session = FakeSession()
    generation = make(session, reuse=True)
    session.fails_at = 2
    stream = generation.tokens([1], GREEDY)
    assert [next(stream), next(stream)] == [2, 3]
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert session.samplers[0].closed
    session.fails_at = None
    session.cache.append(77)  # what an engine may hold after an interrupt: something nobody noted
    assert next(generation.tokens([1, 2], GREEDY)) == 3
    assert session.cache == [1, 2]


class Interrupted(BaseException):
    """What comes as Ctrl-C does: between any two calls."""


@pytest.fixture
def no_collector() -> Iterator[None]:
    """An exception that comes in a callback of the collector, as hypothesis has one, is lost."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_an_interrupt_at_any_moment_leaves_the_turn_free():
    generation = make(FakeSession(n_ctx=4))

    def work() -> None:
        with suppress(Interrupted):
            while True:
                list(generation.tokens([1, 2], GREEDY))
                generation.reset()

    for _ in range(200):
        worker = threading.Thread(target=work)
        worker.start()
        assert worker.ident is not None
        while worker.is_alive():
            # Again, where it came in a finalizer, which loses it.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident), ctypes.py_object(Interrupted))
            worker.join(2.0)
        assert list(generation.tokens([1, 2], GREEDY)) == [3, 4, 5]


def test_close_is_idempotent_and_ends_an_open_stream():
    session = FakeSession()
    generation = make(session)
    stream = generation.tokens([1], GREEDY)
    next(stream)
    generation.close()
    generation.close()
    assert generation.closed
    assert session.closed
    with pytest.raises(EngineError, match=r"closed \(m\.gguf\)"):
        next(stream)
    with pytest.raises(EngineError, match="closed"):
        next(generation.tokens([1], GREEDY))
    with pytest.raises(EngineError, match="closed"):
        generation.call(lambda session: session.n_vocab)


def test_a_forked_child_gets_an_error_and_frees_nothing(monkeypatch: pytest.MonkeyPatch):
    session = FakeSession()
    generation = make(session)
    stream = generation.tokens([1], GREEDY)
    next(stream)
    child = os.getpid() + 1
    with monkeypatch.context() as forked:
        forked.setattr(os, "getpid", lambda: child)
        # As another thread of the parent may hold it while it forks.
        generation._step.acquire()
        for use in (
            lambda: next(stream),
            lambda: next(generation.tokens([1], GREEDY)),
            generation.reset,
            generation.open_session,
            lambda: generation.call(lambda session: session.n_vocab),
            lambda: generation.bytes_of(1),
        ):
            with pytest.raises(EngineError, match="load the model after the fork"):
                use()
        generation.close()
    assert generation.closed
    assert not session.closed
    assert not session.samplers[0].closed


def test_a_thread_inside_a_call_is_refused_instead_of_waiting_for_itself():
    session = FakeSession()
    generation = make(session)
    refused: list[str] = []

    def handler(_session: Session) -> None:
        for use in (generation.close, lambda: generation.bytes_of(1), lambda: next(generation.tokens([1], GREEDY))):
            try:
                use()
            except EngineError as error:
                refused.append(str(error))

    generation.call(handler)
    assert len(refused) == 3
    assert all("signal handler" in message for message in refused)
    assert not session.closed
    assert next(generation.tokens([1], GREEDY)) == 2


def test_the_vocabulary_may_be_read_inside_a_call_and_no_more_than_that():
    session = FakeSession()
    generation = make(session)

    def reading(session: Session) -> int:
        with pytest.raises(EngineError, match="signal handler"):
            generation.close()
        return session.n_vocab

    assert generation.read(reading) == 1000
    assert generation.call(lambda _: generation.read(reading)) == 1000
    assert generation.call(lambda _: 1) == 1
    generation.close()
    with pytest.raises(EngineError, match="is closed"):
        generation.read(reading)


def test_a_stream_s_own_consumer_may_use_everything_but_a_second_stream():
    session = FakeSession()
    generation = make(session)
    for token in generation.tokens([1], GREEDY):
        assert generation.call(lambda session: session.n_vocab) == 1000
        with pytest.raises(EngineError, match="in the middle of a generation"):
            next(generation.tokens([1], GREEDY))
        if token == 3:
            generation.close()
            break
    assert session.closed
    assert session.samplers[0].closed


def test_without_reuse_every_prompt_starts_from_nothing():
    session = FakeSession()
    generation = make(session)
    for _ in range(2):
        next(generation.tokens([1, 2, 3], GREEDY))
    assert session.decoded == [[1, 2, 3], [1, 2, 3]]


def test_reuse_decodes_only_what_is_new_and_always_something():
    session = FakeSession()
    generation = make(session, reuse=True)
    next(generation.tokens([1, 2, 3], GREEDY))
    next(generation.tokens([1, 2, 9], GREEDY))
    next(generation.tokens([1, 2, 9], GREEDY))
    assert session.decoded == [[1, 2, 3], [9], [9]]


def test_a_cache_that_cannot_be_cut_is_emptied():
    session = FakeSession(truncates=False)
    generation = make(session, reuse=True)
    next(generation.tokens([1, 2, 3], GREEDY))
    next(generation.tokens([1, 2, 9], GREEDY))
    assert session.decoded == [[1, 2, 3], [1, 2, 9]]


def test_reset_forgets():
    session = FakeSession()
    generation = make(session, reuse=True)
    next(generation.tokens([1, 2], GREEDY))
    generation.reset()
    assert session.cache == []
    next(generation.tokens([1, 2], GREEDY))
    assert session.decoded == [[1, 2], [1, 2]]


@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_the_common_part_is_common_and_leaves_one(evaluated: list[int], prompt: list[int]):
    length = common_length(evaluated, prompt)
    assert evaluated[:length] == prompt[:length]
    assert length < len(prompt)
    more = length + 1
    assert more == len(prompt) or evaluated[:more] != prompt[:more] or more > len(evaluated)


def test_guesses_change_no_text_and_fewer_batches_make_it():
    class Guesses:
        closed = False

        def propose(self, tokens: Sequence[int], count: int) -> Sequence[int]:
            # Right, right, wrong.
            return [tokens[-1] + 1, tokens[-1] + 2, 0][:count]

        def close(self) -> None:
            self.closed = True

    draft = Guesses()
    session = FakeSession(n_ctx=12)
    generation = Generation(session, reuse=False, name="m", draft=draft, guesses=3)
    assert [token.id for token in generation.tokens(Request([1], GREEDY))] == list(range(2, 14))
    assert session.cache == list(range(1, 13))
    assert len(session.decoded) == 5
    generation.close()
    assert draft.closed


def test_wrong_guesses_are_taken_back_from_a_cache_that_only_grows():
    class Wrong:
        def propose(self, tokens: Sequence[int], count: int) -> Sequence[int]:
            return [tokens[-1] + 1, 0][:count]

        def close(self) -> None: ...

    session = FakeSession(n_ctx=12, truncates=False, n_batch=16)
    generation = Generation(session, reuse=False, name="m", draft=Wrong(), guesses=2)
    assert [token.id for token in generation.tokens(Request([1], GREEDY))] == list(range(2, 14))
    assert session.cache == list(range(1, 13))
    # All of it once, and then what is right of the guesses: the state before them was kept.
    assert session.decoded[1:5] == [[2, 3, 0], [1, 2, 3], [4, 5, 0], [4, 5]]


def test_step_by_step():
    session = FakeSession()
    generation = make(session)
    generation.extend([1, 2])
    generation.extend([3])
    assert generation.evaluated == (1, 2, 3)
    assert generation.sample(Request((), GREEDY)).id == 4
    # The logits may have been changed by choosing: they are computed again.
    assert generation.sample(Request((), GREEDY)).id == 4
    assert session.cache == [1, 2, 3]
    tokens, data = generation.state()
    generation.reset()
    with pytest.raises(UsageError, match="no token"):
        generation.sample(Request((), GREEDY))
    generation.restore(tokens, data)
    assert generation.sample(Request((), GREEDY)).id == 4
    generation.extend([4])
    assert session.cache == [1, 2, 3, 4]


def test_progress_is_told_and_may_end_the_prompt():
    told: list[tuple[int, int]] = []
    generation = Generation(FakeSession(n_ctx=16), reuse=False, name="m")
    next(generation.tokens(Request(list(range(10)), GREEDY, progress=lambda done, all_: told.append((done, all_)))))
    assert told == [(4, 10), (8, 10), (10, 10)]

    def stop(done: int, _all: int) -> None:
        raise TimeoutError(done)

    with pytest.raises(TimeoutError):
        next(generation.tokens(Request(list(range(10)), GREEDY, progress=stop)))
    assert next(generation.tokens(Request([5], GREEDY))).id == 6
