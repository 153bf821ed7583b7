"""Fixtures of the tests of stacks: the toy project."""

from __future__ import annotations

from ..toy import toy, undisturbed

__all__ = ["toy", "undisturbed"]
