"""The engine's side of `Llama(isolate=True)`: a process that loads a model, and does what the program asks of it.

Run as ``python -m forkyard_llm.isolated_child DESCRIPTOR PARENT LEVEL``: the number of a socket that it inherits, the
id of the process that started it, and the level from which on the program wants log records.

It ends when the socket is closed, or that process is gone. Each call has a thread of its own. Arguments come as
pickles: the program may do here whatever it likes. What goes back is described in :mod:`forkyard_llm.crossing`.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import logging
import os
import pickle
import queue
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .crossing import encode, read_frame
from .llama import Llama

__all__ = ["OPEN", "Function", "kept", "main"]

OPEN = "__init__"
"""The name of the call that loads the model."""
_LOOKS_S = 1.0
_END: Any = object()

_kept: list[Any] = []
"""Objects the program knows by their number; they live as long as this process, as adapters do that a model loaded."""


def kept(number: int) -> Any:
    """An object that went to the program by its number alone; pickles of the program name this function."""
    return _kept[number]


def _keep(value: Any) -> int:
    for number, one in enumerate(_kept):
        if one is value:
            return number
    _kept.append(value)
    return len(_kept) - 1


class _Cancelled(BaseException):
    """The program does not wait for this call any more."""


class _FunctionFailed(Exception):
    """A function of the program raised something, which it keeps to itself."""


class Function:
    """In the arguments of a call the place of a function of the program, by its number."""

    def __init__(self, number: int) -> None:
        self.number = number


class _Call:
    """A call of the program that is not over."""

    def __init__(self, server: _Server, number: int) -> None:
        self._server = server
        self.number = number
        self.room = threading.Semaphore(0)
        """How many items of a stream the program has room for."""
        self.answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.over = threading.Event()
        self.cancelled = False
        self._lock = threading.Lock()
        self._inside: int | None = None

    def say(self, what: str, value: Any) -> None:
        self._server.say(self.number, what, value)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """What is done inside ends when the program cancels the call, as it would end by Ctrl-C."""
        with self._lock:
            self.check()
            self._inside = threading.get_ident()
        try:
            yield
        finally:
            with self._lock:
                self._inside = None
        self.check()

    def check(self, *_: object) -> None:
        """Raise if the call is cancelled. Takes what functions that hear of a prompt's progress are told."""
        if self.cancelled:
            raise _Cancelled

    def cancel(self) -> None:
        """End the call: at its next step of Python, or while it waits for the program."""
        with self._lock:
            self.cancelled = True
            if self._inside is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._inside), ctypes.py_object(_Cancelled))
        self.room.release()
        self.answers.put(None)

    def function(self, number: int) -> Any:
        """A function that has the program call its own."""

        def call_back(*arguments: Any) -> Any:
            self.check()
            self.say("function", [number, list(arguments)])
            answer = self.answers.get()
            if answer is None:
                raise _Cancelled
            succeeded, result, changed = pickle.loads(answer)  # noqa: S301 - of the program
            if not succeeded:
                raise _FunctionFailed
            for argument, raw in zip(filter(_is_buffer, arguments), changed, strict=True):
                ctypes.memmove(argument, raw, len(raw))
            return result

        return call_back


class _Server:
    """Reads what the program wants, and has threads do it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._calls: dict[int, _Call] = {}
        self._llama: Llama | None = None

    def run(self) -> None:
        """Until the program closes the socket."""
        stream = self._connection.makefile("rb")
        while (given := read_frame(stream)) is not None:
            kind, number, *rest = pickle.loads(given[0])  # noqa: S301 - of the program
            if kind == "call":
                call = self._calls[number] = _Call(self, number)
                # Where one generation is done at a time its turn is free only after these.
                # A list first: calls that end meanwhile leave the table.
                cancelled = [one for one in list(self._calls.values()) if one.cancelled]
                threading.Thread(target=self._serve, args=(call, cancelled, *rest), daemon=True).start()
            elif (known := self._calls.get(number)) is None:
                continue  # it is over meanwhile
            elif kind == "room":
                known.room.release(*rest)
            elif kind == "answer":
                known.answers.put(*rest)
            else:
                known.cancel()

    def say(self, number: int, what: str, value: Any) -> None:
        """Send one message; a program that is gone ends this process."""
        parts = encode([number, what, value], _keep)
        try:
            with self._sending:
                for part in parts:
                    self._connection.sendall(part)
        except OSError:
            os._exit(1)

    def _serve(self, call: _Call, cancelled: Sequence[_Call], name: str, data: bytes | None) -> None:
        try:
            for one in cancelled:
                one.over.wait()
            self._do(call, name, data)
        except _Cancelled:
            pass
        except BaseException as error:  # noqa: BLE001 - the program gets it
            call.say("error", error)
        finally:
            self._calls.pop(call.number, None)
            call.over.set()

    def _do(self, call: _Call, name: str, data: bytes | None) -> None:
        arguments: Sequence[Any] = ()
        named: dict[str, Any] = {}
        if data is not None:
            arguments, named = pickle.loads(data)  # noqa: S301 - of the program
        with call.interruptible():
            if name == OPEN:
                self._llama = Llama(**named)
                result = None
            elif data is None:
                result = getattr(self._llama, name)
            else:
                arguments = [_with_functions(argument, call) for argument in arguments]
                named = {key: _with_functions(argument, call) for key, argument in named.items()}
                if _hears_of_progress(name, arguments, named):
                    named["progress"] = call.check
                result = getattr(self._llama, name)(*arguments, **named)
        if isinstance(result, Iterator):
            call.say("stream", None)
            self._give_out(call, result)
        else:
            call.say("value", result)

    @staticmethod
    def _give_out(call: _Call, items: Iterator[Any]) -> None:
        try:
            while True:
                call.room.acquire()
                with call.interruptible():
                    item = next(items, _END)
                if item is _END:
                    break
                call.say("item", item)
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()
        call.say("end", None)


def _with_functions(argument: Any, call: _Call) -> Any:
    if isinstance(argument, Function):
        return call.function(argument.number)
    if isinstance(argument, list) and any(isinstance(one, Function) for one in argument):
        return [_with_functions(one, call) for one in argument]
    return argument


def _hears_of_progress(name: str, arguments: Sequence[Any], named: dict[str, Any]) -> bool:
    """Whether a method has a ``progress`` that is not used: cancelling then need not wait for the whole prompt."""
    position = _place_of_progress(name)
    return position is not None and position >= len(arguments) and named.get("progress") is None


@functools.cache
def _place_of_progress(name: str) -> int | None:
    names = list(inspect.signature(getattr(Llama, name)).parameters)[1:]
    return names.index("progress") if "progress" in names else None


def _is_buffer(value: Any) -> bool:
    return isinstance(value, ctypes.Array)


class _ToTheProgram(logging.Handler):
    def __init__(self, server: _Server) -> None:
        super().__init__()
        self._server = server

    def emit(self, record: logging.LogRecord) -> None:
        self._server.say(0, "log", [record.name, record.levelno, record.getMessage()])


def _end_with(parent: int) -> None:
    """End with the process that started this one, even if another one has its end of the socket, too."""
    while os.getppid() == parent:
        time.sleep(_LOOKS_S)
    os._exit(1)


def main() -> None:
    """Serve the program that started this process."""
    descriptor, parent, level = map(int, sys.argv[1:])
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    server = _Server(connection)
    log = logging.getLogger(__package__)
    log.setLevel(level)
    log.propagate = False
    log.addHandler(_ToTheProgram(server))
    server.run()
    # Whatever computes, nothing is worth waiting for.
    os._exit(0)
