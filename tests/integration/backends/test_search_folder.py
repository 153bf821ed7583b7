"""llama.cpp's tools load backends that lie beside them, and none of the folder they are started in."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .compiling import compiled

TIMEOUT_S = 1800
STRANGER = """
#include <cstdio>
__attribute__((constructor)) static void run() { fclose(fopen("was-here", "w")); }
"""
# Where /proc is not mounted a program cannot read which file it is.
NO_PROC = """
#include <cerrno>
#include <unistd.h>
extern "C" ssize_t readlink(const char *, char *, size_t) { errno = ENOENT; return -1; }
"""
NAMES = ["libggml-cpu-stranger.so", "libggml-blas-stranger.so", "libggml-cuda.so"]


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that leaves a file in the folder of the process that loads it."""
    return compiled(STRANGER, tmp_path_factory.mktemp("stranger") / "stranger.so", "-shared", "-fPIC")


def is_loaded(tool: Path, folder: Path, **environment: str) -> bool:
    """Whether the tool, started in a folder, loads the library."""
    done = subprocess.run(
        [tool, "--list-devices"],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return (folder / "was-here").exists()


@pytest.mark.patch("backend-search-folder")
@pytest.mark.parametrize("name", NAMES)
def test_a_library_in_the_working_folder_is_left_alone(
    engine_payload: Callable[[str], Path], stranger: Path, tmp_path: Path, name: str
) -> None:
    shutil.copy(stranger, tmp_path / name)
    assert not is_loaded(engine_payload("llama.cpp") / "bin" / "llama-bench", tmp_path)


@pytest.mark.patch("backend-search-folder")
@pytest.mark.parametrize("name", NAMES)
def test_the_working_folder_does_not_stand_in_for_one_that_is_unknown(
    engine_payload: Callable[[str], Path], stranger: Path, tmp_path: Path, name: str
) -> None:
    shutil.copy(stranger, tmp_path / name)
    no_proc = compiled(NO_PROC, tmp_path / "no-proc.so", "-shared", "-fPIC")
    tool = engine_payload("llama.cpp") / "bin" / "llama-bench"
    assert not is_loaded(tool, tmp_path, LD_PRELOAD=str(no_proc))


@pytest.mark.patch
@pytest.mark.parametrize("name", NAMES)
def test_a_library_beside_the_tool_is_loaded(
    engine_payload: Callable[[str], Path], stranger: Path, tmp_path: Path, name: str
) -> None:
    package, elsewhere = engine_payload("llama.cpp"), tmp_path / "elsewhere"
    for folder in (tmp_path / "bin", elsewhere):
        folder.mkdir()
    (tmp_path / "lib").symlink_to(package / "lib")
    tool = Path(shutil.copy(package / "bin" / "llama-bench", tmp_path / "bin"))
    shutil.copy(stranger, tmp_path / "bin" / name)
    assert is_loaded(tool, elsewhere)
