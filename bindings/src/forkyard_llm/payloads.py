"""Find the installed payload wheels, without importing or loading anything of theirs.

A payload is one engine built as one variant: a package folder with `manifest.json`, libraries and tools.
Wheels announce theirs by an entry point in the group `forkyard_llm.payloads` (name = distribution, value =
import package); `FORKYARD_LLM_PAYLOAD_PATH` (folders, separated like PATH) adds folders that no wheel owns
yet, for development.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from .errors import AbiMismatch, PayloadNotFound, Rejection

__all__ = [
    "ENGINES",
    "ENTRY_POINT_GROUP",
    "PAYLOAD_PATH_ENV",
    "RPC",
    "Discovery",
    "Payload",
    "discover",
    "discover_all",
    "read_payload",
]

ENTRY_POINT_GROUP = "forkyard_llm.payloads"
PAYLOAD_PATH_ENV = "FORKYARD_LLM_PAYLOAD_PATH"
MANIFEST_NAME = "manifest.json"
MANIFEST_SCHEMA = 1

ENGINES = ("llama.cpp", "ik_llama.cpp")
"""The engine families, the one "auto" prefers first."""
RPC = "rpc"
"""The capability of a payload whose backend computes on devices of other machines."""
_CPU_KINDS = ("isa", "cpu")  # kinds of variants.toml
_HEX64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Payload:
    """One engine built as one variant, as its manifest describes it. Nothing of it is loaded yet."""

    distribution: str
    engine: str
    variant: str
    root: Path
    manifest: Mapping[str, Any] = field(repr=False, hash=False, compare=False)
    member: str = ""
    """The instruction set it stands for, of a payload that carries several; see `members`."""

    def library(self, name: str) -> Path:
        """Path of the library called `name` in the manifest ("llama", "ggml", "probe" ...).

        Raises AbiMismatch if the manifest has no such library or the file is not there.
        """
        return self._file("libraries", name)

    def tool(self, name: str) -> Path:
        """Path of the command line tool called `name` ("llama-server" ...); raises as `library` does."""
        return self._file("tools", name)

    def has_library(self, name: str) -> bool:
        """Whether the manifest lists a library of that name (ik payloads have no "ggml-base", say)."""
        return name in self.manifest["libraries"]

    @property
    def key(self) -> tuple[Path, str]:
        """What makes it one payload: its folder, and the instruction set where that holds several."""
        return self.root, self.member

    @property
    def title(self) -> str:
        """Its distribution's name, and its instruction set where that has several."""
        return f"{self.distribution} ({self.member})" if self.member else self.distribution

    def members(self) -> tuple[Payload, ...]:
        """The payload once for each instruction set it carries, the best first; itself alone if that is one."""
        if self.member or not self.manifest.get("members"):
            return (self,)
        return tuple(
            replace(
                self,
                member=one["name"],
                manifest={
                    **self.manifest,
                    "cpu_features": one["cpu_features"],
                    "rank": one["rank"],
                    "libraries": {**self.manifest["libraries"], **one["libraries"]},
                },
            )
            for one in self.manifest["members"]
        )

    def environment(self) -> dict[str, str]:
        """Variables that make its tools load the libraries of its instruction set, before what is set already.

        Those that are loaded as backends the tools choose by themselves, by the same rule.
        """
        places = self.manifest["libraries"].values()
        folders = sorted({str(self.root / place.rpartition("/")[0]) for place in places if place.count("/") > 1})
        set_already = os.environ.get("LD_LIBRARY_PATH")
        return {"LD_LIBRARY_PATH": ":".join([*folders, *([set_already] if set_already else [])])} if folders else {}

    @property
    def build_key(self) -> str:
        """sha256 (hex) over everything that decided this build's bytes."""
        return str(self.manifest["build_key"])

    @property
    def machine(self) -> str:
        """The machine it is for, as `uname -m` names it; a manifest that does not say so is x86-64's."""
        return str(self.manifest.get("machine", "x86_64"))

    @property
    def cpu_features(self) -> tuple[str, ...]:
        """CPU features every one of which the libraries need, named as /proc/cpuinfo names them."""
        return tuple(self.manifest["cpu_features"])

    @property
    def rank(self) -> int:
        """Preference among payloads this CPU can run; higher is better."""
        return int(self.manifest["rank"])

    @property
    def remote(self) -> bool:
        """Whether its backend computes on devices of other machines, by RPC, and on no GPU of this one."""
        return (self.manifest.get("backend") or {}).get("remote") is True

    @property
    def for_gpu(self) -> bool:
        """Whether its variant is a GPU backend's; a manifest that does not say so is an instruction set's."""
        return self.manifest.get("kind", "isa") not in _CPU_KINDS and not self.remote

    @property
    def gpu_library(self) -> Path | None:
        """The library with its GPU code, where the engine loads that as a backend; None if it links it or has none."""
        name = (self.manifest.get("backend") or {}).get("library")
        return None if name is None or self.remote else self.library(name)

    @property
    def nccl(self) -> bool | None:
        """Whether its GPU code links to NCCL (AMD's: RCCL), by which GPUs exchange data; None where that is unknown."""
        linked: bool | None = (self.manifest.get("backend") or {}).get("nccl")
        return linked

    def without_libraries(self, why: str) -> str:
        """What to do when it found no GPU for ``why``; "" if no library of a GPU's driver or toolkit is missing."""
        facts = self.manifest.get("backend") or {}
        driver = facts.get("driver")
        if driver and not _is_there(driver):
            return f"the driver is missing: there is no {driver}"
        if not any(needed in why for needed in facts.get("needs", ())):
            return ""
        requires = " ".join(f'"{one}"' for one in facts["requires"])
        if requires:
            return f"install what it requires beside it: pip install {requires}"
        return f"install the system package that has {', '.join(facts['needs'])}"

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Names of the capabilities the payload's patch stacks, and its backend, add."""
        return (*self.manifest["capabilities"], *((RPC,) if self.remote else ()))

    def _file(self, table: str, name: str) -> Path:
        entries: Mapping[str, str] = self.manifest[table]
        if name not in entries:
            have = ", ".join(sorted(entries)) or "none"
            msg = f"payload {self.distribution} has no {name!r} among its {table} (it has: {have})"
            raise AbiMismatch(msg)
        path = self.root / entries[name]
        if not path.is_file():
            msg = (
                f"payload {self.distribution} lists {entries[name]!r} but {path} is not there;"
                f" the installation is damaged: reinstall {self.distribution}"
            )
            raise AbiMismatch(msg)
        return path


@dataclass(frozen=True)
class Discovery:
    """What was found: the readable payloads, and what announced itself as one and is not usable as such."""

    payloads: tuple[Payload, ...]
    broken: tuple[Rejection, ...]


def discover() -> list[Payload]:
    """Every readable installed payload, by distribution name. Broken ones are for `discover_all`."""
    return list(discover_all().payloads)


def discover_all() -> Discovery:
    """Every payload announced by an entry point or named by FORKYARD_LLM_PAYLOAD_PATH, and the broken ones.

    A folder of the environment variable comes before an installed wheel of the same distribution name, so
    that a development build can stand in for an installed one.
    """
    found: dict[str, Payload] = {}
    broken: list[Rejection] = []
    for name, root in _candidates():
        if isinstance(root, str):
            broken.append(Rejection(name, root))
            continue
        try:
            payload = read_payload(root)
        except (PayloadNotFound, AbiMismatch) as error:
            broken.append(Rejection(name, str(error)))
            continue
        found.setdefault(payload.distribution, payload)
    return Discovery(tuple(found[name] for name in sorted(found)), tuple(broken))


def read_payload(root: Path, member: str = "") -> Payload:
    """Read the payload whose package folder is `root`, as the instruction set `member` if it carries several.

    Raises PayloadNotFound if there is no manifest, AbiMismatch if it cannot be understood.
    """
    path = root / MANIFEST_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{root} is no payload folder: cannot read {path}: {error}"
        raise PayloadNotFound(msg) from error
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"{path} is not valid JSON: {error}; reinstall the payload it belongs to"
        raise AbiMismatch(msg) from error
    problem = _manifest_problem(manifest)
    if problem:
        msg = f"{path}: {problem}"
        raise AbiMismatch(msg)
    distribution, engine, variant = manifest["distribution"], manifest["engine"], manifest["variant"]
    payload = Payload(distribution, engine, variant, root.resolve(), manifest)
    if not member:
        return payload
    for one in payload.members():
        if one.member == member:
            return one
    msg = f"{path}: the payload has no instruction set {member!r}"
    raise AbiMismatch(msg)


def _candidates() -> Iterator[tuple[str, Path | str]]:
    """(name, package folder or the reason there is none), the environment's first."""
    for entry in os.environ.get(PAYLOAD_PATH_ENV, "").split(os.pathsep):
        if entry:
            yield entry, Path(entry)
    for point in sorted(metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
        folder = _package_folder(point)
        if folder is None:
            yield point.name, f"its package {point.value!r} is not where its distribution says; reinstall it"
        else:
            yield point.name, folder


def _package_folder(point: metadata.EntryPoint) -> Path | None:
    """Folder of the import package an entry point names, found from its own distribution's record.

    The package is deliberately not imported, nor searched for on sys.path first: a folder of the same name in
    the working directory must not stand in for the installed payload.
    """
    if point.dist is None:
        return None
    located = Path(str(point.dist.locate_file(point.value.replace(".", "/"))))
    if (located / MANIFEST_NAME).is_file():
        return located
    # An editable or otherwise redirected install: RECORD is no help, so ask the import system for the
    # location only.
    from importlib.util import find_spec

    try:
        spec = find_spec(point.value)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _manifest_problem(manifest: object) -> str | None:
    """What makes a manifest unusable here, or None. Only what is read in this package is checked."""
    if not isinstance(manifest, dict):
        return "the manifest is not a JSON object"
    if manifest.get("schema") != MANIFEST_SCHEMA:
        return (
            f"manifest schema {manifest.get('schema')!r}, this forkyard-llm reads {MANIFEST_SCHEMA};"
            " install a payload and a forkyard-llm of the same release"
        )
    for key in ("distribution", "package", "version", "engine", "variant", "build_key", "abi_sha256"):
        if not isinstance(manifest.get(key), str) or not manifest[key]:
            return f"manifest key {key!r} is missing or not a text"
    if manifest["engine"] not in ENGINES:
        return f"unknown engine {manifest['engine']!r} (known: {', '.join(ENGINES)}); update forkyard-llm"
    if not isinstance(manifest.get("machine", ""), str):
        return "manifest key 'machine' is not a text"
    for key in ("build_key", "abi_sha256"):
        if not _HEX64.fullmatch(manifest[key]):
            return f"manifest key {key!r} is not a sha256 in lower case hex"
    rank = manifest.get("rank")
    if not isinstance(rank, int) or isinstance(rank, bool):
        return "manifest key 'rank' is missing or not an integer"
    for key in ("cpu_features", "capabilities"):
        if not _is_texts(manifest.get(key)):
            return f"manifest key {key!r} is missing or not a list of texts"
    for key in ("libraries", "tools"):
        if not _is_places(manifest.get(key)):
            return f"manifest key {key!r} is missing or not a table of paths inside the package"
    backend = manifest.get("backend")
    if backend is not None and not (
        isinstance(backend, dict)
        and isinstance(backend.get("library"), str | None)
        and isinstance(backend.get("nccl"), bool | None)
        and all(_is_texts(backend.get(key)) for key in ("requires", "needs"))
        and _is_texts(backend.get("architectures", []))
    ):
        return "manifest key 'backend' is not a table with library, nccl, requires, needs and architectures"
    members = manifest.get("members", [])
    if not isinstance(members, list) or not all(_is_member(item) for item in members):
        return "manifest key 'members' is not a list of instruction sets with name, rank, cpu_features and libraries"
    return None


def _is_there(soname: str) -> bool:
    """Whether the linker finds a library of the system."""
    try:
        ctypes.CDLL(soname)
    except OSError:
        return False
    return True


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_places(value: object) -> bool:
    return isinstance(value, dict) and all(_is_inside(item) for item in value.values())


def _is_member(value: object) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return False
    rank = value.get("rank")
    whole = isinstance(rank, int) and not isinstance(rank, bool)
    return whole and _is_texts(value.get("cpu_features")) and _is_places(value.get("libraries"))


def _is_inside(value: object) -> bool:
    """Whether a manifest path stays inside the package folder."""
    if not isinstance(value, str) or not value:
        return False
    return not value.startswith("/") and ".." not in value.split("/")
