"""Both engines in one process on a real model: what they generate, how they stream, stop, close and refuse."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm import Llama, loading
from forkyard_llm.errors import AbiMismatch, EngineError, ModelError, UnsupportedOption, UsageError
from forkyard_llm.payloads import read_payload
from forkyard_llm.sampling import SamplingParams

COUNTING = "1, 2, 3, 4, 5, 6, 7,"
pytestmark = pytest.mark.usefixtures("built_payloads")

ENGINES = ("llama.cpp", "ik_llama.cpp")


@pytest.fixture(scope="module")
def both(built_payloads: None, smollm2: Path) -> Iterator[dict[str, Llama]]:
    """One open model per engine, side by side for the whole module."""
    models = {engine: open_model(smollm2, engine=engine, n_ctx=256) for engine in ENGINES}
    yield models
    for model in models.values():
        model.close()


@pytest.fixture(params=ENGINES)
def llm(request: pytest.FixtureRequest, both: dict[str, Llama]) -> Llama:
    """Each engine's model in turn."""
    return both[request.param]


def open_model(path: Path, **arguments: Any) -> Llama:
    """A model on one thread: two that wait for each other are very slow where other programs want the cores too."""
    return Llama(path, n_threads=1, **arguments)


def text_of(body: Any) -> str:
    text = body["choices"][0]["text"]
    assert isinstance(text, str)
    return text


def test_both_engines_side_by_side_count_on(both: dict[str, Llama]):
    for _ in range(2):
        for engine, model in both.items():
            assert model.engine == engine
            body = model(COUNTING, max_tokens=12, temperature=0)
            assert text_of(body).startswith(" 8, 9, 10"), engine
            assert body["usage"]["completion_tokens"] == 12
            assert body["choices"][0]["finish_reason"] == "length"
    assert text_of(both["llama.cpp"]("The capital of France is", max_tokens=1, temperature=0)) == " Paris"
    assert text_of(both["ik_llama.cpp"]("The capital of France is", max_tokens=1, temperature=0)) == " Paris"


def test_engines_share_the_vocabulary_but_no_types(both: dict[str, Llama]):
    assert both["llama.cpp"].tokenize(COUNTING) == both["ik_llama.cpp"].tokenize(COUNTING)
    first, second = (loading.load(both[engine].payload) for engine in ENGINES)
    assert first is not second
    assert first.abi.llama_model is not second.abi.llama_model
    with pytest.raises(ctypes.ArgumentError):
        first.api.llama_model_get_vocab(ctypes.POINTER(second.abi.llama_model)())


def test_a_model_is_no_vocabulary(llm: Llama):
    engine = loading.load(llm.payload)
    model = ctypes.POINTER(engine.abi.llama_model)()
    with pytest.raises(ctypes.ArgumentError):
        engine.api.llama_vocab_bos(model)


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world!",
        "naïve façade — “quotes”",
        "日本語のテキスト",
        "🎉 \N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}",
        "tabs\tand\nlines\r\n",
        " leading",
        "a\0b",
        "",
    ],
)
def test_text_survives_tokenizing(llm: Llama, text: str):
    tokens = llm.tokenize(text)
    assert llm.detokenize(tokens).decode() == text
    assert llm.tokenize(text.encode()) == tokens
    assert all(0 <= token < llm.n_vocab() for token in tokens)


def test_special_tokens_only_where_asked(llm: Llama):
    text = "<|im_start|>user"
    plain, special = llm.tokenize(text), llm.tokenize(text, special=True)
    assert special[0] == llm.token_bos()
    assert len(special) < len(plain)
    assert llm.detokenize(special, special=True).decode() == text
    assert llm.detokenize(special) == b"user"


def test_this_model_wants_no_bos_and_gets_none(llm: Llama):
    assert llm.tokenize("Hi", add_bos=True) == llm.tokenize("Hi", add_bos=False)


@pytest.mark.parametrize("token", [-1, 49152, 2**40])
def test_tokens_outside_the_vocabulary_are_refused(llm: Llama, token: int):
    with pytest.raises(UsageError, match="outside the vocabulary"):
        llm.detokenize([token])
    with pytest.raises(UsageError, match="outside the vocabulary"):
        llm([1, token], max_tokens=1)


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"top_k": 0},
        {"repeat_penalty": 1.2, "presence_penalty": 0.3},
        {"top_k": 0, "top_p": 0.5, "min_p": 0.2},
    ],
)
def test_one_seed_one_text(llm: Llama, sampling: dict[str, Any]):
    def generate(seed: int) -> str:
        return text_of(llm("Once upon a time", max_tokens=24, temperature=1.5, seed=seed, **sampling))

    assert generate(7) == generate(7)
    assert len({generate(seed) for seed in range(6)}) > 1


def test_requests_without_a_seed_differ_but_repeat_for_one_constructor_seed(smollm2: Path):
    runs = []
    for _ in range(2):
        with open_model(smollm2, engine="llama.cpp", n_ctx=64, seed=11) as model:
            runs.append([text_of(model("Once", max_tokens=12, temperature=1.5)) for _ in range(2)])
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[0][1]


def test_a_stream_is_the_whole_in_parts(llm: Llama):
    arguments = {"max_tokens": 40, "seed": 3, "temperature": 1.2, "echo": True}
    whole = llm("The 🎉 emoji means", **arguments)
    chunks = list(llm("The 🎉 emoji means", stream=True, **arguments))
    assert "".join(map(text_of, chunks)) == text_of(whole)
    assert text_of(chunks[0]) == "The 🎉 emoji means"
    assert {chunk["id"] for chunk in chunks} != {whole["id"]}
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [whole["choices"][0]["finish_reason"]]


@pytest.mark.parametrize("stop", ["10", [" 9, 1", "never"], "9, 10, 11"])
def test_stop_strings_across_token_borders(llm: Llama, stop: str | list[str]):
    body = llm(COUNTING, max_tokens=40, temperature=0, stop=stop)
    free = text_of(llm(COUNTING, max_tokens=40, temperature=0))
    first = stop if isinstance(stop, str) else stop[0]
    assert body["choices"][0]["finish_reason"] == "stop"
    assert text_of(body) == free[: free.index(first)]
    assert "".join(map(text_of, llm(COUNTING, max_tokens=40, temperature=0, stop=stop, stream=True))) == text_of(body)


def test_bias_and_penalties_reach_the_engine(llm: Llama):
    (eight,) = set(llm.tokenize("8")) - set(llm.tokenize(" "))
    allowed = text_of(llm(COUNTING, max_tokens=4, temperature=0))
    forbidden = text_of(llm(COUNTING, max_tokens=4, temperature=0, logit_bias={eight: float("-inf")}))
    assert "8" in allowed
    assert "8" not in forbidden
    forced = llm.generate(llm.tokenize(COUNTING), SamplingParams(temperature=0, logit_bias={1000: 1000.0}))
    assert next(forced) == 1000
    forced.close()
    free = text_of(llm(COUNTING, max_tokens=30, temperature=0))
    penalized = text_of(llm(COUNTING, max_tokens=30, temperature=0, repeat_penalty=1.8))
    assert penalized != free


def test_chat_uses_the_models_template(llm: Llama):
    question = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    body = llm.create_chat_completion(question, max_tokens=40, temperature=0)
    assert "Paris" in body["choices"][0]["message"]["content"]
    chunks = list(llm.create_chat_completion(question, max_tokens=40, temperature=0, stream=True))
    parts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(parts) == body["choices"][0]["message"]["content"]


def test_an_empty_prompt_starts_from_bos(llm: Llama):
    assert llm("", max_tokens=2)["usage"]["prompt_tokens"] == 1


def test_the_context_is_a_limit_not_a_crash(llm: Llama):
    tokens = llm.tokenize(COUNTING * 100)
    with pytest.raises(UsageError, match="the context 256"):
        llm(tokens, max_tokens=1)
    fits = tokens[:250]
    body = llm(fits, max_tokens=None, temperature=0, logit_bias={llm.token_eos(): float("-inf")})
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 256 - 250 + 1


def test_a_prompt_longer_than_a_batch_gives_the_same_text(smollm2: Path, llm: Llama):
    prompt = "The quick brown fox jumps over the lazy dog. " * 15 + COUNTING
    with open_model(smollm2, engine=llm.engine, n_ctx=256, n_batch=32) as small:
        text = text_of(small(prompt, max_tokens=8, temperature=0))
    assert text.startswith(" 8, 9")
    assert text_of(llm(prompt, max_tokens=8, temperature=0)).startswith(" 8, 9")


def test_one_generation_at_a_time(llm: Llama):
    stream = llm.generate(llm.tokenize("Once"))
    next(stream)
    with pytest.raises(EngineError, match="in the middle of a generation"):
        llm("Other", max_tokens=1)
    assert llm.tokenize("still works")
    stream.close()
    assert llm("Other", max_tokens=1)


def test_other_threads_are_refused_or_served_never_mixed_up(llm: Llama):
    expected = text_of(llm(COUNTING, max_tokens=6, temperature=0))
    outcomes: list[str] = []

    def work() -> None:
        try:
            outcomes.append(text_of(llm(COUNTING, max_tokens=6, temperature=0)))
        except EngineError:
            outcomes.append("refused")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=1800)
    assert len(outcomes) == 4
    assert set(outcomes) <= {expected, "refused"}
    assert expected in outcomes


@pytest.mark.parametrize("engine", ENGINES)
def test_several_threads_and_different_ones_for_the_prompt(smollm2: Path, engine: str):
    for threads in ({}, {"n_threads": 1, "n_threads_batch": 2}):
        with Llama(smollm2, engine=engine, n_ctx=64, **threads) as model:
            assert text_of(model(COUNTING, max_tokens=3, temperature=0)).startswith(" 8")


@pytest.mark.parametrize("engine", ENGINES)
def test_closing(smollm2: Path, engine: str):
    with open_model(smollm2, engine=engine, n_ctx=64) as model:
        stream = model("Once", max_tokens=20, stream=True)
        next(stream)
        assert not model.closed
    assert model.closed
    model.close()
    with pytest.raises(EngineError, match="is closed"):
        next(stream)
    for use in (lambda: model("x"), lambda: model.tokenize("x"), model.n_ctx, model.perf, model.reset):
        with pytest.raises(EngineError, match="is closed"):
            use()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_stream_keeps_its_model_alive(smollm2: Path, engine: str):
    chunks = list(open_model(smollm2, engine=engine, n_ctx=64)("Once", max_tokens=5, stream=True))
    assert chunks[-1]["choices"][0]["finish_reason"]


def test_perf_and_reset(llm: Llama):
    llm.reset()
    llm(COUNTING, max_tokens=8, temperature=0)
    perf = llm.perf()
    assert perf.prompt_tokens >= len(llm.tokenize(COUNTING))
    assert 7 <= perf.generated_tokens <= 8
    assert perf.generation_ms > 0


def test_reuse_of_a_prompt_gives_the_same_numbers(smollm2: Path, llm: Llama):
    with open_model(smollm2, engine=llm.engine, n_ctx=256, prompt_reuse=True) as model:
        for prompt in (COUNTING, COUNTING + " 8, 9,", COUNTING, "Something else", COUNTING):
            text = text_of(model(prompt, max_tokens=6, temperature=0))
            if prompt == COUNTING:
                assert text.startswith(" 8, 9")


@pytest.mark.parametrize("kind", ["q8_0", "F16"])
def test_cache_types_by_name(smollm2: Path, llm: Llama, kind: str):
    with open_model(smollm2, engine=llm.engine, n_ctx=64, type_k=kind, type_v=kind, flash_attn=True) as model:
        assert text_of(model(COUNTING, max_tokens=6, temperature=0)).startswith(" 8, 9")


def test_options_of_the_other_engine_are_refused_before_anything_is_loaded(smollm2: Path):
    with pytest.raises(UnsupportedOption, match=r"ik_llama\.cpp has it"):
        Llama(smollm2, engine="llama.cpp", mla_attn=2)
    with pytest.raises(UnsupportedOption, match=r"llama\.cpp has it"):
        Llama(smollm2, engine="ik_llama.cpp", split_mode="tensor")
    with pytest.raises(UsageError, match="no engine has an option"):
        Llama(smollm2, n_gpu_layer=1)


@pytest.mark.parametrize("engine", ENGINES)
def test_options_of_its_own_are_taken(smollm2: Path, engine: str):
    own = {"llama.cpp": {"swa_full": False, "op_offload": False}, "ik_llama.cpp": {"graph_reuse": False, "mla_attn": 1}}
    with open_model(smollm2, engine=engine, n_ctx=64, use_mmap=False, **own[engine]) as model:
        assert text_of(model(COUNTING, max_tokens=4, temperature=0)).startswith(" 8")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_vocabulary_alone_tokenizes_and_nothing_else(smollm2: Path, engine: str):
    with open_model(smollm2, engine=engine, vocab_only=True) as model:
        assert model.detokenize(model.tokenize("Hi there")) == b"Hi there"
        for use in (lambda: model("Hi"), model.perf, model.reset, lambda: model.generate([1])):
            with pytest.raises(UsageError, match="vocab_only"):
                use()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [0, 3, 24, 5_000, 1_500_000, 60_000_000])
def test_a_truncated_model_is_a_model_error(smollm2: Path, tmp_path: Path, engine: str, size: int):
    broken = tmp_path / "broken.gguf"
    with smollm2.open("rb") as whole:
        broken.write_bytes(whole.read(size))
    with pytest.raises(ModelError):
        Llama(broken, engine=engine)


def test_a_missing_model_is_a_model_error(tmp_path: Path):
    with pytest.raises(ModelError, match="absent"):
        Llama(tmp_path / "absent.gguf")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_payload_whose_module_promises_another_layout_is_refused(
    payloads: dict[str, Path], tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loading, "_loaded", {})
    root = Path(shutil.copytree(payloads[engine], tmp_path / "tampered"))
    text = (root / "_abi.py").read_text()
    label = "('sizeof(struct llama_batch)', "
    assert label in text
    (root / "_abi.py").write_text(text.replace(label, label + "9"))
    with pytest.raises(AbiMismatch, match=r"sizeof\(struct llama_batch\).*corrupt memory"):
        loading.load(read_payload(root))


# The model is left open, and somebody else's finalizer is there first: what ends a process runs in that order backwards.
QUIET = """
import sys, weakref
weakref.finalize(weakref, str)
from forkyard_llm import Llama
llm = Llama(sys.argv[1], engine=sys.argv[2], n_ctx=64, n_threads=1, verbose=sys.argv[3] == "loud")
llm("Once", max_tokens=2)
"""

INTERRUPTED = """
import os, signal, sys, threading
from forkyard_llm import Llama
llm = Llama(sys.argv[1], engine=sys.argv[2], n_ctx=2048, n_threads=1)
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    llm("Once upon a time", max_tokens=2000, logit_bias={llm.token_eos(): float("-inf")})
except KeyboardInterrupt:
    print(llm("1, 2, 3, 4, 5, 6, 7,", max_tokens=4, temperature=0)["choices"][0]["text"])
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(loading.__file__).parents[1])}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_are_silent_unless_asked(smollm2: Path, engine: str):
    quiet, loud = (run_python(QUIET, str(smollm2), engine, mode) for mode in ("quiet", "loud"))
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert loud.returncode == 0
    assert "llama" in loud.stderr


@pytest.mark.parametrize("engine", ENGINES)
def test_an_interrupt_leaves_the_model_usable(smollm2: Path, engine: str):
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    done = run_python(INTERRUPTED, str(smollm2), engine)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(" 8")
