"""Become another program that ends when forkyard does, however forkyard ends: a guest or a server must not outlive it.

Run as ``python -m forkyard.tethered PARENT PROGRAM...``.
"""

from __future__ import annotations

import os
import sys

from forkyard.runner import die_with_parent


def main(arguments: list[str]) -> None:
    """Replace this process by ``arguments[1:]``; ``arguments[0]`` is the parent's id."""
    parent, *command = arguments
    # What is asked of the kernel here stays in force for the program; the signal handler does not.
    die_with_parent(int(parent))
    os.execvp(command[0], command)  # noqa: S606 - there is no shell on purpose


if __name__ == "__main__":
    main(sys.argv[1:])
