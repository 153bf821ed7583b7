"""The child process that runs scikit-build-core: it ends, with every compiler it started, when forkyard does.

Run as ``python -m forkyard.runner PROJECT OUT``. The kernel is asked to send SIGTERM when the parent dies, even by
SIGKILL; on SIGTERM the whole process group is killed. Prints ``forkyard-wheel: NAME`` last.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from types import FrameType

_PR_SET_PDEATHSIG = 1


def _end_group(signum: int, frame: FrameType | None) -> None:
    os.killpg(os.getpgrp(), signal.SIGKILL)


def die_with_parent(parent: int) -> None:
    """Arrange for this process group's end when process ``parent`` ends (on Linux)."""
    signal.signal(signal.SIGTERM, _end_group)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            _end_group(signal.SIGTERM, None)


def main(arguments: list[str]) -> int:
    """Build the wheel of the project in ``arguments[0]`` into ``arguments[1]``; ``arguments[2]`` is the parent's id."""
    project, out, parent = arguments
    die_with_parent(int(parent))
    os.chdir(project)
    # Imported late: the parent's death must be noticed from the first moment on.
    from scikit_build_core.build import build_wheel

    name = build_wheel(out)
    sys.stdout.write(f"forkyard-wheel: {name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
