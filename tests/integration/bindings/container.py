"""Put the calling process where a container would be: nodes of our choice in sysfs, and system calls that are refused.

Imported by child processes alone: nothing of it can be undone.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

NODES = Path("/sys/devices/system/node")
CALLS = {"mbind": 237, "set_mempolicy": 238, "get_mempolicy": 239, "move_pages": 279}
"""Numbers of x86-64."""

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def show_nodes(folder: Path, nodes: Mapping[int, Sequence[int]]) -> None:
    """Replace what sysfs says of NUMA nodes, for this process.

    Args:
        folder: an empty one, for the files.
        nodes: the CPUs of each node; each has 64 GiB of free memory.

    Raises:
        OSError: this machine lets nobody do that.
    """
    folder.mkdir()
    (folder / "online").write_text(",".join(map(str, nodes)) + "\n")
    for node, cpus in nodes.items():
        (folder / f"node{node}").mkdir()
        (folder / f"node{node}" / "cpulist").write_text(",".join(map(str, cpus)) + "\n")
        memory = "".join(f"Node {node} {name}: {64 << 20} kB\n" for name in ("MemTotal", "MemFree"))
        (folder / f"node{node}" / "meminfo").write_text(memory)
    if _libc.unshare(_CLONE_NEWNS) != 0:
        _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS), "unshare")
    _check(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None), "mount")
    _check(_libc.mount(os.fsencode(folder), os.fsencode(NODES), None, ctypes.c_ulong(_MS_BIND), None), "mount")


def refuse(answers: Mapping[str, int]) -> None:
    """Let a seccomp filter answer system calls with an errno (0: as if they had worked); threads to come have it, too.

    Raises:
        OSError: the kernel has no such filters.
    """
    # The first word of what a filter looks at is the number of the call.
    steps = [(_LOAD_WORD, 0, 0, 0)]
    for call, errno in answers.items():
        steps += [(_JUMP_IF_EQUAL, 0, 1, CALLS[call]), (_RETURN, 0, 0, _ERRNO | errno)]
    steps.append((_RETURN, 0, 0, _ALLOW))
    program = _Program(len(steps), b"".join(struct.pack("HBBI", *step) for step in steps))
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0), "seccomp")


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
