"""The compiler on this machine: which one, its version, and a digest of the programs that decide the bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from forkyard.cache import Cache, write_atomic
from forkyard.errors import StorageError, ToolchainError
from forkyard.installing import install_command, this_package_manager
from forkyard.network import sha256_of
from forkyard.process import clean_environment, run

_PAIRS = (("cc", "c++"), ("gcc", "g++"), ("clang", "clang++"))
_PROGRAMS = ("cc1", "cc1plus", "as", "ld", "collect2")

# Predefined macro -> the name /proc/cpuinfo has for what it stands for.
_MACROS = {
    "__SSSE3__": "ssse3", "__SSE4_1__": "sse4_1", "__SSE4_2__": "sse4_2", "__POPCNT__": "popcnt", "__AVX__": "avx",
    "__F16C__": "f16c", "__FMA__": "fma", "__AVX2__": "avx2", "__BMI__": "bmi1", "__BMI2__": "bmi2", "__LZCNT__": "abm",
    "__MOVBE__": "movbe", "__GFNI__": "gfni", "__AES__": "aes", "__PCLMUL__": "pclmulqdq", "__VAES__": "vaes",
    "__VPCLMULQDQ__": "vpclmulqdq", "__AVXVNNI__": "avx_vnni", "__AVX512F__": "avx512f", "__AVX512CD__": "avx512cd",
    "__AVX512VL__": "avx512vl", "__AVX512DQ__": "avx512dq", "__AVX512BW__": "avx512bw", "__AVX512VNNI__": "avx512_vnni",
    "__AVX512VBMI__": "avx512vbmi", "__AVX512VBMI2__": "avx512_vbmi2", "__AVX512BF16__": "avx512_bf16",
    "__AVX512BITALG__": "avx512_bitalg", "__AVX512IFMA__": "avx512ifma", "__AVX512VPOPCNTDQ__": "avx512_vpopcntdq",
    "__AVX512FP16__": "avx512_fp16", "__AMX_TILE__": "amx_tile", "__AMX_INT8__": "amx_int8", "__AMX_BF16__": "amx_bf16",
}  # fmt: skip


@dataclass(frozen=True)
class Toolchain:
    """A C and a C++ compiler of one kind and version."""

    c: Path
    cxx: Path
    family: str
    """``gcc`` or ``clang``."""
    version: str
    """First line of ``--version``."""
    target: str
    """Machine triple."""
    libc: str
    sha256: str
    """Digest over the compilers, assembler, linker and OpenMP library."""
    openmp: Path | None
    """The OpenMP run-time library programs built by it need, to be carried in the wheel."""

    def as_json(self) -> dict[str, str]:
        """For manifests and plans: no path of this machine."""
        return {
            "c": self.c.name,
            "cxx": self.cxx.name,
            "version": self.version,
            "target": self.target,
            "libc": self.libc,
            "sha256": self.sha256,
        }


def find_compilers() -> tuple[Path, Path] | None:
    """The C and C++ compiler to use: ``CC`` and ``CXX`` if set, else the system's; ``None`` if there are none."""
    chosen = (os.environ.get("CC"), os.environ.get("CXX"))
    pairs: Iterable[tuple[str, str]] = _PAIRS
    if any(chosen):
        pairs = [(chosen[0] or "cc", chosen[1] or "c++")]
    for c, cxx in pairs:
        found_c, found_cxx = shutil.which(c), shutil.which(cxx)
        if found_c and found_cxx:
            return Path(found_c), Path(found_cxx)
    return None


def detect(cache: Cache) -> Toolchain:
    """Identify the compiler. Digests of its programs are remembered by size and time, so this takes milliseconds.

    Raises:
        ToolchainError: there is none, or it is not usable.
    """
    found = find_compilers()
    if found is None:
        named = " and ".join(value for name in ("CC", "CXX") if (value := os.environ.get(name)))
        msg = f"{named} cannot be found" if named else "there is no C and C++ compiler on this machine"
        raise ToolchainError(
            msg, next_step=f"install one: {install_command('compiler', this_package_manager())}; or set CC and CXX"
        )
    c, cxx = found
    version = _first_line(cxx, "--version")
    target = _first_line(cxx, "-dumpmachine")
    family = "clang" if "clang" in version.lower() else "gcc"
    programs = [c.resolve(), cxx.resolve()]
    for name in _PROGRAMS:
        answer = _first_line(cxx, f"-print-prog-name={name}")
        path = Path(answer if "/" in answer else shutil.which(answer) or "")
        if path.is_file():
            programs.append(path.resolve())
    openmp = _openmp_library(cxx, family)
    if openmp is not None:
        programs.append(openmp)
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or "unknown"
    except (ValueError, OSError):
        libc = "unknown"
    return Toolchain(c, cxx, family, version, target, libc, _digest(programs, cache), openmp)


def native_features(toolchain: Toolchain) -> tuple[str, ...]:
    """CPU features the compiler uses for this very machine, by their /proc/cpuinfo names."""
    done = run(
        [str(toolchain.cxx), "-march=native", "-dM", "-E", "-x", "c++", os.devnull],
        timeout_s=60,
        env=clean_environment(),
    )
    if done.returncode != 0:
        msg = "the compiler cannot tell this machine's CPU features"
        raise ToolchainError(
            msg,
            where=f"{toolchain.cxx} -march=native",
            why=done.stderr.strip(),
            next_step="build a named variant instead of native",
        )
    defined = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("#define ")}
    return tuple(sorted(feature for macro, feature in _MACROS.items() if macro in defined))


def _first_line(compiler: Path, option: str) -> str:
    done = run([str(compiler), option], timeout_s=60, env=clean_environment())
    if done.returncode != 0 or not done.stdout.strip():
        msg = f"{compiler.name} does not work"
        raise ToolchainError(
            msg,
            where=f"{compiler} {option}",
            why=done.stderr.strip() or f"exit status {done.returncode}",
            next_step="install a working compiler or set CC and CXX",
        )
    return done.stdout.splitlines()[0].strip()


def _openmp_library(cxx: Path, family: str) -> Path | None:
    name = "libgomp.so.1" if family == "gcc" else "libomp.so"
    path = Path(_first_line(cxx, f"-print-file-name={name}"))
    return path.resolve() if path.is_absolute() and path.is_file() else None


def _digest(programs: Iterable[Path], cache: Cache) -> str:
    """One digest over several files, each hashed at most once for its size, time and inode."""
    memory_path = cache.root / "toolchain-digests.json"
    try:
        memory = json.loads(memory_path.read_bytes())
        assert isinstance(memory, dict)
    except (OSError, ValueError, AssertionError):
        memory = {}
    whole = hashlib.sha256()
    changed = False
    for path in dict.fromkeys(programs):
        info = path.stat()
        key = f"{path}|{info.st_size}|{info.st_mtime_ns}|{info.st_ino}"
        if not isinstance(memory.get(key), str):
            memory[key] = sha256_of(path)
            changed = True
        whole.update(f"{path.name} {memory[key]}\n".encode())
    if changed:
        # Only a memory: without it the next run hashes again.
        with contextlib.suppress(StorageError, OSError):
            write_atomic(memory_path, json.dumps(memory, indent=1, sort_keys=True).encode())
    return whole.hexdigest()
