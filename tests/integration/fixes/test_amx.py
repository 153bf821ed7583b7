"""AMX tiles must be configured whole: built by a GCC whose intrinsic misstates what it reads, the pin dies of a signal.

The whole engine needs a CPU with AMX and two builds. On any CPU, the one function is compiled with an intrinsic that
misstates in the same way and writes down what the processor would have read.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forkyard_llm import cpu

from forkyard.cache import Cache

from ..conftest import forkyard, unpack

pytestmark = pytest.mark.patch("amx-tile-config")

AMX = ("amx_tile", "amx_int8", "avx512_bf16", "avx512vbmi", "avx512_vnni")


SOURCE = "ggml/src/ggml-cpu/amx/mmq.cpp"
# What is ours in the function; without it the function is upstream's.
OURS = re.compile(r"^#if defined\(__GNUC__\)\n.*?^#endif\n", re.MULTILINE | re.DOTALL)
PROGRAM = """
#include <cstdint>
#include <cstdio>
static unsigned char seen[64];
#define _tile_loadconfig(p) \\
    __asm__ volatile("leaq %1, %%rsi; leaq %0, %%rdi; movl $64, %%ecx; rep movsb" \\
                     : "=m"(seen) : "m"(*(const void * const *) (p)) : "rsi", "rdi", "rcx")
"""
MAIN = """
int main() {
    ggml_tile_config_init();
    for (unsigned char byte : seen) printf("%02x", byte);
}
"""


def compiler() -> str:
    found = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    assert found is not None
    return found


def configuration(source: str, folder: Path) -> bytes:
    """What the processor would read, 64 bytes, when the function of ``source`` has been optimised."""
    wanted = (r"^struct tile_config_t ?\{.*?^\};", r"^inline void ggml_tile_config_init\(void\) \{.*?^\}")
    parts = [re.search(pattern, source, re.MULTILINE | re.DOTALL) for pattern in wanted]
    text = "\n".join(part[0] for part in parts if part)
    (folder / "tile.cpp").write_text(PROGRAM + text + MAIN, encoding="utf-8")
    command = [compiler(), "-std=c++17", "-O2", "-o", str(folder / "tile"), str(folder / "tile.cpp")]
    subprocess.run(command, check=True, timeout=1800)
    return bytes.fromhex(
        subprocess.run([folder / "tile"], capture_output=True, check=True, timeout=1800).stdout.decode()
    )


def test_an_intrinsic_that_misstates_what_it_reads(engine_payload: Callable[[str], Path], tmp_path: Path) -> None:
    tree = json.loads((engine_payload("llama.cpp") / "manifest.json").read_text())["patched"]["tree"]
    show = ["git", f"--git-dir={Cache.default().store('llama.cpp')}", "show", f"{tree}:{SOURCE}"]
    source = subprocess.run(show, capture_output=True, text=True, check=True, timeout=1800).stdout
    # Palette 1; from byte 16 on the bytes of a row of each tile, from byte 48 on the rows.
    columns = b"".join(count.to_bytes(2, "little") for count in (64, 64, 32, 32, 64, 64, 64, 64))
    whole = (b"\x01".ljust(16, b"\0") + columns).ljust(48, b"\0") + bytes([8, 8, 16, 16, 16, 16, 16, 16]).ljust(
        16, b"\0"
    )
    assert configuration(source, tmp_path) == whole
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True, timeout=1800).stdout
    if "clang" not in version:
        assert configuration(OURS.sub("", source), tmp_path) != whole


def intrinsic_misstates() -> bool:
    """Whether this machine's compiler has ldtilecfg as inline assembly with an operand of 8 bytes."""
    folder = subprocess.run(
        [compiler(), "-print-file-name=include"], capture_output=True, text=True, check=True, timeout=1800
    )
    header = Path(folder.stdout.strip()) / "amxtileintrin.h"
    return header.is_file() and "ldtilecfg\\t%X0" in header.read_text()


@pytest.fixture(params=["fixes", "none"])
def built(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """The stacks of an engine built for AMX, and its package folder."""
    forkyard("build", "amx", "llama.cpp", "--stacks", request.param, "--out", str(tmp_path))
    (wheel,) = tmp_path.glob("forkyard_llama_cpp_amx-*.whl")
    unpack(wheel, tmp_path)
    return request.param, tmp_path / "forkyard_llama_cpp_amx"


@pytest.mark.deep
@pytest.mark.skipif(bool(cpu.missing(AMX)), reason="this CPU has no AMX (or the system does not let programs use it)")
def test_tiles_are_configured(
    built: tuple[str, Path], smollm2: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    stacks, package = built
    bench = package / "bin" / "llama-bench"
    command = [bench, "-m", smollm2, "-p", "32", "-n", "0", "-t", "1", "-r", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1800, check=False)
    # What the bindings do before they trust a payload: they must refuse what would kill its user.
    probing = [sys.executable, "-m", "forkyard_llm.probing", package]
    probe = subprocess.run(probing, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    if stacks == "none" and intrinsic_misstates():
        # What is left of the configuration is whatever lay on the stack: no tiles (SIGILL) or impossible ones (SIGSEGV).
        died = (-signal.SIGILL, -signal.SIGSEGV)
        assert done.returncode in died, "the pin no longer has the fault: the patch can be retired"
        assert probe.returncode in died
    else:
        assert done.returncode == 0, done.stderr
        assert probe.returncode == 0, probe.stdout
        assert "in AMX" in probe.stdout
