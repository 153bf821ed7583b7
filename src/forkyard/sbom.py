"""The software bill of materials of a payload wheel: CycloneDX 1.6 JSON, derived from its manifest.

It names the upstream commit, each patch and each whole file of ours with its hash, the toolchain, and the
libraries that came from the build machine. Nothing in it depends on when or where it was written: same
manifest, same bytes.
See https://cyclonedx.org/docs/1.6/json/ for the format and PEP 770 for its place in a wheel.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_OID, "forkyard sbom")
_UPSTREAMS = {"llama.cpp": "ggml-org/llama.cpp", "ik_llama.cpp": "ikawrakow/ik_llama.cpp"}


@dataclass(frozen=True)
class BundledLibrary:
    """A library in the wheel not built from the engine's tree, such as the compiler's OpenMP runtime."""

    name: str
    """Its soname, e.g. ``libgomp.so.1``."""
    path: str
    """Path of the file in the wheel."""
    sha256: str | None
    """None if it is compiled with the wheel."""
    version: str | None = None
    license_id: str | None = None
    """SPDX expression."""


def file_name(manifest: Mapping[str, Any]) -> str:
    """Return the name of the SBOM's file in ``.dist-info/sboms/``."""
    return f"{manifest['distribution']}.cdx.json"


def make_sbom(
    manifest: Mapping[str, Any],
    *,
    bundled: Sequence[BundledLibrary] = (),
    source_date_epoch: int | None = None,
) -> bytes:
    """Return the SBOM of the wheel *manifest* describes.

    Args:
        manifest: the payload's manifest, schema 1; its ``libraries`` and ``tools`` are not needed.
        bundled: libraries taken from the toolchain or the build machine.
        source_date_epoch: seconds since 1970 for the SBOM's timestamp; without it there is none.

    Raises:
        KeyError: the manifest lacks a key its schema promises.
    """
    root_ref = f"wheel:{manifest['distribution']}@{manifest['version']}"
    engine, additions = _engine(manifest), _additions(manifest)
    libraries = [_bundled(library) for library in sorted(bundled, key=lambda b: b.path)]
    components = [engine, *additions, _toolchain(manifest), *_toolkit(manifest), *libraries]
    metadata: dict[str, Any] = {
        "lifecycles": [{"phase": "build"}],
        "tools": {"components": [{"type": "application", "name": "forkyard"}]},
        "component": {
            "type": "library",
            "bom-ref": root_ref,
            "name": manifest["distribution"],
            "version": manifest["version"],
            "purl": f"pkg:pypi/{manifest['distribution']}@{_quoted(manifest['version'])}",
            "properties": _properties(
                {
                    "build-key": manifest["build_key"],
                    "abi-sha256": manifest["abi_sha256"],
                    "recipe": manifest["recipe"],
                    "variant": manifest["variant"],
                    "cpu-features": " ".join(sorted(manifest["cpu_features"])),
                    **{f"compile-flags:{of}": " ".join(f) for of, f in manifest["compile_flags"].items()},
                    "source": f"{manifest['source']['kind']} {manifest['source']['location']}",
                }
            ),
        },
    }
    if source_date_epoch is not None:
        moment = datetime.fromtimestamp(source_date_epoch, tz=UTC)
        metadata["timestamp"] = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    bom = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, root_ref + ' ' + manifest['build_key'])}",
        "version": 1,
        "metadata": metadata,
        "components": components,
        "dependencies": [
            {"ref": root_ref, "dependsOn": sorted(c["bom-ref"] for c in [engine, *libraries])},
            {"ref": engine["bom-ref"], "dependsOn": sorted(c["bom-ref"] for c in additions)},
        ],
    }
    return (json.dumps(bom, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")


def _engine(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the patched engine, whose pedigree is the upstream commit and our patches."""
    pin, patched = manifest["pin"], manifest["patched"]
    engine = manifest["engine"]
    upstream = _UPSTREAMS[engine]
    version = f"b{pin['build_number']}" if pin["build_number"] else pin["commit"]
    identity = {
        "type": "library",
        "name": engine,
        "licenses": [{"license": {"id": "MIT"}}],
        "externalReferences": [{"type": "vcs", "url": f"https://github.com/{upstream}"}],
    }
    pedigree: dict[str, Any] = {
        "ancestors": [
            {
                **identity,
                "bom-ref": f"upstream:{engine}@{pin['commit']}",
                "version": version,
                "purl": f"pkg:github/{upstream}@{pin['commit']}",
                "properties": _properties({"git-tree": pin["tree"], "commit-date": pin["date"]}),
            }
        ],
        "commits": [
            {"uid": pin["commit"], "url": f"https://github.com/{upstream}/commit/{pin['commit']}"},
            {"uid": patched["commit"], "message": "the upstream commit with the patches below"},
        ],
    }
    patches = [
        {"type": "unofficial", "diff": {"url": _patch_path(stack, patch, engine)}}
        for stack in manifest["stacks"]
        for patch in stack["patches"]
    ]
    if patches:
        pedigree["patches"] = patches
    return {
        **identity,
        "bom-ref": f"engine:{engine}@{patched['commit']}",
        "version": f"{version}+forkyard.{patched['commit'][:12]}",
        "pedigree": pedigree,
        "properties": _properties(
            {
                "git-commit": patched["commit"],
                "git-tree": patched["tree"],
                "git-checkout-tree": patched["checkout_tree"],
                "absent": " ".join(patched["absent"]),
            }
        ),
    }


def _additions(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every patch, and every whole file of ours by its path in the engine's tree, with its hash."""
    found = []
    for stack in manifest["stacks"]:
        for patch in stack["patches"]:
            path = _patch_path(stack, patch, manifest["engine"])
            facts = {"stack": stack["name"], "upstream-status": patch["upstream_status"]}
            found.append(_file(path, patch["sha256"], patch["subject"], facts))
        for file in stack["files"]:
            found.append(_file(file["path"], file["sha256"], stack["title"], {"stack": stack["name"]}))
    return found


def _patch_path(stack: Mapping[str, Any], patch: Mapping[str, Any], engine: str) -> str:
    return f"patches/{stack['name']}/{engine}/{patch['file']}"


def _file(path: str, sha256: str, description: str, facts: Mapping[str, str]) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": f"file:{facts['stack']}:{path}",
        "name": path,
        "description": description,
        "hashes": [{"alg": "SHA-256", "content": sha256}],
        "properties": _properties(facts),
    }


def _toolchain(manifest: Mapping[str, Any]) -> dict[str, Any]:
    toolchain = manifest["toolchain"]
    return {
        "type": "application",
        "bom-ref": f"toolchain:{toolchain['sha256']}",
        "name": toolchain["c"],
        "version": toolchain["version"],
        "scope": "excluded",
        "description": "the compiler; it is not in the wheel",
        "hashes": [{"alg": "SHA-256", "content": toolchain["sha256"]}],
        "properties": _properties({"cxx": toolchain["cxx"], "target": toolchain["target"]}),
    }


def _toolkit(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the GPU code was compiled with, of a payload that has some."""
    backend = manifest.get("backend") or {}
    identity = backend.get("toolkit")
    if not identity:
        return []
    return [
        {
            "type": "application",
            "bom-ref": f"toolkit:{identity['name']}",
            "name": identity["title"],
            "scope": "excluded",
            "description": "what the GPU code was compiled with; it is not in the wheel",
            "properties": _properties(
                {
                    **{key: value for key, value in identity.items() if key not in ("name", "title")},
                    "architectures": " ".join(backend["architectures"]),
                    "requires": "; ".join(backend["requires"]),
                }
            ),
        }
    ]


def _bundled(library: BundledLibrary) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": f"bundled:{library.path}",
        "name": library.name,
        "properties": _properties({"path": library.path}),
    }
    if library.sha256 is not None:
        component["hashes"] = [{"alg": "SHA-256", "content": library.sha256}]
    if library.version is not None:
        component["version"] = library.version
    if library.license_id is not None:
        component["licenses"] = [{"expression": library.license_id}]
    return component


def _properties(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": f"forkyard:{name}", "value": value} for name, value in sorted(values.items()) if value]


def _quoted(version: str) -> str:
    # A local version's "+" must be escaped in a package URL.
    return version.replace("+", "%2B")
