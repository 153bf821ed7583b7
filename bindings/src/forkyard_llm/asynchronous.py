"""The calls of a model for programs of asyncio: each in a thread of its own, so that the event loop goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

__all__ = ["awaited"]

Item = TypeVar("Item")
_END: Any = object()


async def awaited(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What ``function``, one that completes a text, returns; an iterator becomes an asynchronous one.

    Cancelling the task ends the request after the token, or the part of the prompt, that is being computed; only then
    is the task over. The thread is the request's own: one that many share would have some wait for others, and OpenMP
    would keep threads for each of its threads.
    """
    stopping = _Stopping()
    thread = ThreadPoolExecutor(1, "Llama request")
    work = asyncio.wrap_future(thread.submit(partial(function, *arguments, **stopping.added_to(named))))
    try:
        result = await asyncio.shield(work)
    except BaseException:
        stopping.wanted = True
        with contextlib.suppress(BaseException):
            await work
        thread.shutdown(wait=False)
        raise
    if isinstance(result, Iterator):
        return _each(result, thread, stopping)
    thread.shutdown(wait=False)
    return result


async def _each(items: Iterator[Item], thread: ThreadPoolExecutor, stopping: _Stopping) -> AsyncIterator[Item]:
    """The items of an iterator, which is closed when this one is left, or its task cancelled."""
    try:
        while (item := await asyncio.wrap_future(thread.submit(next, items, _END))) is not _END:
            yield item
    finally:
        stopping.wanted = True
        close: Callable[[], None] = getattr(items, "close", lambda: None)
        # Behind the item that a cancelled task does not wait for any more.
        closing = thread.submit(close)
        thread.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(closing))


class _Stopped(BaseException):
    """Nobody waits for the result any more."""


class _Stopping:
    """Ends a request from another thread, through the functions that it calls while it computes."""

    def __init__(self) -> None:
        self.wanted = False

    def added_to(self, named: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a request with those that have it look whether it is still wanted."""
        # A stream is closed between two tokens.
        names = ["progress"] if named.get("stream") else ["progress", "stopping_criteria"]
        return {**named, **{name: self._looking(named.get(name)) for name in names}}

    def _looking(self, function: Any) -> Any:
        if function is not None and not callable(function):
            return function

        def look(*given: Any) -> Any:
            if self.wanted:
                raise _Stopped
            return function(*given) if function is not None else False

        return look
