"""The nearest valid name for a mistyped one, as a sentence for an error's next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the name in *known* most like *name*, or None if none is alike."""
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Return ``did you mean 'x'?`` for the name nearest to *name*, or None."""
    found = nearest(name, known)
    return None if found is None else f"did you mean {found!r}?"
