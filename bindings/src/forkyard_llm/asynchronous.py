"""The calls of a model for programs of asyncio: in threads, so that the event loop goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

__all__ = ["awaited", "each"]

Item = TypeVar("Item")
_END: Any = object()
_PAUSE_S = 0.005


async def awaited(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What ``function`` returns; an iterator becomes an asynchronous one."""
    result = await asyncio.to_thread(function, *arguments, **named)
    return each(result) if isinstance(result, Iterator) else result


async def each(items: Iterator[Item]) -> AsyncIterator[Item]:
    """The items of an iterator. Leaving it, or cancelling the task, closes the iterator."""
    try:
        while (item := await asyncio.to_thread(next, items, _END)) is not _END:
            yield item
    finally:
        close = getattr(items, "close", None)
        while close is not None:
            try:
                close()
                break
            except ValueError:
                # A cancelled task leaves a thread that still waits for its item.
                await asyncio.sleep(_PAUSE_S)
