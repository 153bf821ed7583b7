"""Decide where this package keeps what it can make again, and write there whole files or none."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
import tempfile
from pathlib import Path

__all__ = ["CACHE_ENV", "cache_dir", "read_json", "write_atomic", "write_json"]

CACHE_ENV = "FORKYARD_LLM_CACHE"


def cache_dir() -> Path:
    """Folder for models, probe verdicts and logs; FORKYARD_LLM_CACHE overrides it. Not created here."""
    override = os.environ.get(CACHE_ENV)
    if override:
        return Path(override).expanduser().absolute()
    return _platform_cache() / "forkyard-llm"


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
    try:
        return Path.home()
    except RuntimeError:  # no HOME and no passwd entry, as in some containers
        return Path(tempfile.gettempdir())
