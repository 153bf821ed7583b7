"""Unpacking source archives that nobody has to trust: chosen members only, nothing outside the target folder."""

from __future__ import annotations

import errno
import lzma
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from forkyard.cache import explained
from forkyard.errors import SourceError

if TYPE_CHECKING or sys.version_info >= (3, 11, 4):
    import tarfile
else:  # Debian 12's Python: its tarfile knows no filters
    from backports import tarfile

MAX_BYTES = 4 << 30
MAX_MEMBERS = 500_000

# Members that contradict each other: a file where a folder was, a link to itself, a name no file system takes.
_CONTRADICTIONS = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP, errno.ENAMETOOLONG}


def unpack_below(
    archive: Path,
    prefix: PurePosixPath,
    target: Path,
    *,
    wanted: Callable[[PurePosixPath], bool] = lambda _: True,
    max_bytes: int = MAX_BYTES,
    max_members: int = MAX_MEMBERS,
) -> int:
    """Unpack regular files and symbolic links below ``prefix`` of a tar archive into ``target``.

    The archive's first path component (``name-version/``) is ignored. Names that are absolute or step
    upwards, devices, and links that leave the folder are errors, not skipped: an honest archive has none.

    Args:
        wanted: chooses members by their path relative to ``prefix``.

    Returns:
        the number of files unpacked.

    Raises:
        SourceError: the archive is damaged, hostile, or has nothing below ``prefix``.
        StorageError: no space or permission.
    """
    count = total = seen = 0
    try:
        with explained(f"unpack {archive.name}"), tarfile.open(archive, "r:*") as tar:
            target.mkdir(parents=True, exist_ok=True)
            for member in tar:
                seen += 1
                if seen > max_members:
                    msg = f"{archive.name} has more than {max_members} members"
                    raise SourceError(msg, where=str(archive), why="no source archive is that large")
                relative = _below(member.name, prefix, archive)
                if relative is None or member.isdir() or not wanted(relative):
                    continue
                total += member.size
                if total > max_bytes:
                    msg = f"{archive.name} unpacks to more than {max_bytes} bytes"
                    raise SourceError(msg, where=str(archive), why="no source archive is that large")
                # Python's own "data" filter does the refusing of links and devices.
                try:
                    tar.extract(member.replace(name=str(relative), deep=False), target, filter="data")
                except OSError as error:
                    if error.errno not in _CONTRADICTIONS:
                        raise
                    # The folder is ours and was empty of such things: the archive put them there.
                    raise tarfile.ExtractError(str(error)) from error
                count += 1
    except tarfile.FilterError as error:
        msg = f"{archive.name} tries to write outside its folder"
        raise SourceError(msg, where=str(archive), why=str(error), next_step="do not use this archive") from error
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, KeyError) as error:
        # KeyError: a hard link to a member that is not in the archive.
        msg = f"{archive.name} is damaged"
        raise SourceError(msg, where=str(archive), why=str(error), next_step="delete it and run again") from error
    except OSError as error:
        if error.errno is not None:
            raise
        # gzip and bzip2 report bad data as an OSError without an errno.
        msg = f"{archive.name} is damaged"
        raise SourceError(msg, where=str(archive), why=str(error), next_step="delete it and run again") from error
    if count == 0:
        msg = f"{archive.name} has nothing below {prefix}"
        raise SourceError(msg, where=str(archive), next_step="check `store` or `folder` of this source in the recipe")
    return count


def unpack_wheel(wheel: Path, target: Path, *, max_bytes: int = MAX_BYTES) -> None:
    """Unpack a wheel into ``target``, programs as programs.

    Raises:
        SourceError: the wheel is damaged, hostile, or larger than ``max_bytes``.
        StorageError: no space or permission.
    """
    try:
        with explained(f"unpack {wheel.name}"), zipfile.ZipFile(wheel) as archive:
            if sum(info.file_size for info in archive.infolist()) > max_bytes:
                msg = f"{wheel.name} unpacks to more than {max_bytes} bytes"
                raise SourceError(msg, where=str(wheel))
            for info in archive.infolist():
                path = PurePosixPath(info.filename)
                if path.is_absolute() or ".." in path.parts or stat.S_ISLNK(info.external_attr >> 16):
                    msg = f"{wheel.name} tries to write outside its folder"
                    raise SourceError(msg, where=str(wheel), why=f"member {info.filename!r}")
                written = Path(archive.extract(info, target))
                if not info.is_dir():
                    written.chmod(0o755 if info.external_attr >> 16 & 0o100 else 0o644)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, NotImplementedError) as error:
        msg = f"{wheel.name} is damaged"
        raise SourceError(msg, where=str(wheel), why=str(error), next_step="delete it and run again") from error


def _below(name: str, prefix: PurePosixPath, archive: Path) -> PurePosixPath | None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        msg = f"{archive.name} tries to write outside its folder"
        raise SourceError(msg, where=str(archive), why=f"member {name!r}", next_step="do not use this archive")
    inner = PurePosixPath(*path.parts[1:])
    try:
        relative = inner.relative_to(prefix)
    except ValueError:
        return None
    return relative if relative.parts else None
