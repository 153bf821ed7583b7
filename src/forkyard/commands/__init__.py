"""The words of the ``forkyard`` command beyond building, a module each; ``cli.py`` puts them together."""
