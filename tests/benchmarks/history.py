"""The history of the benchmarks here: where pytest-benchmark keeps it, and a look at it.

    python tests/benchmarks/history.py [ARGUMENTS OF pytest-benchmark compare]

Without arguments: the median of each benchmark in the newest runs, oldest first. It is in forkyard's cache folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_benchmark.cli import main

from forkyard.cache import Cache

SHOWN = 5
"""Runs beside each other, without arguments."""


def storage() -> Path:
    """The folder, with one of each Python and kind of machine below."""
    return Cache.default().root / "benchmarks"


def runs() -> list[Path]:
    """The runs, the oldest first."""
    return sorted(storage().glob("*/*.json"), key=lambda path: path.name)


def compare(words: list[str]) -> int:
    """Show runs; the exit code."""
    found = runs()
    if not found:
        print(f"there is no history in {storage()} yet: `nox -s bench` begins one", file=sys.stderr)
        return 2
    usual = ["--group-by", "fullname", "--sort", "name", "--columns", "median,iqr,rounds"]
    # Its function takes no arguments of its own.
    sys.argv[1:] = ["--storage", storage().as_uri(), "compare", *(words or [*usual, *map(str, found[-SHOWN:])])]
    main()
    return 0


if __name__ == "__main__":
    sys.exit(compare(sys.argv[1:]))
