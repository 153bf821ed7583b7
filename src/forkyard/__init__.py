"""Forkyard: patched llama.cpp and ik_llama.cpp, kept buildable, installable and upstreamable."""

import importlib.metadata

__version__ = importlib.metadata.version("forkyard")
