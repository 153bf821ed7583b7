"""A thousand random sequences of operations: the same logits as without the stack, and equal copies after each."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from . import arch_models, cases
from .driver import MIRROR, Driver, Mode

SEED = 20261124
STOCK = Mode()
N_SEQUENCES = 1000
MIRRORS = (
    Mode(MIRROR, 2),
    Mode(MIRROR, 3),
    Mode(MIRROR, 4),
    # Node 0 has a copy, too, and the primary is kept up to date beside the copies.
    Mode(MIRROR, 2, environment=(("GGML_NUMA_MIRROR_NO_ALIAS", "1"),)),
)
MODELS = {
    "llama.cpp": (
        "dense-q4_0",
        "experts",
        "window",
        "latent-q8_0",
        "compressed",
        "scan",
        "hybrid-scan",
        "hybrid-delta",
    ),
    "ik_llama.cpp": ("dense-q4_0", "experts", "window", "latent-q8_0", "sinks", "hybrid-delta"),
}
QUANTIZED = {"llama.cpp": ("q8_0", "q4_0", "q5_1"), "ik_llama.cpp": ("q8_0", "q4_0", "q6_0")}
"""Cache types some sequences have instead of f16."""
MAX_OPS, N_CTX, MAX_LENGTH = 10, 128, 40


class Author:
    """Writes one valid sequence of operations: it keeps the length of each sequence, as the probe does.

    With ``front`` nothing is done after which a token may not see the first key, see cases.flash().
    """

    def __init__(self, rng: random.Random, model: str, seqs: int, *, front: bool) -> None:
        self._rng = rng
        self._kind = arch_models.MODELS[model]
        self._seqs = seqs
        self._front = front
        self._lengths: dict[int, int] = {}
        self._slots: dict[int, dict[int, int]] = {}
        self._seq_slots: dict[int, int] = {}

    def write(self) -> list[list[Any]]:
        ops = [self._decode(self._rng.randint(1, MAX_LENGTH))]
        for _ in range(self._rng.randint(1, MAX_OPS)):
            op = self._any()
            if op is not None:
                ops.append(op)
        # Whatever was done must show.
        ops.append(self._decode(self._rng.choice((1, 1, 2, 5))))
        return ops

    def _any(self) -> list[Any] | None:
        kinds = ["decode"] * 4 + ["clear", "save", "restore", "save_seq", "restore_seq", "drop"]
        kinds += [] if self._kind.recurrent else ["cut"] * 2
        kinds += ["shift"] * 2 if self._kind.shifts else []
        kinds += ["copy", "copy", "keep"] if self._seqs > 1 else []
        if self._front:
            kinds = [kind for kind in kinds if kind not in ("shift", "drop", "restore_seq")]
        word = self._rng.choice(kinds)
        if word == "decode":
            return self._decode(self._rng.choice((1, 1, 1, 2, 3, 8, 33)))
        if word == "clear":
            self._lengths.clear()
            return ["clear", 0, self._rng.random() < 0.5]
        method: Any = getattr(self, f"_{word}")
        op: list[Any] | None = method()
        return op

    def _decode(self, count: int) -> list[Any]:
        used = sum(self._lengths.values())
        count = max(1, min(count, N_CTX - used - self._seqs - 1, MAX_LENGTH))
        if used + count >= N_CTX - self._seqs:
            self._lengths.clear()
            return ["clear", 0, False]
        seqs = [seq for seq in range(self._seqs) if self._rng.random() < 0.5] or [self._rng.randrange(self._seqs)]
        parts = []
        for seq in seqs[: max(1, count)]:
            share = count if len(seqs) == 1 else 1
            parts.append([seq, cases.tokens(self._rng, share)])
            self._lengths[seq] = self._lengths.get(seq, 0) + share
        return ["decode", 0, parts]

    def _filled(self, least: int = 1) -> int | None:
        filled = [seq for seq, length in self._lengths.items() if length >= least]
        return self._rng.choice(filled) if filled else None

    def _cut(self) -> list[Any] | None:
        seq = self._filled(3)
        if seq is None:
            return None
        count = self._rng.randint(1, min(4, self._lengths[seq] - 1))
        self._lengths[seq] -= count
        return ["cut", 0, seq, count]

    def _shift(self) -> list[Any] | None:
        seq = self._filled(6)
        if seq is None:
            return None
        count = self._rng.randint(1, self._lengths[seq] // 2)
        self._lengths[seq] -= count
        return ["shift", 0, seq, count]

    def _drop(self) -> list[Any] | None:
        seq = self._filled()
        if seq is None:
            return None
        del self._lengths[seq]
        return ["drop", 0, seq]

    def _keep(self) -> list[Any] | None:
        seq = self._filled()
        if seq is None:
            return None
        self._lengths = {seq: self._lengths[seq]}
        return ["keep", 0, seq]

    def _copy(self) -> list[Any] | None:
        source = self._filled()
        if source is None:
            return None
        target = self._rng.choice([seq for seq in range(self._seqs) if seq != source])
        self._lengths[target] = self._lengths[source]
        return ["copy", 0, source, target]

    def _save(self) -> list[Any] | None:
        if not self._lengths:
            # Engines do not agree on what restoring nothing means.
            return None
        slot = self._rng.randrange(2)
        self._slots[slot] = dict(self._lengths)
        return ["save", 0, slot]

    def _restore(self) -> list[Any] | None:
        if not self._slots:
            return None
        slot = self._rng.choice(list(self._slots))
        self._lengths = dict(self._slots[slot])
        return ["restore", 0, slot]

    def _save_seq(self) -> list[Any] | None:
        seq = self._filled()
        if seq is None:
            return None
        slot = self._rng.randrange(10, 12)
        self._seq_slots[slot] = self._lengths[seq]
        return ["save_seq", 0, seq, slot]

    def _restore_seq(self) -> list[Any] | None:
        if not self._seq_slots:
            return None
        slot = self._rng.choice(list(self._seq_slots))
        seq = self._rng.randrange(self._seqs)
        rest = sum(length for other, length in self._lengths.items() if other != seq)
        if rest + self._seq_slots[slot] >= N_CTX - self._seqs:
            return None
        self._lengths[seq] = self._seq_slots[slot]
        return ["restore_seq", 0, slot, seq]


def sequence(engine: str, model: str, number: int, tiny: Path) -> dict[str, Any]:
    rng = random.Random(f"{SEED} {model} {number}")
    seqs = rng.choice((1, 3))
    if engine == "ik_llama.cpp" and arch_models.MODELS[model].recurrent:
        # At its pin it fails an assertion when it restores the state of a sequence that was copied.
        seqs = 1
    threads = rng.choice((1, 1, 1, 2, 3))
    context = cases.context(engine, model, threads=threads, seqs=seqs, n_ctx=N_CTX)
    context["flash"] = context["flash"] and rng.random() < 0.7
    if model in ("dense-q4_0", "experts") and context["flash"] and rng.random() < 0.5:
        context["k"] = context["v"] = rng.choice(QUANTIZED[engine])
    if engine == "llama.cpp" and rng.random() < 0.3:
        context["params"] = {"kv_unified": True}
    ops = Author(rng, model, seqs, front=engine == "ik_llama.cpp" and context["flash"]).write()
    path = arch_models.write_model(model, tiny)
    return cases.case(f"{model}-{number}", path, context, ops, **cases.load_params(engine, model))


def share(engine: str, index: int) -> list[tuple[str, int]]:
    """The sequences of the mode with that index: the same number for each mode and, as far as it goes, each model."""
    models = MODELS[engine]
    numbers = range(index, N_SEQUENCES, len(MIRRORS))
    return sorted((models[place % len(models)], number) for place, number in enumerate(numbers))


@pytest.mark.patch("numa-state")
@pytest.mark.parametrize("engine", cases.ENGINES)
@pytest.mark.parametrize("index", range(len(MIRRORS)))
def test_random_operations(numa: Driver, tiny: Path, engine: str, index: int) -> None:
    mode = MIRRORS[index]
    request = [sequence(engine, model, number, tiny) for model, number in share(engine, index)]
    got = numa.run(engine, mode, request)
    expected = numa.run(f"{engine}-stock", STOCK, request)

    wrong = []
    for case in request:
        # What kills the engine without the stack, or is no valid batch to it, has no place here.
        reference = expected.cases[case["name"]].ok
        assert not any("error" in result for result in reference.results), case
        answer = got.cases[case["name"]].ok
        if answer.results != reference.results:
            first = next(
                i for i, pair in enumerate(zip(answer.results, reference.results, strict=True)) if pair[0] != pair[1]
            )
            wrong.append((case["name"], case["contexts"], case["ops"][: first + 1]))
        cases.check_mirror(answer.report, mode)
    assert not wrong, f"{len(wrong)} sequences, the first: {wrong[0]}"


@pytest.mark.patch
def test_there_are_a_thousand() -> None:
    for engine in cases.ENGINES:
        shares = [share(engine, index) for index in range(len(MIRRORS))]
        assert sum(map(len, shares)) == len({number for part in shares for _, number in part}) == N_SEQUENCES
        for part in shares:
            assert {model for model, _ in part} == set(MODELS[engine])
