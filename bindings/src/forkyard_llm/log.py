"""Configure logging for the command line; as a library the package only logs to `forkyard_llm`."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.logging import RichHandler

__all__ = ["configure"]


def configure(verbosity: int, console: Console) -> None:
    """Show the package's log on `console`: warnings at 0, progress at 1, everything at 2 or more."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    logger = logging.getLogger("forkyard_llm")
    for old in [handler for handler in logger.handlers if isinstance(handler, RichHandler)]:
        logger.removeHandler(old)
    handler = RichHandler(console=console, show_time=verbosity > 1, show_path=False, markup=False)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level)
