"""Stacks: our patches of one feature, read as data, and turned into commits on a pinned tree."""

from forkyard.stacks.applying import PatchedTree, apply_stacks
from forkyard.stacks.model import Patch, Series, Stack, WholeFile, load_stacks, stack_names

__all__ = [
    "Patch",
    "PatchedTree",
    "Series",
    "Stack",
    "WholeFile",
    "apply_stacks",
    "load_stacks",
    "stack_names",
]
