"""Forkyard: patched llama.cpp and ik_llama.cpp, kept buildable, installable and upstreamable."""

import importlib.metadata
import os

__version__ = importlib.metadata.version("forkyard")

# GitPython would refuse to be imported where git is missing; forkyard then says how to install it.
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
