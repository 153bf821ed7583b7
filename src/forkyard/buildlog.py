"""What the output of a failed build says: its first errors and, where it is a known one, the cause and next step."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass

from forkyard.installing import install_command, this_package_manager

# As compilers and linkers put it; a linker's own lines come before "ld returned 1".
_SAYS_WHY = re.compile(
    r"error:|undefined reference|undefined symbol|multiple definition|cannot find -l|\bKilled\b|memory exhausted",
    re.IGNORECASE,
)
# A compiler's error with its place: the line a person looks for first.
_PLACED = re.compile(r"^[^\s:][^:]*:\d+(?::\d+)?: (?:fatal )?error:")
# Compilers quote the source beside an error ("   12 |   text"): its words mean nothing about the build.
_QUOTED = re.compile(r"^\s*\d*\s*\|")
_SHOWN = 6

# What compilers, linkers and CMake print when a write failed.
STORAGE_WORDS = {
    "No space left on device": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "Read-only file system": errno.EROFS,
    "File size limit exceeded": errno.EFBIG,
    "File too large": errno.EFBIG,
}

# Compilers write quotation marks as the locale has them.
_PLAIN_QUOTES = str.maketrans("\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}`", "'''")

_MEMORY = re.compile(
    r"Killed signal terminated program|fatal error: Killed|unable to execute command: Killed"
    r"|terminated with signal 9|^(?:\S+: )*(?:line \d+: +\d+ )?Killed\b"
    r"|virtual memory exhausted|out of memory|memory exhausted|Cannot allocate memory|std::bad_alloc"
)
_FLAG = re.compile(
    r"unrecognized command[- ]line option [\"']?(-[^'\"; ]+)"
    r"|(?:unknown argument|unsupported option):? [\"']?(-[^'\"; ]+)"
    r"|bad value \(?'?([^') ]+)'?\)? for '?-m"
)
_CRASH = re.compile(
    r"internal compiler error|PLEASE submit a (?:full )?bug report|command failed due to signal", re.IGNORECASE
)
_INSTRUCTION = re.compile(r"Error: no such instruction: '([^']+)")
_HEADER = re.compile(
    r"fatal error: ([^:']+\.\w+|[a-z_]+): No such file or directory|fatal error: '([^']+)' file not found"
)


@dataclass(frozen=True)
class Cause:
    """A known cause of a failed build."""

    why: str
    next_step: str


def says_why(line: str) -> bool:
    """Whether a line of a build's output may be the reason of its failure."""
    return line.startswith("FAILED: ") or (_SAYS_WHY.search(line) is not None and _QUOTED.match(line) is None)


def first_errors(lines: Sequence[str]) -> list[str]:
    """The lines to show, at most six: the first error that has a place comes first, then what precedes and follows."""
    first = next((line for line in lines if _PLACED.match(line)), None)
    rest = [line for line in lines if line != first]
    return ([first] if first is not None else []) + rest[: _SHOWN - (first is not None)]


def storage_errno(lines: Sequence[str]) -> int | None:
    """The error number of a failed write that the output speaks of; ``None`` if it speaks of none."""
    text = "\n".join(line for line in lines if not _QUOTED.match(line))
    return next((number for words, number in STORAGE_WORDS.items() if words in text), None)


def known_cause(lines: Sequence[str], status: int, jobs: int | None, compiler: str) -> Cause | None:
    """The cause of a failed build, if its output or exit status shows a known one.

    Args:
        status: exit status of the whole build; negative: the signal that ended it.
        jobs: parallel compiles that were asked for.
        compiler: its name and version, for messages.
    """
    plain = [line.translate(_PLAIN_QUOTES) for line in lines if not _QUOTED.match(line)]
    killed = next((line for line in plain if _MEMORY.search(line)), "SIGKILL ended the build" if status == -9 else None)
    if killed is not None:
        less = "give this machine or container more memory or swap"
        more = f"run it again with fewer compiles at once, say `--jobs 1`; or {less}" if jobs != 1 else less
        return Cause(
            f"the memory was not enough: {killed.strip()}",
            f"{more} (a compile takes up to 2 GiB). What is compiled stays",
        )
    for who, pattern in (("compiler", _FLAG), ("assembler", _INSTRUCTION)):
        for found in filter(None, map(pattern.search, plain)):
            word = next(text for text in found.groups() if text)
            return Cause(
                f"the {who} does not know {word} ({compiler})",
                "install a newer one and set CC and CXX to it, or build a variant that needs less"
                " (`forkyard variants` lists them)",
            )
    if (crash := next((line for line in plain if _CRASH.search(line)), None)) is not None:
        return Cause(
            f"the compiler crashed: {crash.strip()}",
            "run it again: it continues where it stopped. If the same file fails again, use another version of the"
            f" compiler (CC and CXX; this is {compiler}); if others do, look for limits (`ulimit -a`) or bad memory",
        )
    for found in filter(None, map(_HEADER.search, plain)):
        return Cause(
            f"the header {found[1] or found[2]} is missing",
            f"if it is the system's, install it ({install_command('compiler', this_package_manager())}, or the package"
            " that holds it); if it is the engine's, the pin or a patch lacks it",
        )
    return None
