"""Payloads for GPUs, compiled on a machine without one: the toolkit comes from the package registry."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkyard.cache import Cache

from ..conftest import BUILD_TIMEOUT_S, ROOT
from ..toy import Toy

# What the compiler says when one of its objects is there.
COMPILED = re.compile(r"^\[forkyard \d+ \d+\] Building CUDA object (\S+)$", re.MULTILINE)
UNITS = 3
FEW = """
schema = 1
[variants.gpu]
title = "a GPU"
kind = "backend"
members = ["sse42", "avx2"]
rank = 300
[variants.gpu.backend]
toolkit = "cuda13"
architectures = ["80-real", "75-virtual"]
architectures-option = "CMAKE_CUDA_ARCHITECTURES"
requires = ["nvidia-cublas >=13.8, <14"]
libraries = ["libcudart.so.13", "libcublas.so.13"]
library-folders = ["nvidia/cu13/lib"]
unit-mib = 500
ccache = "1G"
[variants.gpu.engines."llama.cpp"]
module = "ggml-cuda"
options = { GGML_BACKEND_DL = true, GGML_CUDA = true }
"""
LOADING = """
import ctypes, json, pathlib, sys
gpus = ctypes.CDLL(sys.argv[1]).ggml_toy_gpus()
places = {line.split()[-1] for line in pathlib.Path("/proc/self/maps").read_text().splitlines() if "libcudart" in line}
print(json.dumps({"gpus": gpus, "runtime": " ".join(places)}))
"""


@pytest.fixture
def gpu_toy(toy: Toy, tmp_path: Path, toolkit: Path) -> Toy:
    (tmp_path / "gpu.toml").write_text(FEW)
    toy.environment["FORKYARD_CUDA13"] = str(toolkit)
    toy.edit_recipe('cpu-target = "ggml-cpu"', 'cpu-target = "ggml-cpu"\ncpu-score-target = "ggml-cpu-feats"')
    return toy


def build(toy: Toy, tmp_path: Path, *arguments: str) -> Any:
    return toy.build("--variants-file", str(tmp_path / "gpu.toml"), *arguments, variant="gpu")


def test_a_wheel_with_code_for_a_gpu(gpu_toy: Toy, tmp_path: Path, toolkit: Path) -> None:
    built = build(gpu_toy, tmp_path).built
    with zipfile.ZipFile(built["wheel"]) as wheel:
        wheel.extractall(tmp_path)
        (metadata,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA"))
    assert "Requires-Dist: nvidia-cublas<14,>=13.8" in metadata
    root = tmp_path / "forkyard_toy_gpu"
    manifest = json.loads((root / "manifest.json").read_text())
    assert manifest["kind"] == "backend"
    assert manifest["libraries"]["ggml-cuda"] == "bin/libggml-cuda.so"
    facts = manifest["backend"]
    assert facts["library"] == "ggml-cuda"
    assert facts["architectures"] == ["80-real", "75-virtual"]
    assert facts["needs"] == ["libcudart.so.13", "libcublas.so.13"]
    assert str(toolkit) not in json.dumps(manifest)
    # It finds NVIDIA's libraries where pip puts them: beside its own package.
    (tmp_path / "nvidia").mkdir()
    (tmp_path / "nvidia" / "cu13").symlink_to(toolkit)
    command = [sys.executable, "-c", LOADING, str(root / "bin" / "libggml-cuda.so")]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert said["gpus"] >= -1
    # A machine may have others of the same name.
    assert said["runtime"] == str((toolkit / "lib" / "libcudart.so.13").resolve())
    # Nothing to do the second time, and another architecture is another wheel.
    assert build(gpu_toy, tmp_path).built["fresh"] is False
    other = build(gpu_toy, tmp_path, "--architectures", "90-real").built
    assert other["fresh"] is True
    # The probe holds the build key.
    assert {unit.rpartition("/")[2] for unit in other["compiled"]} == {"gpu.cu", "probe.c"}


def test_a_lost_architecture_is_caught(gpu_toy: Toy, tmp_path: Path) -> None:
    """As upstream's CMake replaces architectures: what the wheel promises is not in it."""
    gpu_toy.change_engine(
        "CMakeLists.txt", "enable_language(CUDA)", "enable_language(CUDA)\n  set(CMAKE_CUDA_ARCHITECTURES 90-real)"
    )
    failed = build(gpu_toy, tmp_path)
    assert failed.status == 8
    assert "holds no sm_80, which the variant names (it has sm_90)" in failed.stdout + failed.stderr


def test_a_library_folder_of_this_machine_is_caught(gpu_toy: Toy, tmp_path: Path, toolkit: Path) -> None:
    template = gpu_toy.root / "wheels" / "CMakeLists.txt.j2"
    text = template.read_text()
    line = 'PROPERTIES INSTALL_RPATH "$ORIGIN/../lib{{ run_path }}")'
    assert line in text
    template.write_text(text.replace(line, f'PROPERTIES INSTALL_RPATH "$ORIGIN/../lib:{toolkit}/lib")'))
    failed = build(gpu_toy, tmp_path)
    assert failed.status == 8
    assert f"looks for libraries in '{toolkit}/lib'" in failed.stdout + failed.stderr


def test_a_toolkit_that_is_none(gpu_toy: Toy, tmp_path: Path) -> None:
    gpu_toy.environment["FORKYARD_CUDA13"] = str(tmp_path)
    failed = build(gpu_toy, tmp_path)
    assert failed.status == 7
    assert "it lacks bin/nvcc" in failed.stdout + failed.stderr


@pytest.mark.parametrize("engine", ["llama.cpp", "ik_llama.cpp"])
def test_the_first_units_of_an_engine(
    engine: str, toolkit: Path, lift_limit: Callable[[], None], tmp_path: Path
) -> None:
    """The real build, ended as soon as some of its GPU code is compiled; it would continue there.

    All of it takes an hour and is the deep tests' work.
    """
    lift_limit()
    log = Cache.default().logs / f"{engine}-cuda13.log"
    log.unlink(missing_ok=True)
    words = ["build", "cuda13", engine, "--architectures", "80-real", "--out", str(tmp_path)]
    with (tmp_path / "said").open("wb") as said:
        child = subprocess.Popen(
            [sys.executable, "-m", "forkyard", *words], cwd=ROOT, stdout=said, stderr=said, start_new_session=True
        )
    deadline = time.monotonic() + BUILD_TIMEOUT_S
    try:
        while len(set(COMPILED.findall(_text(log)))) < UNITS and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGINT)
        child.wait(timeout=60)
    units = set(COMPILED.findall(_text(log)))
    assert child.returncode in (0, 130), (tmp_path / "said").read_text()
    assert child.returncode == 0 or len(units) >= UNITS, (tmp_path / "said").read_text()


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
