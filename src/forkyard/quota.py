"""What this process may use of the machine: CPU quota and memory, control groups (cgroups of version 1 and 2) counted.

forkyard and forkyard_llm are installed apart and each has this file; a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["available_bytes", "cpu_quota", "groups"]


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time that this process gets at most (half a CPU is 0.5), or None without a limit.

    The files are those of Linux's Documentation/admin-guide/cgroup-v2.rst and scheduler/sched-bwc.rst. A group is bound
    by all groups above it, as far as they can be seen: a container often sees its own as the topmost.

    Args:
        root: the folder that stands for ``/``.
    """
    quotas = [quota for folder in groups("cpu", root) if (quota := _limit(folder)) is not None]
    return min(quotas, default=None)


def available_bytes(root: Path = Path("/")) -> int | None:
    """Bytes the system can give without killing anybody (memory, caches it can drop, swap); None where it is unknown.

    A limit of the process's control groups counts as well.

    Args:
        root: the folder that stands for ``/``.
    """
    system = _numbers(root / "proc/meminfo")
    if "MemAvailable" not in system:
        return None
    left = [1024 * (system["MemAvailable"] + system.get("SwapFree", 0))]
    for folder in groups("memory", root):
        for limit, used, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            most, taken = _number(folder / limit), _number(folder / used)
            if most is not None and taken is not None:
                stat = _numbers(folder / "memory.stat")
                files = sum(stat.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
                left.append(most - taken + files)
    return max(0, min(left))


def _limit(folder: Path) -> float | None:
    """The quota of one group: version 2 writes ``QUOTA PERIOD`` or ``max PERIOD``, version 1 two files, -1 for none."""
    words = _text(folder / "cpu.max").split() or [
        *_text(folder / "cpu.cfs_quota_us").split(),
        *_text(folder / "cpu.cfs_period_us").split(),
    ]
    if len(words) != 2 or not all(word.isdecimal() for word in words):
        return None
    quota, period = map(int, words)
    return quota / period if quota and period else None


def groups(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """Folders of the groups this process is in and of those above them, in every mounted hierarchy with a controller.

    Args:
        controller: ``cpu`` or ``memory``; version 2 has all in one hierarchy.
        root: the folder that stands for ``/``.
    """
    memberships = [line.split(":", 2) for line in _text(root / "proc/self/cgroup").splitlines() if line.count(":") >= 2]
    for line in _text(root / "proc/self/mountinfo").splitlines():
        # proc_pid_mountinfo(5): ID PARENT DEVICE TOP POINT OPTIONS [TAGS] - TYPE SOURCE SUPER-OPTIONS
        mounted, _, kind = line.partition(" - ")
        left, right = mounted.split(), kind.split()
        if len(left) < 6 or len(right) < 3 or right[0] not in ("cgroup", "cgroup2"):
            continue
        for _, controllers, path in memberships:
            if right[0] == "cgroup2":
                same = not controllers
            else:
                same = controller in controllers.split(",") and controller in right[2].split(",")
            if same:
                yield from _upwards(root / _unescaped(left[4]).lstrip("/"), _unescaped(left[3]), path)


def _upwards(mount: Path, top: str, path: str) -> Iterator[Path]:
    """From the group called ``path`` up to the mount's topmost, whose name is ``top``."""
    below = path.removeprefix(top.rstrip("/")).strip("/") if f"{path}/".startswith(f"{top.rstrip('/')}/") else ""
    # Names like /../other are groups beside what this process may see.
    steps = [step for step in below.split("/") if step] if ".." not in below.split("/") else []
    for length in range(len(steps), -1, -1):
        yield mount.joinpath(*steps[:length])


def _unescaped(word: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found.group(1), 8)), word)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isdecimal() else None


def _numbers(path: Path) -> dict[str, int]:
    """A table of lines like ``NAME: 12 kB`` or ``NAME 12``."""
    try:
        lines = [line.replace(":", " ").split() for line in path.read_text(encoding="ascii").splitlines()]
    except (OSError, ValueError):
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}
