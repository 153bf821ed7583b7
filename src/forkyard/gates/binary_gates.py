"""Gates on the wheel's ELF files: sonames, linkage, glibc floor, instructions; and traces of the build."""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from auditwheel.libc import Libc
from auditwheel.policy import Policy, WheelPolicies
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from forkyard.gates.contents import WheelContents
from forkyard.gates.elf import ElfFile, is_elf
from forkyard.gates.instructions import IsaLimits
from forkyard.gates.machines import MACHINES, Machine
from forkyard.gates.report import Finding
from forkyard.recipes.variants import X86_64

Elves = Mapping[str, ElfFile]
"""Path in the wheel -> its ELF file."""

_DATE = re.compile(rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [ 0-3]\d 20\d\d")
_SHOWN = 4
# Upstream's build asks git for a short id; forkyard answers for it with the first digits of the pin (`pin_label`).
_ID_DIGITS = 9


def check_sonames(elves: Elves, members: Mapping[str, str]) -> Iterator[Finding]:
    """Each library has a soname, which is its file's name, and no two files share one.

    Libraries for several *members* of a variant (path -> member) may: only one of those is ever loaded.
    """
    owners: dict[str, str] = {}
    for path, elf in elves.items():
        if elf.interpreter is not None:
            continue
        name = PurePosixPath(path).name
        if elf.soname is None:
            yield Finding("sonames", path, "has no soname")
            continue
        if elf.soname != name:
            yield Finding("sonames", path, f"has the soname {elf.soname}, by which no file here is found")
        rivals = {members.get(path), members.get(owners.get(elf.soname, path))}
        if elf.soname in owners and (None in rivals or len(rivals) == 1):
            yield Finding("sonames", path, f"has the same soname as {owners[elf.soname]}: {elf.soname}")
        owners.setdefault(elf.soname, path)


def check_linkage(
    elves: Elves,
    package: str,
    wheel: WheelContents,
    machine: Machine,
    foreign: Collection[str] = (),
    foreign_folders: Collection[str] = (),
) -> Iterator[Finding]:
    """Every needed library is found in the package by way of $ORIGIN, or is one any manylinux system has.

    *foreign* are libraries that others bring, in *foreign_folders* beside the package.
    """
    system = _system_libraries(wheel, machine) | set(foreign)
    inside = {PurePosixPath(path).name for path in elves}
    for path, elf in elves.items():
        if elf.rpath is not None:
            yield Finding("linkage", path, f"has an RPATH ({elf.rpath}); RUNPATH is the one to use")
        if elf.executable_stack:
            yield Finding("linkage", path, "asks for an executable stack")
        folders = []
        for entry in (elf.runpath or "").split(":") if elf.runpath is not None else []:
            folder = _origin_folder(entry, path)
            if folder in foreign_folders:
                continue
            if folder is None or not (folder + "/").startswith(package + "/"):
                yield Finding("linkage", path, f"looks for libraries in {entry or 'the current folder'!r}")
            else:
                folders.append(folder)
        for needed in elf.needed:
            if needed in inside:
                if not any(posixpath.join(folder, needed) in elves for folder in folders):
                    yield Finding("linkage", path, f"needs {needed}, which its RUNPATH does not lead to")
            elif needed not in system:
                yield Finding("linkage", path, f"needs {needed}, which is neither in the wheel nor on every system")


def _origin_folder(entry: str, path: str) -> str | None:
    head, _, rest = entry.partition("/")
    if head != "$ORIGIN" or rest.startswith("/"):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), rest))


def _policies(machine: Machine) -> WheelPolicies:
    return WheelPolicies(libc=Libc.GLIBC, arch=machine.architecture)


def _tag_policies(wheel: WheelContents, policies: WheelPolicies) -> tuple[list[Policy], list[str]]:
    """Return auditwheel's policies for the wheel's platform tags, and the tags it has none for."""
    try:
        tags = sorted({tag.platform for tag in parse_wheel_filename(wheel.name)[3]})
    except InvalidWheelFilename:
        return [], []  # the layout gate says so
    known: list[Policy] = []
    unknown: list[str] = []
    for tag in tags:
        try:
            known.append(policies.get_policy_by_name(tag))
        except LookupError:
            unknown.append(tag)
    return known, unknown


def _system_libraries(wheel: WheelContents, machine: Machine) -> frozenset[str]:
    policies = _policies(machine)
    known, _ = _tag_policies(wheel, policies)
    # The plain linux tag lists nothing; what any manylinux system has is all a wheel may rely on.
    lists = [policy.whitelist for policy in known if policy.whitelist] or [policies.lowest.whitelist]
    allowed = frozenset.intersection(*lists)
    return allowed | {machine.loader}


def machine_of(elves: Elves) -> Machine:
    """Return the machine of the first file; x86-64 if there is none, or its machine is none of ours."""
    first = next((elf.machine for elf in elves.values()), None)
    return next((machine for machine in MACHINES.values() if machine.elf == first), MACHINES[X86_64])


def platform_needs(elves: Elves, machine: Machine) -> tuple[Policy, Mapping[str, set[str]]]:
    """Return the oldest platform the files run on, and the symbol versions they want of its libraries."""
    inside = {PurePosixPath(path).name for path in elves}
    needs: dict[str, set[str]] = {}
    for elf in elves.values():
        for library, versions in elf.version_needs.items():
            if library not in inside:
                needs.setdefault(library, set()).update(versions)
    return _policies(machine).versioned_symbols_policy(needs), needs


def check_platform(elves: Elves, wheel: WheelContents, machine: Machine, facts: dict[str, Any]) -> Iterator[Finding]:
    """The wheel's platform tag promises no older glibc and libstdc++ than the libraries need.

    Puts ``platform_floor`` (the manylinux tag the libraries need) and ``glibc_floor`` into *facts*.
    """
    floor, needs = platform_needs(elves, machine)
    facts["platform_floor"] = floor.name
    facts["glibc_floor"] = _highest(needs, "GLIBC_")
    facts["libstdcxx_floor"] = _highest(needs, "GLIBCXX_")
    known, unknown = _tag_policies(wheel, _policies(machine))
    for tag in unknown:
        yield Finding("platform", wheel.name, f"the platform tag {tag} is not one of Linux on {machine.title}")
    for policy in known:
        if policy.priority > floor.priority:
            users = ", ".join(_users_of(elves, facts["glibc_floor"])[:_SHOWN])
            yield Finding(
                "platform",
                wheel.name,
                f"is tagged {policy.name}, but needs {floor.name}"
                f" (glibc {facts['glibc_floor']}, libstdc++ {facts['libstdcxx_floor']}; {users})",
            )


def _highest(needs: Mapping[str, set[str]], prefix: str) -> str | None:
    versions = [
        tuple(int(part) for part in version.removeprefix(prefix).split("."))
        for wanted in needs.values()
        for version in wanted
        if re.fullmatch(re.escape(prefix) + r"\d+(\.\d+)*", version)
    ]
    return ".".join(str(part) for part in max(versions)) if versions else None


def _users_of(elves: Elves, glibc: str | None) -> list[str]:
    wanted = f"GLIBC_{glibc}"
    return sorted(p for p, elf in elves.items() if any(wanted in v for v in elf.version_needs.values()))


def check_instructions(
    elves: Elves,
    names: Mapping[str, str],
    members: Mapping[str, str],
    limits: IsaLimits,
    facts: dict[str, Any],
) -> Iterator[Finding]:
    """No instruction beyond the variant in any file, and the variant's own instructions in the CPU library.

    *names* maps the path of a library to its CMake target, *members* to the member of the variant it is for. Puts
    ``instruction_sets`` (path -> sets beyond the machine's baseline) into *facts*.
    """
    machine = MACHINES[limits.machine]
    used: dict[str, list[str]] = {}
    cpu_sets: dict[str | None, set[str]] = {}
    for path, elf in elves.items():
        if (elf.machine, elf.bits) != (machine.elf, 64):
            yield Finding("instructions", path, f"is code for {elf.machine}, {elf.bits} bits")
            continue
        use = machine.code_use(elf)
        used[path] = sorted(set(use.sets) - machine.baseline)
        name, member = names.get(path, ""), members.get(path)
        own = limits if member is None else limits.members.get(member, limits)
        if name == own.cpu_library:
            cpu_sets[member] = set(use.sets)
        if use.undecodable is not None:
            yield Finding("instructions", path, f"holds what is no instruction at {use.undecodable:#x}")
        guarded = own.guarded.get(name, frozenset())
        for unit in used[path]:
            if unit in own.allowed:
                continue
            if unit in guarded and use.asks:
                continue
            shown = ", ".join(sorted(use.sets[unit])[:_SHOWN])
            why = f"; it may be guarded, but the file holds no {machine.question}" if unit in guarded else ""
            yield Finding("instructions", path, f"uses {unit}, which the variant does not have ({shown}){why}")
    facts["instruction_sets"] = used
    for member, own in ((None, limits),) if not limits.members else limits.members.items():
        library = own.cpu_library if member is None else f"{own.cpu_library} for {member}"
        if member not in cpu_sets:
            yield Finding("instructions", library, "the CPU library is not in the wheel")
            continue
        for feature, sets in own.proof.items():
            if not sets & cpu_sets[member]:
                yield Finding(
                    "instructions",
                    library,
                    f"holds no {feature} instruction, which the variant is for: a compile flag did not arrive",
                )


def check_identity(wheel: WheelContents, elves: Elves, package: str) -> Iterator[Finding]:
    """A program or library holds the id of the pin that the manifest names: it is what ``--version`` prints.

    A build that asks another repository than the recipe for its commit puts that repository's id in its place.
    """
    path = f"{package}/manifest.json"
    try:
        pin = json.loads(wheel.files[path])["pin"]["commit"][:_ID_DIGITS].encode("ascii")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        yield Finding("identity", path, "names no pin")
        return
    wanted = re.compile(rb"(?<![0-9a-f])" + re.escape(pin))
    if not any(wanted.search(wheel.files[name]) for name in elves):
        yield Finding(
            "identity",
            wheel.name,
            f"no program or library holds the pin's id {pin.decode()}: the build took its commit from elsewhere",
        )


def _path_pattern(prefix: str) -> re.Pattern[bytes]:
    # "/root" is a path, the end of "doc/root" and the beginning of "/rooted" are not.
    return re.compile(rb"(?<![\w.-])" + re.escape(os.fsencode(prefix.rstrip("/"))) + rb"(?![\w.-])")


def path_patterns(prefixes: Sequence[str]) -> list[tuple[str, re.Pattern[bytes]]]:
    """Patterns that find paths below folders in bytes, each with its folder."""
    return [(prefix, _path_pattern(prefix)) for prefix in prefixes if prefix.strip("/")]


def check_traces(wheel: WheelContents, forbidden: Sequence[str]) -> Iterator[Finding]:
    """No file holds the path of a build folder; no program or library holds the date of its compilation."""
    patterns = path_patterns(forbidden)
    for path, data in wheel.files.items():
        for prefix, pattern in patterns:
            hit = pattern.search(data)
            if hit:
                text = re.split(rb"[\x00-\x1f]", data[hit.start() : hit.end() + 60])[0].decode("utf-8", "replace")
                yield Finding("traces", path, f"holds a path under {prefix}: {text} (at byte {hit.start()})")
        match = _DATE.search(data) if is_elf(data) else None
        if match:
            date = match.group().decode("ascii")
            yield Finding("traces", path, f"holds what looks like its compilation date: {date} (at {match.start()})")
