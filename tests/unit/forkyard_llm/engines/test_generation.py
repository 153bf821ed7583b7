from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import pytest
from forkyard_llm.engines.generation import Generation, common_length
from forkyard_llm.engines.session import Perf, Sampler, Session
from forkyard_llm.errors import EngineError, UsageError
from forkyard_llm.sampling import SamplingParams
from hypothesis import given
from hypothesis import strategies as st

GREEDY = SamplingParams(temperature=0)


class FakeSession(Session):
    """A session whose next token is one more than the last decoded one, and that checks what it is told."""

    def __init__(self, n_ctx: int = 8, *, truncates: bool = True) -> None:
        self.n_ctx = n_ctx
        self.n_vocab = 1000
        self.n_batch = 4
        self.cache: list[int] = []
        self.decoded: list[list[int]] = []
        self.samplers: list[FakeSampler] = []
        self.fails_at: int | None = None
        self.truncates = truncates
        self.closed = False

    def _decode_batch(self, tokens: Sequence[int], position: int) -> None:
        assert position == len(self.cache), "a token was put at the wrong position"
        if self.fails_at is not None and position >= self.fails_at:
            raise KeyboardInterrupt
        self.cache += tokens
        self.decoded.append(list(tokens))

    def decode_one(self, token: int, position: int) -> None:
        self._decode_batch([token], position)

    def sampler(self, params: SamplingParams, history: Sequence[int]) -> Sampler:
        self.samplers.append(FakeSampler(self))
        return self.samplers[-1]

    def forget(self) -> None:
        self.cache.clear()

    def truncate(self, position: int) -> bool:
        if self.truncates:
            del self.cache[position:]
        return self.truncates

    def perf(self) -> Perf:
        return Perf(0, 0, 0, 0, 0)

    def reset_perf(self) -> None:
        pass

    def close(self) -> None:
        assert not self.closed
        self.closed = True

    def _release(self) -> None:
        pass

    def _tokenize(self, *_arguments: object) -> int:
        raise NotImplementedError

    def _token_to_piece(self, *_arguments: object) -> int:
        raise NotImplementedError


class FakeSampler(Sampler):
    def __init__(self, session: FakeSession) -> None:
        self.session = session
        self.closed = False

    def sample(self) -> int:
        return self.session.cache[-1] + 1

    def close(self) -> None:
        self.closed = True


def make(session: FakeSession, *, reuse: bool = False) -> Generation:
    return Generation(session, reuse=reuse, name="m.gguf")


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
    session.cache += [77]  # what an engine may hold after an interrupt: something nobody noted
    assert next(generation.tokens([1, 2], GREEDY)) == 3
    assert session.cache == [1, 2]


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
            lambda: generation.piece(1),
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
        for use in (generation.close, lambda: generation.piece(1), lambda: next(generation.tokens([1], GREEDY))):
            try:
                use()
            except EngineError as error:
                refused.append(str(error))

    generation.call(handler)
    assert len(refused) == 3
    assert all("signal handler" in message for message in refused)
    assert not session.closed
    assert next(generation.tokens([1], GREEDY)) == 2


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
