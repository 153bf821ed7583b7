from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from forkyard_llm.asynchronous import awaited


def request(progress: Any = None, stopping_criteria: Any = None, stream: bool = False, ended: Any = None) -> Any:
    """A model that computes for ever."""
    if stream:
        return items(progress, ended)
    try:
        progress(1, 2)
        while not stopping_criteria([1]):
            time.sleep(0.001)
    finally:
        ended.set()
    return "text"


def items(progress: Any, ended: Any) -> Iterator[int]:
    try:
        for number in range(10**9):
            progress(number, 0)
            yield number
    finally:
        ended.set()


@pytest.mark.parametrize("stream", [False, True])
def test_a_cancelled_request_is_over_when_its_task_is(stream: bool):
    began, ended = threading.Event(), threading.Event()

    async def use() -> None:
        result = await awaited(request, progress=lambda *_: began.set(), stream=stream, ended=ended)
        async for _ in result:
            pass

    async def main() -> None:
        task = asyncio.create_task(use())
        await asyncio.to_thread(began.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(main())


def test_a_stream_that_is_left_is_closed():
    ended = threading.Event()

    async def main() -> list[int]:
        stream = await awaited(request, stream=True, ended=ended)
        found = []
        async for number in stream:
            found.append(number)
            if number == 2:
                break
        await stream.aclose()
        assert ended.is_set()
        return found

    assert asyncio.run(main()) == [0, 1, 2]


def test_what_the_caller_gave_is_called_too():
    asked: list[Any] = []

    def criterion(tokens: list[int]) -> bool:
        asked.append(tokens)
        return True

    ended = threading.Event()
    call = awaited(request, progress=lambda *given: asked.append(given), stopping_criteria=criterion, ended=ended)
    assert asyncio.run(call) == "text"
    assert asked == [(1, 2), [1]]


def test_an_error_is_the_awaiting_tasks():
    def fails(**named: Any) -> None:
        raise ValueError(sorted(named))

    with pytest.raises(ValueError, match="progress"):
        asyncio.run(awaited(fails))
