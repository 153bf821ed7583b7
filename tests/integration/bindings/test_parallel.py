"""Many requests at a time on a real model, from threads and tasks: each gets its own text, and all of it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm import Llama
from forkyard_llm.errors import EngineError, QueueFull, UnsupportedOption, UsageError

pytestmark = pytest.mark.usefixtures("built_payloads")

ENGINES = ("llama.cpp", "ik_llama.cpp")
SLOTS = 4


@pytest.fixture(scope="module", params=ENGINES)
def llm(request: pytest.FixtureRequest, built_payloads: None, smollm2: Path) -> Iterator[Llama]:
    with Llama(smollm2, engine=request.param, n_ctx=128, n_threads=1, n_parallel=SLOTS, max_waiting=64) as opened:
        yield opened


def saying(llm: Llama, number: int) -> Any:
    """A processor that has the model say a text of its own, and the text."""
    text = f" {number}, {number + 1} and {number + 2}."
    words = [*llm.tokenize(text, add_bos=False), llm.token_eos()]
    begun: list[int] = []

    def force(tokens: Any, logits: Any) -> None:
        begun.append(len(tokens))
        logits[words[len(tokens) - begun[0]]] = 1e6

    return force, text


def text_of(body: Any) -> str:
    return str(body["choices"][0]["text"])


def hammer(llm: Llama, number: int) -> bool:
    force, expected = saying(llm, number)
    arguments: dict[str, Any] = {"max_tokens": 40, "temperature": 0, "logits_processor": force}
    prompt = f"Counting from {number}:" * (1 + number % 3)
    if number % 2:
        return text_of(llm(prompt, **arguments)) == expected
    chunks: Any = llm(prompt, stream=True, **arguments)
    return "".join(text_of(chunk) for chunk in chunks) == expected


def test_every_stream_is_whole_and_none_is_mixed_up(llm: Llama):
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda number: hammer(llm, number), range(48)))


@pytest.mark.deep
def test_64_threads_for_a_minute(llm: Llama):
    end = time.monotonic() + 60
    done: list[bool] = []

    def work(number: int) -> None:
        while time.monotonic() < end:
            done.append(hammer(llm, number))
            number += 64

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(work, range(64)))
    assert len(done) >= 64
    assert all(done)


def test_a_chat_and_a_grammar_beside_others(llm: Llama):
    def chat() -> Any:
        return llm.create_chat_completion([{"role": "user", "content": "Hi"}], max_tokens=8, temperature=0)

    def constrained() -> str:
        return text_of(llm("Say:", grammar='root ::= "yes" | "no"', max_tokens=4, temperature=0))

    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(chat if index % 2 else constrained) for index in range(8)]
        results = [job.result() for job in jobs]
    assert all(result in ("yes", "no") for result in results[::2])
    assert len({result["choices"][0]["message"]["content"] for result in results[1::2]}) == 1


def test_one_seed_one_text_whatever_else_is_computed(llm: Llama):
    def generate(seed: int) -> str:
        return text_of(llm("Once upon a time", max_tokens=8, temperature=1.0, seed=seed, mirostat_mode=2))

    # A prompt that is read before rounds the same each time; what must not be shared is the random numbers.
    generate(0)
    first = [generate(seed) for seed in range(3)]
    assert [generate(seed) for seed in range(3)] == first
    assert len(set(first)) > 1


def test_a_prompt_that_others_share_is_computed_once(llm: Llama):
    llm.reset()
    prompt = "The quick brown fox jumps over the lazy dog. " * 8
    llm(prompt, max_tokens=1)
    before = llm.perf().prompt_tokens
    llm(prompt + "And", max_tokens=1)
    assert llm.perf().prompt_tokens - before < 8


def test_closing_a_stream_makes_room(llm: Llama):
    streams: list[Any] = [llm("Once upon a time", stream=True, max_tokens=100, ignore_eos=True) for _ in range(SLOTS)]
    for stream in streams:
        next(stream)
    for stream in streams:
        stream.close()
    assert text_of(llm("The capital of France is", max_tokens=1, temperature=0)) == " Paris"


def test_prompts_too_long_and_bad_ones_are_the_request_s_own(llm: Llama):
    # The engines round a context up.
    with pytest.raises(UsageError, match=f"the prompt has 600 tokens, the context {llm.n_ctx()}"):
        llm(list(range(600)), max_tokens=1)
    with pytest.raises(UsageError, match="grammar"):
        llm("x", grammar="root ::= (", max_tokens=1)
    for use in (lambda: llm.eval([1]), lambda: llm.n_tokens, llm.save_state):
        with pytest.raises(UnsupportedOption, match="with n_parallel there are several"):
            use()
    assert llm("x", max_tokens=1)


def test_what_waits_is_limited(smollm2: Path, llm: Llama):
    with Llama(smollm2, engine=llm.engine, n_ctx=128, n_threads=1, n_parallel=2, max_waiting=0) as small:
        streams: list[Any] = [small("x", max_tokens=100, stream=True, ignore_eos=True) for _ in range(3)]
        for stream in streams[:2]:
            next(stream)
        with pytest.raises(QueueFull, match="larger max_waiting"):
            next(streams[2])


def test_tasks_of_asyncio(llm: Llama):
    async def one(number: int) -> bool:
        force, expected = saying(llm, number)
        arguments: dict[str, Any] = {"max_tokens": 40, "temperature": 0, "logits_processor": force}
        if number % 2:
            return text_of(await llm.acreate_completion("Count:", **arguments)) == expected
        parts = [text_of(chunk) async for chunk in await llm.acreate_completion("Count:", stream=True, **arguments)]
        return "".join(parts) == expected

    async def cancelled() -> None:
        async for _ in await llm.acreate_completion("Once", stream=True, max_tokens=100, ignore_eos=True):
            await asyncio.sleep(0)

    async def main() -> list[bool]:
        task = asyncio.create_task(cancelled())
        results = await asyncio.gather(*(one(number) for number in range(8)))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return results

    assert all(asyncio.run(main()))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_generation_leaves_no_threads_and_a_cancelled_one_no_work(smollm2: Path, engine: str):
    """Threads that stay slow down every other thread that computes."""
    with Llama(smollm2, engine=engine, n_ctx=512, n_threads=2) as llm:
        before = len(os.listdir("/proc/self/task"))
        stream = llm("Once", max_tokens=4, stream=True)
        next(stream)
        assert len(os.listdir("/proc/self/task")) > before
        list(stream)
        assert len(os.listdir("/proc/self/task")) == before

        async def main() -> None:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(llm.acreate_completion("Once", max_tokens=400, ignore_eos=True), 0.1)
            # It is not busy any more.
            assert text_of(await llm.acreate_completion("Once", max_tokens=1))

        asyncio.run(main())
        assert llm.n_tokens < 400


@pytest.mark.parametrize("engine", ENGINES)
def test_closing_while_threads_wait(smollm2: Path, engine: str):
    llm = Llama(smollm2, engine=engine, n_ctx=128, n_threads=1, n_parallel=2)
    errors: list[BaseException] = []
    started = threading.Barrier(5)

    def work() -> None:
        try:
            stream: Any = llm("Once upon a time", stream=True, max_tokens=100, ignore_eos=True)
            started.wait()
            list(stream)
        except EngineError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    time.sleep(0.2)
    llm.close()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert errors
    assert all("closed" in str(error) for error in errors)
