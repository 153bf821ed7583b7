"""The one place where text becomes bytes: for the C functions of an engine, and on standard output."""

from __future__ import annotations

import json
import os
import sys

from .checks import shown
from .errors import UsageError

__all__ = ["prepare_streams", "print_json", "to_engine", "write_now"]

# Where Python keeps the bytes of a command line or file name that are not UTF-8 (PEP 383).
_ESCAPED_BYTES = range(0xDC80, 0xDD00)


def to_engine(text: object, what: str, *, nul: bool = True) -> bytes:
    """`text` as the engines take it, in UTF-8; `what` names it in errors. Bytes stay as they are.

    `nul` says whether the C function takes a length; one that does not would end the text at a NUL character.
    Raises UsageError for what is neither, for what is no Unicode text, and for a NUL where none can be carried.
    """
    if not isinstance(text, (str, bytes, bytearray, memoryview)):
        msg = f"{what} must be a text or bytes; got {shown(text)}"
        raise UsageError(msg)
    try:
        raw = text.encode() if isinstance(text, str) else bytes(text)
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        if code in _ESCAPED_BYTES:
            why = f"byte 0x{code - 0xDC00:02x} at character {error.start + 1} is not UTF-8"
        else:
            why = f"character {error.start + 1} is U+{code:04X}, half of a surrogate pair"
        msg = f"{what} is not text that an engine can read: {why}"
        raise UsageError(msg) from error
    if not nul and 0 in raw:
        msg = f"{what} contains a NUL character, which the C API cannot carry"
        raise UsageError(msg)
    return raw


def prepare_streams() -> None:
    """Make standard output and error take any text, whatever the locale, and exist.

    Characters that the terminal's encoding lacks, and bytes of file names that are not UTF-8, are shown as escapes.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # it was closed: the next file opened would get its number, and what is printed
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def print_json(value: object) -> None:
    """Print `value` as one line of JSON, in UTF-8 whatever the locale."""
    # What UTF-8 cannot carry becomes \udcff, which is JSON for the same.
    write_now(json.dumps(value, ensure_ascii=False) + "\n")


def write_now(text: str) -> None:
    """Write a piece of text at once, in UTF-8 whatever the locale."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
    sys.stdout.buffer.flush()
