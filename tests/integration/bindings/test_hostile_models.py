"""Models the engines cannot take: refused by their file, on both engines, and never at the price of the process."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from forkyard_llm.errors import ModelError

from ..numa import arch_models
from . import mutated_gguf as mutated
from . import tiny_texts

PROBE = Path(__file__).with_name("hostile_probe.py")
ENGINES = ("llama.cpp", "ik_llama.cpp")
HANGS_AFTER = 60.0
"""Seconds without an answer for one tiny model; it takes some hundredths."""
SEED = 20261129
SAMPLE = 60
ARCHITECTURES = ("experts", "sinks", "window", "latent", "hybrid-delta", "partial-32-of-64")


@pytest.fixture(scope="module")
def surroundings(payloads: Mapping[str, Path], environment_of_module: dict[str, str]) -> dict[str, str]:
    return {**environment_of_module, "FORKYARD_LLM_PAYLOAD_PATH": os.pathsep.join(map(str, payloads.values()))}


@pytest.fixture(scope="module")
def environment_of_module(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = Path(__file__).resolve().parents[3]
    return {
        **os.environ,
        "PYTHONPATH": str(root / "bindings" / "src"),
        "FORKYARD_LLM_CACHE": str(tmp_path_factory.mktemp("cache")),
        # An engine that aborts starts a debugger otherwise.
        "GGML_NO_BACKTRACE": "1",
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    made = {name: folder / f"{name}.gguf" for name in ("spm", "bpe", "encoder", "reranker")}
    tiny_texts.write_decoder(made["spm"], bytes_as_tokens=True)
    tiny_texts.write_decoder(made["bpe"], bytes_as_tokens=False)
    tiny_texts.write_encoder(made["encoder"])
    tiny_texts.write_encoder(made["reranker"], ranks=True)
    return made


def command(surroundings: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "forkyard_llm", *arguments]
    return subprocess.run(line, env=surroundings, capture_output=True, text=True, timeout=1800, check=False)


def outcomes(
    engine: str, paths: Sequence[Path], surroundings: dict[str, str], use: str = "generate"
) -> dict[Path, str]:
    """What came of each model; the process that a model ends is followed by one for the rest."""
    found: dict[Path, str] = {}
    left = list(paths)
    answers = paths[0].with_suffix(".answers")
    while left:
        line = [sys.executable, str(PROBE), str(answers), use, engine, *map(str, left)]
        try:
            done = subprocess.run(
                line, env=surroundings, capture_output=True, timeout=HANGS_AFTER + len(left), check=False
            )
            ending = f"ended the process ({done.returncode}): {done.stderr.decode(errors='replace')[-400:]}"
        except subprocess.TimeoutExpired:
            ending = "hangs"
        begun: Path | None = None
        for what, path, *outcome in map(json.loads, answers.read_text().splitlines()):
            begun = Path(path)
            if what == "end":
                (found[begun],) = outcome
        assert begun is not None, ending
        found.setdefault(begun, ending)
        left = [path for path in left if path not in found]
        answers.unlink()
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_an_encoder_is_refused_before_the_engine_sees_it(
    engine: str, tiny: Mapping[str, Path], surroundings: dict[str, str]
) -> None:
    done = command(surroundings, "generate", "--engine", engine, "-m", str(tiny["encoder"]), "-p", "hello")
    assert done.returncode == ModelError.exit_code, done.stderr
    assert "this model makes embeddings, not text" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_has_an_encoder_only_for_embeddings(
    engine: str, tiny: Mapping[str, Path], surroundings: dict[str, str]
) -> None:
    serve = ["serve", "--engine", engine, "-m", str(tiny["encoder"]), "--port", "0"]
    refused = command(surroundings, *serve)
    assert refused.returncode == ModelError.exit_code, refused.stderr
    assert "-- --embeddings" in refused.stderr
    line = [sys.executable, "-m", "forkyard_llm", *serve, "--json", "--", "--embeddings", "-c", "256", "-t", "1"]
    with subprocess.Popen(line, env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert '"url"' in server.stdout.readline()
        finally:
            server.terminate()
            server.communicate(timeout=1800)


TOKENIZE = """
import sys
from forkyard_llm import Llama
with Llama(sys.argv[1], engine=sys.argv[2], vocab_only=True) as llm:
    print(len(llm.tokenize("ab")))
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_the_vocabulary_of_an_encoder_tokenizes(
    engine: str, tiny: Mapping[str, Path], surroundings: dict[str, str]
) -> None:
    line = [sys.executable, "-c", TOKENIZE, str(tiny["encoder"]), engine]
    done = subprocess.run(line, env=surroundings, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def split(model: mutated.Gguf, folder: Path, count: int) -> list[Path]:
    """The model in ``count`` files, as llama-gguf-split makes them."""
    size = -(-len(model.tensors) // count)
    paths = []
    for number in range(count):
        keys = dict(model.keys) if number == 0 else {}
        part = mutated.Gguf(keys, model.tensors[number * size : (number + 1) * size])
        for key, kind, value in (
            ("split.no", mutated.U16, number),
            ("split.count", mutated.U16, count),
            ("split.tensors.count", mutated.I32, len(model.tensors)),
        ):
            part = part.with_key(key, mutated.scalar(kind, value))
        paths.append(folder / f"m-{number + 1:05}-of-{count:05}.gguf")
        paths[-1].write_bytes(part.to_bytes())
    return paths


@pytest.mark.parametrize("engine", ENGINES)
def test_every_part_of_a_split_model_is_checked(
    engine: str, tiny: Mapping[str, Path], surroundings: dict[str, str], tmp_path: Path
) -> None:
    parts = split(mutated.parse(tiny["spm"].read_bytes()), tmp_path, 3)
    assert outcomes(engine, parts[:1], surroundings) == {parts[0]: "used"}
    second = mutated.parse(parts[1].read_bytes())
    parts[1].write_bytes(second.with_key("general.alignment", mutated.scalar(mutated.U32, 0)).to_bytes())
    said = outcomes(engine, parts[:1], surroundings)[parts[0]]
    assert said.startswith(f"ModelError: {parts[1]}: general.alignment is 0")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_without_a_tokenizer_has_numbers_only(
    engine: str, tiny: Mapping[str, Path], surroundings: dict[str, str], tmp_path: Path
) -> None:
    model = mutated.parse(tiny["spm"].read_bytes())
    model = mutated.Gguf(
        {key: entry for key, entry in model.keys.items() if not key.startswith(b"tokenizer.")}, model.tensors
    )
    model = model.with_key("tokenizer.ggml.model", mutated.string(b"no_vocab"))
    path = tmp_path / "no-vocab.gguf"
    path.write_bytes(model.with_key("llama.vocab_size", mutated.scalar(mutated.U32, 264)).to_bytes())
    said = outcomes(engine, [path], surroundings)[path]
    assert said.startswith("ModelError: this model has no tokenizer")


def survive(
    engine: str,
    models: Mapping[str, Path],
    sample: int | None,
    surroundings: dict[str, str],
    folder: Path,
    use: str = "generate",
) -> None:
    labels: dict[Path, str] = {}
    for name, path in models.items():
        model = mutated.parse(path.read_bytes())
        changes = [("unchanged", model), *mutated.mutations(model)]
        if sample is not None:
            changes = [changes[0], *random.Random(SEED).sample(changes[1:], sample)]
        for number, (label, changed) in enumerate(changes):
            file = folder / f"{name}-{number}.gguf"
            file.write_bytes(changed.to_bytes())
            labels[file] = f"{name}: {label}"
    said = {labels[path]: outcome for path, outcome in outcomes(engine, list(labels), surroundings, use).items()}
    assert {name: said[f"{name}: unchanged"] for name in models} == dict.fromkeys(models, "used")
    bad = {label: outcome for label, outcome in said.items() if outcome == "hangs" or outcome.startswith("ended")}
    assert not bad, "\n".join(f"{label}: {outcome}" for label, outcome in bad.items())


@pytest.mark.parametrize("engine", ENGINES)
def test_extreme_metadata(engine: str, tiny: Mapping[str, Path], surroundings: dict[str, str], tmp_path: Path) -> None:
    """A sample of what the deep test tries: no number, type or missing key ends the process."""
    models = {name: tiny[name] for name in ("spm", "bpe")}
    survive(engine, models, SAMPLE, surroundings, tmp_path)


# ik_llama.cpp does not rank.
EMBEDDING = [("llama.cpp", ("encoder", "reranker", "spm")), ("ik_llama.cpp", ("encoder", "spm"))]


@pytest.mark.parametrize(("engine", "names"), EMBEDDING)
def test_extreme_metadata_of_what_makes_embeddings(
    engine: str, names: Sequence[str], tiny: Mapping[str, Path], surroundings: dict[str, str], tmp_path: Path
) -> None:
    survive(engine, {name: tiny[name] for name in names}, SAMPLE, surroundings, tmp_path, "embed")


@pytest.mark.deep
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("engine", "names"), EMBEDDING)
def test_all_extreme_metadata_of_what_makes_embeddings(
    engine: str, names: Sequence[str], tiny: Mapping[str, Path], surroundings: dict[str, str], tmp_path: Path
) -> None:
    survive(engine, {name: tiny[name] for name in names}, None, surroundings, tmp_path, "embed")


@pytest.mark.deep
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["spm", "bpe", *ARCHITECTURES])
@pytest.mark.parametrize("engine", ENGINES)
def test_extreme_metadata_of_every_architecture(
    engine: str, name: str, tiny: Mapping[str, Path], surroundings: dict[str, str], tmp_path: Path
) -> None:
    path = tiny[name] if name in tiny else arch_models.write_model(name, tmp_path)
    survive(engine, {name: path}, None, surroundings, tmp_path)
