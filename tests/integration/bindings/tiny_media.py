"""Tiny projectors of random weights, pictures and sounds: what a model sees and hears in tests."""

from __future__ import annotations

import io
import math
import struct
import wave
import zlib
from pathlib import Path

import numpy as np

from .tiny_texts import N_EMBD, Writer

LLAVA, GEMMA, QWEN, SPEECH = "mlp", "gemma3", "qwen2vl_merger", "ultravox"
"""Types of projectors: a plain one, one whose images see all of themselves, one with positions in two dimensions, and
one that hears."""

WIDTH, HEADS, FEED = 32, 2, 64
PATCH, SIDE = 14, 112
STACKED = 20


def write_projector(path: Path, kind: str, *, n_embd: int = N_EMBD, without: str = "") -> None:
    """A projector for decoders whose tokens have ``n_embd`` numbers.

    Args:
        without: a key or a tensor that is left out.
    """
    w = _Writer(path, without)
    w.add_type("mmproj")
    w.add_clip_projector_type(kind)
    w.add_file_type(0)
    if kind == SPEECH:
        _hear(w, n_embd)
    else:
        _see(w, kind, n_embd)
    w.finish()


class _Writer(Writer):
    def __init__(self, path: Path, without: str) -> None:
        self._without = without
        super().__init__(path, "clip")

    def add_key_value(self, key: str, *arguments: object, **named: object) -> None:
        if key != self._without:
            super().add_key_value(key, *arguments, **named)

    def add_tensor(self, name: str, *arguments: object, **named: object) -> None:
        if name != self._without:
            super().add_tensor(name, *arguments, **named)

    def filters(self, name: str, *shape: int) -> None:
        values = self._rng.standard_normal(shape, dtype=np.float32) * np.float32(math.prod(shape[1:]) ** -0.5)
        self.add_tensor(name, values.astype(np.float16))

    def block(self, side: str, number: int = 0) -> None:
        blk = f"{side}.blk.{number}"
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            self.matrix(f"{blk}.{part}.weight", WIDTH, WIDTH)
            if (side, part) != ("a", "attn_k"):
                self.vector(f"{blk}.{part}.bias", WIDTH, 0.125)
        for part, out, into in (("ffn_up", FEED, WIDTH), ("ffn_down", WIDTH, FEED)):
            self.matrix(f"{blk}.{part}.weight", out, into)
            self.vector(f"{blk}.{part}.bias", out, 0.125)
        for norm in (f"{blk}.ln1", f"{blk}.ln2", *([] if number else [f"{side}.post_ln"])):
            self.vector(f"{norm}.weight", WIDTH)
            self.vector(f"{norm}.bias", WIDTH, 0.0)


def _see(w: _Writer, kind: str, n_embd: int) -> None:
    w.add_clip_has_vision_encoder(True)
    w.add_vision_projection_dim(n_embd)
    w.add_vision_image_size(SIDE)
    w.add_vision_patch_size(PATCH)
    w.add_vision_embedding_length(WIDTH)
    w.add_vision_feed_forward_length(FEED)
    # Of a plain one the last block is not used.
    w.add_vision_block_count(2 if kind == LLAVA else 1)
    w.add_vision_head_count(HEADS)
    w.add_vision_attention_layernorm_eps(1e-6)
    w.add_vision_image_mean([0.5, 0.5, 0.5])
    w.add_vision_image_std([0.5, 0.5, 0.5])
    w.add_vision_use_gelu(True)
    w.block("v")
    w.filters("v.patch_embd.weight", WIDTH, 3, PATCH, PATCH)
    if kind != GEMMA:
        for name, out, into in (("mm.0", FEED, 4 * WIDTH if kind == QWEN else WIDTH), ("mm.2", n_embd, FEED)):
            w.matrix(f"{name}.weight", out, into)
            w.vector(f"{name}.bias", out, 0.125)
    if kind == QWEN:
        w.filters("v.patch_embd.weight.1", WIDTH, 3, PATCH, PATCH)
        return
    w.matrix("v.position_embd.weight", (SIDE // PATCH) ** 2, WIDTH)
    if kind == LLAVA:
        w.block("v", 1)
        return
    w.add_vision_projector_scale_factor(2)
    w.vector("v.patch_embd.bias", WIDTH, 0.125)
    w.matrix("mm.input_projection.weight", WIDTH, n_embd)
    w.vector("mm.soft_emb_norm.weight", WIDTH)


def _hear(w: _Writer, n_embd: int) -> None:
    w.add_clip_has_audio_encoder(True)
    w.add_audio_projection_dim(n_embd)
    w.add_audio_embedding_length(WIDTH)
    w.add_audio_feed_forward_length(FEED)
    w.add_audio_block_count(1)
    w.add_audio_head_count(HEADS)
    w.add_audio_attention_layernorm_eps(1e-5)
    w.add_audio_num_mel_bins(128)
    w.add_audio_stack_factor(STACKED)
    w.block("a")
    for number, into in ((1, 128), (2, WIDTH)):
        w.filters(f"a.conv1d.{number}.weight", WIDTH, into, 3)
        w.add_tensor(f"a.conv1d.{number}.bias", np.full((WIDTH, 1), 0.125, dtype=np.float32))
    w.matrix("a.position_embd.weight", 1500, WIDTH)
    w.vector("mm.a.norm_pre.weight", STACKED * WIDTH)
    w.matrix("mm.a.mlp.1.weight", FEED, STACKED * WIDTH)
    w.vector("mm.a.norm_mid.weight", FEED // 2)
    w.matrix("mm.a.mlp.2.weight", n_embd, FEED // 2)


def png(width: int, height: int, seed: int) -> bytes:
    """A picture of coloured squares."""
    rng = np.random.default_rng(seed)
    squares = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    pixels = squares.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)

    def part(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(raw)) + part(b"IEND", b"")


def wav(seconds: float, pitch: float, rate: int = 16000) -> bytes:
    """A tone."""
    samples = np.sin(np.arange(int(seconds * rate)) * (2 * math.pi * pitch / rate)) * 12000
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return out.getvalue()


__all__ = ["GEMMA", "LLAVA", "QWEN", "SPEECH", "png", "wav", "write_projector"]
