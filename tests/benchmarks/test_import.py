"""What every start of a program with the bindings costs: the import, and the command's help, as whole processes.

nox -s bench -- tests/benchmarks/test_import.py
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from pytest_benchmark.fixture import BenchmarkFixture


@pytest.mark.parametrize(
    "words",
    [("-c", "pass"), ("-c", "import forkyard_llm"), ("-m", "forkyard_llm", "--help")],
    ids=["nothing", "import", "help"],
)
def test_start(benchmark: BenchmarkFixture, words: tuple[str, ...]) -> None:
    def start() -> None:
        subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)

    benchmark.pedantic(start, rounds=20, iterations=1, warmup_rounds=2)
