from __future__ import annotations

import os

import pytest
from forkyard_llm.engines import forks
from forkyard_llm.errors import EngineError


@pytest.fixture(autouse=True)
def nothing_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "_computed_in", None)


def become_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    child = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: child)


def test_a_child_of_a_process_that_computed_gets_no_threads(monkeypatch: pytest.MonkeyPatch):
    forks.note_threads(2)
    forks.check_threads(2)
    become_a_child(monkeypatch)
    with pytest.raises(EngineError, match=r"computed with several threads in process \d+, .*would hang.*spawn"):
        forks.check_threads(2)
    forks.check_threads(1)


def test_a_child_of_a_process_that_used_one_thread_may_use_several(monkeypatch: pytest.MonkeyPatch):
    forks.note_threads(1)
    become_a_child(monkeypatch)
    forks.check_threads(8)


def test_a_model_stays_in_the_process_that_loaded_it(monkeypatch: pytest.MonkeyPatch):
    process = os.getpid()
    forks.check_model(process, "m.gguf")
    become_a_child(monkeypatch)
    with pytest.raises(EngineError, match=r"\(m\.gguf\) was loaded by process .*: load the model after the fork"):
        forks.check_model(process, "m.gguf")
