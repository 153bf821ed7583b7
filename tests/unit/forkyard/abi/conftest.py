"""Small headers of our own, written where a test wants them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from forkyard.abi import Abi, generate

Describe = Callable[..., Abi]


@pytest.fixture
def describe(tmp_path: Path) -> Describe:
    """Describe headers given as keyword arguments (``engine="..."`` becomes engine.h), in that order."""

    def run(*defines: str, **texts: str) -> Abi:
        folder = tmp_path / "include"
        folder.mkdir(exist_ok=True)
        headers = []
        for name, text in texts.items():
            headers.append(folder / f"{name}.h")
            headers[-1].write_text(text)
        return generate(headers, [], defines)

    return run
