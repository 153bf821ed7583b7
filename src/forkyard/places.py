"""Where a run happens: the home folder, the current folder, and the paths that every program on the way can be given.

A command asks for them once, at its start. Programs it starts (git, CMake, ninja, the compiler, ccache) then find the
same, and a path that one of them would take apart is refused before anything is fetched or written.
"""

from __future__ import annotations

import os
import pwd
import sys
import unicodedata
from pathlib import Path

from forkyard.errors import StorageError, UsageError

# What splits or expands a path on its way through a build, found by building in folders of such names. Everything else
# a file system takes (spaces, letters of any language, # % = , ` ( ) & ! ~ @ ^ + and so on) arrives whole.
_TAKEN_APART = {
    ":": "ends a folder's name in PATH",
    ";": "CMake splits lists there",
    "\\": "CMake and the shell take it for an escape",
    "$": "CMake, ninja and the shell put a variable's value there",
    '"': "CMake and the shell take it for a quote",
    "'": "CMake and the shell take it for a quote",
    "[": "CMake takes it for the beginning of a list's element or of a pattern",
    "]": "CMake takes it for the end of a list's element or of a pattern",
    "*": "CMake takes it for a pattern",
    "?": "CMake takes it for a pattern",
    "{": "scikit-build-core takes it for the beginning of a placeholder",
    "}": "scikit-build-core takes it for the end of a placeholder",
    "|": "ninja and CMake take it for the end of a list of files",
    "<": "CMake takes it for a generator expression",
    ">": "CMake takes it for the end of a generator expression",
}


def settle() -> None:
    """Make the environment one in which every library and program finds the same home folder, and check where we are.

    A ``HOME`` that is not set or no absolute path becomes the user's entry in the password database and, for a user
    without one (as in a container with a number for a user), ``/``: nothing is kept there, and a command that needs a
    folder for its cache says so. A relative ``XDG_CACHE_HOME`` is ignored, as its specification says.

    Raises:
        UsageError: the current folder was deleted.
    """
    if not os.path.isabs(os.environ.get("HOME", "")):
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            home = ""
        os.environ["HOME"] = home if os.path.isabs(home) else "/"
    if not os.path.isabs(os.environ.get("XDG_CACHE_HOME", "/")):
        del os.environ["XDG_CACHE_HOME"]
    try:
        os.getcwd()
    except OSError as error:
        msg = "the current folder is not there any more, or it cannot be read"
        raise UsageError(
            msg, why=error.strerror, next_step="change to another folder (`cd`) and run it again"
        ) from None


def expanded(path: str | Path) -> Path:
    """The path with a leading ``~`` or ``~user`` replaced by that home folder.

    Raises:
        UsageError: there is no such user.
    """
    text = os.path.expanduser(path)
    if str(text).startswith("~"):
        msg = f"{Path(text).parts[0]} is no user's home folder on this machine"
        raise UsageError(msg, where=str(path), next_step="write the whole path (./~NAME for a folder of that name)")
    return Path(text)


def checked(path: Path, what: str, remedy: str) -> Path:
    """The path, if every program of a build can be given it.

    Args:
        path: an absolute one.
        what: what it is the path of, as in "the path of the <what>".
        remedy: what the reader can do.

    Raises:
        StorageError: it holds a character that some program takes apart, with the program.
    """
    # What a link leads to counts, too: programs that ask where they are get that path.
    for text in dict.fromkeys((str(path), os.path.realpath(path))):
        for place, char in enumerate(text, 1):
            why = _TAKEN_APART.get(char)
            if why is None and unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp"):
                why = "it is no printable character; some program on the way takes it for the end of a line"
                if "\udc80" <= char <= "\udcff":
                    why = "it is no UTF-8; CMake and Python's own libraries refuse it"
            if why is not None:
                shown = char if char in _TAKEN_APART else ascii(char).strip("'")
                msg = f"the path of the {what} cannot be used: it holds {shown} (character {place})"
                where = text if text.isprintable() else ascii(text)
                raise StorageError(msg, where=where, why=why, next_step=remedy)
    return path


def check_output(folder: Path) -> None:
    """Refuse an output folder that cannot be written, before hours are spent on what goes into it.

    Raises:
        StorageError: neither it nor, if it is not there yet, the folder it would be made in can be written.
    """
    nearest = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), folder)
    if not os.path.isdir(nearest):
        why = "a file is where a folder should be"
    elif not os.access(nearest, os.W_OK | os.X_OK):
        why = "permission denied, or the file system is read-only"
    else:
        return
    msg = "could not write to the output folder"
    raise StorageError(msg, where=str(nearest), why=why, next_step="choose another one with --out")


def check_own() -> None:
    """Check the environment that forkyard runs from: CMake, ninja and what answers for git are taken from it.

    Raises:
        StorageError: as for :func:`checked`.
    """
    checked(
        Path(sys.prefix),
        "environment that forkyard runs from",
        "move the project to a folder whose path has no such character",
    )
