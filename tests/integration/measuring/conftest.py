"""The sources of the pins, as the tests of the bindings have them."""

from __future__ import annotations

from ..bindings.conftest import sources

__all__ = ["sources"]
