"""Remember what probes found, for as long as nothing changes that could change it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import __version__, cpu
from .cache import cache_dir, read_json, write_json
from .payloads import Payload

__all__ = ["Verdict", "forget", "recall", "remember", "stamp"]

_SCHEMA = 2

# What the dynamic linker, the C library, OpenMP and the backends read of the environment when libraries are loaded.
_VARIABLES = ("LD_", "GLIBC_", "GGML_", "OMP_", "GOMP_", "KMP_", "CUDA_", "HIP_", "ROCR_", "VK_")
_LINKER_FILES = ("/etc/ld.so.cache", "/etc/ld.so.preload")
_HARDWARE_FOLDERS = ("", *(f"glibc-hwcaps/x86-64-v{level}" for level in (2, 3, 4)))

# Key -> verdict; None: whatever the cache folder says about it is wrong.
_remembered: dict[str, Verdict | None] = {}


@dataclass(frozen=True)
class Verdict:
    """Whether one payload can be used here, and why (not).

    `depends_on` are the files outside the payload that the probe had loaded: path, size, time of change in ns.
    """

    usable: bool
    reason: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    remembered: bool = False
    depends_on: Sequence[Sequence[Any]] = ()


def recall(payload: Payload) -> Verdict | None:
    """What a probe found about these files in this environment, if that still holds."""
    key = _key(payload)
    verdict = _remembered[key] if key in _remembered else _read(_path(payload, key), key)
    if verdict is None or any(list(entry) != stamp(str(entry[0])) for entry in verdict.depends_on):
        return None
    _remembered[key] = verdict
    return verdict


def remember(payload: Payload, verdict: Verdict, *, lasting: bool = True) -> None:
    """Keep `verdict` for this process and, if it is `lasting`, for later ones."""
    key = _key(payload)
    _remembered[key] = replace(verdict, remembered=True)
    if lasting:
        document = {
            "schema": _SCHEMA,
            "key": key,
            "distribution": payload.distribution,
            "usable": verdict.usable,
            "reason": verdict.reason,
            "facts": dict(verdict.facts),
            "depends_on": [list(entry) for entry in verdict.depends_on],
        }
        write_json(_path(payload, key), document)


def forget(payload: Payload) -> None:
    """Believe no earlier verdict about `payload` any more."""
    key = _key(payload)
    _remembered[key] = None
    with contextlib.suppress(OSError):
        _path(payload, key).unlink()


def _path(payload: Payload, key: str) -> Path:
    return cache_dir() / "verdicts" / f"{payload.distribution}-{key[:16]}.json"


def _read(path: Path, key: str) -> Verdict | None:
    stored = read_json(path)
    if not isinstance(stored, dict) or stored.get("schema") != _SCHEMA or stored.get("key") != key:
        return None
    usable, reason, facts, files = (stored.get(name) for name in ("usable", "reason", "facts", "depends_on"))
    if not isinstance(usable, bool) or not isinstance(reason, str) or not isinstance(facts, dict):
        return None
    if not isinstance(files, list) or not all(isinstance(entry, list) and entry for entry in files):
        return None
    return Verdict(usable, reason, facts, remembered=True, depends_on=files)


def _key(payload: Payload) -> str:
    """sha256 of what a verdict depends on: payload, CPU, kernel, C library, linker's environment, and who judges."""
    host = cpu.host()
    names = sorted({*payload.manifest["libraries"].values(), "_abi.py", "manifest.json"})
    parts = [
        _SCHEMA,
        __version__,
        *map(str, payload.key),
        payload.build_key,
        [stamp(str(payload.root / name)) for name in names],
        host.brand,
        sorted(host.features),
        platform.release(),
        platform.version(),
        _c_library(),
        sys.executable,
        sys.version,
        _linker_environment(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _linker_environment() -> list[Any]:
    """Variables that decide what is loaded, and what stands in the places they name (ld.so(8))."""
    variables = sorted((name, value) for name, value in os.environ.items() if name.startswith(_VARIABLES))
    folders = re.split("[:;]", os.environ["LD_LIBRARY_PATH"]) if os.environ.get("LD_LIBRARY_PATH") else []
    places = [os.path.join(folder or ".", sub) for folder in folders for sub in _HARDWARE_FOLDERS]
    places += filter(None, re.split("[: ]", os.environ.get("LD_PRELOAD", "")))
    return [variables, [stamp(str(Path(place).absolute())) for place in (*places, *_LINKER_FILES)]]


def _c_library() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):  # not glibc
        return ""


def stamp(path: str) -> list[Any]:
    """Path, size and time of change (ns); of a folder the time tells that files came or went."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return [path, None, None]
    return [path, status.st_size, status.st_mtime_ns]
