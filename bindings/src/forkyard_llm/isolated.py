"""`Llama(isolate=True)`: every method of `Llama`, done by one in a process of its own.

The methods are those that `Llama` has, whichever these are: one that uses something of the object which is not public
is called in the process, one that is made of public methods alone is as good here as there.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Iterator
from types import CodeType
from typing import Any

from .engine_process import EngineProcess
from .errors import EngineError
from .llama import Llama
from .payloads import Payload
from .selection import candidates

__all__ = ["IsolatedLlama", "isolate"]


def isolate(llama: Llama) -> None:
    """Make an object that has nothing but its arguments one whose engine is in a process of its own.

    Raises what ``Llama`` raises there, and EngineDied.
    """
    kind = type(llama)
    llama.__class__ = IsolatedLlama if kind is Llama else type(kind.__name__, (kind, IsolatedLlama), {"_kind": kind})
    assert isinstance(llama, IsolatedLlama)
    llama._start()


class IsolatedLlama(Llama):
    """A model in a process of its own; made by ``Llama(isolate=True)``."""

    _kind: type[Llama] = Llama
    _process: EngineProcess

    def _start(self) -> None:
        self._process = EngineProcess({**self._arguments, "isolate": False}, self.model_path)
        self._finalizer = weakref.finalize(self, self._process.close)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(self._kind, **self._arguments), ()

    @property
    def payload(self) -> Payload:
        """The payload in use."""
        said = self._process.call("payload", None, self)
        # Its files may be loaded by whoever gets this: an engine that was taken over must not choose them.
        for one in candidates(self._arguments["engine"], self._arguments["variant"]):
            if one == said:
                return one
        msg = f"the engine's process says that it uses {said}, which is not installed; make a new Llama"
        raise EngineError(msg)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._process.closed

    def close(self) -> None:
        """End the process; harmless the second time. An open stream raises EngineError when it is continued."""
        self._process.check_not_inside()
        self._finalizer()


def _forwarded(name: str, member: Any) -> Any:
    """A method, or a property, that the process has the value of."""
    if isinstance(member, property):

        def read(self: IsolatedLlama) -> Any:
            return self._process.call(name, None, self)

        return property(functools.wraps(member.fget)(read) if member.fget else read, doc=member.__doc__)

    def call(self: IsolatedLlama, /, *arguments: Any, **named: Any) -> Any:
        return self._process.call(name, (arguments, named), self)

    return functools.wraps(member)(call)


def _private_names(code: CodeType) -> Iterator[str]:
    """Names with an underscore that a function, or one inside it, uses of objects or of its module."""
    yield from (name for name in code.co_names if name.startswith("_") and not name.startswith("__"))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _private_names(constant)


def _needs_the_engine(member: Any) -> bool:
    function = member.fget if isinstance(member, property) else member
    return inspect.isfunction(function) and any(_private_names(function.__code__))


for _name, _member in list(vars(Llama).items()):
    _is_public = not _name.startswith("_") or _name == "__call__"
    if _is_public and _name not in vars(IsolatedLlama) and _needs_the_engine(_member):
        setattr(IsolatedLlama, _name, _forwarded(_name, _member))
