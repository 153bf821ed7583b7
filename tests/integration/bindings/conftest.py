"""The payloads built here, for tests in this process and for its children."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def built_payloads(payloads: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The bindings find these payloads alone, and remember nothing about any."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORKYARD_LLM_PAYLOAD_PATH", os.pathsep.join(map(str, payloads.values())))
        patch.delenv("FORKYARD_LLM_PAYLOAD", raising=False)
        patch.setenv("FORKYARD_LLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
