"""llama-cpp-python's own tests, from its source archive, against the module of that name that is ours.

Its tests of models fetch these from a hub. Here they get MiniLM for embeddings, Gemma 3 270M where they expect its model's
words, which it says as well, and SmolLM2 otherwise; they are skipped where that is no such model. Tests that use its own
modules inside are not run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
from forkyard_llm import models

from forkyard.cache import Cache

from . import minilm

pytestmark = pytest.mark.usefixtures("built_payloads")

ROOT = Path(__file__).resolve().parents[3]
ENGINES = ("llama.cpp", "ik_llama.cpp")
# What of its tests passes on both engines. docs/from-llama-cpp-python.md has the same list.
PASSING = (
    "test_llama.py::test_exact_cached_prompt_reuse_matches_fresh",
    "test_llama.py::test_llama_cpp_tokenization",
    "test_llama.py::test_llama_cpp_version",
    "test_llama.py::test_loaded_exact_cached_prompt_reuse_matches_fresh",
    "test_llama.py::test_real_llama_embeddings",
    "test_llama.py::test_real_llama_repeated_prompt_cache",
    "test_llama.py::test_shorter_prompt_prefix_reuse_matches_fresh",
    "test_llama_chat_format.py::test_hf_tokenizer_config_str_to_chat_formatter",
    "test_llama_chat_format.py::test_mistral_instruct",
    "test_llama_grammar.py::test_composed_pydantic_grammar",
    "test_llama_grammar.py::test_grammar_anyof",
    "test_llama_grammar.py::test_grammar_from_string",
    "test_llama_speculative.py::test_find_candidate_pred_tokens",
)
# What a test opens by this path.
VOCABULARY = Path("vendor/llama.cpp/models/ggml-vocab-llama-spm.gguf")
# Modules that its tests import and that need a network, or that are of its own inside.
CONFTEST = """
import multiprocessing, os, sys, types
import pytest

def module(name, **members):
    made = sys.modules[name] = types.ModuleType(name)
    vars(made).update(members)

def download(repo_id, filename, **_):
    if "mamba" in filename or "Falcon" in filename:
        pytest.skip("a model of a hub")
    if "bge" in filename:
        return os.environ["EMBEDDING_MODEL"]
    return os.environ["TALKING_MODEL" if filename == "Qwen3.5-0.8B-Q8_0.gguf" else "TEST_MODEL"]

module("huggingface_hub", hf_hub_download=download)
module("scipy")
module("scipy.special", log_softmax=None)
module("llama_cpp._internals")
import llama_cpp
llama_cpp._internals = sys.modules["llama_cpp._internals"]
# As many threads as there are processors wait for each other for long where others compute, too.
multiprocessing.cpu_count = lambda: 1
# Private members that its tests of public ones look at.
llama_cpp.Llama._is_recurrent = llama_cpp.Llama._is_hybrid = False
llama_cpp.Llama._ctx = types.SimpleNamespace(ctx=1)
"""


@pytest.fixture(scope="module")
def archive_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the archive's tests."""
    lock = tomllib.loads((ROOT / "recipes" / "llama.cpp.lock.toml").read_text(encoding="utf-8"))
    (source,) = (one for one in lock["sources"] if one["kind"] == "registry")
    assert source["location"].startswith("llama-cpp-python==")
    archive = Cache.default().downloads / f"{source['sha256']}.tar.gz"
    if not archive.is_file():
        pytest.skip(f"the source archive of {source['location']} is not in the cache: no engine was built from it here")
    folder = tmp_path_factory.mktemp("archive")
    with tarfile.open(archive) as members:
        for member in members:
            path = Path(member.name)
            test = path.parts[1:-1] == ("tests",) and path.suffix == ".py"
            if member.isfile() and (test or path.parts[1:] == VOCABULARY.parts):
                read = members.extractfile(member)
                assert read is not None
                target = folder / (path.name if test else VOCABULARY)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(read.read())
    (folder / "conftest.py").write_text(CONFTEST)
    assert list(folder.glob("test_*.py"))
    return folder


@pytest.mark.parametrize("engine", ENGINES)
def test_its_own_tests_pass(archive_tests: Path, engine: str, smollm2: Path, tmp_path: Path):
    report = tmp_path / "report.xml"
    environment = {
        **os.environ,
        "FORKYARD_LLM_ENGINE": engine,
        "TEST_MODEL": str(smollm2),
        "EMBEDDING_MODEL": str(minilm.fetch()),
        "TALKING_MODEL": str(models.get("gemma3-270m")),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(archive_tests)]
    done = subprocess.run(
        [*words, "-c", os.devnull, f"--junit-xml={report}", *PASSING],
        cwd=archive_tests, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    skipped = 2 * sum("matches_fresh" in name for name in PASSING)  # with two models that are not SmolLM2
    assert f"{len(PASSING)} passed, {skipped} skipped" in done.stdout, done.stdout[-2000:]


def test_the_list_in_the_documents_is_this_one():
    document = (ROOT / "docs" / "from-llama-cpp-python.md").read_text(encoding="utf-8")
    for name in PASSING:
        assert f"`{name}`" in document
