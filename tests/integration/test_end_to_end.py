"""As a user: install the built wheels into a fresh environment and generate text, both engines in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from forkyard.environment import pip_variables

PROMPT = "The capital of France is"
# Greedy output is a property of model and engine; both agree on these tokens, with any ISA.
EXPECTED = " Paris."
ROOT = Path(__file__).resolve().parents[2]

BOTH = """
import json, sys
from forkyard_llm import Llama
model, prompt = sys.argv[1:]
with Llama(model, engine="llama.cpp", n_ctx=512) as one, Llama(model, engine="ik_llama.cpp", n_ctx=512) as two:
    texts = {}
    for name, llm in (("llama.cpp", one), ("ik_llama.cpp", two), ("llama.cpp again", one)):
        answer = llm(prompt, max_tokens=8, temperature=0.0)
        texts[name] = answer["choices"][0]["text"]
    # Interleaved, token by token: neither engine may disturb the other.
    streams = [llm(prompt, max_tokens=8, temperature=0.0, stream=True) for llm in (one, two)]
    pieces = ["", ""]
    for chunks in zip(*streams):
        for number, chunk in enumerate(chunks):
            pieces[number] += chunk["choices"][0]["text"]
    texts["interleaved"] = pieces
print(json.dumps(texts))
"""

DROP_IN = """
import sys
from llama_cpp import Llama
with Llama(model_path=sys.argv[1], n_ctx=128, n_threads=1, verbose=False) as llm:
    print(llm.engine + ":" + llm(sys.argv[2], max_tokens=2, temperature=0.0)["choices"][0]["text"])
"""


@pytest.fixture(scope="session")
def fresh(dist: Path, variant: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with the bindings, the drop-in and both payloads; its bin folder."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, with_pip=True)
    name = variant.replace("-", "_")
    packages = (
        "forkyard_llm",
        "forkyard_llama_cpp_python",
        f"forkyard_llama_cpp_{name}",
        f"forkyard_ik_llama_cpp_{name}",
    )
    wheels = [path for package in packages for path in dist.glob(f"{package}-*.whl")]
    assert len(wheels) == len(packages), wheels
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", *wheels]
    subprocess.run(install, env=pip_variables(python, os.environ), check=True, timeout=1800)
    return folder / "bin"


def outside(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing of the repository can be imported."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FORKYARD"))}
    return {**keep, "TMPDIR": str(tmp_path)}


def test_both_engines_side_by_side_in_one_process(fresh: Path, smollm2: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [fresh / "python", "-c", BOTH, smollm2, PROMPT],
        cwd=tmp_path,
        env=outside(tmp_path),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    texts = json.loads(done.stdout)
    assert texts["llama.cpp"].startswith(EXPECTED)
    assert texts["ik_llama.cpp"].startswith(EXPECTED)
    assert texts["llama.cpp again"] == texts["llama.cpp"]
    shortest = [text[: len(EXPECTED)] for text in texts["interleaved"]]
    assert shortest == [EXPECTED, EXPECTED]


@pytest.mark.parametrize("engine", ["llama.cpp", "ik_llama.cpp"])
def test_the_generate_command(fresh: Path, smollm2: Path, tmp_path: Path, engine: str) -> None:
    command = [
        fresh / "forkyard-llm",
        "generate",
        "-m",
        smollm2,
        "--engine",
        engine,
        "-p",
        PROMPT,
        "-n",
        "8",
        "--temp",
        "0",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=outside(tmp_path), capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stderr
    assert EXPECTED.strip() in done.stdout


@pytest.mark.parametrize("engine", ["llama.cpp", "ik_llama.cpp"])
def test_the_module_llama_cpp(fresh: Path, smollm2: Path, tmp_path: Path, engine: str) -> None:
    done = subprocess.run(
        [fresh / "python", "-c", DROP_IN, smollm2, PROMPT],
        cwd=tmp_path,
        env={**outside(tmp_path), "FORKYARD_LLM_ENGINE": engine},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{engine}:{EXPECTED}\n"


def test_the_doctor_finds_both_payloads(fresh: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [fresh / "forkyard-llm", "doctor", "--json"],
        cwd=tmp_path,
        env=outside(tmp_path),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "forkyard-llama-cpp-" in done.stdout
    assert "forkyard-ik-llama-cpp-" in done.stdout


@pytest.mark.parametrize("tool", ["llama-server", "llama-bench", "llama-cli", "llama-perplexity", "llama-quantize"])
@pytest.mark.parametrize("engine", ["llama.cpp", "ik_llama.cpp"])
def test_every_tool_starts(payloads: dict[str, Path], engine: str, tool: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [payloads[engine] / "bin" / tool, "--help"],
        cwd=tmp_path,
        env=outside(tmp_path),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    text = done.stdout + done.stderr
    assert "error while loading shared libraries" not in text
    assert done.returncode >= 0, f"{tool} was killed by signal {-done.returncode}"
    assert "usage" in text.lower() or "--" in text


def test_the_wheel_tells_its_pin_and_patches(payloads: dict[str, Path]) -> None:
    for engine, root in payloads.items():
        manifest = json.loads((root / "manifest.json").read_text())
        assert manifest["engine"] == engine
        recipe = tomllib.loads((ROOT / "recipes" / f"{engine}.toml").read_text())
        assert [stack["name"] for stack in manifest["stacks"]] == recipe["stacks"] != []
        assert all(patch["sha256"] for stack in manifest["stacks"] for patch in stack["patches"])
        for path in (*manifest["libraries"].values(), *manifest["tools"].values()):
            assert (root / path).is_file()


def test_a_second_build_does_nothing(dist: Path, variant: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "forkyard", "build", variant, "--json"],
        stdout=subprocess.PIPE,
        text=True,
        timeout=1800,
        check=True,
    )
    for built in json.loads(done.stdout)["built"]:
        assert built["fresh"] is False
        assert built["steps"] == 0
    assert sorted(dist.glob("*.whl"))
