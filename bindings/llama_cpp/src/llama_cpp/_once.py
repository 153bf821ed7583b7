"""Warnings about what means nothing here, each given once in a process."""

from __future__ import annotations

import warnings

__all__ = ["warn_once"]

_given: set[str] = set()


def warn_once(message: str) -> None:
    """Warn, unless this was said before."""
    if message not in _given:
        _given.add(message)
        warnings.warn(message, UserWarning, stacklevel=4)
