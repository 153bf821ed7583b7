"""A context shift must leave the keys where a fresh decode would have put them, for every cache type and layout.

Wants the fixture ``engine_payload``: a function from a recipe's name to the package folder of its payload. Two recipes
are asked for: PATCHED, which has the stack ``fixes``, and STOCK, the same pin without any stack.

Every case belongs to one patch and is checked three ways: the patched engine is right, the stock engine is not (so the
test would notice a patch that has become unnecessary), and where there was no fault the numbers have not changed. What
was right before any patch must stay so with any number of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ..conftest import SAME_BITS, libraries_of
from . import tiny_models

PATCHED = "llama.cpp"
STOCK = "llama.cpp-stock"
PROBE = Path(__file__).with_name("kshift_probe.py")
TIMEOUT = 1800.0
"""Seconds for one child; it needs well under one."""
WRONG = 3.0
"""How far above the limit an error must be to show a fault; measured: at least 3.4 times, without one at most 0.9."""

Logits = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """One cache: whose patch it is about, the model, the type of K and V, and whether rotation is switched off."""

    patch: str
    model: str
    cache_type: str
    rotation: bool = True

    def __str__(self) -> str:
        return f"{self.patch}-{self.model}-{self.cache_type}{'' if self.rotation else '-unrotated'}"


@dataclass(frozen=True)
class Crash:
    """The child died."""

    status: int
    output: str


FAULTS = (
    Case("kshift-null-rotation", "full-96", "q8_0"),
    Case("kshift-null-rotation", "full-96", "q4_0"),
    Case("kshift-null-rotation", "full-64", "q8_0", rotation=False),
    Case("kshift-whole-heads", "partial-32-of-64", "q8_0"),
    Case("kshift-whole-heads", "partial-32-of-64", "q4_0"),
    Case("kshift-whole-heads", "partial-32-of-64", "q8_0", rotation=False),
    Case("kshift-whole-heads", "partial-16-of-64", "q8_0"),
    Case("kshift-whole-heads", "partial-64-of-128", "q8_0"),
    Case("kshift-whole-heads", "partial-64-of-192", "q8_0"),
    Case("kshift-whole-heads", "latent-per-head", "q8_0"),
    Case("kshift-unrotated-keys", "latent-absorbed", "q8_0"),
    Case("kshift-unrotated-keys", "latent-absorbed", "q4_0"),
    Case("kshift-unrotated-keys", "block-sparse", "q8_0"),
    Case("kshift-indexer-keys", "indexed-deepseek32", "f16"),
    Case("kshift-indexer-keys", "indexed-deepseek32", "q8_0"),
    Case("kshift-indexer-keys", "indexed-glm-dsa", "f16"),
    Case("kshift-indexer-keys", "indexed-glm-dsa", "q8_0"),
    Case("kshift-indexer-keys", "indexed-hy-v4", "f16"),
    Case("kshift-bf16", "full-64", "bf16"),
    Case("kshift-bf16", "partial-32-of-64", "bf16"),
    Case("kshift-yarn-magnitude", "yarn-64x", "f16"),
    Case("kshift-yarn-magnitude", "yarn-64x", "q8_0"),
)
SOUND = (
    Case("none", "full-64", "f16"),
    Case("none", "full-64", "q8_0"),
    Case("none", "full-64", "q4_0"),
    Case("none", "partial-32-of-64", "f16"),
    Case("none", "latent-per-head", "f16"),
    Case("none", "latent-absorbed", "f16"),
    Case("none", "block-sparse", "f16"),
)


class Engines:
    """Runs the probe once per payload, model, type and mode."""

    def __init__(self, payload: Callable[[str], Path], folder: Path) -> None:
        self._payload = payload
        self._folder = folder
        self._done: dict[tuple[str, str, str, bool, str], Logits | Crash] = {}

    def run(self, recipe: str, case: Case, mode: str) -> Logits | Crash:
        """Logits after a ``fresh`` or ``shifted`` history, a row per query, or how the child died."""
        key = (recipe, case.model, case.cache_type, case.rotation, mode)
        if key not in self._done:
            self._done[key] = self._run(recipe, case, mode)
        return self._done[key]

    def logits(self, recipe: str, case: Case, mode: str) -> Logits:
        """As :meth:`run`, for runs that must not crash."""
        result = self.run(recipe, case, mode)
        assert not isinstance(result, Crash), f"{case} {mode} on {recipe}: exit {result.status}\n{result.output}"
        return result

    def _run(self, recipe: str, case: Case, mode: str) -> Logits | Crash:
        model = tiny_models.write_model(case.model, self._folder)
        output = self._folder / "logits.f32"
        output.unlink(missing_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_", "GGML_"))}
        environment |= SAME_BITS
        environment["GGML_NO_BACKTRACE"] = "1"  # a debugger takes longer than the test
        if not case.rotation:
            environment["LLAMA_ATTN_ROT_DISABLE"] = "1"
        payload = self._payload(recipe)
        engine = [str(payload), json.dumps(libraries_of(payload))]
        types = [case.cache_type, case.cache_type]
        command = [sys.executable, str(PROBE), *engine, str(model), *types, mode, str(output)]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=environment, timeout=TIMEOUT, check=False
        )
        if done.returncode != 0:
            return Crash(done.returncode, done.stderr[-2000:])
        return np.fromfile(output, dtype=np.float32).reshape(-1, tiny_models.N_VOCAB).astype(np.float64)


@pytest.fixture(scope="module")
def engines(engine_payload: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return Engines(engine_payload, tmp_path_factory.mktemp("kshift"))


def error(got: Logits, expected: Logits) -> float:
    """Median over the queries of the relative L2 error of the logits."""
    return float(np.median(np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)))


def exact(case: Case) -> Case:
    """The same model with an f16 cache: the reference."""
    return Case(case.patch, case.model, "f16")


def limit(engines: Engines, recipe: str, case: Case) -> float:
    """The largest error a shift may leave: it rounds the keys a second time, which may double the cache type's own."""
    reference = engines.logits(recipe, exact(case), "fresh")
    return 2 * error(engines.logits(recipe, case, "fresh"), reference) + 0.02


def marked(*cases: Case) -> list[Any]:
    """Each case with the mark of its patch; without one it holds on any engine."""
    return [
        pytest.param(case, id=str(case), marks=pytest.mark.patch(*(() if case in SOUND else (case.patch,))))
        for case in cases
    ]


@pytest.mark.parametrize("case", marked(*FAULTS, *SOUND))
def test_a_shift_costs_no_more_than_the_cache_type(engines: Engines, case: Case) -> None:
    reference = engines.logits(PATCHED, exact(case), "fresh")

    assert error(engines.logits(PATCHED, case, "shifted"), reference) <= limit(engines, PATCHED, case)


@pytest.mark.parametrize("case", marked(*FAULTS))
def test_the_pin_has_the_fault(engines: Engines, case: Case) -> None:
    reference = engines.logits(STOCK, exact(case), "fresh")
    result = engines.run(STOCK, case, "shifted")

    if isinstance(result, Crash):
        assert result.status < 0, f"failed, but not by a signal:\n{result.output}"
    else:
        assert error(result, reference) > WRONG * limit(engines, STOCK, case)


@pytest.mark.parametrize("case", marked(*SOUND))
def test_what_was_right_has_not_changed(engines: Engines, case: Case) -> None:
    for mode in ("fresh", "shifted"):
        assert np.array_equal(engines.logits(PATCHED, case, mode), engines.logits(STOCK, case, mode))
