"""``python -m forkyard``: the same as the ``forkyard`` command."""

from forkyard.cli import main

main()
