"""Fixtures of the command line tests: the toy project."""

from __future__ import annotations

from ..toy import toy, undisturbed

__all__ = ["toy", "undisturbed"]
