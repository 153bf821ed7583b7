"""Find in the log of an engine's process why it ended: the cause if it is a known one, and the lines that say it."""

from __future__ import annotations

import re
import signal
from pathlib import Path

__all__ = ["ending", "explain", "last_words", "signal_name"]

_HEAD_BYTES = 256 << 10
_TAIL_BYTES = 8 << 10
_FIRST_LINES = 4
_TAIL_LINES = 12
_LAST_WORDS = 8
_LINE_CHARACTERS = 300

# What a terminal would take for colours.
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_USAGE = re.compile(r"usage:", re.IGNORECASE)
# Words both engines, the C++ runtime and the dynamic linker use; or llama.cpp's and ik_llama.cpp's mark of an error.
_ERROR = re.compile(
    r"\berror\b|\bfail(?:ed|ure)\b|\bcouldn't\b|\bcould not\b|\bcannot\b|\bunable to\b|\binvalid\b|\bunknown argument\b"
    r"|\bnot supported\b|\bGGML_ASSERT\b|\bwhat\(\):|\bterminate called\b|\bbad_alloc\b|\binsufficient\b"
    r"|\bout of memory\b|^(?:[\d.]+ )?E |^ *ERR ",
    re.IGNORECASE,
)

# (what the log has, what it means). The first that matches is the cause: what follows from it comes later here.
_CAUSES = tuple(
    (re.compile(pattern, re.IGNORECASE | re.MULTILINE), meaning)
    for pattern, meaning in (
        (
            r"version `(?P<what>[^']+)' not found",
            "a library of this system lacks {what}: it is older than the payload, or LD_LIBRARY_PATH names an old one",
        ),
        (
            r"error while loading shared libraries: (?P<what>[^:\s]+)",
            "the library {what} cannot be loaded; install the system package that has it",
        ),
        (
            r"(?:unknown|invalid) argument: (?P<what>\S+=.*)",
            "it does not know {what}: it takes the value as the next argument, without `=`",
        ),
        (
            r"(?:unknown|invalid) argument: (?P<what>.+)",
            "it does not know {what}; `{tool} --help` lists its options",
        ),
        (
            r"couldn't bind|address already in use",
            "another program took the port meanwhile; choose another with --port (0: any free one)",
        ),
        (
            r"bad_alloc|out of memory|insufficient memory|(?:failed|unable|cannot|could not)(?: to)? allocate",
            "memory ran out; a smaller context (-- -c 4096) or a smaller model needs less",
        ),
        (
            r"without SSL support",
            "this payload is built without TLS: leave out --ssl-key-file and --ssl-cert-file; a proxy can add TLS",
        ),
        (
            r"^sto[a-z]+$|what\(\): +sto[a-z]+$|argument \".*\": sto[a-z]+$",
            "an argument or a LLAMA_ARG_ variable that must be a number is none",
        ),
        (
            r"expected value for argument|invalid parameter for argument: (?P<what>.+)",
            "an argument lacks its value, or has one that makes no sense",
        ),
        (
            r"(?:failed to load|error loading|unable to load)(?: the)? model|model loading error",
            "it cannot load the model",
        ),
    )
)


def signal_name(number: int) -> str:
    """The name of a signal."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def ending(code: int) -> str:
    """A process's exit code (negative: the signal that ended it) in words."""
    if code == 0:
        return "ended with exit code 0, as it does after --help or --version,"
    if code > 0:
        return f"ended with exit code {code}"
    name = signal_name(-code)
    if -code == signal.SIGKILL:
        return f"was killed with {name}: by the kernel for lack of memory, unless somebody did it by hand"
    if -code == signal.SIGILL:
        return f"crashed with {name}: it executes an instruction this CPU does not have"
    return f"crashed with {name}"


def explain(path: Path, start: int, tool: Path, *, started: bool) -> str:
    """What the log from byte `start` on says about the end, for a message: the cause, and the telling lines.

    A server that had `started` may have complained about much before; only the end of its log counts.
    """
    head, tail = _read(path, start)
    lines = tail if started else head
    usage = next((number for number, line in enumerate(lines) if _USAGE.match(line)), None)
    if usage is not None:
        # Hundreds of lines that bury what stands before them.
        lines = lines[:usage]
    if started or usage is not None:
        tail = lines
    text = "\n".join(lines)
    found = ((pattern.search(text), meaning) for pattern, meaning in _CAUSES)
    cause = next((meaning.format(tool=tool, **match.groupdict()) for match, meaning in found if match), None)
    last = tail[-_TAIL_LINES:]
    first = [] if started else [line for line in lines if _ERROR.search(line)][:_FIRST_LINES]
    if all(line in last for line in first):
        first = []
    shown = [*first, "...", *last] if first else last
    message = f"{cause}; log: {path}" if cause else f"log: {path}"
    if not shown:
        return message + (", which has only its usage" if usage is not None else " (empty)")
    what = "its first errors and its end" if first else "its end"
    return message + f", {what}:\n" + "\n".join(f"  | {line}" for line in shown)


def last_words(raw: bytes) -> list[str]:
    """The lines with which a log ends, from the last error on: a trace of calls may follow that."""
    lines = _lines(raw)
    errors = [number for number, line in enumerate(lines) if _ERROR.search(line)]
    return lines[errors[-1] :][:_LAST_WORDS] if errors else lines[-_LAST_WORDS:]


def _read(path: Path, start: int) -> tuple[list[str], list[str]]:
    """The lines at the beginning, and at the end, of the log from `start` on."""
    with path.open("rb") as handle:
        size = handle.seek(0, 2)
        handle.seek(min(start, size))
        head = handle.read(_HEAD_BYTES)
        handle.seek(max(min(start, size), size - _TAIL_BYTES))
        tail = handle.read()
    return _lines(head), _lines(tail)


def _lines(raw: bytes) -> list[str]:
    text = _ESCAPES.sub("", raw.decode("utf-8", "replace"))
    return [line.rstrip()[:_LINE_CHARACTERS] for line in text.splitlines() if line.strip()]
