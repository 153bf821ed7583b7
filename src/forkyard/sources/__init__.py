"""Sources: bringing a pin's bytes into the object store, checked by object id, from wherever they can be had."""

from forkyard.sources.obtaining import Obtained, obtain, recorded

__all__ = ["Obtained", "obtain", "recorded"]
