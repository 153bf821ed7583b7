"""The payloads built here, for tests in this process and for its children."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm import models
from forkyard_llm.cache import CACHE_ENV, cache_dir
from forkyard_llm.errors import DownloadError
from forkyard_llm.payloads import Payload, read_payload

from forkyard.cache import Cache
from forkyard.console import Console
from forkyard.gitstore import Store
from forkyard.recipes import load_recipe
from forkyard.sources import obtain
from forkyard.stacks import load_stacks
from forkyard.trees import patch

from ..conftest import ROOT, libraries_of
from . import qwen

PROMPT = "The capital of France is"
# With any instruction set, and on any GPU.
EXPECTED = " Paris."
SAY = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from forkyard_llm import Llama
model, prompt, variant = sys.argv[2:]
with Llama(model, variant=variant or None, n_ctx=256, n_threads=2) as llm:
    text = llm(prompt, max_tokens=2, temperature=0.0)["choices"][0]["text"]
    print(json.dumps([llm.payload.member, text, llm._engine.system_info()]))
"""


@pytest.fixture(scope="module")
def built_payloads(payloads: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The bindings find these payloads alone, and remember nothing about any."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORKYARD_LLM_PAYLOAD_PATH", os.pathsep.join(map(str, payloads.values())))
        patch.delenv("FORKYARD_LLM_PAYLOAD", raising=False)
        patch.setenv("FORKYARD_LLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        # For children: the bindings are those of the repository.
        patch.setenv("PYTHONPATH", str(ROOT / "bindings" / "src"))
        yield


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Payload], None]:
    """Have a payload be the only one, with nothing remembered about it."""

    def only(payload: Payload) -> None:
        monkeypatch.setenv("FORKYARD_LLM_PAYLOAD_PATH", str(payload.root))
        monkeypatch.delenv("FORKYARD_LLM_PAYLOAD", raising=False)
        monkeypatch.setenv("FORKYARD_LLM_CACHE", str(tmp_path / "cache"))

    return only


@pytest.fixture(scope="session")
def model_file() -> Callable[[str], Path]:
    """A function from a model's name to its file, in the usual cache: ``built_payloads`` has an empty one."""
    usual = str(cache_dir())

    def file(name: str) -> Path:
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv(CACHE_ENV, usual)
            if name != qwen.NAME:
                return models.get(name)
            try:
                return qwen.fetch()
            except DownloadError as error:
                pytest.skip(f"{name} cannot be had: {error}")

    return file


@pytest.fixture(scope="session")
def sources(engine_payload: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from an engine to the sources that its payload was built of: the pin, patched."""

    @functools.cache
    def checked_out(engine: str) -> Path:
        manifest = read_payload(engine_payload(engine)).manifest
        cache, recipe = Cache.default(), load_recipe(manifest["recipe"], ROOT)
        obtained = obtain(recipe, cache, Console())
        patch(recipe, obtained, load_stacks(ROOT, recipe.stacks, recipe.series), cache)
        store = Store(cache.store(recipe.family))
        patched = manifest["patched"]
        assert store.has(patched["tree"], "tree"), f"the payload of {engine} was built of other patches"
        folder = tmp_path_factory.mktemp("sources")
        store.check_out(store.without(patched["tree"], patched["absent"]), folder / engine, folder / "index")
        return folder / engine

    return checked_out


def compiled(program: Path, payload: Path, tree: Path, into: Path, *words: str) -> Path:
    """A program in C or C++, with the sources' headers and the payload's libraries."""
    names = ("CC", "cc", "gcc") if program.suffix == ".c" else ("CXX", "c++", "g++")
    compiler = os.environ.get(names[0]) or shutil.which(names[1]) or shutil.which(names[2])
    if compiler is None:
        pytest.skip(f"there is no compiler for {program.name}")
    folder = Path(libraries_of(payload)["llama"]).parent
    headers = ("include", "ggml/include", "src", "common", "vendor", "tools/mtmd", ".")
    out = into / program.stem
    command = [compiler, "-w", "-O0", "-DLLAMA_SHARED", "-DGGML_SHARED", *(f"-I{tree / name}" for name in headers)]
    command += [] if program.suffix == ".c" else ["-std=c++17"]
    command += [*words, str(program), "-o", str(out), *map(str, sorted(folder.glob("lib*.so")))]
    command += [f"-Wl,-rpath,{folder}", "-pthread", "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def say(
    model: Path,
    variant: str = "",
    python: tuple[str, ...] = (sys.executable,),
    before: str = "",
    script: str = SAY,
) -> list[Any]:
    """In a process of its own: the instruction set, what the model says, and what the engine says of the CPU."""
    words = [*python, "-c", before + script, *((python[0],) if before else ()), json.dumps(sys.path)]
    done = subprocess.run([*words, str(model), PROMPT, variant], capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-3000:]}"
    answer = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(answer, list)
    return answer
