"""The images and sounds of a conversation: from what a message says of them to bytes that an engine may read.

What the engines would end the process over is refused here: sounds whose headers promise more than their bytes hold.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from .checks import shown
from .engines.media import MOST_SECONDS, Projector, is_mp3, is_wav
from .errors import UnsupportedOption, UsageError

__all__ = ["MEDIA_PARTS", "FetchUrl", "Media"]

FetchUrl: TypeAlias = Callable[[str], bytes]
"""Gives the bytes that a URL names."""

MEDIA_PARTS = ("image_url", "input_audio")
"""Types of a message's parts."""
MOST_BYTES = 32 << 20
MOST_FILES = 64
_DATA_URL = re.compile(r"data:(image|audio)/[\w.+-]+(?:;[\w.+-]+=[^;,]*)*;base64,", re.IGNORECASE | re.ASCII)
_WAV_HEAD = struct.Struct("<4sI4s4sIHHIIHH4sI")
_WAV_BITS: Mapping[int, tuple[int, ...]] = {1: (8, 16, 24, 32), 3: (32, 64), 6: (8,), 7: (8,)}
"""Of PCM, floats and the two kinds of logarithms."""
_EXTENSIBLE = 0xFFFE
_TAG = re.compile(b"Xing|Info")
_TAG_OFFSETS = (13, 15, 21, 23, 36, 38)
"""Behind the beginning of its frame, by version, channels and checksum."""
_SHORTEST_FRAME = 24


class Media:
    """Takes the images and sounds out of messages.

    Attributes:
        files: their bytes, in the order of the markers.

    Args:
        projector: that of the model; None if it has none.
        fetch_url: for images that are named by a URL.
    """

    def __init__(self, projector: Projector | None, fetch_url: FetchUrl | None = None) -> None:
        self.files: list[bytes] = []
        self._projector = projector
        self._fetch_url = fetch_url

    def part(self, where: str, part: Mapping[str, Any]) -> dict[str, str]:
        """What the template gets for a part of type ``image_url`` or ``input_audio``.

        Raises:
            UnsupportedOption: the model does not take it.
            UsageError: it cannot be read.
        """
        kind = str(part["type"])
        if self._projector is None:
            msg = (
                f"{where} has a part of type {kind!r}, and this Llama takes text alone: give it the projector of its"
                " model (mmproj='...gguf')"
            )
            raise UnsupportedOption(msg)
        if kind not in self._projector.takes:
            there = ", ".join(self._projector.takes) or "none of these"
            msg = f"{where} has a part of type {kind!r}; the projector and the engine take {there}"
            msg += "; llama.cpp takes sounds (engine='llama.cpp')" if self._projector.deaf else ""
            raise UnsupportedOption(msg)
        given = part.get(kind)
        wanted = "url" if kind == "image_url" else "data"
        source = given.get(wanted) if isinstance(given, Mapping) else None
        if source is None:
            msg = f"{where} has a part of type {kind!r} without {kind}.{wanted}"
            raise UsageError(msg)
        what = f"the {'image' if kind == 'image_url' else 'sound'} of {where}"
        raw = self._bytes(what, source, kind)
        if not raw or len(raw) > MOST_BYTES:
            msg = f"{what} has {len(raw)} bytes; it may have 1 to {MOST_BYTES}"
            raise UsageError(msg)
        if len(self.files) == MOST_FILES:
            msg = f"a conversation may have {MOST_FILES} images and sounds; {what} is one more"
            raise UsageError(msg)
        self.files.append(_image(what, raw) if kind == "image_url" else _sound(what, raw))
        return {"type": "media_marker", "text": self._projector.marker}

    def _bytes(self, what: str, source: object, kind: str) -> bytes:
        if isinstance(source, (bytes, bytearray, memoryview)):
            return bytes(source)
        if isinstance(source, os.PathLike):
            return _of_file(what, Path(source))
        if not isinstance(source, str):
            msg = f"{what} must be base64, bytes or a pathlib.Path; got {shown(source)}"
            raise UsageError(msg)
        if kind == "input_audio":
            return _decoded(what, source)
        head = _DATA_URL.match(source)
        if head is not None:
            return _decoded(what, source[head.end() :])
        if re.match("https?:", source, re.IGNORECASE):
            if self._fetch_url is None:
                msg = (
                    f"{what} is at {shown(source)}, and nothing is fetched from networks here: give the bytes as a"
                    " data: URL, or fetch_url, a function that gets a URL and gives its bytes"
                )
                raise UsageError(msg)
            fetched = self._fetch_url(source)
            if not isinstance(fetched, (bytes, bytearray, memoryview)):
                msg = f"fetch_url must give bytes; it gave {shown(fetched)}"
                raise UsageError(msg)
            return bytes(fetched)
        msg = (
            f"{what} must be a URL 'data:image/...;base64,...', or, from Python, a pathlib.Path or bytes: a text is"
            f" never taken for the name of a file; got {shown(source)}"
        )
        raise UsageError(msg)


def _of_file(what: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            # One more than may be, to see that there are more.
            return file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        msg = f"{what} cannot be read from {path}: {getattr(error, 'strerror', None) or error}"
        raise UsageError(msg) from error


def _decoded(what: str, text: str) -> bytes:
    if len(text) > MOST_BYTES * 4 // 3 + 4:
        msg = f"{what} has more than {MOST_BYTES} bytes"
        raise UsageError(msg)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        msg = f"{what} is not base64: {error}"
        raise UsageError(msg) from error


def _image(what: str, raw: bytes) -> bytes:
    if is_wav(raw) or is_mp3(raw) or raw.startswith(b"fLaC"):
        msg = f"{what} is a sound: give it as a part of type 'input_audio'"
        raise UsageError(msg)
    return raw


def _sound(what: str, raw: bytes) -> bytes:
    if is_wav(raw):
        return _wav(what, raw)
    if not is_mp3(raw):
        msg = f"{what} is neither WAV nor MP3"
        raise UsageError(msg)
    for tag in _TAG.finditer(raw):
        begins = (raw[max(tag.start() - offset, 0) :][:2] for offset in _TAG_OFFSETS)
        if any(begin[:1] == b"\xff" and begin[1:] >= b"\xe0" for begin in begins):
            flags, frames = struct.unpack(">II", raw[tag.end() :][:8].ljust(8, b"\0"))
            if flags & 1 and frames * _SHORTEST_FRAME > len(raw):
                msg = f"{what} is damaged: it says that it has {frames} frames, and has {len(raw)} bytes"
                raise UsageError(msg)
    return raw


def _wav(what: str, raw: bytes) -> bytes:
    """The same sound with nothing in it but what was checked."""
    parts: dict[bytes, bytes] = {}
    at = 12
    while at + 8 <= len(raw) and b"data" not in parts:
        name, size = struct.unpack_from("<4sI", raw, at)
        parts.setdefault(name, raw[at + 8 : at + 8 + size])
        at += 8 + size + size % 2
    form, data = parts.get(b"fmt ", b""), parts.get(b"data", b"")
    if len(form) < 16 or not data:
        msg = f"{what} is damaged: a WAV file must have a format (fmt) and then samples (data)"
        raise UsageError(msg)
    tag, channels, rate, _, align, bits = struct.unpack_from("<HHIIHH", form)
    if tag == _EXTENSIBLE and len(form) >= 26:
        (tag,) = struct.unpack_from("<H", form, 24)
    if bits not in _WAV_BITS.get(tag, ()) or not 1 <= channels <= 8 or align != channels * bits // 8:
        msg = f"{what} is a WAV file of format {tag} with {channels} channels of {bits} bits; save it as PCM, 16 bits"
        raise UsageError(msg)
    frames = len(data) // align
    if not 1000 <= rate <= 384_000 or not 0 < frames <= MOST_SECONDS * rate:
        msg = (
            f"{what} has {frames} samples, {rate} a second; it may last {MOST_SECONDS} s, with 1000 to 384000 a second"
        )
        raise UsageError(msg)
    size = frames * align
    head = _WAV_HEAD.pack(
        b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, tag, channels, rate, rate * align, align, bits, b"data", size
    )
    return head + data[:size]
