"""ELF files and wheels made by hand, so that the gates are tested without a compiler."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from forkyard.gates import IsaLimits

PACKAGE = "forkyard_engine_avx2"
PIN = "0123456789abcdef0123456789abcdef01234567"
WHEEL = f"{PACKAGE}-1.0-py3-none-manylinux_2_35_x86_64.whl"

CODE = {
    "ret": bytes.fromhex("c3"),
    "avx2": bytes.fromhex("c5f5fec2"),  # vpaddd ymm0, ymm1, ymm2
    "avx512f": bytes.fromhex("62f17548fec2"),  # vpaddd zmm0, zmm1, zmm2
    "avx512_vnni": bytes.fromhex("62f2754850c2"),  # vpdpbusd zmm0, zmm1, zmm2
    "amx": bytes.fromhex("c4e26b5ec1"),  # tdpbssd tmm0, tmm1, tmm2
    "lzcnt": bytes.fromhex("f3480fbdc1"),
    "tzcnt": bytes.fromhex("f3480fbcc1"),
    "cpuid": bytes.fromhex("0fa2"),
    "none": bytes.fromhex("06"),  # push es: not in 64-bit mode
}
ARM_CODE = {
    "ret": 0xD65F03C0,
    "mov": 0x910003FD,  # mov x29, sp
    "branch": 0x14000001,
    "neon": 0x4E22D420,  # fadd v0.4s, v1.4s, v2.4s
    "fp16": 0x4E421420,  # fadd v0.8h, v1.8h, v2.8h
    "dotprod": 0x4E829420,  # sdot v0.4s, v1.16b, v2.16b
    "i8mm": 0x4E82A420,  # smmla v0.4s, v1.16b, v2.16b
    "lse": 0xF8200041,  # ldadd x0, x1, [x2]
    "sve": 0x2518E3E0,  # ptrue p0.b
    "sve2": 0x04227020,  # sqdmulh z0.b, z1.b, z2.b
    "sme": 0xA0820020,  # smopa za0.s, p0/m, p0/m, z1.b, z2.b
    "none": 0xFFFFFFFF,
}
X86_64, AARCH64 = 62, 183

MakeElf = Callable[..., bytes]
MakeWheel = Callable[..., Path]


def elf_bytes(
    code: Sequence[str] = (),
    *,
    soname: str | None = None,
    needed: Sequence[str] = (),
    runpath: str | None = None,
    rpath: str | None = None,
    versions: Mapping[str, Sequence[str]] | None = None,
    interpreter: str | None = None,
    machine: int = X86_64,
    executable_stack: bool = False,
    text: bytes = b"",
    imports: Sequence[str] = (),
) -> bytes:
    """Return an ELF64 file with one code section, one read-only data section and a dynamic section."""
    strings = bytearray(b"\0")

    def string(value: str) -> int:
        strings.extend(value.encode() + b"\0")
        return len(strings) - len(value) - 1

    for name in imports:
        string(name)
    tags = [(1, string(name)) for name in needed]
    tags += [(14, string(soname))] if soname is not None else []
    tags += [(29, string(runpath))] if runpath is not None else []
    tags += [(15, string(rpath))] if rpath is not None else []
    needs = b""
    wanted = list((versions or {}).items())
    for index, (library, names) in enumerate(wanted):
        length = 16 + 16 * len(names)
        following = 0 if index == len(wanted) - 1 else length
        needs += struct.pack("<HHIII", 1, len(names), string(library), 16, following)
        for place, name in enumerate(names):
            needs += struct.pack("<IHHII", 0, 0, 2, string(name), 0 if place == len(names) - 1 else 16)
    body = bytearray(64 + 56 * 4)
    sections: list[tuple[str, int, int, int, int, int, int]] = []

    def section(name: str, kind: int, flags: int, data: bytes, link: int = 0, info: int = 0) -> int:
        offset = len(body)
        body.extend(data)
        sections.append((name, kind, flags, offset, len(data), link, info))
        return offset

    if machine == AARCH64:
        machine_code = struct.pack(f"<{len(code) + 1}I", *(ARM_CODE[name] for name in (*code, "ret")))
    else:
        machine_code = b"".join(CODE[name] for name in code) + CODE["ret"]
    text_offset = section(".text", 1, 0x6, machine_code)
    section(".rodata", 1, 0x2, text)
    interp_offset = section(".interp", 1, 0x2, (interpreter or "").encode() + b"\0")
    strings_offset = section(".dynstr", 3, 0x2, bytes(strings))
    tags += [(5, strings_offset), (10, len(strings)), (0, 0)]
    dynamic = b"".join(struct.pack("<QQ", *tag) for tag in tags)
    dynamic_offset = section(".dynamic", 6, 0x3, dynamic, link=4)
    section(".gnu.version_r", 0x6FFFFFFE, 0x2, needs, link=4, info=len(wanted))
    headings = b"\0" + b"\0".join(entry[0].encode() for entry in sections) + b"\0.shstrtab\0"
    section(".shstrtab", 3, 0, headings)
    headers_offset = len(body)
    body.extend(bytes(64))
    for title, kind, flags, offset, size, link, info in sections:
        at = headings.index(b"\0" + title.encode() + b"\0") + 1
        entry = 16 if kind == 6 else 0
        body.extend(struct.pack("<IIQQQQIIQQ", at, kind, flags, offset, offset, size, link, info, 1, entry))
    programs = [
        (1, 5, 0, len(body)),
        (2, 6, dynamic_offset, len(dynamic)),
        (3 if interpreter else 4, 4, interp_offset, len(interpreter or "") + 1),
        (0x6474E551, 7 if executable_stack else 6, 0, 0),
    ]
    for index, (kind, flags, offset, size) in enumerate(programs):
        header = struct.pack("<IIQQQQQQ", kind, flags, offset, offset, offset, size, size, 1)
        body[64 + 56 * index : 64 + 56 * (index + 1)] = header
    identity = b"\x7fELF" + bytes([2, 1, 1, 0]) + bytes(8)
    shape = (3, machine, 1, text_offset, 64, headers_offset, 0, 64, 56, len(programs), 64, len(sections) + 1)
    body[:64] = identity + struct.pack("<HHIQQQIHHHHHH", *shape, len(sections))
    return bytes(body)


def payload(**libraries: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files of a sound payload; keyword arguments change its three ELF files."""
    base: dict[str, Any] = {
        "soname": "libengine-fy.so",
        "runpath": "$ORIGIN",
        "needed": ["libcpu-fy.so", "libc.so.6"],
    }
    base["versions"] = {"libc.so.6": ["GLIBC_2.2.5", "GLIBC_2.34"], "libstdc++.so.6": ["GLIBCXX_3.4.30"]}
    cpu: dict[str, Any] = {
        "soname": "libcpu-fy.so",
        "code": ["avx2"],
        "versions": {"libm.so.6": ["GLIBC_2.29"]},
    }
    tool: dict[str, Any] = {
        "interpreter": "/lib64/ld-linux-x86-64.so.2",
        "runpath": "$ORIGIN/../lib",
        "needed": ["libengine-fy.so"],
        "text": f"version 1 ({PIN[:9]}-forkyard)".encode(),
    }
    manifest = {
        "package": PACKAGE,
        "pin": {"commit": PIN},
        "libraries": {"engine": "lib/libengine-fy.so", "cpu": "lib/libcpu-fy.so"},
        "tools": {"tool": "bin/tool"},
    }
    return {
        "__init__.py": b"",
        "_abi.py": b"",
        "abi.json": b"{}",
        "manifest.json": json.dumps(manifest).encode(),
        "lib/libengine-fy.so": elf_bytes(**{**base, **libraries.get("engine", {})}),
        "lib/libcpu-fy.so": elf_bytes(**{**cpu, **libraries.get("cpu", {})}),
        "bin/tool": elf_bytes(**{**tool, **libraries.get("tool", {})}),
    }


def record_of(files: Mapping[str, bytes], own_name: str) -> bytes:
    """Return a RECORD for *files*."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        writer.writerow([name, f"sha256={digest}", len(data)])
    writer.writerow([own_name, "", ""])
    return text.getvalue().encode()


@pytest.fixture(scope="session")
def make_elf() -> MakeElf:
    """The ELF builder."""
    return elf_bytes


@pytest.fixture
def limits() -> IsaLimits:
    """A variant with AVX2 whose engine library may hold a guarded lzcnt."""
    allowed = frozenset({"AVX", "AVX2"})
    return IsaLimits(allowed, "cpu", {"avx2": frozenset({"AVX2"})}, {"engine": frozenset({"LZCNT"})})


@pytest.fixture
def make_wheel(tmp_path: Path) -> MakeWheel:
    """Build a wheel: a sound one, unless told what to change.

    ``files`` are put into the package folder (None removes one), ``extra`` anywhere. ``modes`` and ``dates``
    are by name in the wheel, ``record`` replaces RECORD, other keywords change the ELF files.
    """

    def make(
        *,
        name: str = WHEEL,
        files: Mapping[str, bytes | None] | None = None,
        extra: Mapping[str, bytes] | None = None,
        modes: Mapping[str, int] | None = None,
        dates: Mapping[str, tuple[int, int, int, int, int, int]] | None = None,
        record: bytes | None = None,
        twice: str | None = None,
        **libraries: Mapping[str, Any],
    ) -> Path:
        info = "-".join(name.split("-")[:2]) + ".dist-info"
        inner = {**payload(**libraries), **(files or {})}
        whole = {f"{PACKAGE}/{path}": data for path, data in inner.items() if data is not None}
        whole |= {f"{info}/{path}": b"x" for path in ("METADATA", "WHEEL", "entry_points.txt")}
        whole |= extra or {}
        whole[f"{info}/RECORD"] = record_of(whole, f"{info}/RECORD") if record is None else record
        path = tmp_path / name
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry, data in whole.items():
                date = (dates or {}).get(entry, (1980, 1, 1, 0, 0, 0))
                zipped = zipfile.ZipInfo(entry, date)
                usual = 0o100755 if "/bin/" in entry else 0o100644
                zipped.external_attr = (modes or {}).get(entry, usual) << 16
                archive.writestr(zipped, data)
            if twice:
                with pytest.warns(UserWarning, match="Duplicate"):
                    archive.writestr(twice, b"")
        return path

    return make
