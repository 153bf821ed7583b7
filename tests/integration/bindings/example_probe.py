"""Runs examples, given as JSON on stdin, one after the other in this folder, and closes the models that they leave open.

usage: example_probe.py
prints the place of each that has run
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sys
import types
from typing import Any

from forkyard_llm import Llama


class _Anything:
    """A type of a package that need not be installed."""

    def __init__(self, **members: Any) -> None:
        vars(self).update(members)

    @classmethod
    def model_validate(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return cls(**{name: cls.model_validate(member) for name, member in value.items()})
        return [cls.model_validate(item) for item in value] if isinstance(value, list) else value


def stand_in(name: str, **members: Any) -> None:
    """Make a package importable that the examples name."""
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module


async def ask(app: Any, body: bytes, leaves: bool) -> tuple[int, bytes]:
    """The status and the body of an ASGI application's answer; the client may leave at its first part."""
    gone = asyncio.Event()
    parts = [{"type": "http.request", "body": body[:3], "more_body": True}, {"type": "http.request", "body": body[3:]}]
    status, text = 0, b""

    async def receive() -> Any:
        if parts:
            return parts.pop(0)
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status, text
        status = message.get("status", status)
        text += message.get("body", b"")
        if leaves and text:
            gone.set()

    await app({"type": "http"}, receive, send)
    return status, text


async def use(app: Any) -> None:
    """See that it answers, that it says no, and that its requests end with their clients."""
    status, text = await ask(app, b"The capital of France is", leaves=False)
    assert (status, text.strip()[:5]) == (200, b"Paris"), (status, text)
    assert (await ask(app, b"word " * 2000, leaves=False))[0] == 413
    left = await asyncio.gather(*(ask(app, b"Once upon a time", leaves=True) for _ in range(3)))
    assert all(status == 200 and text for status, text in left)
    assert all(len(text) < len("Once upon a time") * 5 for _, text in left), left


def main() -> None:
    stand_in("huggingface_hub", hf_hub_download=lambda *_, **__: "model.gguf")
    for name in ("openai", "openai.types"):
        stand_in(name)
    stand_in("openai.types.chat", ChatCompletion=_Anything, ChatCompletionChunk=_Anything)
    for where, text in json.load(sys.stdin):
        names: dict[str, Any] = {"__name__": "__main__"}
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(text, where, "exec"), names)
            if "app" in names:
                asyncio.run(use(names["app"]))
        for value in names.values():
            if isinstance(value, Llama) or type(value).__module__.startswith("llama_cpp"):
                value.close()
        print(where, flush=True)


if __name__ == "__main__":
    main()
