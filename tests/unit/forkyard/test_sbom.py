from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from forkyard.sbom import BundledLibrary, file_name, make_sbom

MANIFEST: dict[str, Any] = {
    "schema": 1,
    "distribution": "forkyard-llama-cpp-avx2",
    "package": "forkyard_llama_cpp_avx2",
    "version": "2026.10.1+fy",
    "engine": "llama.cpp",
    "recipe": "llama.cpp",
    "variant": "avx2",
    "pin": {"commit": "1" * 40, "tree": "2" * 40, "date": "2026-10-01", "build_number": 0},
    "patched": {
        "commit": "3" * 40,
        "tree": "4" * 40,
        "checkout_tree": "5" * 40,
        "absent": ["models/x.jinja"],
    },
    "source": {"kind": "git", "location": "https://github.com/ggml-org/llama.cpp"},
    "stacks": [
        {
            "name": "fixes",
            "title": "small corrections",
            "capability": None,
            "patches": [
                {
                    "file": "b.patch",
                    "sha256": "6" * 64,
                    "subject": "b : second",
                    "upstream_status": "Pending",
                },
                {"file": "a.patch", "sha256": "7" * 64, "subject": "a : first", "upstream_status": "Pending"},
            ],
            "files": [{"path": "ggml/src/ours.c", "sha256": "8" * 64}],
        }
    ],
    "cpu_features": ["avx2", "avx"],
    "compile_flags": {"c": [], "cxx": ["-fno-gnu-unique"], "ggml-cpu": []},
    "toolchain": {
        "c": "gcc",
        "cxx": "g++",
        "version": "12.2.0",
        "target": "x86_64-linux-gnu",
        "sha256": "9" * 64,
    },
    "build_key": "a" * 64,
    "abi_sha256": "b" * 64,
}
GOMP = BundledLibrary("libgomp.so.1", "lib/libgomp.so.1", "c" * 64, "12.2.0", "GPL-3.0-or-later WITH GCC-exception-3.1")


def sbom(**options: Any) -> dict[str, Any]:
    return dict(json.loads(make_sbom(MANIFEST, **options)))


@pytest.mark.parametrize("options", [{}, {"bundled": [GOMP]}, {"source_date_epoch": 1790812800}])
def test_it_is_valid_cyclonedx(options: dict[str, Any]) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(make_sbom(MANIFEST, **options).decode()) is None


def test_without_stacks_it_is_valid_too() -> None:
    bare = {**copy.deepcopy(MANIFEST), "stacks": []}
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(make_sbom(bare).decode()) is None


def test_the_same_manifest_gives_the_same_bytes() -> None:
    shuffled = dict(reversed(copy.deepcopy(MANIFEST).items()))
    assert make_sbom(shuffled) == make_sbom(MANIFEST)
    assert b"timestamp" not in make_sbom(MANIFEST)


def test_another_build_has_another_serial_number() -> None:
    other = {**MANIFEST, "build_key": "f" * 64}
    assert json.loads(make_sbom(other))["serialNumber"] != sbom()["serialNumber"]


def test_a_timestamp_is_only_what_was_given() -> None:
    assert sbom(source_date_epoch=1790812800)["metadata"]["timestamp"] == "2026-10-01T00:00:00Z"


def test_every_patch_file_and_library_is_a_component() -> None:
    components = {c["bom-ref"]: c for c in sbom(bundled=[GOMP])["components"]}
    assert {c["name"]: c["hashes"][0]["content"] for c in components.values() if "hashes" in c} == {
        "patches/fixes/llama.cpp/a.patch": "7" * 64,
        "patches/fixes/llama.cpp/b.patch": "6" * 64,
        "ggml/src/ours.c": "8" * 64,
        "gcc": "9" * 64,
        "libgomp.so.1": "c" * 64,
    }
    assert components["bundled:lib/libgomp.so.1"]["licenses"] == [{"expression": GOMP.license_id}]


def test_a_library_compiled_with_the_wheel_has_no_hash() -> None:
    library = replace(GOMP, sha256=None, version="libc++ 22")
    (component,) = (c for c in sbom(bundled=[library])["components"] if c["name"] == library.name)
    assert "hashes" not in component
    assert component["version"] == "libc++ 22"


def test_the_engine_has_its_upstream_commit_and_patches_as_pedigree() -> None:
    engine = next(c for c in sbom()["components"] if c["bom-ref"].startswith("engine:"))
    assert engine["pedigree"]["ancestors"][0]["purl"] == f"pkg:github/ggml-org/llama.cpp@{'1' * 40}"
    assert [patch["diff"]["url"] for patch in engine["pedigree"]["patches"]] == [
        "patches/fixes/llama.cpp/b.patch",
        "patches/fixes/llama.cpp/a.patch",
    ]


def test_dependencies_lead_to_components() -> None:
    document = sbom(bundled=[GOMP])
    known = {c["bom-ref"] for c in document["components"]} | {document["metadata"]["component"]["bom-ref"]}
    for entry in document["dependencies"]:
        assert {entry["ref"], *entry["dependsOn"]} <= known


def test_a_build_number_names_the_upstream_version() -> None:
    numbered = {**MANIFEST, "pin": {**MANIFEST["pin"], "build_number": 7123}}
    engine = next(c for c in json.loads(make_sbom(numbered))["components"] if c["bom-ref"].startswith("engine:"))
    assert engine["version"] == f"b7123+forkyard.{'3' * 12}"


def test_the_file_is_named_after_the_distribution() -> None:
    assert file_name(MANIFEST) == "forkyard-llama-cpp-avx2.cdx.json"


def test_what_gpu_code_was_compiled_with_is_named() -> None:
    backend = {
        "toolkit": {"name": "cuda13", "title": "NVIDIA CUDA 13.4", "package nvidia-cuda-nvcc": "13.4.92 " + "d" * 64},
        "architectures": ["80-real", "75-virtual"],
        "requires": ["nvidia-cublas >=13.8, <14"],
    }
    text = make_sbom({**MANIFEST, "backend": backend}).decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    (found,) = (one for one in json.loads(text)["components"] if one["name"] == "NVIDIA CUDA 13.4")
    assert found["scope"] == "excluded"
    facts = {one["name"]: one["value"] for one in found["properties"]}
    assert facts["forkyard:architectures"] == "80-real 75-virtual"
    assert facts["forkyard:package nvidia-cuda-nvcc"] == "13.4.92 " + "d" * 64
    assert "NVIDIA" not in make_sbom(MANIFEST).decode()
