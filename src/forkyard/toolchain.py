"""The compiler on this machine: which one, its version, and a digest of the programs that decide the bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from forkyard.cache import Cache, write_atomic
from forkyard.errors import StorageError, ToolchainError
from forkyard.installing import install_command, this_package_manager
from forkyard.network import sha256_of
from forkyard.places import checked
from forkyard.process import clean_environment, run

_PAIRS = (("cc", "c++"), ("gcc", "g++"), ("clang", "clang++"))
_LAUNCHERS = ("ccache", "sccache", "distcc", "icecc")
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
    family: Literal["gcc", "clang"]
    version: str
    """First line of ``--version``."""
    target: str
    """Machine triple."""
    libc: str
    sha256: str
    """Digest over the compilers, assembler, linker and OpenMP library."""
    openmp: Path | None
    """The OpenMP run-time library programs built by it need, to be carried in the wheel."""

    @property
    def major(self) -> int | None:
        """The first number of the version; ``None`` if ``--version`` does not say it."""
        number = _number(self.version).partition(".")[0]
        return int(number) if number else None

    @property
    def openmp_remedy(self) -> str:
        """The command that installs this compiler's OpenMP library."""
        manager = this_package_manager()
        if self.family != "clang":
            return install_command("openmp", manager)
        command = install_command("openmp of clang", manager)
        # Debian's package is that of its default clang; each other one has a package of its own.
        return command.replace("libomp-dev", f"libomp-{self.major}-dev") if manager == "apt" and self.major else command

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
    chosen = tuple(os.environ.get(name, "").strip() for name in ("CC", "CXX"))
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
        raise _not_found()
    remedy = "set CC and CXX to a compiler in another folder"
    c, cxx = (checked(path.absolute(), f"compiler {path.name}", remedy) for path in found)
    version = _first_line(cxx, "--version")
    target = _first_line(cxx, "-dumpmachine")
    family = _family(version)
    _check_pair(c, _first_line(c, "--version"), cxx, version)
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
    return Toolchain(c, cxx, family, version, target, libc, digest_of(programs, cache), openmp)


def _not_found() -> ToolchainError:
    """Why there is no compiler: none is installed, or what ``CC`` or ``CXX`` holds is no program."""
    install = install_command("compiler", this_package_manager())
    for name, usual in (("CC", "gcc"), ("CXX", "g++")):
        value = os.environ.get(name, "").strip()
        if not value or shutil.which(value):
            continue
        words = shlex.split(value) if "'" not in value and '"' not in value else value.split()
        program = next((word for word in words if shutil.which(word)), None)
        if len(words) > 1 and program is not None:
            launched = Path(words[0]).name in _LAUNCHERS
            return ToolchainError(
                f"{name} holds a command with {'a launcher' if launched else 'options'}: {value!r}",
                why="CMake and the build key take one program: the compiler itself",
                next_step=f"set {name}={words[1] if launched else words[0]}; "
                + (
                    "forkyard uses ccache by itself if it is installed"
                    if launched
                    else "flags belong into the recipe (build.c-flags, build.cxx-flags) or the variant"
                ),
            )
        if os.path.isdir(value):
            why = "it is a folder"
        elif os.path.exists(value):
            why = "it is a file that may not be executed"
        else:
            why = "there is no such file" if "/" in value else "no folder of PATH holds it"
        msg = f"{name} names no program: {value} cannot be found"
        return ToolchainError(
            msg,
            why=why,
            next_step=f"correct {name}, say {name}={usual}; or unset CC and CXX, or install one: {install}",
        )
    tried = [(os.environ.get("CC", "").strip() or c, os.environ.get("CXX", "").strip() or cxx) for c, cxx in _PAIRS]
    there = next((path for pair in tried for name in pair if (path := shutil.which(name))), None)
    msg = "there is no C and C++ compiler on this machine"
    if there is not None:
        msg = f"there is {there}, but no C and C++ compiler that belong together"
    return ToolchainError(msg, next_step=f"install one: {install}; or set CC and CXX")


def _check_pair(c: Path, c_version: str, cxx: Path, cxx_version: str) -> None:
    """Refuse compilers of two kinds or versions: each would need an OpenMP library and flags of its own."""
    for name, path in (("CC", c), ("CXX", cxx)):
        if path.name in _LAUNCHERS:
            msg = f"{name} names {path.name}, which is a launcher and no compiler"
            raise ToolchainError(
                msg, where=str(path), next_step=f"set {name} to the compiler; forkyard uses ccache by itself"
            )
    if (_family(c_version), _number(c_version)) != (_family(cxx_version), _number(cxx_version)):
        msg = "the C compiler and the C++ compiler are not of one kind and version"
        raise ToolchainError(
            msg,
            where=f"{c} and {cxx}",
            why=f"{c_version} and {cxx_version}",
            next_step="set both CC and CXX, to a pair: CC=gcc-12 CXX=g++-12, or CC=clang CXX=clang++",
        )


def _family(version: str) -> Literal["gcc", "clang"]:
    return "clang" if "clang" in version.lower() else "gcc"


def _number(version: str) -> str:
    """The version proper in the first line of ``--version``, as ``12.2.0``; empty if there is none."""
    # "gcc (Debian 12.2.0-14) 12.2.0", "Debian clang version 14.0.6", "g++ (GCC) 11.4.1 20230605 (Red Hat 11.4.1-2)"
    found = re.search(r"(?:\) |version )(\d+(?:\.\d+)*)", version)
    return found[1] if found else ""


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


def digest_of(programs: Iterable[Path], cache: Cache) -> str:
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
