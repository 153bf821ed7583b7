"""Booting a guest: QEMU without hardware acceleration, so that it works, and works alike, on every machine."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from forkyard.errors import BuildError, ToolchainError
from forkyard.guest.intake import Intake
from forkyard.guest.topology import Topology
from forkyard.process import clean_environment, run, stream

QEMU = "qemu-system-x86_64"
_VERSION = re.compile(r"version (\S+)")


@dataclass(frozen=True)
class Boot:
    """What came of a boot."""

    intake: Intake
    console: str
    """The end of what the kernel said."""
    problem: str | None
    """Why it did not come to its end."""


def qemu_version() -> str:
    """QEMU's version.

    Raises:
        ToolchainError: it is not there or does not run.
    """
    if shutil.which(QEMU) is None:
        msg = f"{QEMU} is not on this machine"
        raise ToolchainError(
            msg,
            why="guests with several NUMA nodes run in QEMU",
            next_step="on Debian: apt-get update && apt-get install -y qemu-system-x86",
        )
    done = run([QEMU, "--version"], timeout_s=60, env=clean_environment())
    found = _VERSION.search(done.stdout)
    if done.returncode != 0 or found is None:
        msg = f"{QEMU} does not run"
        raise ToolchainError(msg, why=done.stderr.strip() or done.stdout.strip())
    return found[1]


def qemu_command(topology: Topology, kernel: Path, image: Path, console: Path) -> list[str]:
    """QEMU's command line. The first serial port is the kernel's console, a file; the second is standard output."""
    words = ["console=ttyS0", "quiet", "panic=-1", *topology.kernel_arguments()]
    return [
        QEMU,
        # Not KVM: it may be there and hang, and what is shown here is where pages are, not how fast.
        *("-accel", "tcg,thread=multi", "-cpu", "max", "-machine", "pc"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-no-reboot"),
        *topology.qemu_arguments(),
        *("-kernel", str(kernel), "-initrd", str(image), "-append", " ".join(words)),
        *("-serial", f"file:{console}", "-serial", "stdio"),
    ]


def boot(
    topology: Topology, kernel: Path, image: Path, folder: Path, timeout_s: float, on_run: Callable[[str], None]
) -> Boot:
    """Boot a guest and take in what it sends until it ends.

    Args:
        folder: where console and log are put.
        on_run: told the name of every run that is complete.

    Raises:
        ToolchainError: QEMU cannot be started.
    """
    console, intake, problem = folder / "console.log", Intake(), None

    def take(line: str) -> None:
        complete = intake.line(line)
        if complete is not None:
            on_run(complete)

    tether = [sys.executable, "-m", "forkyard.tethered", str(os.getpid())]
    command = [*tether, *qemu_command(topology, kernel, image, console)]
    try:
        status = stream(command, log=folder / "qemu.log", on_line=take, timeout_s=timeout_s, env=clean_environment())
        if status != 0:
            problem = f"QEMU ended with {status}: {' / '.join(intake.noise[-3:]) or 'it said nothing'}"
        elif not intake.done:
            problem = "the guest ended before its script did"
    except BuildError:
        problem = f"the guest did not end within {timeout_s:.0f} s"
    said = console.read_text(encoding="utf-8", errors="replace") if console.is_file() else ""
    return Boot(intake, said[-4000:], problem)
