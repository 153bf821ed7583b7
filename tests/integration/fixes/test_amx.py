"""AMX tiles must be configured whole: built by a GCC whose intrinsic misstates what it reads, the pin dies of a signal.

Needs a CPU with AMX; builds llama.cpp's `amx` variant with the stack and without it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from forkyard_llm import cpu

from ..conftest import forkyard, unpack

pytestmark = pytest.mark.patch("amx-tile-config")

AMX = ("amx_tile", "amx_int8", "avx512_bf16", "avx512vbmi", "avx512_vnni")


def intrinsic_misstates() -> bool:
    """Whether this machine's compiler has ldtilecfg as inline assembly with an operand of 8 bytes."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    assert compiler is not None
    folder = subprocess.run(
        [compiler, "-print-file-name=include"], capture_output=True, text=True, check=True, timeout=60
    )
    header = Path(folder.stdout.strip()) / "amxtileintrin.h"
    return header.is_file() and "ldtilecfg\\t%X0" in header.read_text()


@pytest.mark.skipif(bool(cpu.missing(AMX)), reason="this CPU has no AMX (or the system does not let programs use it)")
@pytest.mark.parametrize("stacks", ["fixes", "none"])
def test_tiles_are_configured(stacks: str, smollm2: Path, environment: dict[str, str], tmp_path: Path) -> None:
    forkyard("build", "amx", "llama.cpp", "--stacks", stacks, "--out", str(tmp_path))
    (wheel,) = tmp_path.glob("forkyard_llama_cpp_amx-*.whl")
    unpack(wheel, tmp_path)
    bench = tmp_path / "forkyard_llama_cpp_amx" / "bin" / "llama-bench"
    command = [bench, "-m", smollm2, "-p", "32", "-n", "0", "-t", "1", "-r", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    # What the bindings do before they trust a payload: they must refuse what would kill its user.
    probing = [sys.executable, "-m", "forkyard_llm.probing", bench.parents[1]]
    probe = subprocess.run(probing, env=environment, capture_output=True, text=True, timeout=300, check=False)
    if stacks == "none" and intrinsic_misstates():
        # What is left of the configuration is whatever lay on the stack: no tiles (SIGILL) or impossible ones (SIGSEGV).
        died = (-signal.SIGILL, -signal.SIGSEGV)
        assert done.returncode in died, "the pin no longer has the fault: the patch can be retired"
        assert probe.returncode in died
    else:
        assert done.returncode == 0, done.stderr
        assert probe.returncode == 0, probe.stdout
        assert "in AMX" in probe.stdout
