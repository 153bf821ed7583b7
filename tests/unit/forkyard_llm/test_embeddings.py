"""What callers give and get for embeddings, and how texts are put into batches, with an engine made of nothing."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm.embeddings import embed, embedding_body, pooling_of, positions_of, rank
from forkyard_llm.engines.embedding import Embedder, EmbeddingPlan
from forkyard_llm.engines.options import ModelOptions
from forkyard_llm.errors import EngineError, ModelError, UsageError
from forkyard_llm.gguf_check import FOR_EMBEDDINGS, check

from .gguf_bytes import U32, gguf, scalar, string, strings, tensor, write

END = 2


class FakeSession:
    """Its vector of a token is the token and its position; the pooled one of a text has their sums."""

    n_batch = 8
    n_embd = 2
    _context = object()

    def __init__(self, pooling: str = "mean", *, whole: bool = True, longest: int = 8, n_batch: int = 8) -> None:
        api = types.SimpleNamespace(
            llama_n_ubatch=lambda _: 8,
            llama_get_embeddings_ith=lambda _, index: self.rows[index][:2],
            llama_get_embeddings_seq=lambda _, sequence: [
                sum(row[part] for row in self.rows if row[2] == sequence) for part in (0, 1)
            ],
        )
        self.loaded = types.SimpleNamespace(api=api, family="llama.cpp")
        self.batches: list[list[tuple[int, ...]]] = []
        plan = EmbeddingPlan(pooling, whole, longest, 8, 8, 8, 3, n_batch, "n_ctx")
        self.embedder: Embedder | None = Embedder(self, plan)  # type: ignore[arg-type]
        self.used: list[Any] = []

    @property
    def rows(self) -> list[tuple[int, ...]]:
        return self.batches[-1]

    def call(self, function: Callable[[Any], Any]) -> Any:
        return function(self)

    def use(self, adapters: Any) -> None:
        self.used.append(adapters)

    def forget(self) -> None:
        pass

    def decode_rows(self, rows: Sequence[Any]) -> None:
        self.batches.append([tuple(map(float, row[:3])) for row in rows])  # type: ignore[misc]

    def check_tokens(self, tokens: Sequence[int]) -> None:
        pass

    def ends_text(self, token: int) -> bool:
        return token == END

    def tokenize(self, text: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        assert add_special
        assert parse_special
        return [*text, END] if text else []

    def rank_prompt(self, query: bytes, document: bytes) -> list[int]:
        return [*query, *document]


def vectors(session: FakeSession, given: Any, **how: Any) -> Any:
    return embed(session, given, (), **{"normalize": False, "truncate": False, **how})


def test_what_is_given() -> None:
    session = FakeSession()
    assert vectors(session, "\x05") == ([[[7.0, 1.0]]], True, 2)
    assert vectors(session, [5, 2]) == vectors(session, b"\x05")
    assert vectors(session, ["\x05", [4]]) == ([[[7.0, 1.0]], [[4.0, 0.0]]], False, 3)
    assert vectors(session, []) == ([], False, 0)
    assert vectors(session, [3, 4], normalize=True)[0] == [[[7 / 50**0.5, 1 / 50**0.5]]]
    assert vectors(session, [0], normalize=True)[0] == [[[0.0, 0.0]]]
    assert set(session.used) == {()}


def test_texts_go_into_batches_of_limited_texts_and_tokens() -> None:
    session = FakeSession(n_batch=4)
    vectors(session, [[1], [2], [3], [4], [5] * 3, [6] * 2, [7] * 8])
    assert [[row[0] for row in batch] for batch in session.batches] == [[1, 2, 3], [4, 5, 5, 5], [6, 6], [7] * 8]
    assert [row[1:] for row in session.batches[1]] == [(0, 0), (0, 1), (1, 1), (2, 1)]


def test_a_text_longer_than_a_batch_in_parts() -> None:
    session = FakeSession("none", whole=False, longest=20)
    ((made,), _, _) = vectors(session, [list(range(1, 19))])
    assert made == [[number + 1.0, number] for number in range(18)]
    assert [len(batch) for batch in session.batches] == [8, 8, 2]


@pytest.mark.parametrize("name", ["llama_get_causal_attn", "llama_get_memory"])
def test_the_engine_knows_better_than_the_table_whether_parts_are_possible(name: str) -> None:
    session = FakeSession("last", whole=False, longest=20)
    setattr(session.loaded.api, name, lambda _: 0)
    embedder = Embedder(session, EmbeddingPlan("last", False, 20, 20, 8, 8, 3, 8, "n_ctx"))  # type: ignore[arg-type]
    assert (embedder.longest, embedder.limit) == (8, "n_ubatch")


def test_a_text_that_is_too_long() -> None:
    session = FakeSession()
    with pytest.raises(UsageError, match=r"text 1 has 9 tokens, and a text may have 8 \(limited by n_ctx\)"):
        vectors(session, [[1], [1] * 9])
    vectors(session, "\x05" * 9, truncate=True)
    assert [row[0] for row in session.rows] == [5] * 7 + [END]
    vectors(session, [[5] * 8 + [END]], truncate=True)
    assert [row[0] for row in session.rows] == [5] * 8


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (5, "the input must be a text, or a sequence of texts"),
        ([None], "text 0 must be a text or a list of tokens; got None"),
        (["a", ""], "text 1 has no token"),
        ("", "the text has no token"),
        ([[1.5]], "token 0 of text 0 must be an integer"),
    ],
)
def test_what_is_no_text(given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        vectors(FakeSession(), given)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_no_numbers(bad: float) -> None:
    session = FakeSession()
    session.loaded.api.llama_get_embeddings_seq = lambda *_: [1.0, bad]
    with pytest.raises(EngineError, match="no numbers"):
        vectors(session, [1])
    session.loaded.api.llama_get_embeddings_seq = lambda *_: None
    with pytest.raises(EngineError, match="has no embedding"):
        vectors(session, [1])


def test_ranks() -> None:
    session = FakeSession("rank")
    assert rank(session, "\x01", ["\x02", "\x03\x04"], ()) == [3.0, 8.0]
    with pytest.raises(UsageError, match="documents must be a sequence of texts"):
        rank(session, "a", "b", ())
    with pytest.raises(UsageError, match="the query with document 0 has 9 tokens"):
        rank(session, "a", ["b" * 8], ())
    with pytest.raises(UsageError, match="call rank"):
        vectors(session, "a")
    with pytest.raises(UsageError, match="pooling='rank'"):
        rank(FakeSession(), "a", ["b"], ())
    session.embedder = None
    with pytest.raises(UsageError, match="make one with embedding=True"):
        rank(session, "a", ["b"], ())


def test_openais_answer() -> None:
    body = embedding_body("m", [[[1.0]], [[2.0]]], "mean", 7)
    assert body["data"][1] == {"object": "embedding", "index": 1, "embedding": [2.0]}
    assert body["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert embedding_body("m", [[[1.0], [2.0]]], "none", 2)["data"][0]["embedding"] == [[1.0], [2.0]]


def summary(folder: Path, architecture: str, *values: bytes, shapes: dict[bytes, list[int]] | None = None) -> Any:
    given = shapes or {b"t": [8]}
    infos = [tensor(name, shape, 0, 64 * index) for index, (name, shape) in enumerate(given.items())]
    path = write(folder, gguf([string(b"general.architecture", architecture.encode()), *values], infos, bytes(64 * 9)))
    return check(path, purposes=FOR_EMBEDDINGS)


def test_the_pooling_of_a_model(tmp_path: Path) -> None:
    plain = summary(tmp_path, "llama")
    assert pooling_of(plain, None) == "none"
    assert pooling_of(plain, "MEAN") == "mean"
    assert pooling_of(summary(tmp_path, "bert", scalar("bert.pooling_type", U32, 2)), None) == "cls"
    for wrong in ("max", 1, ""):
        with pytest.raises(UsageError, match="pooling must be one of none, mean, cls, last, rank"):
            pooling_of(plain, wrong)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no classifier to rank with"):
        pooling_of(plain, "rank")
    head = {b"cls.output.weight": [8, 1]}
    labels = strings(b"qwen3.classifier.output_labels", [b"yes", b"no"])
    assert pooling_of(summary(tmp_path, "qwen3", labels, shapes=head), None) == "rank"
    assert pooling_of(summary(tmp_path, "jina-bert-v2", shapes={b"cls.weight": [8, 1]}), "rank") == "rank"
    with pytest.raises(ModelError, match="no classifier to rank with"):
        pooling_of(summary(tmp_path, "bert", shapes={b"cls.weight": [8, 1]}), "rank")


def test_a_size_that_no_tensor_makes(tmp_path: Path) -> None:
    sizes = [scalar("lfm2.embedding_length", U32, 8), scalar("lfm2.embedding_length_out", U32, 4)]
    with pytest.raises(ModelError, match="embedding_length_out is 4, and no tensor makes vectors of that many"):
        pooling_of(summary(tmp_path, "lfm2", *sizes), "mean")
    assert pooling_of(summary(tmp_path, "lfm2", *sizes, shapes={b"dense_2.weight": [8, 4]}), "mean") == "mean"


def test_positions_that_are_rows_of_a_tensor(tmp_path: Path) -> None:
    assert positions_of(summary(tmp_path, "bert", shapes={b"position_embd.weight": [4, 3]})) == 3
    assert positions_of(summary(tmp_path, "bert")) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"pooling": "mean"}, "give embedding=True with it"),
        ({"embedding": True, "n_parallel": 2}, "leave n_parallel out"),
        ({"embedding": 1}, "embedding must be True or False"),
        ({"embedding": True, "engine_options": {"kv_unified": False}}, "leave it out for embeddings"),
    ],
)
def test_options_that_do_not_go_together(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ModelOptions(**arguments)
