"""Images and sounds in chats: on tiny models of random weights, as the payload's own server has them."""

from __future__ import annotations

import base64
import contextlib
import itertools
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm import Llama
from forkyard_llm.errors import ModelError, PromptTooLong, UnsupportedOption, UsageError

from .test_common import ask, server
from .tiny_media import GEMMA, LLAVA, QWEN, SPEECH, png, wav, write_projector
from .tiny_texts import write_decoder

pytestmark = pytest.mark.usefixtures("built_payloads")

ENGINES = ("llama.cpp", "ik_llama.cpp")
# Letters alone: a byte of random weights is seldom a text, and ik_llama.cpp's server writes no JSON of it.
LETTERS = "root ::= [a-h]{10}"
KINDS = (
    ("llama.cpp", LLAVA),
    ("llama.cpp", QWEN),
    ("llama.cpp", GEMMA),
    ("ik_llama.cpp", LLAVA),
    ("ik_llama.cpp", QWEN),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Projectors by type, and decoders: ``plain``, and ``sections`` for the one with positions in two dimensions."""
    made = tmp_path_factory.mktemp("media")
    for kind in (LLAVA, GEMMA, QWEN, SPEECH):
        write_projector(made / f"{kind}.gguf", kind)
    write_decoder(made / "plain.gguf", bytes_as_tokens=True, context=1024)
    write_decoder(made / "sections.gguf", bytes_as_tokens=True, sections=True, context=1024)
    return made


def decoder(folder: Path, kind: str) -> Path:
    return folder / ("sections.gguf" if kind == QWEN else "plain.gguf")


Open = Callable[..., Llama]


@pytest.fixture
def opened(folder: Path) -> Iterator[Open]:
    with contextlib.ExitStack() as stack:

        def make(engine: str, kind: str, **options: Any) -> Llama:
            given: dict[str, Any] = {"n_ctx": 512, "n_batch": 512, "n_threads": 1, "flash_attn": True, **options}
            return stack.enter_context(
                Llama(decoder(folder, kind), engine=engine, mmproj=folder / f"{kind}.gguf", **given)
            )

        yield make


def image(raw: bytes | Path | str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": raw}}


def as_url(raw: bytes) -> dict[str, Any]:
    return image("data:image/png;base64," + base64.b64encode(raw).decode())


def sound(raw: bytes) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(raw).decode(), "format": "wav"}}


def asking(*parts: dict[str, Any], text: str = "what is it?") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": text}, *parts, {"type": "text", "text": "say"}]}]


def first_logits(llm: Llama, *parts: dict[str, Any]) -> list[float]:
    """What the model thinks of each token as the first one of the answer."""
    seen: list[list[float]] = []
    llm.create_chat_completion(
        asking(*parts), max_tokens=1, temperature=0, logits_processor=lambda _, row: seen.append(list(row))
    )
    return seen[0]


def answer(llm: Llama, *parts: dict[str, Any], **more: Any) -> str:
    said = llm.create_chat_completion(asking(*parts), temperature=0, grammar=LETTERS, max_tokens=12, **more)
    assert isinstance(said, dict)
    return str(said["choices"][0]["message"]["content"])


@pytest.mark.parametrize(("engine", "kind"), [*KINDS, ("llama.cpp", SPEECH)])
def test_a_model_says_of_images_and_sounds_what_the_payload_s_own_server_says(
    engine: str, kind: str, folder: Path, opened: Open
):
    files = [wav(0.5, 440), wav(0.7, 880)] if kind == SPEECH else [png(100, 80, 1), png(60, 200, 2)]
    part = sound if kind == SPEECH else as_url
    llm = opened(engine, kind, n_ctx=1024)
    with server(llm, decoder(folder, kind), "--mmproj", str(folder / f"{kind}.gguf")) as address:
        for given in ([files[0]], [files[1]], [*files, files[0]]):
            body = {"messages": asking(*map(part, given)), "temperature": 0, "grammar": LETTERS, "max_tokens": 12}
            ours = llm.create_chat_completion(**body)
            theirs = ask(address, {**body, "cache_prompt": False})
            assert isinstance(ours, dict)
            said = [one["choices"][0]["message"]["content"] for one in (ours, theirs)]
            assert said[0] == said[1]
            assert len(said[0]) == 10
            assert ours["usage"]["prompt_tokens"] == theirs["usage"]["prompt_tokens"]


@pytest.mark.parametrize(("engine", "kind"), KINDS)
def test_the_model_sees_the_image(engine: str, kind: str, opened: Open, tmp_path: Path):
    llm = opened(engine, kind)
    one, other = png(100, 80, 1), png(100, 80, 2)
    (tmp_path / "one.png").write_bytes(one)
    seen = first_logits(llm, image(one))
    assert first_logits(llm, image(tmp_path / "one.png")) == seen
    assert first_logits(llm, as_url(one)) == seen
    assert first_logits(llm, image(other)) != seen
    assert first_logits(llm, image(one), image(other)) != first_logits(llm, image(other), image(one))


@pytest.mark.parametrize(("engine", "kind"), KINDS)
def test_what_two_prompts_begin_with_is_seen_once(engine: str, kind: str, opened: Open):
    plain, kept = (opened(engine, kind, prompt_reuse=reuse) for reuse in (False, True))
    one, other = png(100, 80, 1), png(100, 80, 2)
    told: list[tuple[int, int]] = []
    progress = {"progress": lambda done, total: told.append((done, total))}
    for parts in ([one], [one], [one, other], [one], [other], [other, one], []):
        told.clear()
        given = [image(raw) for raw in parts]
        assert answer(kept, *given, **progress) == answer(plain, *given)
        assert told[-1][0] == told[-1][1]
    # A second time only what stands behind the image is computed.
    answer(kept, image(one), **progress)
    told.clear()
    answer(kept, image(one), **progress)
    assert len(told) == 1


@pytest.mark.parametrize(("engine", "kind"), KINDS)
def test_several_requests_see_their_own_images(engine: str, kind: str, opened: Open):
    alone, together = opened(engine, kind), opened(engine, kind, n_parallel=3)
    given = [[image(png(100, 80, seed))] if seed % 3 else [] for seed in range(6)]
    wanted = [first_logits(alone, *parts) for parts in given]
    with ThreadPoolExecutor(len(given)) as pool:
        seen = list(pool.map(lambda parts: first_logits(together, *parts), given))

    def apart(one: list[float], other: list[float]) -> float:
        return max(abs(mine - theirs) for mine, theirs in zip(one, other, strict=True))

    for at, logits in enumerate(wanted):
        assert apart(seen[at], logits) < 0.05
        assert all(apart(logits, other) > 0.2 for other in wanted if other != logits)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_stream_a_child_and_an_empty_context(engine: str, opened: Open):
    llm, apart = opened(engine, LLAVA), opened(engine, LLAVA, isolate=True)
    one = png(100, 80, 1)
    whole = answer(llm, image(one))
    chunks = llm.create_chat_completion(asking(image(one)), temperature=0, grammar=LETTERS, stream=True)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole
    assert answer(apart, image(one)) == whole
    where = image("https://example.com/cat.png")  # type: ignore[arg-type]
    assert answer(apart, where, fetch_url=lambda url: one if url.endswith("cat.png") else b"") == whole
    # Nothing can be put behind what it saw, step by step: it is as if nothing were evaluated.
    assert llm.n_tokens == 0
    llm.eval([5, 6])
    assert llm.evaluated == (5, 6)
    assert llm.create_completion("a", max_tokens=2, temperature=0)
    assert answer(llm, image(one)) == whole


@pytest.mark.parametrize("engine", ENGINES)
def test_what_cannot_be_seen_is_an_error(engine: str, folder: Path, opened: Open, tmp_path: Path):
    llm = opened(engine, LLAVA)
    whole = answer(llm, image(png(100, 80, 1)))
    raw = png(100, 80, 1)
    head = bytearray(raw)
    head[16:20] = struct.pack(">I", 60000)
    for damaged, why in (
        (b"nothing of that kind", "damaged"),
        (raw[:60], "damaged"),
        (bytes(head), "60000 times 80 pixels"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "no JPEG, PNG"),
        (wav(0.5, 440), "is a sound"),
    ):
        with pytest.raises(UsageError, match=why):
            answer(llm, image(damaged))
    with pytest.raises(UnsupportedOption, match="input_audio"):
        answer(llm, sound(wav(0.5, 440)))
    with pytest.raises(PromptTooLong, match="raise n_ctx"):
        answer(llm, *[image(raw)] * 10)
    assert answer(llm, image(raw)) == whole
    with (
        Llama(folder / "plain.gguf", engine=engine, n_ctx=64, n_threads=1) as blind,
        pytest.raises(UnsupportedOption, match="mmproj="),
    ):
        answer(blind, image(raw))
    for option in ({"embedding": True}, {"vocab_only": True}, {"draft_model": "ngram"}):
        with pytest.raises(UnsupportedOption, match="mmproj"):
            opened(engine, LLAVA, **option)


@pytest.mark.deep
@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 1), (1, 8192), (8192, 1), (8192, 3), (31, 1999)])
@pytest.mark.parametrize(("engine", "kind"), KINDS)
def test_images_of_any_shape_are_seen_or_refused(engine: str, kind: str, width: int, height: int, opened: Open):
    llm = opened(engine, kind)
    with contextlib.suppress(UsageError):
        answer(llm, image(png(width, height, 1)))
    assert answer(llm, image(png(100, 80, 1)))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_projector_that_does_not_fit_is_an_error(engine: str, folder: Path, tmp_path: Path):
    path = tmp_path / "other.gguf"

    def refused(why: str, kind: str = LLAVA) -> None:
        with pytest.raises(ModelError, match=why):
            Llama(decoder(folder, kind), engine=engine, mmproj=path, n_ctx=64, n_threads=1)

    refused("there is no model file")
    write_projector(path, LLAVA, n_embd=128)
    refused("mismatch|stderr")
    for without, why in (
        ("v.blk.0.attn_out.weight", "attn_out|stderr"),
        ("clip.vision.image_mean", "image_mean"),
        ("clip.vision.patch_size", "patch_size|stderr"),
    ):
        write_projector(path, LLAVA, without=without)
        refused(why)
    path.write_bytes((folder / f"{LLAVA}.gguf").read_bytes()[:-100])
    refused("truncated|ends")
    path.write_bytes((folder / "plain.gguf").read_bytes())
    refused("whole model")


def test_what_ik_llama_cpp_cannot_do_is_refused(opened: Open):
    with pytest.raises(UnsupportedOption, match=r"engine='llama\.cpp'"):
        opened("ik_llama.cpp", GEMMA)
    with pytest.raises(UnsupportedOption, match=r"engine='llama\.cpp'"):
        answer(opened("ik_llama.cpp", SPEECH), sound(wav(0.5, 440)))


def test_sounds_of_any_kind_are_heard_or_refused(opened: Open):
    llm = opened("llama.cpp", SPEECH)
    heard = [
        first_logits(llm, sound(wav(0.5, pitch, rate))) for pitch, rate in ((440, 16000), (880, 16000), (440, 8000))
    ]
    assert all(one != other for one, other in itertools.combinations(heard, 2))
    assert first_logits(llm, sound(wav(0.5, 440))) == heard[0]
    raw = wav(0.5, 440)
    # A header that says that there is more than there is.
    endless = raw[:40] + struct.pack("<I", 0xFFFFFFFF) + raw[44:]
    assert first_logits(llm, sound(endless)) == heard[0]
    tag = b"\xff\xfb\x90\x00" + bytes(32) + b"Xing" + struct.pack(">II", 1, 0xFFFFFFF0) + bytes(369)
    for damaged, why in (
        (raw[:30], "fmt"),
        (wav(0.001, 440), "lasts"),
        (raw[:22] + struct.pack("<H", 9) + raw[24:], "9 channels"),
        (raw[:24] + struct.pack("<I", 1) + raw[28:], "1 a second"),
        (tag, "frames"),
        (b"ID3" + bytes(100), "cannot be read"),
        (b"fLaC" + bytes(100), "neither WAV nor MP3"),
        (png(8, 8, 1), "neither WAV nor MP3"),
    ):
        with pytest.raises(UsageError, match=why):
            answer(llm, sound(damaged))
    # Without that it is a whole frame.
    assert answer(llm, sound(tag.replace(b"Xing", b"Yang")))
    with pytest.raises(UnsupportedOption, match="image_url"):
        answer(llm, image(png(100, 80, 1)))
    for seconds in (0.01, 0.02, 1, 29.99, 30, 30.01):
        with contextlib.suppress(PromptTooLong):
            answer(llm, sound(wav(seconds, 440)))
    assert first_logits(llm, sound(raw)) == heard[0]


def test_an_image_that_must_be_computed_at_once_needs_room_for_it(opened: Open):
    with pytest.raises(UsageError, match="n_ubatch"):
        answer(opened("llama.cpp", GEMMA, n_ubatch=8), image(png(100, 80, 1)))
