"""The child process that runs scikit-build-core: it ends, with every compiler it started, when forkyard does.

Run as ``python -m forkyard.runner PROJECT OUT``. The kernel is asked to send SIGTERM when the parent dies, even by
SIGKILL; on SIGTERM every descendant and the whole process group is killed. Prints ``forkyard-wheel: NAME`` last.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from types import FrameType

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _end_all(signum: int, frame: FrameType | None) -> None:
    """Kill every descendant, then the group: ninja gives each compiler a group of its own.

    What loses its parent on the way becomes a child of this process, so nothing escapes between the look and the kill.
    """
    own = psutil.Process()
    while children := own.children(recursive=True):
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.001)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def die_with_parent(parent: int) -> None:
    """Arrange for the end of this process, its descendants and its group when process ``parent`` ends (on Linux)."""
    signal.signal(signal.SIGTERM, _end_all)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            _end_all(signal.SIGTERM, None)


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
