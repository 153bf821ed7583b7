from __future__ import annotations

import os
import threading

import pytest
from forkyard_llm.engines import cores, threads
from forkyard_llm.errors import EngineError


@pytest.fixture(autouse=True)
def nothing_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_computed_in", None)


def become_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    child = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: child)


def test_a_child_of_a_process_that_computed_gets_no_threads(monkeypatch: pytest.MonkeyPatch):
    threads.note_threads(2)
    threads.check_threads(2)
    become_a_child(monkeypatch)
    with pytest.raises(EngineError, match=r"computed with several threads in process \d+, .*would hang.*spawn"):
        threads.check_threads(2)
    threads.check_threads(1)


def test_a_child_of_a_process_that_used_one_thread_may_use_several(monkeypatch: pytest.MonkeyPatch):
    threads.note_threads(1)
    become_a_child(monkeypatch)
    threads.check_threads(8)


def test_threads_are_ended_in_the_process_that_has_them_alone(monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []
    monkeypatch.setattr(threads, "_pause", lambda: asked.append)
    monkeypatch.setattr(threads, "_callers", set())
    threads.end_threads()
    assert not asked, "nothing was computed"
    threads.note_threads(2)
    threads.end_threads(shared=True)
    assert not asked, "one thread alone has them"
    threads.end_threads()
    here = threading.get_ident()
    monkeypatch.setattr(threading, "get_ident", lambda: here + 1)
    threads.note_threads(2)
    threads.end_threads(shared=True)
    assert len(asked) == 2
    become_a_child(monkeypatch)
    threads.end_threads()
    assert len(asked) == 2


def test_a_model_stays_in_the_process_that_loaded_it(monkeypatch: pytest.MonkeyPatch):
    process = os.getpid()
    threads.check_model(process, "m.gguf")
    become_a_child(monkeypatch)
    with pytest.raises(EngineError, match=r"\(m\.gguf\) was loaded by process .*: load the model after the fork"):
        threads.check_model(process, "m.gguf")


def test_threads_that_the_system_does_not_give_are_an_error(monkeypatch: pytest.MonkeyPatch):
    before = threading.active_count()
    threads.check_threads(4)
    real, asked = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        asked.append(thread)
        if len(asked) > 2:
            message = "can't start new thread"
            raise RuntimeError(message)
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(EngineError, match=r"start 2 threads more, 3 are needed .*pids\.max"):
        threads.check_threads(4)
    assert threading.active_count() == before


def test_openmp_s_own_limit_counts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_THREAD_LIMIT", "1")
    threads.check_threads(1)
    assert cores.default_threads() == 1
    with pytest.raises(EngineError, match="OMP_THREAD_LIMIT=1 allows fewer than 2 threads"):
        threads.check_threads(2)
    monkeypatch.setenv("OMP_THREAD_LIMIT", "many")
    threads.check_threads(2)
