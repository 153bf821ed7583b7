"""Say what a file is that was given as a model and is no GGUF: the known mistakes, and what to do about each."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["known_format"]

_AGAIN: Final = "download the .gguf file itself"
_UNPACK: Final = "unpack it and give the .gguf file inside"
_CONVERT: Final = "convert the model with convert_hf_to_gguf.py of llama.cpp, or download it as GGUF"

# What the known formats begin with.
_BYTES: Final = (
    (rb"(?s).{8}\{\s*\"", f"it is a safetensors file; {_CONVERT}"),
    (rb"PK(\x03\x04|\x05\x06|\x07\x08)", f"it is a zip archive or a PyTorch model; {_UNPACK}, or {_CONVERT}"),
    (rb"(?s)\x80[\x02-\x05].", f"it is a PyTorch model; {_CONVERT}"),
    (rb"\x1f\x8b", f"it is a gzip archive; {_UNPACK}"),
    (rb"BZh", f"it is a bzip2 archive; {_UNPACK}"),
    (rb"\xfd7zXZ\x00", f"it is an xz archive; {_UNPACK}"),
    (rb"\x28\xb5\x2f\xfd", f"it is a zstd archive; {_UNPACK}"),
    (rb"7z\xbc\xaf\x27\x1c", f"it is a 7z archive; {_UNPACK}"),
    (rb"Rar!", f"it is a rar archive; {_UNPACK}"),
    (rb"(?s).{257}ustar", f"it is a tar archive; {_UNPACK}"),
    (
        rb"lmgg|fmgg|tjgg|algg",
        "it is in a format older than GGUF (2023), which no engine reads any more; get a newer one",
    ),
    (rb"\x89HDF", f"it is an HDF5 file, perhaps a Keras model; {_CONVERT}"),
    (rb"(?s).{4}TFL3", f"it is a TensorFlow Lite model; {_CONVERT}"),
    (rb"\x08[\x01-\x0c]\x12", f"it is an ONNX model; {_CONVERT}"),
    (rb"\x7fELF|MZ|#!", "it is a program; give the model"),
)
# What the known texts begin with, after byte order marks and white space.
_TEXTS: Final = (
    (
        rb"version https://git-lfs\.github\.com",
        "it is a Git LFS pointer: git cloned the repository without its large files; run `git lfs pull` there",
    ),
    (
        rb"(?i)<(!doctype|html|head|body|\?xml|!--)",
        "it is a web page, such as a login, an error, or the page about the file;"
        f" {_AGAIN}, with a token if the site wants one",
    ),
    (rb"[{\[]\s*[\"{}\]]", f"it is a JSON text, such as the error message of a site; {_AGAIN}"),
)
_BLANK: Final = re.compile(rb"[\s\xef\xbb\xbf]+")
_UTF16: Final = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}


def known_format(start: bytes, size: int) -> str:
    """What is wrong with a file of `size` bytes that does not begin with b"GGUF" but with `start` (about 1 KB)."""
    if size == 0:
        return "not a GGUF file: it is empty; its download failed or has not begun: download it again"
    if not start.strip(b"\0"):
        return "not a GGUF file: it begins with zeros; its download is not complete: wait for it, or start it again"
    said = f"not a GGUF file: it starts with {start[:4]!r}, not b'GGUF'"
    encoding = _UTF16.get(start[:2])
    text = start[2:].decode(encoding, "ignore").encode() if encoding else start
    blank = _BLANK.match(text)
    text = text[blank.end() :] if blank else text
    for patterns, given in ((_BYTES, start), (_TEXTS, text)):
        for pattern, what in patterns:
            if re.match(pattern, given):
                return f"{said}; {what}"
    return f"{said}; {_AGAIN}"
