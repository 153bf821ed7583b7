"""Gates on the wheel as an archive: names, modes, dates, layout and RECORD."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from forkyard.gates.contents import WheelContents
from forkyard.gates.elf import is_elf
from forkyard.gates.report import Finding

_MODES = (0o644, 0o755)


def dist_info(wheel: WheelContents) -> str:
    """Return the name the wheel's metadata folder must have, from the wheel's file name."""
    return "-".join(wheel.name.split("-")[:2]) + ".dist-info"


def check_names(wheel: WheelContents) -> Iterator[Finding]:
    """Every entry's name is a plain relative path, written once, the same on every file system."""
    for name, count in Counter(entry.name for entry in wheel.entries).items():
        if count > 1:
            yield Finding("names", name, f"is in the archive {count} times")
    for folded, names in _by_folded_name(wheel).items():
        if len(names) > 1:
            yield Finding("names", folded, f"differ only in case: {', '.join(sorted(names))}")
    for entry in wheel.entries:
        name = entry.name
        parts = name.removesuffix("/").split("/")
        if not name.isascii() or any(ord(c) < 32 or c in '\\:*?"<>|' for c in name):
            yield Finding("names", name, "holds a character that some file system does not take")
        if name.startswith("/") or any(part in ("", ".", "..") for part in parts):
            yield Finding("names", name, "is not a plain relative path")


def _by_folded_name(wheel: WheelContents) -> dict[str, set[str]]:
    folded: dict[str, set[str]] = {}
    for entry in wheel.entries:
        folded.setdefault(entry.name.casefold(), set()).add(entry.name)
    return folded


def check_modes(wheel: WheelContents) -> Iterator[Finding]:
    """Entries are regular files of mode 0644 or 0755; programs can be executed."""
    for entry in wheel.entries:
        if entry.is_dir:
            continue
        kind = stat.S_IFMT(entry.mode)
        if kind not in (0, stat.S_IFREG):
            yield Finding("modes", entry.name, "is not a regular file")
        elif entry.permissions not in _MODES:
            yield Finding("modes", entry.name, f"has mode {entry.permissions:04o}; 0644 and 0755 are allowed")
        elif _is_program(entry.name, wheel.files[entry.name]) and entry.permissions != 0o755:
            yield Finding("modes", entry.name, "is a program, yet its mode is not 0755")


def _is_program(name: str, data: bytes) -> bool:
    path = PurePosixPath(name)
    # An engine looks for the libraries it loads beside its programs.
    return path.parent.name == "bin" and path.suffix != ".so" and (is_elf(data) or data.startswith(b"#!"))


def check_dates(wheel: WheelContents) -> Iterator[Finding]:
    """All entries carry one date: a second one would be the time of somebody's build."""
    dates = Counter(entry.date_time for entry in wheel.entries)
    if len(dates) > 1:
        usual = dates.most_common(1)[0][0]
        for entry in wheel.entries:
            if entry.date_time != usual:
                dated = "-".join(f"{n:02d}" for n in entry.date_time[:3])
                yield Finding("dates", entry.name, f"is dated {dated}, unlike the other entries")


def check_layout(wheel: WheelContents, package: str) -> Iterator[Finding]:
    """Everything is in the one package folder or in the metadata folder, and both are complete."""
    try:
        distribution, _, _, _ = parse_wheel_filename(wheel.name)
    except InvalidWheelFilename as error:
        yield Finding("layout", wheel.name, f"is not a wheel's name: {error}")
        return
    if distribution != canonicalize_name(package):
        yield Finding("layout", wheel.name, f"the distribution {distribution} does not hold the package {package}")
    info = dist_info(wheel)
    for entry in wheel.entries:
        if entry.name.split("/")[0] not in (package, info):
            yield Finding("layout", entry.name, f"is outside {package}/ and {info}/")
    wanted = [f"{package}/{name}" for name in ("__init__.py", "manifest.json", "abi.json", "_abi.py")]
    wanted += [f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")]
    for name in wanted:
        if name not in wheel.files:
            yield Finding("layout", name, "is missing")


def payload_libraries(wheel: WheelContents, package: str) -> tuple[dict[str, str], dict[str, str], list[Finding]]:
    """What the payload's manifest says of its libraries.

    Returns:
        path in the wheel -> CMake target; path -> the member of the variant that it is for, of those that are for one;
        what is wrong with the manifest.
    """
    path = f"{package}/manifest.json"
    if path not in wheel.files:
        return {}, {}, []  # the layout gate says so
    try:
        manifest = json.loads(wheel.files[path])
    except (ValueError, RecursionError) as error:
        return {}, {}, [Finding("manifest", path, f"is not JSON: {error}")]
    if not isinstance(manifest, dict):
        return {}, {}, [Finding("manifest", path, "is not a JSON object")]
    findings = []
    if manifest.get("package") != package:
        findings.append(Finding("manifest", path, f"is the manifest of the package {manifest.get('package')!r}"))
    names: dict[str, str] = {}
    for section in ("libraries", "tools"):
        listed = manifest.get(section)
        if not isinstance(listed, dict) or not listed:
            findings.append(Finding("manifest", path, f"lists no {section}"))
            continue
        for name, place in listed.items():
            if f"{package}/{place}" not in wheel.files:
                findings.append(Finding("manifest", path, f"{section}.{name} is {place!r}, which is not there"))
            elif section == "libraries":
                names[f"{package}/{place}"] = name
    members: dict[str, str] = {}
    for number, member in enumerate(manifest.get("members") or ()):
        try:
            listed = {f"{package}/{place}": (str(name), str(place)) for name, place in member["libraries"].items()}
            owner = str(member["name"])
        except (LookupError, TypeError, AttributeError):
            findings.append(Finding("manifest", path, f"members[{number}] has no name or no libraries"))
            continue
        for full, (name, place) in listed.items():
            if full not in wheel.files:
                findings.append(Finding("manifest", path, f"{owner}'s library {name} is {place!r}, which is not there"))
            elif full in members:
                findings.append(Finding("manifest", path, f"{place} is said to be {members[full]}'s and {owner}'s"))
            else:
                names[full], members[full] = name, owner
    return names, members, findings


def check_record(wheel: WheelContents) -> Iterator[Finding]:
    """RECORD lists every file once, with its sha256 and size, and nothing else (PEP 376, PEP 427)."""
    record = f"{dist_info(wheel)}/RECORD"
    if record not in wheel.files:
        yield Finding("record", record, "is missing")
        return
    try:
        rows = list(csv.reader(io.StringIO(wheel.files[record].decode("utf-8"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        yield Finding("record", record, f"cannot be read: {error}")
        return
    listed: set[str] = set()
    for row in rows:
        if len(row) != 3:
            yield Finding("record", record, f"has a row of {len(row)} fields: {row!r:.80}")
            continue
        name, digest, size = row
        if name in listed:
            yield Finding("record", name, "is listed twice")
        listed.add(name)
        if name not in wheel.files:
            yield Finding("record", name, "is listed but not in the wheel")
        elif name == record:
            if digest or size:
                yield Finding("record", name, "states its own hash or size, which it cannot know")
        else:
            data = wheel.files[name]
            if digest != _digest(data):
                yield Finding("record", name, f"is recorded as {digest or 'without a hash'}, is {_digest(data)}")
            if size != str(len(data)):
                yield Finding("record", name, f"is recorded with {size or 'no'} bytes, has {len(data)}")
    for name in wheel.files:
        if name not in listed:
            yield Finding("record", name, "is in the wheel but not listed")


def _digest(data: bytes) -> str:
    encoded = base64.urlsafe_b64encode(hashlib.sha256(data).digest())
    return "sha256=" + encoded.rstrip(b"=").decode("ascii")
