from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from forkyard_llm.engines.request import Request, Token
from forkyard_llm.engines.scheduler import PROMPT_CHUNK, Scheduler
from forkyard_llm.errors import EngineError, QueueFull, UsageError
from forkyard_llm.sampling import SamplingParams

from .fake_session import FakeSession, Gate

GREEDY = SamplingParams(temperature=0)


@pytest.fixture
def opened() -> Iterator[list[Scheduler]]:
    made: list[Scheduler] = []
    yield made
    for one in made:
        one.close()


def make(session: FakeSession, opened: list[Scheduler], limit: int = 100) -> Scheduler:
    opened.append(Scheduler(session, parallel=len(session.caches), limit=limit, name="m.gguf"))
    return opened[-1]


def ids(stream: Iterator[Token]) -> list[int]:
    return [token.id for token in stream]


def in_threads(*works: Any) -> list[Any]:
    """What each function returns, run at the same time; an exception is its result."""
    results: list[Any] = [None] * len(works)

    def run(index: int) -> None:
        try:
            results[index] = works[index]()
        except BaseException as error:  # noqa: BLE001
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    return results


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_one_request_is_continued_until_the_context_is_full(opened: list[Scheduler]):
    session = FakeSession(n_ctx=5, sequences=2)
    assert ids(make(session, opened).tokens(Request([1, 2, 3], GREEDY))) == [4, 5, 6]
    assert session.samplers[0].closed


def test_it_ends_at_its_limit_and_at_an_end_token_unless_told_otherwise(opened: list[Scheduler]):
    scheduler = make(FakeSession(n_ctx=9, end=5), opened)
    assert ids(scheduler.tokens(Request([1], GREEDY, limit=2))) == [2, 3]
    assert ids(scheduler.tokens(Request([1], GREEDY))) == [2, 3, 4, 5]
    assert ids(scheduler.tokens(Request([4], GREEDY, past_end=True)))[:3] == [5, 6, 7]


def test_requests_are_computed_together_and_none_is_mixed_up(opened: list[Scheduler]):
    session = FakeSession(n_ctx=32, n_batch=64, sequences=4)
    gate = Gate(session)
    scheduler = make(session, opened)
    works = [
        lambda start=start: ids(scheduler.tokens(Request([start], GREEDY, limit=20))) for start in range(0, 800, 100)
    ]
    threading.Timer(0.05, gate.open).start()
    results = in_threads(*works)
    assert results == [list(range(start + 1, start + 21)) for start in range(0, 800, 100)]
    assert max(len(batch) for batch in session.batches) == 4
    # All eight at four at a time; not one after the other.
    assert len(session.batches) < 100


def test_a_long_prompt_does_not_hold_the_others_up(opened: list[Scheduler]):
    session = FakeSession(n_ctx=2000, n_batch=1000, sequences=2)
    session.before_batch = lambda: time.sleep(0.005)
    scheduler = make(session, opened)
    first = scheduler.tokens(Request([1], GREEDY, limit=1900))
    next(first)
    long = threading.Thread(target=lambda: ids(scheduler.tokens(Request([0] * 1500, GREEDY, limit=1))))
    long.start()
    long.join(timeout=30)
    sizes = [len(batch) for batch in session.batches if any(row.sequence == 1 for row in batch)]
    assert max(sizes) == PROMPT_CHUNK + 1
    first.close()


def test_prompts_take_turns(opened: list[Scheduler]):
    session = FakeSession(n_ctx=50, n_batch=4, sequences=2)
    gate = Gate(session)
    scheduler = make(session, opened)
    threading.Timer(0.05, gate.open).start()
    in_threads(*(lambda: ids(scheduler.tokens(Request([0] * 40, GREEDY, limit=1))) for _ in range(2)))
    first = [batch[0].sequence for batch in session.batches[:10]]
    assert {first.count(0), first.count(1)} <= {4, 5, 6}


def test_where_none_may_wait_those_have_room_that_can_begin(opened: list[Scheduler]):
    session = FakeSession(n_ctx=9, sequences=2)
    gate = Gate(session)
    scheduler = make(session, opened, limit=0)
    found: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: found.append(ids(scheduler.tokens(Request([1], GREEDY, limit=2)))))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: scheduler._given == 2)
    with pytest.raises(QueueFull, match="0 requests wait for this Llama already"):
        next(scheduler.tokens(Request([1], GREEDY)))
    gate.open()
    for thread in threads:
        thread.join(timeout=30)
    assert found == [[2, 3], [2, 3]]
    assert ids(scheduler.tokens(Request([7], GREEDY, limit=1))) == [8]
    assert scheduler._given == 0


def test_what_waits_is_limited(opened: list[Scheduler]):
    session = FakeSession(n_ctx=9)
    gate = Gate(session)
    scheduler = make(session, opened, limit=1)
    threads = [threading.Thread(target=lambda: ids(scheduler.tokens(Request([1], GREEDY)))) for _ in range(2)]
    threads[0].start()
    wait_for(lambda: scheduler._slots[0].job is not None)
    threads[1].start()
    wait_for(lambda: scheduler._waiting)
    with pytest.raises(QueueFull, match="1 requests wait for this Llama already"):
        next(scheduler.tokens(Request([1], GREEDY)))
    gate.open()
    for thread in threads:
        thread.join(timeout=30)
    assert ids(scheduler.tokens(Request([7], GREEDY, limit=1))) == [8]


def test_closing_a_stream_frees_its_sequence(opened: list[Scheduler]):
    session = FakeSession(n_ctx=900)
    scheduler = make(session, opened)
    stream = scheduler.tokens(Request([1], GREEDY))
    assert next(stream).id == 2
    stream.close()
    assert ids(scheduler.tokens(Request([5], GREEDY, limit=1))) == [6]
    assert session.samplers[0].closed


def test_a_request_that_is_closed_while_it_waits_is_never_computed(opened: list[Scheduler]):
    session = FakeSession(n_ctx=900)
    gate = Gate(session)
    scheduler = make(session, opened)
    first = threading.Thread(target=lambda: ids(scheduler.tokens(Request([1], GREEDY, limit=3))))
    first.start()
    wait_for(lambda: scheduler._slots[0].job is not None)
    second = threading.Thread(target=lambda: ids(scheduler.tokens(Request([500], GREEDY, limit=3))))
    second.start()
    wait_for(lambda: scheduler._waiting)
    scheduler._waiting[0].cancelled = True
    gate.open()
    first.join(timeout=30)
    scheduler.close()
    second.join(timeout=30)
    assert all(row.token < 500 for batch in session.batches for row in batch)


def test_a_prompt_begins_with_what_its_sequence_holds(opened: list[Scheduler]):
    session = FakeSession(n_ctx=50, n_batch=50)
    scheduler = make(session, opened)
    assert ids(scheduler.tokens(Request(list(range(20)), GREEDY, limit=1))) == [20]
    assert ids(scheduler.tokens(Request([*range(19), 30], GREEDY, limit=1))) == [31]
    assert session.decoded == [list(range(20)), [30]]


def test_a_prompt_begins_with_what_another_sequence_holds(opened: list[Scheduler]):
    session = FakeSession(n_ctx=900, n_batch=50, sequences=2)
    session.before_batch = lambda: time.sleep(0.01)
    scheduler = make(session, opened)
    first = scheduler.tokens(Request(list(range(40)), GREEDY))
    next(first)
    assert ids(scheduler.tokens(Request([*range(39), 70], GREEDY, limit=1))) == [71]
    assert [row.token for batch in session.batches for row in batch if row.sequence == 1] == [70]
    first.close()


def test_a_cache_that_cannot_be_cut_is_computed_anew(opened: list[Scheduler]):
    session = FakeSession(n_ctx=50, n_batch=50, truncates=False)
    scheduler = make(session, opened)
    ids(scheduler.tokens(Request(list(range(20)), GREEDY, limit=1)))
    assert ids(scheduler.tokens(Request([*range(19), 30], GREEDY, limit=1))) == [31]


def test_what_one_request_gets_wrong_is_its_own(opened: list[Scheduler]):
    scheduler = make(FakeSession(n_ctx=20, sequences=2), opened)
    results = in_threads(
        lambda: ids(scheduler.tokens(Request([1], SamplingParams(top_k=13)))),
        lambda: ids(scheduler.tokens(Request([1], GREEDY, limit=3))),
        lambda: ids(scheduler.tokens(Request(list(range(21)), GREEDY))),
        lambda: ids(scheduler.tokens(Request([], GREEDY))),
    )
    assert isinstance(results[0], UsageError)
    assert results[1] == [2, 3, 4]
    assert isinstance(results[2], UsageError)
    assert isinstance(results[3], UsageError)


def test_what_a_processor_or_progress_raises_ends_its_request_alone(opened: list[Scheduler]):
    scheduler = make(FakeSession(n_ctx=20, sequences=2), opened)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    request = Request([1], GREEDY, progress=fail, limit=3)
    results = in_threads(
        lambda: ids(scheduler.tokens(request)), lambda: ids(scheduler.tokens(Request([1], GREEDY, limit=3)))
    )
    assert isinstance(results[0], ZeroDivisionError)
    assert results[1] == [2, 3, 4]


def test_a_request_s_own_function_may_call_but_not_ask_for_more(opened: list[Scheduler]):
    scheduler = make(FakeSession(n_ctx=20), opened)
    seen: list[object] = []

    def told(*_: object) -> None:
        seen.append(scheduler.call(lambda session: session.n_vocab))
        with pytest.raises(EngineError, match="cannot make another request"):
            next(scheduler.tokens(Request([1], GREEDY)))

    assert ids(scheduler.tokens(Request([1], GREEDY, progress=told, limit=2))) == [2, 3]
    assert seen == [1000]


def test_when_the_engine_fails_all_are_told_and_the_next_works(opened: list[Scheduler]):
    session = FakeSession(n_ctx=20, sequences=2)
    scheduler = make(session, opened)
    session.fails_at = 3
    results = in_threads(*(lambda: ids(scheduler.tokens(Request([1], GREEDY))) for _ in range(2)))
    assert all(isinstance(result, EngineError) for result in results)
    session.fails_at = None
    assert ids(scheduler.tokens(Request([1], GREEDY, limit=5))) == [2, 3, 4, 5, 6]


def test_calls_come_between_batches_and_their_errors_to_the_caller(opened: list[Scheduler]):
    session = FakeSession(n_ctx=900)
    session.before_batch = lambda: time.sleep(0.01)
    scheduler = make(session, opened)
    stream = scheduler.tokens(Request([1], GREEDY))
    next(stream)
    assert scheduler.call(lambda session: session.n_vocab) == 1000
    with pytest.raises(ZeroDivisionError):
        scheduler.call(lambda _: 1 // 0)
    with pytest.raises(EngineError, match="before a reset"):
        scheduler.reset()
    stream.close()
    scheduler.reset()


def test_closing_ends_what_is_open(opened: list[Scheduler]):
    session = FakeSession(n_ctx=900)
    session.before_batch = lambda: time.sleep(0.01)
    scheduler = make(session, opened)
    stream = scheduler.tokens(Request([1], GREEDY))
    next(stream)
    scheduler.close()
    scheduler.close()
    assert scheduler.closed
    assert session.closed
    with pytest.raises(EngineError, match="was closed"):
        list(stream)
    for use in (scheduler.reset, lambda: next(scheduler.tokens(Request([1], GREEDY)))):
        with pytest.raises(EngineError, match=r"closed \(m\.gguf\)"):
            use()


def test_one_that_nothing_was_asked_of_closes_too(opened: list[Scheduler]):
    session = FakeSession()
    make(session, opened).close()
    assert session.closed


def test_a_forked_child_gets_an_error_and_frees_nothing(opened: list[Scheduler], monkeypatch: pytest.MonkeyPatch):
    session = FakeSession(n_ctx=900)
    session.before_batch = lambda: time.sleep(0.01)
    scheduler = make(session, opened)
    stream = scheduler.tokens(Request([1], GREEDY))
    next(stream)
    child = os.getpid() + 1
    with monkeypatch.context() as forked:
        forked.setattr(os, "getpid", lambda: child)
        for use in (scheduler.reset, lambda: next(scheduler.tokens(Request([1], GREEDY))), scheduler.open_session):
            with pytest.raises(EngineError, match="load the model after the fork"):
                use()
    stream.close()


def test_others_adapters_wait_for_those_in_use(opened: list[Scheduler]):
    session = FakeSession(n_ctx=40, n_batch=40, sequences=2)
    used: list[object] = [()]

    def use(adapters: object) -> bool:
        if adapters == used[-1]:
            return False
        assert not any(slot.job for slot in scheduler._slots)
        used.append(adapters)
        return True

    session.use = use  # type: ignore[assignment]
    scheduler = make(session, opened)
    adapter = ((object(), 1.0),)
    works = [
        lambda one=one: ids(scheduler.tokens(Request([1], GREEDY, limit=5, adapters=one)))  # type: ignore[arg-type]
        for one in ((), adapter, (), adapter)
    ]
    assert in_threads(*works) == [[2, 3, 4, 5, 6]] * 4
    assert adapter in used
