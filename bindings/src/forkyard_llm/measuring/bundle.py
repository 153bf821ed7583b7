"""Pack runs into one file for somebody else, and read what somebody else packed: nothing in it is trusted."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..cache import write_atomic
from ..errors import UsageError
from .records import Recorded, Sample
from .store import arm_from_json, arm_to_json, info_from_json, info_to_json, number, table, text

__all__ = ["read_bundle", "write_bundle"]

SCHEMA = 1
MANIFEST = "bundle.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)
# Far above what anybody measures.
_MOST_BYTES = 64 << 20
_MOST_UNPACKED = 256 << 20
# Encrypted members and unknown methods are RuntimeErrors, too deep JSON is as well.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, LookupError, TypeError, RuntimeError)


def write_bundle(runs: Sequence[Recorded], path: Path) -> str:
    """Write runs into the zip file ``path``; its sha256. The same runs give the same bytes.

    Raises:
        UsageError: it cannot be written.
    """
    members = {f"runs/{run.info.id}.json": _bytes(_run_to_json(run)) for run in runs}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    manifest = {"schema": SCHEMA, "forkyard_llm": __version__, "members": sums}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in {MANIFEST: _bytes(manifest), **members}.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)
    try:
        write_atomic(path, stream.getvalue())
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror or error}"
        raise UsageError(msg) from error
    return hashlib.sha256(stream.getvalue()).hexdigest()


def read_bundle(path: Path) -> tuple[list[Recorded], str]:
    """The runs in a bundle, and its sha256. Nothing is unpacked into files.

    Raises:
        UsageError: it cannot be read, is no bundle, or was changed.
    """
    try:
        with path.open("rb") as handle:
            raw = handle.read(_MOST_BYTES + 1)
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror or error}"
        raise UsageError(msg) from error
    try:
        if len(raw) > _MOST_BYTES:
            msg = f"it is larger than {_MOST_BYTES} bytes"
            raise ValueError(msg)
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            members = _Members(archive)
            manifest = json.loads(members.read(MANIFEST))
            if manifest["schema"] != SCHEMA:
                msg = f"its schema is {manifest['schema']!r}, and this forkyard-llm reads {SCHEMA}"
                raise ValueError(msg)
            runs = []
            for name, digest in table(manifest["members"]).items():
                data = members.read(name)
                if hashlib.sha256(data).hexdigest() != digest:
                    msg = f"{name} is not what its checksum says"
                    raise ValueError(msg)
                runs.append(_run_from_json(json.loads(data)))
    except _DAMAGED as error:
        msg = f"{path} is no bundle of measurements, or it is damaged: {error}"
        raise UsageError(msg) from error
    return runs, hashlib.sha256(raw).hexdigest()


class _Members:
    """What a bundle holds, and no more of it altogether than runs can have, whatever its headers say."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive, self._left = archive, _MOST_UNPACKED

    def read(self, name: str) -> bytes:
        """A member's bytes."""
        with self._archive.open(name) as member:
            data = member.read(self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            msg = f"its members are larger than {_MOST_UNPACKED} bytes"
            raise ValueError(msg)
        return data


def _bytes(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode()


def _run_to_json(run: Recorded) -> dict[str, Any]:
    return {
        "info": info_to_json(run.info),
        "arms": [arm_to_json(arm) for arm in run.arms],
        "failed": dict(run.failed),
        "samples": [vars(one) for one in run.samples],
    }


def _run_from_json(value: Any) -> Recorded:
    """The run. Raises LookupError, TypeError or ValueError for what is none."""
    arms = [arm_from_json(one) for one in value["arms"]]
    names = {arm.name for arm in arms}
    samples = [
        Sample(
            text(one["arm"]),
            int(number(one["round"])),
            text(one["test"]),
            _speed(one["speed"]),
            number(one["at"]),
            number(one["load"]),
            None if one["base"] is None else _speed(one["base"]),
            one["kept"] is True,
        )
        for one in value["samples"]
    ]
    failed = {text(name): text(why) for name, why in table(value["failed"]).items()}
    if len(names) < len(arms) or not {one.arm for one in samples} | failed.keys() <= names:
        msg = "arms and samples do not belong together"
        raise ValueError(msg)
    info = info_from_json(value["info"])
    if len(info.id) != 32 or not set(info.id) <= set("0123456789abcdef"):
        msg = f"{info.id!r:.60} is no run's id"
        raise ValueError(msg)
    return Recorded(info, arms, samples, failed)


def _speed(value: object) -> float:
    speed = number(value)
    if not speed > 0:
        msg = f"{speed} is no speed"
        raise ValueError(msg)
    return speed
