"""What a message says of an image or a sound becomes bytes that an engine may read, or an error."""

from __future__ import annotations

import base64
import io
import struct
import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from forkyard_llm import media as media_module
from forkyard_llm.chat import chat_request
from forkyard_llm.engines.media import Projector
from forkyard_llm.errors import UnsupportedOption, UsageError
from forkyard_llm.media import Media

MARKER = "<__media__>"
PNG = b"\x89PNG and so on"


def projector(*takes: str, deaf: bool = False) -> Projector:
    return cast("Projector", SimpleNamespace(marker=MARKER, takes=takes, deaf=deaf))


def taking(fetch_url: Any = None) -> Media:
    return Media(projector("image_url", "input_audio"), fetch_url)


def image(url: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def sound(data: object) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def tone(rate: int = 16000, channels: int = 1, width: int = 2, frames: int = 1600) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(bytes(range(1, 1 + channels * width)) * frames)
    return out.getvalue()


def test_a_marker_stands_for_each_image_and_sound(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(PNG)
    media = taking()
    encoded = base64.b64encode(PNG).decode()
    parts = [
        {"type": "text", "text": "Look:"},
        image(f"data:image/png;base64,{encoded}"),
        image(tmp_path / "a.png"),
        image(bytearray(PNG)),
        sound(base64.b64encode(tone()).decode()),
    ]
    read = chat_request([{"role": "user", "content": parts}], media=media)["messages"][0]["content"]
    assert [part["type"] for part in read] == ["text", *["media_marker"] * 4]
    assert {part["text"] for part in read[1:]} == {MARKER}
    assert media.files == [PNG, PNG, PNG, tone()]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image_url"}, "without image_url.url"),
        ({"type": "input_audio", "input_audio": "x"}, "without input_audio.data"),
        (image(3), "must be base64, bytes or a pathlib.Path; got 3"),
        (image("cat.png"), "never taken for the name of a file"),
        (image("file:///etc/passwd"), "never taken for the name of a file"),
        (image("data:text/plain;base64,eA=="), "must be a URL 'data:image"),
        (image("data:image/png,x"), "must be a URL 'data:image"),
        (image("data:image/png;base64,@@"), "not base64"),
        (image("data:image/png;base64,"), "has 0 bytes"),
        (image("HTTPS://example.com/cat.png"), "fetch_url"),
        (image(Path("nowhere/cat.png")), "cannot be read from nowhere"),
        (image(Path("a\0b")), "cannot be read"),
        (image(tone()), "is a sound"),
        (sound(base64.b64encode(PNG).decode()), "neither WAV nor MP3"),
        (sound("data:audio/wav;base64,eA=="), "not base64"),
    ],
)
def test_what_cannot_be_read_is_refused(part: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        taking().part("message 0", part)


def test_a_model_takes_what_its_projector_takes():
    with pytest.raises(UnsupportedOption, match=r"message 3 .*\(mmproj="):
        Media(None).part("message 3", image(PNG))
    with pytest.raises(UnsupportedOption, match="take image_url$"):
        Media(projector("image_url")).part("message 0", sound("x"))
    with pytest.raises(UnsupportedOption, match=r"none of these; llama\.cpp takes sounds"):
        Media(projector(deaf=True)).part("message 0", sound("x"))


def test_a_url_is_fetched_by_who_asks_for_it():
    media = taking({"http://example.com/cat.png": PNG}.__getitem__)
    media.part("message 0", image("http://example.com/cat.png"))
    assert media.files == [PNG]
    with pytest.raises(UsageError, match="fetch_url must give bytes; it gave 'text'"):
        taking(lambda _: "text").part("message 0", image("https://example.com"))


def test_there_are_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(media_module, "MOST_BYTES", 8)
    monkeypatch.setattr(media_module, "MOST_FILES", 2)
    (tmp_path / "long").write_bytes(bytes(1000))
    for given in (bytes(9), tmp_path / "long"):
        with pytest.raises(UsageError, match="has 9 bytes"):
            taking().part("message 0", image(given))
    with pytest.raises(UsageError, match="more than 8 bytes"):
        taking().part("message 0", image("data:image/png;base64," + "A" * 40))
    media = taking()
    for _ in range(2):
        media.part("message 0", image(bytes(8)))
    with pytest.raises(UsageError, match="2 images and sounds"):
        media.part("message 0", image(bytes(8)))


def test_a_wav_file_is_what_its_bytes_hold():
    raw = tone()
    media = taking()
    noted = raw[:36] + b"fact" + struct.pack("<II", 4, 0xFFFFFFFF) + raw[36:]
    extensible = struct.pack("<HHIIHH", 0xFFFE, 1, 16000, 32000, 2, 16) + struct.pack("<HHIH14x", 22, 16, 4, 1)
    long_form = raw[:16] + struct.pack("<I", len(extensible)) + extensible + raw[36:]
    for given in (
        noted,
        long_form,
        raw[:40] + b"\xff\xff\xff\xff" + raw[44:],
        raw + b"LIST\x04\0\0\0abcd",
        raw + b"\1",
    ):
        media.part("message 0", sound(given))
    assert media.files == [raw] * 5


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (tone()[:40], "must have a format"),
        (tone()[:12] + tone()[36:], "must have a format"),
        (tone(channels=9), "9 channels"),
        (tone()[:20] + b"\x11" + tone()[21:], "format 17"),
        (tone()[:32] + b"\x03" + tone()[33:], "of 16 bits"),
        (tone(rate=999), "999 a second"),
        (tone(frames=0), "must have a format"),
        (tone()[:45], "0 samples"),
    ],
)
def test_damaged_wav_files_are_refused(raw: bytes, message: str):
    with pytest.raises(UsageError, match=message):
        taking().part("message 0", sound(raw))


@pytest.mark.parametrize("offset", [13, 15, 21, 23, 36, 38])
@pytest.mark.parametrize("name", [b"Xing", b"Info"])
def test_an_mp3_file_has_no_more_frames_than_bytes_for_them(offset: int, name: bytes):
    head = b"ID3" + bytes(7) + (b"\xff\xfb" + bytes(40))[:offset] + name

    def given(flags: int, frames: int) -> bytes:
        return head + struct.pack(">II", flags, frames) + bytes(2400)

    for harmless in (given(1, 100), given(2, 2**32 - 1), given(0, 2**32 - 1), given(1, 100)[:-2404]):
        taking().part("message 0", sound(harmless))
    with pytest.raises(UsageError, match="says that it has 4294967295 frames"):
        taking().part("message 0", sound(given(1, 2**32 - 1)))
