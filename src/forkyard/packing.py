"""From the wheel scikit-build-core makes to the wheel users get: its true platform tag, and nothing of the machine.

The tag is measured from the libraries' symbol versions, so it is only known once they are linked. The archive is
then written again with sorted entries, one date and two file modes, so that umask, file system order and clock
leave no trace. (``python -m wheel tags`` would date RECORD with the present moment.)
"""

from __future__ import annotations

import base64
import csv
import datetime
import hashlib
import io
import os
import zipfile
from pathlib import Path

from packaging.utils import parse_wheel_filename

from forkyard.cache import explained
from forkyard.errors import BuildError
from forkyard.gates import platform_floor

_PROGRAM_MODE = 0o100755
_FILE_MODE = 0o100644


def retag(wheel: Path, epoch: int) -> Path:
    """Rewrite a wheel under the oldest manylinux tag its libraries allow.

    Args:
        wheel: the wheel as scikit-build-core made it.
        epoch: date of every entry, seconds since 1970.

    Returns:
        the new file, beside the old one, which is gone.

    Raises:
        BuildError: the wheel cannot be read.
        StorageError: the new one cannot be written.
    """
    tag = platform_floor(wheel)
    try:
        name, version, _, tags = parse_wheel_filename(wheel.name)
        with zipfile.ZipFile(wheel) as archive:
            files = {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}
            programs = {info.filename for info in archive.infolist() if info.external_attr >> 16 & 0o100}
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        msg = "the wheel that was just made cannot be read"
        raise BuildError(msg, where=str(wheel), why=str(error)) from error
    python = next(iter(tags))
    full = f"{python.interpreter}-{python.abi}-{tag}"
    info = next(entry.rsplit("/", 1)[0] for entry in files if entry.endswith(".dist-info/WHEEL"))
    files[f"{info}/WHEEL"] = _with_tag(files[f"{info}/WHEEL"], full)
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD")
    target = wheel.with_name(f"{wheel.name.split('-')[0]}-{version}-{full}.whl")
    assert name
    date = datetime.datetime.fromtimestamp(epoch, tz=datetime.UTC).timetuple()[:6]
    with explained(f"write {target.name}"):
        part = target.with_suffix(".part")
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            # RECORD comes last, as the wheel specification advises.
            for entry in sorted(files, key=lambda path: (path.startswith(info), path.endswith("/RECORD"), path)):
                facts = zipfile.ZipInfo(entry, date_time=date)
                facts.compress_type = zipfile.ZIP_DEFLATED
                facts.create_system = 3
                facts.external_attr = (_PROGRAM_MODE if entry in programs else _FILE_MODE) << 16
                archive.writestr(facts, files[entry])
        wheel.unlink()
        os.replace(part, target)
    return target


def _with_tag(text: bytes, tag: str) -> bytes:
    lines = [line for line in text.decode("utf-8").splitlines() if line and not line.startswith("Tag:")]
    return ("\n".join([*lines, f"Tag: {tag}"]) + "\n").encode()


def _record(files: dict[str, bytes], record: str) -> bytes:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    for path in sorted(files):
        if path != record:
            digest = base64.urlsafe_b64encode(hashlib.sha256(files[path]).digest()).rstrip(b"=").decode()
            rows.writerow([path, f"sha256={digest}", len(files[path])])
    rows.writerow([record, "", ""])
    return text.getvalue().encode()
