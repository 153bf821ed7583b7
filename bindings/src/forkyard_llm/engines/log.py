"""Catch what an engine logs: pass it on when asked to, and keep the complaints, for messages and for logging."""

from __future__ import annotations

import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeAlias

__all__ = ["EngineLog"]

Api: TypeAlias = Any
"""The functions bound from a payload's libraries, known only when it is loaded."""

_KEPT_LINES = 8


class EngineLog:
    """The one log callback of one loaded engine.

    The engine's logger is global to the loaded library, so ``verbose`` is too: the last setting holds for all models
    of that engine in this process.
    """

    def __init__(self, abi: ModuleType, api: Api) -> None:
        levels = abi.ENUMS["ggml_log_level"]
        self.verbose = False
        self._threshold: int = levels["GGML_LOG_LEVEL_WARN"]
        self._continuation: int = levels.get("GGML_LOG_LEVEL_CONT", -1)
        self._complaints: deque[str] = deque(maxlen=_KEPT_LINES)
        # Two threads may load at once; what an engine has to say about a load it says in the thread that asked.
        self._here = threading.local()
        # The engine keeps the bare pointer: this attribute keeps the callback alive as long as the library is.
        self._callback = abi.ggml_log_callback(self._receive)
        api.llama_log_set(self._callback, None)
        # A library that logs from a destructor must not call into an interpreter that is gone. Finalizers run in the
        # order of their making backwards: the models are freed before, and what the engine says then is not printed.
        weakref.finalize(self, api.llama_log_set, abi.ggml_log_callback(), None)
        # Of libmtmd, which has loggers of its own; ik_llama.cpp's has no callback.
        set_of_media = getattr(api, "mtmd_helper_log_set", None)
        if set_of_media is not None:
            set_of_media(self._callback, None)
            weakref.finalize(self, set_of_media, abi.ggml_log_callback(), None)

    def _receive(self, level: int, text: bytes | None, _user_data: int | None) -> None:
        line = (text or b"").decode("utf-8", "replace")
        if self.verbose:
            sys.stderr.write(line)
        if level >= self._threshold and level != self._continuation and line.strip():
            self._complaints.append(line.strip())
            lines: list[str] | None = getattr(self._here, "lines", None)
            if lines is not None and any(map(str.isalnum, line)):  # not the rulers some are framed with
                lines.append(line.strip())

    @contextmanager
    def collected(self) -> Iterator[list[str]]:
        """A list that gets this thread's warnings and errors from now on, all of them."""
        lines = self._here.lines = []
        try:
            yield lines
        finally:
            self._here.lines = None

    def forget(self) -> None:
        """Drop the kept complaints, before an operation whose own are wanted."""
        self._complaints.clear()

    def complaints(self) -> str:
        """The kept warnings and errors on one line, or an empty string."""
        return "; ".join(self._complaints)
