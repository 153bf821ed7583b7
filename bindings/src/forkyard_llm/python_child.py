"""The command line of a child process that runs a module of this package, with what this Python imports."""

from __future__ import annotations

import json
import sys

__all__ = ["child_command"]

# The child gets this process's sys.path, not the working directory: a file called types.py there must not be imported.
# Its arguments are the last ones, as in `python -m MODULE ARGUMENTS...` by hand.
_CHILD = """\
import json, sys
from importlib import import_module
sys.path[:] = json.loads(sys.argv.pop(1))
import_module(sys.argv.pop(1)).main()
"""


def child_command(module: str, *arguments: str) -> list[str]:
    """The command that calls ``main`` of a module of this package; ``sys.executable`` must be known."""
    paths = json.dumps([entry for entry in sys.path if isinstance(entry, str) and entry])
    # Isolated (-I) it would not know that this Python was told to use UTF-8, and read names otherwise.
    start = [sys.executable, "-I", "-X", f"utf8={sys.flags.utf8_mode}", "-c", _CHILD]
    return [*start, paths, f"{__package__}.{module}", *arguments]
