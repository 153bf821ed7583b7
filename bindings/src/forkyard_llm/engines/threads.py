"""Threads an engine cannot have, and the error that comes before it waits for them, or ends the process over them.

OpenMP keeps the threads of a computation for the next one. A forked child has only the thread that forked, but OpenMP's
list of threads came along: the next computation with several threads would wait for them for ever.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from typing import Any

from ..errors import EngineError

__all__ = ["check_model", "check_threads", "end_threads", "note_threads", "openmp_limit"]

_computed_in: int | None = None
_callers: set[int] = set()
_SOFTLY = 1


def note_threads(count: int) -> None:
    """Remember that an engine computes with ``count`` threads for the calling one."""
    global _computed_in
    if count > 1:
        _computed_in = os.getpid()
        _callers.add(threading.get_ident())


def end_threads(*, shared: bool = False) -> None:
    """End the threads that OpenMP keeps for the calling thread's next computation.

    libgomp lets all threads sleep at every barrier as soon as those that it keeps for different callers are more than
    the processors: with two callers SmolLM2 generates a quarter to a half slower. Making them anew takes 0.1 ms for
    two.

    Args:
        shared: only if several threads computed in this process, for what is shorter than a generation.
    """
    # A forked child has none of them, and would wait for their end.
    if _computed_in == os.getpid() and not (shared and len(_callers) < 2) and (pause := _pause()) is not None:
        pause(_SOFTLY)


@functools.cache
def _pause() -> Any:
    """OpenMP's function for that in the library that the engine uses, which is loaded when something was computed."""
    try:
        library = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except (OSError, AttributeError):
        return None
    return getattr(library, "omp_pause_resource_all", None)


def openmp_limit() -> int | None:
    """The number of threads OMP_THREAD_LIMIT allows, or None; with more OpenMP goes on with fewer without a word."""
    text = os.environ.get("OMP_THREAD_LIMIT", "").strip()
    return int(text) if text.isdecimal() and int(text) else None


def check_threads(count: int) -> None:
    """Refuse to load a model for ``count`` threads where they cannot work, or cannot be started.

    Raises:
        EngineError: an engine computed with several threads before this process was forked, or the system does not let
            this process start so many.
    """
    if count > 1 and _computed_in not in (None, os.getpid()):
        msg = (
            f"an engine has computed with several threads in process {_computed_in}, from which this one was forked:"
            f" computing with {count} threads would hang here; fork before the first process computes, use"
            " multiprocessing's start method 'spawn', or give n_threads=1"
        )
        raise EngineError(msg)
    limit = openmp_limit()
    if limit is not None and count > limit:
        msg = f"OMP_THREAD_LIMIT={limit} allows fewer than {count} threads; unset it, or give a smaller n_threads"
        raise EngineError(msg)
    # One of them is the caller's own.
    _check_startable(count - 1)


def _check_startable(count: int) -> None:
    """Start ``count`` threads and end them: OpenMP ends the process if that fails."""
    end = threading.Event()
    started: list[threading.Thread] = []
    try:
        while len(started) < count:
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError) as error:
        msg = (
            f"the system lets this process start {len(started)} threads more, {count} are needed ({error}); give a"
            " smaller n_threads, or raise the limit (pids.max of the control group, `ulimit -u`, `ulimit -v`)"
        )
        raise EngineError(msg) from error
    finally:
        end.set()
        for thread in started:
            thread.join()


def check_model(process: int, name: str) -> None:
    """Refuse a model that process ``process`` loaded, in any other.

    Raises:
        EngineError: this process was forked from that one.
    """
    if os.getpid() != process:
        msg = (
            f"this Llama ({name}) was loaded by process {process}, from which this one was forked: load the model after"
            " the fork, or use multiprocessing's start method 'spawn'"
        )
        raise EngineError(msg)
