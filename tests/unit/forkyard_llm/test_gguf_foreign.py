"""What people give by mistake instead of a GGUF file: the message names it and says what to do."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from forkyard_llm.errors import ModelError
from forkyard_llm.gguf_check import check

from .gguf_bytes import gguf, write

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 98362432\n"
HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title>"


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.gguf", "x")
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.gguf"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "cause", "step"),
    [
        (b"", "it is empty", "download it again"),
        (LFS, "a Git LFS pointer", "git lfs pull"),
        (b"\xef\xbb\xbf" + LFS, "a Git LFS pointer", "git lfs pull"),
        (HTML, "a web page", "download the .gguf file itself"),
        (b"\xef\xbb\xbf\r\n  " + HTML.lower(), "a web page", "download the .gguf file itself"),
        (b"\xff\xfe" + HTML.decode().encode("utf-16-le"), "a web page", "download the .gguf file itself"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page", "with a token"),
        (b'{"error": "Repository not found"}', "a JSON text", "download the .gguf file itself"),
        (b'\n [ {"id": 1} ]', "a JSON text", "download the .gguf file itself"),
        (b"{}", "a JSON text", "download the .gguf file itself"),
        (b"Invalid credentials in Authorization header", "starts with b'Inva'", "download the .gguf file itself"),
        (gzip.compress(b"GGUF", mtime=0), "a gzip archive", "unpack it"),
        (zipped(), "a zip archive or a PyTorch model", "unpack it"),
        (tarred(), "a tar archive", "unpack it"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 40, "a zstd archive", "unpack it"),
        (b"\x40\0\0\0\0\0\0\0" + b'{"__metadata__":{"format":"pt"}}', "a safetensors file", "convert_hf_to_gguf.py"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a PyTorch model", "convert_hf_to_gguf.py"),
        (b"tjgg\x03\0\0\0" + b"x" * 40, "older than GGUF", "get a newer one"),
        (b"lmgg" + b"x" * 40, "older than GGUF", "get a newer one"),
        (b"\x7fELF" + b"x" * 40, "a program", "give the model"),
        (b"\0" * 4096, "its download is not complete", "start it again"),
    ],
)
def test_the_cause_and_the_next_step(tmp_path: Path, content: bytes, cause: str, step: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ModelError) as caught:
        check(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: not a GGUF file")
    assert cause in said
    assert step in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gguf(magic=b"FUGG"), "big-endian"),
        (gguf(version=3 << 24), "convert it with gguf_convert_endian.py"),
        (gguf(version=1), "versions 2 and 3 can be read; convert the original model again"),
        (gguf()[:10], "too short even for a GGUF header; download it again"),
    ],
)
def test_gguf_files_of_another_kind(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        check(write(tmp_path, content))
    assert said in str(caught.value)
