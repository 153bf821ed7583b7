"""Make `python -m forkyard_llm` the same as the `forkyard-llm` command."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()
