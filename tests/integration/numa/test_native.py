"""The barrier and the table of ranges under the sanitizers: our C file, compiled for them, on the engine's ggml."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from forkyard.cache import Cache

ROOT = Path(__file__).resolve().parents[3]
OURS = ROOT / "patches" / "numa-mirror" / "src" / "ggml"
SOURCE = Path(__file__).with_name("native") / "threads.c"
TIMEOUT = 1800.0


@pytest.fixture(scope="module")
def compiled(engine_payload: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that compiles the program with a sanitizer."""
    payload = engine_payload("llama.cpp")
    folder = tmp_path_factory.mktemp("native")
    upstream = Cache.default().tree("llama.cpp") / "ggml"
    assert (upstream / "src" / "ggml-impl.h").is_file(), "the tree the payload was built from is gone"
    library = next((payload / "lib").glob("libggml-base*.so"))
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler is not None

    def make(sanitizer: str, *options: str) -> Path:
        program = folder / f"threads-{sanitizer.replace(',', '-')}{len(options)}"
        command = [
            compiler,
            "-std=gnu11",
            "-g",
            "-O1",
            f"-fsanitize={sanitizer}",
            "-fno-sanitize-recover=all",
            *options,
        ]
        command += [f"-I{OURS / 'include'}", f"-I{upstream / 'include'}", f"-I{upstream / 'src'}", "-w"]
        command += [str(SOURCE), str(OURS / "src" / "ggml-numa-mirror.c"), str(library)]
        command += [f"-Wl,-rpath,{library.parent}", "-lpthread", "-o", str(program)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
        assert done.returncode == 0, done.stderr
        return program

    return make


def run(program: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TSAN_OPTIONS": "exitcode=66 halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=1"}
    return subprocess.run([program], capture_output=True, text=True, check=False, timeout=TIMEOUT, env=environment)


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_barrier_and_table_are_clean(compiled: Callable[..., Path], sanitizer: str) -> None:
    done = run(compiled(sanitizer))
    assert done.returncode == 0, done.stderr[-8000:]
    assert "Sanitizer" not in done.stderr


def test_the_program_tells_a_barrier_that_does_not_wait(compiled: Callable[..., Path]) -> None:
    done = run(compiled("thread", "-DNO_BARRIER"))
    assert done.returncode != 0
    assert "does not hold" in done.stderr or "data race" in done.stderr
