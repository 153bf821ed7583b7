"""Forked processes and threads on real engines: an error at once where the engine would wait for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from forkyard_llm import loading

pytestmark = pytest.mark.usefixtures("built_payloads")

ENGINES = ("llama.cpp", "ik_llama.cpp")
# Of what ends at once or never; long enough for a machine with better things to do.
TIMEOUT_S = 1800

BEGINNING = """
import os, signal, sys, threading
from forkyard_llm import EngineError, Llama

def opened(threads=2):
    return Llama(sys.argv[1], engine=sys.argv[2], n_ctx=64, n_threads=threads)

def text(llm):
    return llm("1, 2, 3, 4, 5, 6, 7,", max_tokens=3, temperature=0)["choices"][0]["text"]

def in_child(function):
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        return
    try:
        print(function())
    except EngineError as error:
        print("EngineError", error)
    sys.exit(0)  # with finalizers and all
"""


def run(code: str, model: Path, engine: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(loading.__file__).parents[1]), "PYTHONUNBUFFERED": "1"}
    # Newer Pythons warn of every fork beside threads.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", BEGINNING + code, str(model), engine]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_child_cannot_use_its_parent_s_model(smollm2: Path, engine: str):
    code = """
llm = opened()
first = text(llm)
stream = llm("1, 2,", stream=True)
next(stream)
for use in (lambda: text(llm), lambda: next(stream), lambda: llm.tokenize("a"), llm.n_vocab, llm.reset, llm.close):
    in_child(use)
stream.close()
print(text(llm) == first)
"""
    lines = run(code, smollm2, engine)
    assert len(lines) == 7
    assert all("load the model after the fork" in line for line in lines[:5])
    assert lines[5:] == ["None", "True"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_child_of_a_process_that_computed_loads_for_one_thread_only(smollm2: Path, engine: str):
    code = """
llm = opened()
text(llm)
in_child(lambda: text(opened()))
in_child(lambda: text(opened(threads=1)))
"""
    refused, counted = run(code, smollm2, engine)
    assert refused.startswith("EngineError an engine has computed with several threads in process ")
    assert "give n_threads=1" in refused
    assert counted.startswith(" 8")


@pytest.mark.parametrize("engine", ENGINES)
def test_children_that_load_for_themselves_compute_with_several_threads(smollm2: Path, engine: str):
    code = """
import multiprocessing
llm = opened()  # loaded, and not used before the fork

def work(number):
    with opened() as own:
        return text(own)

with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.map(work, [1])[0])
"""
    (line,) = run(code, smollm2, engine)
    assert line.startswith(" 8")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_pool_that_inherits_a_model_gets_the_error(smollm2: Path, engine: str):
    code = """
import multiprocessing
llm = opened()
text(llm)

def work(number):
    return text(llm)

with multiprocessing.get_context("fork").Pool(2) as pool:
    try:
        pool.map(work, [1, 2])
    except EngineError as error:
        print(error)
"""
    (line,) = run(code, smollm2, engine)
    assert "start method 'spawn'" in line


@pytest.mark.parametrize("engine", ENGINES)
def test_a_signal_handler_that_uses_the_model_does_not_hang(smollm2: Path, engine: str):
    code = """
llm = opened(threads=1)
calls = []

def handler(number, frame):
    calls.append(number)
    try:
        llm.close()
    except EngineError:
        pass

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
try:
    while len(calls) < 20 and not llm.closed:
        text(llm)
except EngineError:
    pass
signal.setitimer(signal.ITIMER_REAL, 0)
print(bool(calls))
"""
    assert run(code, smollm2, engine) == ["True"]


@pytest.mark.parametrize("engine", ENGINES)
def test_closing_from_another_thread_ends_a_stream_with_an_error(smollm2: Path, engine: str):
    code = """
llm = opened(threads=1)
stream = llm("Once upon a time", max_tokens=None, stream=True, logit_bias={llm.token_eos(): float("-inf")})
next(stream)
threading.Timer(0.05, llm.close).start()
try:
    for _ in stream:
        pass
    print("came to its end")
except EngineError as error:
    print("closed" in str(error))
"""
    assert run(code, smollm2, engine)[0] in ("True", "came to its end")
