"""`Llama(isolate=True)` on both engines: what a plain one says, and deaths of the engine that are exceptions."""

from __future__ import annotations

import gc
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm import EngineDied, EngineError, ForkyardLlmError, Llama, ModelError, UsageError, python_child
from forkyard_llm.isolated import IsolatedLlama
from forkyard_llm.sampling import SamplingParams

from . import mutated_gguf as mutated
from . import tiny_texts

COUNTING = "1, 2, 3, 4, 5, 6, 7,"
ENGINES = ("llama.cpp", "ik_llama.cpp")
SEED = 20261201
# Halves, quants, integers and rows that stand together: an engine computes with some where a matrix is, with none where
# numbers must be float32, and has some not at all.
KINDS = (1, 8, 9, 24, 26, 30, 36, 202)
ENDS_WITHIN_S = 60.0
pytestmark = pytest.mark.usefixtures("built_payloads")


def opened(path: Path, engine: str, **arguments: Any) -> Llama:
    return Llama(path, engine=engine, **{"n_ctx": 256, "n_threads": 1, **arguments})


@pytest.fixture(scope="module")
def isolated(built_payloads: None, smollm2: Path) -> Iterator[dict[str, Llama]]:
    """One isolated model per engine for the whole module; tests may kill its process."""
    models = {engine: opened(smollm2, engine, isolate=True) for engine in ENGINES}
    yield models
    for model in models.values():
        model.close()


@pytest.fixture(params=ENGINES)
def llm(request: pytest.FixtureRequest, isolated: dict[str, Llama]) -> Llama:
    return isolated[request.param]


def pid_of(llm: Llama) -> int:
    assert isinstance(llm, IsolatedLlama)
    return llm._process._child._process.pid


def text(llm: Llama, **arguments: Any) -> str:
    body: Any = llm(COUNTING, **{"max_tokens": 8, "temperature": 0.0, **arguments})
    return str(body["choices"][0]["text"])


def is_there(pid: int) -> bool:
    """Whether a process computes, or is a zombie somebody has to wait for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_gone_soon(pid: int) -> bool:
    deadline = time.monotonic() + ENDS_WITHIN_S
    while is_there(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_there(pid)


def endless(llm: Llama) -> Any:
    return llm("Once", stream=True, max_tokens=None, temperature=0.0, logit_bias={llm.token_eos(): float("-inf")})


@pytest.mark.parametrize("engine", ENGINES)
def test_it_says_what_a_plain_one_says(engine: str, smollm2: Path, isolated: dict[str, Llama]):
    llm = isolated[engine]
    assert isinstance(llm, Llama)
    assert pid_of(llm) != os.getpid()
    chat: Any = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "temperature": 0.0}
    with opened(smollm2, engine) as plain:
        assert (llm.engine, llm.payload, llm.capabilities) == (plain.engine, plain.payload, plain.capabilities)
        assert (llm.n_ctx(), llm.n_vocab(), llm.token_eos()) == (plain.n_ctx(), plain.n_vocab(), plain.token_eos())
        assert llm.description() == plain.description()
        assert llm.metadata("general.architecture") == plain.metadata("general.architecture")
        assert llm.model_path == plain.model_path
        tokens = llm.tokenize(COUNTING)
        assert tokens == plain.tokenize(COUNTING)
        assert llm.detokenize(tokens) == plain.detokenize(tokens)
        for arguments in ({}, {"temperature": 1.2, "seed": 3}, {"echo": True, "logprobs": 2, "stop": "10"}):
            one: Any = llm(COUNTING, max_tokens=12, **{"temperature": 0.0, **arguments})
            other: Any = plain(COUNTING, max_tokens=12, **{"temperature": 0.0, **arguments})
            assert one["choices"] == other["choices"]
            assert one["usage"] == other["usage"]
        streamed = [
            [chunk["choices"] for chunk in one(COUNTING, max_tokens=12, stream=True, seed=1)] for one in (llm, plain)
        ]
        assert streamed[0] == streamed[1]
        params = SamplingParams(temperature=0.0)
        firsts = [
            [token for token, _ in zip(one.generate(tokens, params), range(12), strict=False)] for one in (llm, plain)
        ]
        assert firsts[0] == firsts[1]
        answers: Any = [one.create_chat_completion(**chat) for one in (llm, plain)]
        assert answers[0]["choices"] == answers[1]["choices"]
        assert {name for name in vars(plain) if not name.startswith("_")} == {
            name for name in vars(llm) if not name.startswith("_")
        }


def test_errors_are_those_of_a_plain_one(llm: Llama):
    with pytest.raises(UsageError, match="outside the vocabulary"):
        llm([1, 2**20], max_tokens=1)
    with pytest.raises(UsageError, match="temperature must be at least 0"):
        llm(COUNTING, temperature=-1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        llm(COUNTING, nonsense=1)
    with pytest.raises(UsageError, match="half a surrogate|surrogate"):
        llm("\ud800")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_that_is_refused(engine: str, tmp_path: Path):
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"no\.gguf"):
        opened(tmp_path / "no.gguf", engine, isolate=True)


def test_a_killed_process_is_an_exception_and_the_next_call_works(llm: Llama):
    want = text(llm)
    before = pid_of(llm)
    stream = endless(llm)
    next(stream)
    os.kill(before, signal.SIGKILL)
    with pytest.raises(EngineDied, match="killed with SIGKILL.*the next call starts a new one") as caught:
        list(stream)
    assert caught.value.signal == "SIGKILL"
    assert list(stream) == []
    assert text(llm) == want
    assert pid_of(llm) != before
    assert not is_there(before)


def test_a_process_that_dies_in_the_middle_of_a_call(llm: Llama):
    timer = threading.Timer(0.3, os.kill, (pid_of(llm), signal.SIGSEGV))
    timer.start()
    with pytest.raises(EngineDied, match="SIGSEGV"):
        for _ in range(1000):
            text(llm, max_tokens=64)
    assert text(llm).startswith(" 8")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    made = {name: folder / f"{name}.gguf" for name in ("spm", "bpe")}
    for name, path in made.items():
        tiny_texts.write_decoder(path, bytes_as_tokens=name == "spm")
    return made


def with_kind(model: mutated.Gguf, name: bytes, kind: int) -> mutated.Gguf:
    return replace(model, tensors=[replace(one, kind=kind if one.name == name else one.kind) for one in model.tensors])


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_that_aborts(engine: str, tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Integers for an embedding, which the check refuses: in the engine's process it does not look at types."""
    path = tmp_path / "integers.gguf"
    path.write_bytes(with_kind(mutated.parse(tiny["spm"].read_bytes()), b"token_embd.weight", 26).to_bytes())
    with pytest.raises(ModelError, match=r"token_embd\.weight has the type i32"):
        opened(path, engine, n_ctx=64, isolate=True)
    blind = "from forkyard_llm import gguf_check\ngguf_check.check_weights = lambda *_, **__: None\n"
    start = python_child._CHILD.replace("import_module(sys", blind + "import_module(sys")
    monkeypatch.setattr(python_child, "_CHILD", start)
    before = time.monotonic()
    with pytest.raises(EngineDied, match=r"crashed with SIGABRT") as caught:
        next(opened(path, engine, n_ctx=64, isolate=True).generate([1, 2, 3]))
    assert any("GGML_ASSERT" in line or "fatal error" in line for line in caught.value.last_words[:1])
    assert caught.value.signal == "SIGABRT"
    assert time.monotonic() - before < ENDS_WITHIN_S


def damaged(tiny: dict[str, Path], count: int) -> Iterator[tuple[str, bytes]]:
    """Files that differ from sound ones by a value, a tensor's type, some bits of head or data, or their length."""
    chance = random.Random(SEED)
    models = {name: path.read_bytes() for name, path in tiny.items()}
    parsed = {name: mutated.parse(raw) for name, raw in models.items()}
    values = {name: list(mutated.mutations(model)) for name, model in parsed.items()}
    for _ in range(count):
        name = chance.choice(sorted(models))
        raw, model = bytearray(models[name]), parsed[name]
        how = chance.randrange(5)
        if how == 0:
            label, changed = chance.choice(values[name])
            yield f"{name}: {label}", changed.to_bytes()
        elif how == 1:
            tensor, kind = chance.choice(model.tensors), chance.choice(KINDS)
            yield f"{name}: {tensor.name!r} of type {kind}", with_kind(model, tensor.name, kind).to_bytes()
        elif how < 4:
            end = min(len(raw), 8192) if how == 2 else len(raw)
            places = [chance.randrange(end) for _ in range(chance.randrange(1, 4))]
            for place in places:
                raw[place] ^= 1 << chance.randrange(8)
            yield f"{name}: bits at {places}", bytes(raw)
        else:
            length = chance.randrange(len(raw))
            yield f"{name}: {length} bytes", bytes(raw[:length])


def survive(engine: str, tiny: dict[str, Path], folder: Path, count: int) -> dict[str, int]:
    """What came of damaged files, each in a process of its own."""
    outcomes: dict[str, int] = {}
    path = folder / "damaged.gguf"
    for label, raw in damaged(tiny, count):
        path.write_bytes(raw)
        try:
            with opened(path, engine, n_ctx=64, n_batch=16, use_mmap=False, isolate=True) as llm:
                tokens: Any = llm.generate([1, 2, 3], SamplingParams(temperature=0.0))
                made = [token for token, _ in zip(tokens, range(8), strict=False)]
                tokens.close()
                llm.detokenize([*llm.tokenize("Hello world", special=True), *made])
            outcome = "used"
        except ForkyardLlmError as error:
            outcome = type(error).__name__
        assert outcome in ("used", "ModelError", "EngineDied", "EngineError", "UsageError"), label
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes


@pytest.mark.parametrize("engine", ENGINES)
def test_damaged_files_do_not_end_the_program(engine: str, tiny: dict[str, Path], tmp_path: Path):
    outcomes = survive(engine, tiny, tmp_path, 200)
    # Otherwise this would not test what it is for.
    assert outcomes["used"] > 5
    assert outcomes["ModelError"] > 50
    assert outcomes.get("EngineDied", 0) < 2


@pytest.mark.deep
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("engine", ENGINES)
def test_many_damaged_files_do_not_end_the_program(engine: str, tiny: dict[str, Path], tmp_path: Path):
    outcomes = survive(engine, tiny, tmp_path, 2000)
    print(outcomes)
    assert sum(outcomes.values()) == 2000
    # What ends the engine's process here ends the program's where the engine is not isolated.
    assert outcomes.get("EngineDied", 0) <= 2


@pytest.mark.parametrize("ways", ["a call", "a stream"])
def test_ctrl_c(llm: Llama, ways: str):
    before = pid_of(llm)

    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            while True:
                if ways == "a stream":
                    list(endless(llm))
                else:
                    text(llm, max_tokens=200)
    finally:
        timer.join()
        signal.signal(signal.SIGINT, old)
    # Not refused as one generation too many, and done by the same process.
    assert text(llm).startswith(" 8")
    assert pid_of(llm) == before


def test_closing_a_stream_ends_its_generation(llm: Llama):
    for _ in range(3):
        stream = endless(llm)
        next(stream)
        with pytest.raises(EngineError, match="in the middle of a generation"):
            text(llm)
        stream.close()
        assert text(llm).startswith(" 8")
    dropped = endless(llm)
    next(dropped)
    del dropped
    assert text(llm).startswith(" 8")


def test_a_stream_is_computed_a_little_ahead_only(llm: Llama):
    llm.reset()
    stream = endless(llm)
    next(stream)
    time.sleep(1.0)
    computed = llm.perf().generated_tokens
    stream.close()
    assert computed < 40


def test_functions(llm: Llama, smollm2: Path):
    told: list[tuple[int, int]] = []
    forbidden = llm.tokenize(" 8")

    def forbid(tokens: Any, row: Any) -> None:
        told.append((len(tokens), len(row)))
        for token in forbidden:
            row[token] = float("-inf")

    heard: list[tuple[int, int]] = []
    arguments: Any = {"logits_processor": [forbid], "progress": lambda done, total: heard.append((done, total))}
    one = text(llm, **arguments)
    count = len(llm.tokenize(COUNTING))
    assert heard[-1] == (count, count)
    assert told[0] == (count, llm.n_vocab())
    assert "8" not in one
    with opened(smollm2, llm.engine) as plain:
        assert text(plain, **arguments) == one

    def fail(done: int, total: int) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        text(llm, progress=fail)
    assert text(llm).startswith(" 8")


@pytest.mark.parametrize("engine", ENGINES)
def test_several_streams_at_a_time(engine: str, smollm2: Path):
    prompts = [COUNTING, "The capital of France is", "Once upon a time", "def add(a, b):"]

    def said(llm: Llama, prompt: str) -> str:
        return "".join(
            chunk["choices"][0]["text"] for chunk in llm(prompt, max_tokens=12, temperature=0.0, stream=True)
        )

    with opened(smollm2, engine, n_ctx=128, n_parallel=4) as plain:
        want = [said(plain, prompt) for prompt in prompts]
    got: dict[int, str] = {}
    with opened(smollm2, engine, n_ctx=128, n_parallel=4, isolate=True) as llm:
        threads = [
            threading.Thread(target=lambda number=number: got.update({number: said(llm, prompts[number])}))
            for number in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        streams = [endless(llm) for _ in range(4)]
        for stream in streams:
            next(stream)
        os.kill(pid_of(llm), signal.SIGKILL)
        for stream in streams:
            with pytest.raises(EngineDied):
                list(stream)
        assert said(llm, COUNTING) == want[0]
    assert [got[number][:10] for number in range(4)] == [one[:10] for one in want]


@pytest.mark.parametrize("engine", ENGINES)
def test_states_cross(engine: str, isolated: dict[str, Llama]):
    llm = isolated[engine]
    tokens = llm.tokenize(COUNTING)
    llm.reset()
    llm.eval(tokens)
    first, state = llm.sample(temperature=0.0), llm.save_state()
    assert (llm.n_tokens, state.tokens) == (len(tokens), tuple(tokens))
    llm.reset()
    llm.load_state(state)
    assert llm.sample(temperature=0.0) == first


class Shouting(Llama):
    def shout(self) -> str:
        return text(self).upper()


def test_subclasses_and_pickles(smollm2: Path):
    for kind in (Llama, Shouting):
        with kind(smollm2, engine="llama.cpp", n_ctx=64, n_threads=1, isolate=True) as llm:
            data = pickle.dumps(llm)
            want = text(llm)
            if isinstance(llm, Shouting):
                assert llm.shout() == want.upper()
        with pickle.loads(data) as copy:
            assert isinstance(copy, kind)
            assert isinstance(copy, IsolatedLlama)
            assert text(copy) == want


def test_its_process_ends_with_it(smollm2: Path):
    llm = opened(smollm2, "llama.cpp", isolate=True)
    pid = pid_of(llm)
    llm.close()
    llm.close()
    assert llm.closed
    assert not is_there(pid)
    with pytest.raises(EngineError, match="closed"):
        text(llm)
    other = opened(smollm2, "llama.cpp", isolate=True)
    pid = pid_of(other)
    stream = endless(other)
    next(stream)
    del other
    gc.collect()
    assert is_there(pid)
    next(stream)
    del stream
    gc.collect()
    assert not is_there(pid)


PARENT = """
import os, subprocess, sys, time
from forkyard_llm import EngineError, Llama
llm = Llama(sys.argv[1], engine=sys.argv[2], n_ctx=256, n_threads=1, isolate=True)
stream = llm("Once", stream=True, max_tokens=None, logit_bias={llm.token_eos(): float("-inf")})
next(stream)
pid = llm._process._child._process.pid
"""


@pytest.mark.parametrize(
    ("rest", "status"),
    [
        ("print(pid, flush=True); os.kill(os.getpid(), 9)", -9),
        ("print(pid, flush=True); os._exit(0)", 0),
        ("print(pid, flush=True)", 0),
        ("print(pid, flush=True); 1 / 0", 1),
        # Another process has the parent's end of the socket still.
        (
            "if os.fork(): print(pid, flush=True); os.kill(os.getpid(), 9)\nelse: os.close(1); os.close(2); time.sleep(20)",
            -9,
        ),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_its_process_ends_with_the_program(engine: str, smollm2: Path, rest: str, status: int):
    command = [sys.executable, "-c", PARENT + rest, str(smollm2), engine]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == status, done.stderr
    assert (done.stderr == "") == (status != 1)
    assert is_gone_soon(int(done.stdout))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_forked_process_cannot_use_it(engine: str, smollm2: Path):
    code = """
for use in (lambda: llm.tokenize("a"), lambda: next(stream), lambda: llm.engine, llm.close):
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        continue
    try:
        print(use())
    except EngineError as error:
        print(error)
    sys.exit(0)
next(stream)
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PARENT + code, str(smollm2), engine]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert all("load the model after the fork" in line for line in lines[:3])
    assert lines[3:] == ["None"]


@pytest.mark.parametrize("engine", ENGINES)
def test_what_the_engine_logs_comes_on_stderr(engine: str, smollm2: Path, capsys: pytest.CaptureFixture[str]):
    with opened(smollm2, engine, n_ctx=64, isolate=True) as llm:
        text(llm, max_tokens=1)
    assert capsys.readouterr() == ("", "")
    with opened(smollm2, engine, n_ctx=64, isolate=True, verbose=True) as llm:
        text(llm, max_tokens=1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "general.architecture" in captured.err
