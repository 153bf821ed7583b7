"""Damaged model files: whatever is in them, the answer is a ModelError or a summary, and soon."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from forkyard_llm import gguf_reader
from forkyard_llm.errors import ModelError
from forkyard_llm.gguf_check import check
from forkyard_llm.gguf_reader import MAX_STRINGS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .gguf_bytes import ARRAY, F32, I32, STRING, U8, array, gguf, string, strings, tensor, text, u32, write

FILE_SETTINGS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

TOKENS = [b"<s>", b"</s>", b"hello", b"\xff\xfe"]
GOOD = gguf(
    [
        string(b"general.architecture", b"llama"),
        u32(b"general.alignment", 64),
        strings(b"tokenizer.ggml.tokens", TOKENS),
        array(b"tokenizer.ggml.scores", F32, 4, b"\0" * 16),
        array(b"tokenizer.ggml.token_type", I32, 4, b"\0" * 16),
        strings(b"tokenizer.ggml.merges", [b"h e", b"l l"]),
        array(b"llama.something", U8, 3, b"abc"),
        text(b"llama.yes") + struct.pack("<IB", 7, 1),
        text(b"llama.big") + struct.pack("<Id", 12, 1.5),
    ],
    [tensor(b"a", [32, 2], 2, 0), tensor(b"b", [3], 0, 64)],
    b"\0" * (64 + 12),
    alignment=64,
)


def failure(folder: Path, content: bytes, engine: str | None = None) -> ModelError:
    with pytest.raises(ModelError) as caught:
        check(write(folder, content), engine=engine)
    return caught.value


def test_a_good_file(tmp_path: Path) -> None:
    summary = check(write(tmp_path, GOOD))
    assert summary.version == 3
    assert summary.architecture == "llama"
    assert (summary.keys, summary.tensors, summary.alignment) == (9, 2, 64)
    assert summary.file_size == len(GOOD)
    assert summary.data_offset == len(GOOD) - 76


def test_version_2_and_no_tensors_at_all(tmp_path: Path) -> None:
    assert check(write(tmp_path, gguf([u32(b"x", 1)], version=2))).tensors == 0
    assert check(write(tmp_path, gguf())).keys == 0


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model file"):
        check(tmp_path / "gone.gguf")


def test_a_folder_and_a_fifo_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a regular file"):
        check(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="not a regular file"):
        check(tmp_path / "pipe")


def test_a_path_with_nul() -> None:
    with pytest.raises(ModelError, match="not a usable path"):
        check("a\0b")


@pytest.mark.parametrize(
    ("content", "said", "offset"),
    [
        (b"", "not a GGUF file", 0),
        (b"GG", "too short even for a GGUF header", 0),
        (b"<!DOCTYPE html><html>not found", "not a GGUF file: it starts with b'<!DO'", 0),
        (b"GGML" + b"\0" * 40, "not b'GGUF'", 0),
        (gguf(magic=b"FUGG"), "big-endian", 0),
        (gguf(version=3 << 24), "big-endian", 4),
        (gguf(version=1), "GGUF version 1; versions 2 and 3", 4),
        (gguf(version=4), "GGUF version 4", 4),
        (gguf(version=0), "GGUF version 0", 4),
    ],
)
def test_what_is_not_gguf(tmp_path: Path, content: bytes, said: str, offset: int) -> None:
    error = failure(tmp_path, content)
    assert said in str(error)
    assert error.offset == offset
    assert f"[byte {offset}]" in str(error)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([u32(b"", 1)], "key 0 is empty"),
        ([u32(b"a\0b", 1)], "key 0 is not a text"),
        ([u32(b"a", 1), u32(b"a", 2)], "the key a occurs twice"),
        ([u32(b"general.alignment", 0)], "general.alignment is 0, not a power of two"),
        ([u32(b"general.alignment", 48)], "general.alignment is 48"),
        ([string(b"general.alignment", b"32")], "general.alignment is string, not uint32"),
        ([u32(b"general.architecture", 1)], "general.architecture is uint32, not string"),
        ([text(b"x") + struct.pack("<IQ", 13, 0)], "type 13, which GGUF does not define"),
        ([array(b"x", ARRAY, 0, b"")], "an array of array, which no engine reads"),
        ([array(b"x", 77, 0, b"")], "an array of of the unknown type 77"),
        ([text(b"k" * 70000) + struct.pack("<II", 4, 1)], "key 0 is 70000 bytes long, at most 65535"),
        ([u32(b"tokenizer.ggml.tokens", 1)], "tokenizer.ggml.tokens is not an array of strings"),
        ([array(b"tokenizer.ggml.tokens", U8, 1, b"x")], "tokenizer.ggml.tokens is not an array of strings"),
        ([strings(b"tokenizer.ggml.tokens", [b"a", b"b", b"a"])], "holds the same token twice"),
        ([array(b"tokenizer.ggml.merges", U8, 1, b"x")], "tokenizer.ggml.merges is not an array of strings"),
        (
            [strings(b"tokenizer.ggml.tokens", TOKENS), array(b"tokenizer.ggml.scores", F32, 3, b"\0" * 12)],
            "tokenizer.ggml.scores has 3 entries for 4 tokens",
        ),
        (
            [
                strings(b"tokenizer.ggml.tokens", TOKENS),
                array(b"tokenizer.ggml.token_type", U8, 4, b"\0" * 4),
            ],
            "tokenizer.ggml.token_type is not an array of four-byte numbers",
        ),
    ],
)
def test_bad_keys(tmp_path: Path, values: Sequence[bytes], said: str) -> None:
    assert said in str(failure(tmp_path, gguf(values)))


@pytest.mark.parametrize(
    ("tensors", "data", "said"),
    [
        ([tensor(b"t" * 64, [1], 0, 0)], 4, "the name of tensor 0 is 64 bytes long, at most 63"),
        ([tensor(b"a\0", [1], 0, 0)], 4, "the name of tensor 0 is not a text"),
        ([tensor(b"a", [1], 0, 0), tensor(b"a", [1], 0, 32)], 36, "two tensors are called a"),
        ([tensor(b"a", [1] * 5, 0, 0)], 4, "tensor a has 5 dimensions"),
        ([tensor(b"a", [0], 0, 0)], 4, "tensor a has the shape [0]"),
        ([tensor(b"a", [2**63], 0, 0)], 4, "tensor a has the shape [9223372036854775808]"),
        ([tensor(b"a", [2**62, 2**62], 0, 0)], 4, "it is truncated"),
        ([tensor(b"a", [1], 900, 0)], 4, "tensor a has the unknown type 900"),
        ([tensor(b"a", [33], 2, 0)], 40, "has rows of 33 elements, q4_0 has blocks of 32"),
        ([tensor(b"a", [1], 0, 4)], 8, "the data of tensor a is at 4, not a multiple of 32"),
        ([tensor(b"a", [8], 0, 0)], 31, "it is truncated; download it again"),
        ([tensor(b"a", [1], 0, 2**64 - 32)], 31, "it is truncated; download it again"),
        ([tensor(b"a", [16], 0, 0), tensor(b"b", [1], 0, 32)], 64, "the data of tensor b overlaps"),
    ],
)
def test_bad_tensors(tmp_path: Path, tensors: Sequence[bytes], data: int, said: str) -> None:
    assert said in str(failure(tmp_path, gguf((), tensors, b"\0" * data)))


def test_a_type_only_the_other_engine_has(tmp_path: Path) -> None:
    content = gguf((), [tensor(b"a", [256], 137, 0)], b"\0" * 76)
    assert check(write(tmp_path, content)).tensors == 1
    assert check(write(tmp_path, content), engine="ik_llama.cpp").tensors == 1
    said = str(failure(tmp_path, content, "llama.cpp"))
    assert "the type iq2_k (137), which llama.cpp does not have; use engine='ik_llama.cpp'" in said


def test_row_data_of_ik_types_counts(tmp_path: Path) -> None:
    """iq4_ks has 136 bytes per 256 elements and 4 bytes per row."""
    tensors = [tensor(b"a", [256, 2], 144, 0)]
    assert check(write(tmp_path, gguf((), tensors, b"\0" * 280))).tensors == 1
    assert "truncated" in str(failure(tmp_path, gguf((), tensors, b"\0" * 279)))


@pytest.mark.parametrize(
    "content",
    [
        b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0) + b"\0" * 100,
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**64 - 1) + b"\0" * 100,
        gguf([array(b"x", STRING, 2**64 - 1, b"\0" * 100)]),
        gguf([array(b"x", STRING, MAX_STRINGS + 1, b"\0" * 100)]),
        gguf([array(b"x", 12, 2**62, b"\0" * 100)]),
        gguf([text(b"x") + struct.pack("<IQ", STRING, 2**64 - 1) + b"\0" * 100]),
        gguf([struct.pack("<Q", 2**64 - 1) + b"\0" * 100]),
        gguf([strings(b"x", [b"a"]), text(b"b") + struct.pack("<I", ARRAY)]),
    ],
)
def test_counts_and_lengths_that_cannot_be(tmp_path: Path, content: bytes) -> None:
    tracemalloc.start()
    try:
        started = time.process_time()
        failure(tmp_path, content)
        assert time.process_time() - started < 1
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_string_length_that_wraps_round_is_not_believed(tmp_path: Path) -> None:
    """8 + length is the position again, modulo 2**64: an endless loop to a reader in C."""
    failure(tmp_path, gguf([array(b"x", STRING, 3, struct.pack("<Q", 2**64 - 8) + b"\0" * 64)]))


def test_empty_tokens_and_equal_merges_are_no_damage(tmp_path: Path) -> None:
    values = [
        strings(b"tokenizer.ggml.tokens", [b"", b"a", b""]),
        strings(b"tokenizer.ggml.merges", [b"a", b"a"]),
    ]
    assert check(write(tmp_path, gguf(values))).keys == 2


@pytest.mark.parametrize(
    ("words", "good"),
    [
        ([b"a", b"a\0b"], False),
        ([b"a\0c", b"a\0b"], False),
        ([b"ab", b"a\0b"], True),
        ([b"\0", b"\0b", b""], True),
    ],
)
def test_tokens_end_at_a_zero_byte(tmp_path: Path, words: list[bytes], good: bool) -> None:
    content = gguf([strings(b"tokenizer.ggml.tokens", words)])
    if good:
        check(write(tmp_path, content))
    else:
        assert "same token twice" in str(failure(tmp_path, content))


def test_empty_tokens_at_a_window_s_end(tmp_path: Path) -> None:
    """Empty strings of eight bytes each, from every position relative to the window."""
    for shift in range(9):
        values = [strings(b"tokenizer.ggml.tokens", [b"x" * shift + b"y", *[b""] * 300_000])]
        assert check(write(tmp_path, gguf(values))).keys == 1


def test_tokens_across_windows_are_read_whole(tmp_path: Path) -> None:
    """Tokens of every length near a window's end, the last one a repetition of one in an earlier window."""
    words = [b"%d" % i + b"x" * (i % 251) for i in range(20_000)]
    assert check(write(tmp_path, gguf([strings(b"tokenizer.ggml.tokens", words)]))).keys == 1
    assert "same token twice" in str(failure(tmp_path, gguf([strings(b"tokenizer.ggml.tokens", [*words, words[7]])])))


def test_a_vocabulary_larger_than_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_reader, "MAX_VOCABULARY_BYTES", 100)
    said = str(failure(tmp_path, gguf([strings(b"tokenizer.ggml.tokens", [b"a" * 60, b"b" * 60])])))
    assert "larger than any vocabulary" in said


def test_metadata_larger_than_the_window(tmp_path: Path) -> None:
    words = [b"w%06d" % i for i in range(200_000)]
    content = gguf([strings(b"tokenizer.ggml.tokens", words), string(b"long", b"x" * (3 << 20)), u32(b"end", 1)])
    assert check(write(tmp_path, content)).keys == 3
    failure(tmp_path, content[:-1])


def test_a_large_vocabulary_is_quick(tmp_path: Path) -> None:
    words = [b"w%06d" % i for i in range(150_000)]
    path = write(tmp_path, gguf([strings(b"tokenizer.ggml.tokens", words), strings(b"m", words)]))
    started = time.process_time()
    check(path)
    assert time.process_time() - started < 1  # about 0.05 s where nothing else runs


def test_every_truncation_is_found(tmp_path: Path) -> None:
    for length in range(len(GOOD)):
        failure(tmp_path, GOOD[:length])


@FILE_SETTINGS
@given(st.binary(max_size=400), st.sampled_from([b"", b"GGUF", GOOD[:24], GOOD[:100]]))
def test_random_bytes(tmp_path: Path, noise: bytes, start: bytes) -> None:
    survives(write(tmp_path, start + noise))


@FILE_SETTINGS
@given(st.lists(st.tuples(st.integers(0, len(GOOD) * 8 - 1), st.just(None)), min_size=1, max_size=6))
def test_flipped_bits(tmp_path: Path, flips: list[tuple[int, None]]) -> None:
    content = bytearray(GOOD)
    for bit, _ in flips:
        content[bit // 8] ^= 1 << bit % 8
    survives(write(tmp_path, bytes(content)))


@FILE_SETTINGS
@given(
    st.integers(0, len(GOOD) - 8),
    st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 8, len(GOOD)]),
)
def test_extreme_numbers_anywhere(tmp_path: Path, at: int, value: int) -> None:
    survives(write(tmp_path, GOOD[:at] + struct.pack("<Q", value) + GOOD[at + 8 :]))


def survives(path: Path) -> None:
    started = time.process_time()
    for engine in (None, "llama.cpp", "ik_llama.cpp"):
        with suppress(ModelError):
            check(path, engine=engine)
    assert time.process_time() - started < 5
