"""Fixtures of the tests of a rebase: a lab, see lab.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from forkyard.cache import Cache

from .lab import Lab, make_lab


@pytest.fixture
def lab(tmp_path: Path, project_root: Path, cache: Cache) -> Lab:
    """An empty upstream, and a project."""
    return make_lab(tmp_path, project_root, cache)
