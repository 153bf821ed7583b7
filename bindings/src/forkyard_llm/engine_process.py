"""The program's side of `Llama(isolate=True)`: the process that an engine is in, calls of it, and its end."""

from __future__ import annotations

import contextlib
import ctypes
import io
import itertools
import logging
import os
import pickle
import queue
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .crossing import decode, frame, read_frame
from .engines.threads import check_model
from .errors import EngineDied, EngineError, UnsupportedOption
from .isolated_child import OPEN, Function, kept
from .python_child import child_command
from .server_log import ending, last_words, signal_name

__all__ = ["EngineProcess"]

AHEAD = 8
"""Items of a stream that are computed before the program asks for them."""
_GRACE_S = 5.0
_TAIL_BYTES = 64 << 10


class EngineProcess:
    """The process of one model, and after its death the next one.

    Args:
        arguments: those of ``Llama``, by name.
        name: how messages call the model.
    """

    def __init__(self, arguments: Mapping[str, Any], name: str) -> None:
        self._arguments = arguments
        self._name = name
        self._process = os.getpid()
        # One that a signal handler's thread can take again.
        self._lock = threading.RLock()
        self.closed = False
        try:
            self._folder: str | None = os.getcwd()
        except OSError:  # it was removed
            self._folder = None
        self._child = self._begin()

    def call(self, name: str, given: tuple[Sequence[Any], Mapping[str, Any]] | None, owner: object) -> Any:
        """What the method ``name`` returns for the arguments ``given``, or the value of the property, if None.

        Args:
            owner: what a stream keeps alive.

        Raises:
            EngineDied: the process ended; the next call starts another one.
            EngineError: it is closed, or another process started it.
            UnsupportedOption: an argument, or the result, cannot cross.
        """
        return self._running().call(name, given, owner)

    def check_not_inside(self) -> None:
        """Refuse a function that the engine has called. Raises EngineError."""
        if self._child.inside:
            msg = (
                "this Llama waits for the function that uses it now: a logits_processor or progress must not use the"
                " Llama that called it"
            )
            raise EngineError(msg)

    def close(self) -> None:
        """End the process, whatever it does; harmless the second time. In a forked process this does nothing."""
        if os.getpid() != self._process:
            self.closed = True
            return
        with self._lock:
            self.closed = True
            self._child.close()

    def _running(self) -> _Child:
        check_model(self._process, self._name)
        self.check_not_inside()
        with self._lock:
            self._refuse_closed()
            if self._child.ended is not None:
                if not self._child.told:
                    self._child.told = True
                    raise self._child.ended()
                self._child = self._begin()
                if self.closed:  # by a signal handler meanwhile
                    self._child.close()
                    self._refuse_closed()
            return self._child

    def _begin(self) -> _Child:
        child = _Child(self._name, self._folder, echo=self._arguments.get("verbose") is True)
        try:
            child.call(OPEN, ((), self._arguments), None)
        except BaseException:
            child.close()
            raise
        child.loaded = True
        return child

    def _refuse_closed(self) -> None:
        if self.closed:
            msg = f"this Llama is closed ({self._name}); make a new one"
            raise EngineError(msg)


class _Waiting:
    """A call whose answer, or whose stream's end, is to come."""

    def __init__(self, functions: Sequence[Callable[..., Any]]) -> None:
        self.functions = functions
        self.failure: BaseException | None = None
        """What one of the functions raised."""
        self.messages: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()


class _Child:
    """One process, the threads that write to it, read from it and from what it prints, and the calls it has."""

    def __init__(self, name: str, folder: str | None, *, echo: bool) -> None:
        self._name = name
        self._echo = echo
        self._owner = os.getpid()
        self._mark = object()
        self._numbers = itertools.count(1)
        # All that is done to these two is atomic: a finalizer may come in between anywhere.
        self._calls: dict[int, _Waiting] = {}
        self._outbox: queue.SimpleQueue[list[bytes | memoryview] | None] = queue.SimpleQueue()
        self._here = threading.local()
        self._closing = False
        self._tail = bytearray()
        self.loaded = False
        self.ended: Callable[[], EngineError] | None = None
        """Makes the error that says how it ended; None while it lives."""
        self.told = False
        """Whether a call was told of its end."""
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._process = self._start(theirs.fileno(), folder)
        self._printer, self._writer, self._reader = (
            threading.Thread(target=target, name=f"Llama {name}", daemon=True)
            for target in (self._print, self._write, self._read)
        )
        for thread in (self._printer, self._writer, self._reader):
            thread.start()

    def _start(self, descriptor: int, folder: str | None) -> subprocess.Popen[bytes]:
        level = logging.getLogger(__package__).getEffectiveLevel()
        words = [str(descriptor), str(os.getpid()), str(level)]
        # An engine that aborts would start a debugger, and hide behind its trace what it has to say.
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1", "PATH": os.devnull}
        try:
            if not sys.executable:
                msg = "this Python does not know its own executable"
                raise OSError(msg)
            return subprocess.Popen(
                child_command("isolated_child", *words),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0,
                pass_fds=(descriptor,), cwd=folder, env=environment,
                # Ctrl-C in the terminal is for the program, which ends its own calls.
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._connection.close()
            msg = f"the process for the engine of {self._name} cannot be started: {error}"
            raise EngineError(msg) from error

    # -- calls, in the threads of the program

    @property
    def inside(self) -> bool:
        """Whether this thread runs a function that the engine called."""
        return getattr(self._here, "inside", False)

    def call(self, name: str, given: tuple[Sequence[Any], Mapping[str, Any]] | None, owner: object) -> Any:
        """See :meth:`EngineProcess.call`."""
        functions: list[Callable[..., Any]] = []
        data = None if given is None else self._pickled(given, functions)
        number, waiting = next(self._numbers), _Waiting(functions)
        self._calls[number] = waiting
        if self.ended is not None:
            self._calls.pop(number, None)
            self.told = True
            raise self.ended()
        self._send("call", number, name, data)
        what, value = self._next(number, waiting)
        if what != "stream":
            return value
        items = self._items(number, waiting, owner)
        # Also if it is dropped before it began.
        weakref.finalize(items, self._cancel, number).atexit = False
        return items

    def _items(self, number: int, waiting: _Waiting, owner: object) -> Iterator[Any]:
        try:
            for count in itertools.count():
                if count == 0:
                    self._send("room", number, AHEAD)
                elif count % (AHEAD // 2) == 0:
                    self._send("room", number, AHEAD // 2)
                what, value = self._next(number, waiting)
                if what == "end":
                    return
                yield value
        finally:
            self._cancel(number)
            del owner

    def _next(self, number: int, waiting: _Waiting) -> tuple[str, Any]:
        check_model(self._owner, self._name)
        try:
            what, value = waiting.messages.get()
        except BaseException:  # Ctrl-C
            self._cancel(number)
            raise
        if what == "error":
            raise waiting.failure or value
        if what == "ended":
            raise value()
        return what, value

    def _cancel(self, number: int) -> None:
        if self._calls.pop(number, None) is not None:
            self._send("cancel", number)

    def _send(self, *message: Any) -> None:
        self._outbox.put(frame(pickle.dumps(message)))

    def _pickled(self, given: tuple[Sequence[Any], Mapping[str, Any]], functions: list[Callable[..., Any]]) -> bytes:
        arguments, named = given
        listed = [_numbered(argument, functions) for argument in arguments]
        table = {name: _numbered(argument, functions) for name, argument in named.items()}
        out = io.BytesIO()
        try:
            _Pickler(out, self._mark).dump((listed, table))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            msg = (
                f"an argument cannot be brought into the engine's process ({error}): isolate=True takes what pickle"
                " takes, and functions only as arguments of their own; make a Llama without it"
            )
            raise UnsupportedOption(msg) from error
        return out.getvalue()

    # -- its end

    def close(self) -> None:
        """End it, and wait for that. In a forked process this does nothing."""
        if os.getpid() != self._owner:
            return
        self._closing = True
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        if threading.current_thread() is not self._reader:
            self._reader.join()

    def _finish(self, nonsense: str) -> None:
        """In the reading thread: see to it that it is gone, and tell who waits."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        try:
            code = self._process.wait(0 if nonsense else _GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        # Something it started may have its output still.
        self._printer.join(_GRACE_S)
        self.ended = self._ending(code, nonsense, last_words(bytes(self._tail)))
        while self._calls:
            with contextlib.suppress(KeyError):
                _, waiting = self._calls.popitem()
                self.told = True
                waiting.messages.put(("ended", self.ended))
        self._outbox.put(None)
        self._writer.join()
        self._connection.close()

    def _ending(self, code: int, nonsense: str, words: Sequence[str]) -> Callable[[], EngineError]:
        if self._closing:
            return lambda: EngineError(f"this Llama was closed ({self._name})")
        how = ending(code) if code else "ended with exit code 0"
        how = f"was ended, for it {nonsense}" if nonsense else how
        when = "" if self.loaded else " while it loaded the model"
        said = "".join(f"\n  | {line}" for line in words)
        after = "the next call starts a new one with the same arguments; " if self.loaded else ""
        message = (
            f"the process of the engine, which had {self._name}, {how}{when}; {after}its last words"
            f"{':' + said if said else ' are none'}"
        )
        return lambda: EngineDied(
            message,
            signal=signal_name(-code) if code < 0 else None,
            exit_status=code if code >= 0 else None,
            last_words=words,
        )

    # -- its threads

    def _write(self) -> None:
        try:
            while (parts := self._outbox.get()) is not None:
                for part in parts:
                    self._connection.sendall(part)
        except OSError:
            pass  # the reading thread finds out as well

    def _read(self) -> None:
        nonsense = ""
        try:
            with self._connection.makefile("rb") as stream:
                while (given := read_frame(stream)) is not None:
                    self._take(*decode(given, self._hold))
        except OSError:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it sent
            nonsense = f"sent what is no message ({type(error).__name__}: {str(error)[:200]})"
        finally:
            self._finish(nonsense)

    def _take(self, number: int, what: str, value: Any) -> None:
        if what == "log":
            name, level, text = value
            ours = name.startswith(f"{__package__}.")
            logging.getLogger(name if ours else __package__).log(level, "%s", text)
            return
        waiting = self._calls.get(number)
        if waiting is None:
            return
        if what == "function":
            index, arguments = value
            function = waiting.functions[index]
            threading.Thread(target=self._call_back, args=(number, waiting, function, arguments), daemon=True).start()
            return
        if what not in ("value", "stream", "item", "end", "error") or (
            what == "error" and not isinstance(value, Exception)
        ):
            msg = f"{what!r} is no kind of message"
            raise ValueError(msg)
        if what in ("value", "end", "error"):
            self._calls.pop(number, None)
        waiting.messages.put((what, value))

    def _call_back(self, number: int, waiting: _Waiting, function: Callable[..., Any], arguments: list[Any]) -> None:
        self._here.inside = True
        try:
            result = function(*arguments)
            changed = [bytes(one) for one in arguments if isinstance(one, ctypes.Array)]
            data = pickle.dumps((True, result, changed))
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            waiting.failure = error
            data = pickle.dumps((False, None, []))
        self._send("answer", number, data)

    def _hold(self, made: Any, number: int) -> None:
        object.__setattr__(made, "_held", (self._mark, number))

    def _print(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        with pipe:
            while read := pipe.read(io.DEFAULT_BUFFER_SIZE):
                self._tail += read
                del self._tail[:-_TAIL_BYTES]
                if self._echo:
                    sys.stderr.write(read.decode("utf-8", "replace"))


class _Pickler(pickle.Pickler):
    """Writes for what the engine's process kept the number it has there."""

    def __init__(self, out: io.BytesIO, mark: object) -> None:
        super().__init__(out, protocol=pickle.HIGHEST_PROTOCOL)
        self._mark = mark

    def reducer_override(self, value: Any) -> Any:
        held = getattr(value, "__dict__", {}).get("_held") if type(value).__module__.startswith(__package__) else None
        if held is None:
            return NotImplemented
        mark, number = held
        if mark is not self._mark:
            msg = f"this {type(value).__name__} was loaded in a process of the engine that has ended; load it again"
            raise EngineError(msg)
        return kept, (number,)


def _numbered(argument: Any, functions: list[Callable[..., Any]]) -> Any:
    """An argument with a number instead of each function that it is, or has in a list."""
    if callable(argument) and not isinstance(argument, type):
        functions.append(argument)
        return Function(len(functions) - 1)
    if isinstance(argument, (list, tuple)) and any(map(callable, argument)):
        return [_numbered(one, functions) for one in argument]
    return argument
