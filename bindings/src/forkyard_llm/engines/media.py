"""What an engine's own libmtmd makes of images and sounds: pieces of a prompt, which are computed as its tokens are.

In the list of a prompt's tokens each position of a piece is a negative number. It is the same for the same bytes, so
that a prompt shares with another one what both see, as they share tokens.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import secrets
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import EngineError, ModelError, UnsupportedOption, UsageError
from .loaded import Handle, Loaded
from .options import ModelOptions

__all__ = ["MOST_SECONDS", "MTMD", "Piece", "Projector", "Prompt", "is_mp3", "is_wav"]

MTMD = "mtmd"
"""The library, and the capability of a payload that has it."""
MOST_SIDE = 8192
"""Pixels of an image's longer side: what is small as a file may be large as an image, and an engine that pads it to a
square ends the process without memory."""
MOST_SECONDS = 30 * 60
"""Of a sound."""
_KNOWN = 1 << 16
"""Images and sounds whose numbers are remembered."""
_SHORTEST_S = 0.01
_NOWHERE = b"/dev/null"
"""Where llama.cpp finds no ffmpeg: it would give that whatever it cannot read, as a video."""


def is_wav(raw: bytes) -> bool:
    """Whether these are the bytes of a WAV file."""
    return raw[:4] == b"RIFF" and raw[8:12] == b"WAVE"


def is_mp3(raw: bytes) -> bool:
    """Whether these are the bytes of an MP3 file."""
    return raw.startswith(b"ID3") or (raw[:1] == b"\xff" and raw[1:2] >= b"\xe0")


@dataclass(frozen=True, eq=False)
class Piece:
    """An image, a sound, or a part of one, in a prompt.

    Attributes:
        chunk: the engine's.
        number: what stands for it.
        positions: how many it takes.
        cells: of the context; more than positions where these have several dimensions.
        whole: all of it must be computed at once, since each part sees those behind it.
        owner: keeps ``chunk`` alive.
    """

    chunk: Handle
    number: int
    positions: int
    cells: int
    whole: bool
    owner: object


@dataclass(frozen=True)
class Prompt:
    """Tokens, and the pieces among them by the position that each begins at."""

    tokens: Sequence[int]
    pieces: Mapping[int, Piece]


class _Chunks:
    """A list of the engine's, freed with this."""

    def __init__(self, loaded: Loaded) -> None:
        self.handle = loaded.api.mtmd_input_chunks_init()
        weakref.finalize(self, loaded.api.mtmd_input_chunks_free, self.handle)


class Projector:
    """A model's eyes and ears, from a file of their own; belongs to a session, which takes care of threads.

    Raises:
        ModelError: the engine refuses the file, or it is another model's.
        UnsupportedOption: the payload has no libmtmd.
    """

    def __init__(self, loaded: Loaded, model: Handle, path: Path, options: ModelOptions, *, hears: bool) -> None:
        if not loaded.payload.has_library(MTMD):
            msg = f"{loaded.payload.distribution} is built without {MTMD}, which mmproj needs: take another payload"
            raise UnsupportedOption(msg)
        self._loaded = loaded
        api = self._api = loaded.api
        self._n_vocab = int(api.llama_vocab_n_tokens(api.llama_model_get_vocab(model)))
        self._numbers: dict[bytes, int] = {}
        self._next = itertools.count(-1, -1)
        self.marker = f"<__media_{secrets.token_hex(16)}__>"
        """What stands for an image or a sound in a text: nobody who writes messages knows it."""
        params = api.mtmd_context_params_default()
        params.use_gpu = loaded.payload.for_gpu and options.n_gpu_layers != 0
        params.n_threads = options.n_threads_batch
        params.print_timings = False
        params.media_marker = self.marker.encode()
        if options.flash_attn is not None:
            name = "ENABLED" if options.flash_attn else "DISABLED"
            params.flash_attn_type = loaded.abi.ENUMS["llama_flash_attn_type"][f"LLAMA_FLASH_ATTN_TYPE_{name}"]
        if hasattr(type(params), "verbosity"):
            # It has no callback for these lines, and writes them to stderr.
            level = "INFO" if loaded.log.verbose else "ERROR"
            params.verbosity = loaded.abi.ENUMS["ggml_log_level"][f"GGML_LOG_LEVEL_{level}"]
        # stb_image's own: of the header alone.
        self._look = ctypes.CDLL(str(loaded.payload.library(MTMD))).stbi_info_from_memory
        loaded.log.forget()
        self._handle = api.mtmd_init_from_file(os.fsencode(path), model, params)
        if not self._handle:
            msg = f"{loaded.family} cannot use the projector {path}: {self._reason()}"
            raise ModelError(msg)
        sees, sound = bool(api.mtmd_support_vision(self._handle)), bool(api.mtmd_support_audio(self._handle))
        self.takes = (*(["image_url"] if sees else []), *(["input_audio"] if sound and hears else []))
        """Types of a message's parts that it takes."""
        self.deaf = sound and not hears
        """Whether it would take sounds with the other engine."""
        self.mrope = bool(api.mtmd_decode_use_mrope(self._handle))

    def _reason(self) -> str:
        return self._loaded.log.complaints() or "it says why on stderr, if at all"

    def prompt(self, text: bytes, files: Sequence[bytes], bos: int | None) -> Prompt:
        """The prompt that ``text`` is with an image or a sound for each marker in it.

        Args:
            files: as :class:`forkyard_llm.media.Media` gives them, in the order of the markers.
            bos: what the tokenizer adds at the beginning, and some templates write as well.

        Raises:
            UsageError: one cannot be read, or is too large.
        """
        api, abi = self._api, self._loaded.abi
        bitmaps: list[Handle] = []
        chunks = _Chunks(self._loaded)
        try:
            for index, raw in enumerate(files):
                bitmaps.append(self._bitmap(index, raw))
            given = abi.mtmd_input_text(text=text, add_special=True, parse_special=True)
            if hasattr(type(given), "text_len"):
                given.text_len = len(text)
            listed = (ctypes.POINTER(abi.mtmd_bitmap) * len(bitmaps))(*bitmaps)
            self._loaded.log.forget()
            if api.mtmd_tokenize(self._handle, chunks.handle, ctypes.byref(given), listed, len(bitmaps)):
                msg = f"{self._loaded.family} cannot make a prompt of these images or sounds: {self._reason()}"
                raise UsageError(msg)
        finally:
            for bitmap in bitmaps:
                api.mtmd_bitmap_free(bitmap)
        return self._read(chunks, bos)

    def _bitmap(self, index: int, raw: bytes) -> Handle:
        api, what = self._api, f"image or sound {index}"
        given = (ctypes.c_uint8 * len(raw)).from_buffer_copy(raw)
        sound = is_wav(raw) or is_mp3(raw)
        if not sound:
            self._check_size(what, given)
        read = api.mtmd_helper_bitmap_init_from_buf
        self._loaded.log.forget()
        if len(read.argtypes) > 3:
            options = api.mtmd_helper_init_opt_default()
            options.video_params.ffmpeg_bin_dir = _NOWHERE
            bitmap = read(self._handle, given, len(raw), False, options).bitmap
        else:
            bitmap = read(self._handle, given, len(raw))
        if not bitmap:
            msg = f"{what} cannot be read: it is damaged, or of a format that {self._loaded.family} does not know"
            raise UsageError(msg)
        if sound:
            seconds = api.mtmd_bitmap_get_n_bytes(bitmap) / 4 / self._rate()
            if not _SHORTEST_S <= seconds <= MOST_SECONDS:
                api.mtmd_bitmap_free(bitmap)
                msg = f"{what} lasts {seconds:.3g} s; a sound may last {_SHORTEST_S} s to {MOST_SECONDS} s"
                raise UsageError(msg)
        api.mtmd_bitmap_set_id(bitmap, hashlib.sha256(raw).hexdigest().encode())
        return bitmap

    def _rate(self) -> int:
        """Samples in a second, as the engine reads sounds."""
        rate = getattr(self._api, "mtmd_get_audio_sample_rate", None) or self._api.mtmd_get_audio_bitrate
        return int(rate(self._handle))

    def _check_size(self, what: str, given: ctypes.Array[ctypes.c_uint8]) -> None:
        width, height, colours = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        if not self._look(given, len(given), ctypes.byref(width), ctypes.byref(height), ctypes.byref(colours)):
            msg = f"{what} cannot be read: it is damaged, or no JPEG, PNG, GIF, BMP, TGA, PSD, PNM, HDR or PIC"
            raise UsageError(msg)
        if not (0 < width.value <= MOST_SIDE and 0 < height.value <= MOST_SIDE):
            msg = f"{what} has {width.value} times {height.value} pixels; a side may have {MOST_SIDE}: scale it down"
            raise UsageError(msg)

    def _read(self, chunks: _Chunks, bos: int | None) -> Prompt:
        api = self._api
        text = self._loaded.abi.ENUMS["mtmd_input_chunk_type"]["MTMD_INPUT_CHUNK_TYPE_TEXT"]
        tokens: list[int] = []
        pieces: dict[int, Piece] = {}
        for index in range(api.mtmd_input_chunks_size(chunks.handle)):
            chunk = api.mtmd_input_chunks_get(chunks.handle, index)
            if api.mtmd_input_chunk_get_type(chunk) == text:
                count = ctypes.c_uint64()
                found = api.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))[: count.value]
                if not all(0 <= token < self._n_vocab for token in found):
                    msg = "this projector puts tokens around images that the model lacks: it is another model's"
                    raise ModelError(msg)
                tokens += found[1:] if index == 0 and bos is not None and found[:2] == [bos, bos] else found
                continue
            positions = int(api.mtmd_input_chunk_get_n_pos(chunk))
            cells = int(api.mtmd_input_chunk_get_n_tokens(chunk))
            if positions < 1 or cells < 1:
                msg = "an image or a sound is too small: nothing of it is left for the model"
                raise UsageError(msg)
            number = self._number(bytes(api.mtmd_input_chunk_get_id(chunk) or b""))
            pieces[len(tokens)] = Piece(chunk, number, positions, cells, self._non_causal(chunk), chunks)
            tokens += [number] * positions
        return Prompt(tokens, pieces)

    def _number(self, name: bytes) -> int:
        if len(self._numbers) >= _KNOWN:
            self._numbers.clear()
        return self._numbers.setdefault(name, next(self._next))

    def _non_causal(self, chunk: Handle) -> bool:
        asked = self._api.mtmd_decode_use_non_causal
        return bool(asked(self._handle, chunk) if len(asked.argtypes) > 1 else asked(self._handle))

    def embeddings(self, piece: Piece) -> Handle:
        """The vectors of a piece, as many as it has cells: the engine's own memory, until the next ones.

        Raises:
            EngineError: the engine failed.
        """
        self._loaded.log.forget()
        if self._api.mtmd_encode_chunk(self._handle, piece.chunk):
            msg = f"{self._loaded.family} could not read an image or a sound: {self._reason()}"
            raise EngineError(msg)
        return self._api.mtmd_get_output_embd(self._handle)

    @property
    def handle(self) -> Handle:
        """The engine's own."""
        return self._handle

    def close(self) -> None:
        """Free it; harmless the second time."""
        handle, self._handle = self._handle, None
        if handle:
            self._api.mtmd_free(handle)
