"""Decide where this package keeps what it can make again, and write there whole files or none."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
import tempfile
from pathlib import Path

from .errors import UsageError

__all__ = ["CACHE_ENV", "cache_dir", "expanded", "read_json", "write_atomic", "write_json"]

CACHE_ENV = "FORKYARD_LLM_CACHE"


def cache_dir() -> Path:
    """Folder for models, probe verdicts and logs; FORKYARD_LLM_CACHE overrides it. Not created here.

    Raises UsageError for a variable that names nobody's home, or a folder relative to one that was deleted.
    """
    override = os.environ.get(CACHE_ENV)
    if override:
        try:
            return expanded(override).absolute()
        except FileNotFoundError:
            msg = f"{CACHE_ENV}={override} is relative, and the current folder is not there any more; change to another"
            raise UsageError(msg) from None
    return _platform_cache() / "forkyard-llm"


def expanded(path: str) -> Path:
    """`path` with a leading `~` or `~user` replaced by that home. Raises UsageError if there is no such user."""
    text = str(_home()) + path[1:] if path == "~" or path.startswith("~/") else os.path.expanduser(path)
    if text.startswith("~"):
        msg = f"{path}: {Path(text).parts[0]} is no user's home folder here; write the whole path"
        raise UsageError(msg)
    return Path(text)


def write_atomic(path: Path, data: bytes) -> None:
    """Put `data` at `path`, whole or not at all, whoever else writes or reads it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as handle:  # not mkstemp: a shared cache must be readable as the umask says
            handle.write(data)
        temporary.replace(path)
    except BaseException:  # also when interrupted: the temporary file is nobody's
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_json(path: Path, value: object) -> bool:
    """Write `value` as JSON if the place is writable; a cache that cannot be written is only a slower one."""
    try:
        write_atomic(path, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")
    except OSError:
        return False
    return True


def read_json(path: Path) -> object:
    """The JSON value at `path`; None if there is none or it is damaged (a cache entry is then made anew)."""
    try:
        value: object = json.loads(path.read_bytes())
        return value
    except (OSError, ValueError, RecursionError):
        return None


def _platform_cache() -> Path:
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else _home() / "AppData" / "Local"
    if sys.platform == "darwin":
        return _home() / "Library" / "Caches"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification says to ignore a relative path here.
    return Path(xdg) if Path(xdg).is_absolute() else _home() / ".cache"


def _home() -> Path:
    """HOME if it is an absolute path, else the system's entry for the user, else (as in containers) a temporary one."""
    found = os.environ.get("HOME", "")
    if sys.platform == "win32":
        found = os.path.expanduser("~")
    elif not os.path.isabs(found):
        import pwd  # there is none on Windows

        with contextlib.suppress(KeyError):
            found = pwd.getpwuid(os.getuid()).pw_dir
    return Path(found) if os.path.isabs(found) else Path(tempfile.gettempdir())
