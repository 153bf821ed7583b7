"""Token by token, saved states, caches of prompts, guesses, pickles: what a model has read, taken out and put back."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm import Llama, SamplingParams, models
from forkyard_llm.errors import ModelError, UnsupportedOption, UsageError
from forkyard_llm.state import DiskCache, LlamaState, RamCache

from ..numa.state_models import write_hybrid_delta
from ..split.graph_models import write_hybrid
from .tiny_texts import write_guesser

pytestmark = pytest.mark.usefixtures("built_payloads")

ENGINES = ("llama.cpp", "ik_llama.cpp")
GREEDY = SamplingParams(temperature=0)
PERIOD = [5, 9, 7, 5, 9, 7, 5, 9, 7, 11]
PROMPT = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2, 3, 4,"


@pytest.fixture(scope="module", params=ENGINES)
def llm(request: pytest.FixtureRequest, built_payloads: None, smollm2: Path) -> Iterator[Llama]:
    with Llama(smollm2, engine=request.param, n_ctx=128, n_threads=1) as opened:
        yield opened


def text_of(body: Any) -> str:
    return str(body["choices"][0]["text"])


def say(llm: Llama, prompt: Any = PROMPT, count: int = 12, **more: Any) -> str:
    return text_of(llm(prompt, max_tokens=count, temperature=0, **more))


def test_token_by_token_is_the_same_text(llm: Llama):
    expected = say(llm)
    llm.reset()
    llm.eval(llm.tokenize(PROMPT))
    made: list[int] = []
    for _ in range(12):
        made.append(llm.sample(temperature=0))
        llm.eval(made[-1:])
    assert llm.detokenize(made).decode() == expected
    assert llm.n_tokens == len(llm.tokenize(PROMPT)) + 12
    with pytest.raises(UsageError, match=f"the context {llm.n_ctx()}"):
        llm.eval([1] * 600)


def test_a_state_goes_on_where_it_was_taken(llm: Llama, tmp_path: Path):
    llm.reset()
    llm.eval(llm.tokenize(PROMPT))
    first = llm.sample(temperature=0)
    state = llm.save_state()
    state.save(tmp_path / "a.state")
    say(llm, "Something else entirely")
    llm.load_state(LlamaState.load(tmp_path / "a.state"))
    assert llm.n_tokens == len(state.tokens)
    assert llm.sample(temperature=0) == first
    before = llm.perf().prompt_tokens
    llm.eval([first])
    assert llm.perf().prompt_tokens - before <= 2


def test_states_of_others_and_damaged_ones_are_refused(llm: Llama, tmp_path: Path):
    llm.eval([1])
    state = llm.save_state()
    with pytest.raises(UsageError, match="would misread"):
        llm.load_state(LlamaState.of(state.tokens, state.data, "another"))
    path = tmp_path / "a.state"
    state.save(path)
    raw = path.read_bytes()
    for damaged in (
        b"",
        raw[:30],
        raw[:-1],
        raw[:-1] + bytes([raw[-1] ^ 1]),
        b"x" + raw,
        raw.replace(b"tokens", b"tokenz", 1),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match="is no saved state"):
            LlamaState.load(path)
    for data in (b"", b"\0" * 64, b"\xff" * 64, state.data[: len(state.data) // 2]):
        with pytest.raises(UsageError, match="not as it was saved"):
            llm.load_state(replace(state, data=data))
    assert say(llm)


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_cache_saves_computing_what_was_read_before(llm: Llama, tmp_path: Path, kind: str):
    expected, other = say(llm), say(llm, "The sun is")
    cache = RamCache() if kind == "ram" else DiskCache(tmp_path / "cache")
    llm.set_cache(cache)
    try:
        assert say(llm) == expected
        assert say(llm, "The sun is") == other
        llm.reset()
        assert say(llm) == expected
        assert llm.perf().prompt_tokens < 4
    finally:
        llm.set_cache(None)


def test_a_cache_keeps_to_its_size(tmp_path: Path):
    states = [LlamaState.of((number,), bytes(1000), "o") for number in range(5)]
    ram = RamCache(2500)
    disk = DiskCache(tmp_path, 2500)
    for state in states:
        ram.add(state)
        disk.add(state)
    assert ram.find([4, 9], "o") == disk.find([4, 9], "o") == states[4]
    assert ram.find([0, 9], "o") is disk.find([0, 9], "o") is None
    assert ram.find([4, 9], "p") is None
    assert ram.size <= 2500
    (tmp_path / "damaged.state").write_bytes(b"x")
    assert disk.find([4], "o") == states[4]
    assert not (tmp_path / "damaged.state").exists()


@pytest.mark.parametrize("draft", ["ngram", "itself"])
def test_guesses_change_no_text_and_save_batches(smollm2: Path, llm: Llama, draft: str):
    expected = say(llm, count=40)
    guess = "ngram" if draft == "ngram" else smollm2
    with Llama(smollm2, engine=llm.engine, n_ctx=128, n_threads=1, draft_model=guess, draft_tokens=6) as quick:
        assert say(quick, count=40) == expected
        # The engines count batches of several tokens as prompts.
        assert quick.perf().generated_tokens < 30
        one = text_of(quick("Once upon a time", max_tokens=12, seed=5, temperature=0.9))
        assert one == text_of(quick("Once upon a time", max_tokens=12, seed=5, temperature=0.9))


def test_layers_of_the_model_guess(llm: Llama, tmp_path: Path):
    write_guesser(tmp_path / "guesser.gguf")
    options: dict[str, Any] = {"engine": llm.engine, "n_ctx": 192, "n_threads": 1}
    prompt = [261, 262] * 20

    def made(llm: Llama, known: int = 0) -> list[int]:
        tokens = llm.generate(prompt + expected[:known], GREEDY)
        return list(itertools.islice(tokens, 120 - known))

    expected: list[int] = []
    with Llama(tmp_path / "guesser.gguf", **options) as plain:
        expected += made(plain)
    # Prompts of several batches, and batches of several parts.
    options |= {"draft_model": "mtp", "draft_tokens": 3, "n_batch": 32, "n_ubatch": 16, "prompt_reuse": True}
    with Llama(tmp_path / "guesser.gguf", **options) as quick:
        assert made(quick) == expected
        # The engines count batches of several tokens as prompts: here each is of a token and three guesses.
        rounds = (quick.perf().prompt_tokens - len(prompt)) / 4
        assert rounds < 80
        assert made(quick, 30) == expected[30:]
        state = quick.save_state()
        quick.reset()
        quick.load_state(state)
        assert made(quick, 60) == expected[60:]
    with pytest.raises(ModelError, match="no layers that predict further tokens"):
        Llama(models.get("smollm2-135m"), draft_model="mtp", engine=llm.engine)


def test_a_model_guesses_whose_cache_only_grows(tmp_path: Path):
    write_hybrid_delta(tmp_path / "hybrid.gguf", drafts=True)

    def made(draft: str | None) -> list[int]:
        with Llama(tmp_path / "hybrid.gguf", engine="llama.cpp", n_ctx=256, n_threads=1, draft_model=draft) as one:
            return list(itertools.islice(one.generate(one.tokenize("ab ab"), GREEDY), 100))

    assert made("mtp") == made(None)


def test_what_recurrent_layers_remember_is_of_the_text_alone(llm: Llama, tmp_path: Path):
    write_hybrid(tmp_path / "hybrid.gguf")
    options: dict[str, Any] = {"engine": llm.engine, "n_ctx": 128, "n_threads": 1}
    prompts = [PERIOD, PERIOD[:6], PERIOD, [*PERIOD, 5]]

    def made(one: Llama) -> list[list[int]]:
        return [list(itertools.islice(one.generate(prompt, GREEDY), 30)) for prompt in prompts]

    with Llama(tmp_path / "hybrid.gguf", **options) as plain:
        expected = made(plain)
    for more in ({"draft_model": "ngram"}, {"prompt_reuse": True}):
        with Llama(tmp_path / "hybrid.gguf", **options, **more) as other:
            assert made(other) == expected, more
    try:
        other = Llama(tmp_path / "hybrid.gguf", **options, n_parallel=3)
    except UnsupportedOption as error:
        assert llm.engine == "ik_llama.cpp"
        assert "one text at a time" in str(error)
        return
    with other, ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda prompt: list(itertools.islice(other.generate(prompt, GREEDY), 30)), prompts)
        assert list(found) == expected


def test_a_draft_of_another_vocabulary_is_refused(smollm2: Path, llm: Llama):
    with pytest.raises(ModelError, match="they must be the same"):
        Llama(smollm2, engine=llm.engine, n_threads=1, draft_model=models.get("gemma3-270m"))
    with pytest.raises(UnsupportedOption, match="do not go together"):
        Llama(smollm2, engine=llm.engine, n_threads=1, draft_model="ngram", n_parallel=2)


def test_a_pickled_model_is_loaded_again(llm: Llama):
    with pickle.loads(pickle.dumps(llm)) as other:
        assert other.engine == llm.engine
        assert other.n_ctx() == llm.n_ctx()
        assert say(other) == say(llm)


def test_filling_in_needs_a_model_that_is_trained_for_it(llm: Llama):
    with pytest.raises(ModelError, match="not trained to fill in"):
        llm("def f(", suffix="return 1", max_tokens=1)


def test_progress_is_told(llm: Llama):
    told: list[tuple[int, int]] = []
    llm.reset()
    say(llm, progress=lambda done, whole: told.append((done, whole)))
    assert told[-1][0] == told[-1][1] == len(llm.tokenize(PROMPT))


def test_adapters_that_are_none_are_refused(smollm2: Path, llm: Llama, tmp_path: Path):
    for load in (llm.load_lora, llm.load_control_vector):
        with pytest.raises(ModelError):
            load(smollm2)
        with pytest.raises(ModelError):
            load(tmp_path / "missing.gguf")
    with pytest.raises(UsageError, match="adapters must map"):
        llm("x", adapters={"path.gguf": 1.0})  # type: ignore[dict-item]
