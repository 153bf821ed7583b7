"""What counts as a payload, and what is said about what does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from forkyard_llm.errors import AbiMismatch, PayloadNotFound
from forkyard_llm.payloads import discover, discover_all, read_payload
from hypothesis import given
from hypothesis import strategies as st

MakePayload = Callable[..., Path]


def test_nothing_installed_is_no_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forkyard_llm.payloads.metadata.entry_points", lambda **_: ())
    assert discover() == []


def test_folders_of_the_environment_are_found_in_name_order(make_payload: MakePayload) -> None:
    make_payload("forkyard-llama-cpp-avx512")
    make_payload("forkyard-ik-llama-cpp-avx2")
    found = discover()
    assert [payload.distribution for payload in found] == [
        "forkyard-ik-llama-cpp-avx2",
        "forkyard-llama-cpp-avx512",
    ]
    assert [payload.engine for payload in found] == ["ik_llama.cpp", "llama.cpp"]
    assert [payload.variant for payload in found] == ["avx2", "avx512"]


def test_libraries_and_tools_are_files_of_the_folder(make_payload: MakePayload) -> None:
    root = make_payload()
    payload = read_payload(root)
    assert payload.library("llama") == root.resolve() / "lib/libllama.so"
    assert payload.tool("llama-server") == root.resolve() / "bin/llama-server"
    assert payload.has_library("llama")
    assert not payload.has_library("ggml-base")


def test_a_file_the_manifest_does_not_list(make_payload: MakePayload) -> None:
    with pytest.raises(AbiMismatch, match=r"no 'mtmd' among its libraries \(it has: llama, probe\)"):
        read_payload(make_payload()).library("mtmd")


def test_a_listed_file_that_is_gone(make_payload: MakePayload) -> None:
    root = make_payload()
    (root / "lib/libllama.so").unlink()
    with pytest.raises(AbiMismatch, match="reinstall forkyard-llama-cpp-avx2"):
        read_payload(root).library("llama")


def test_a_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(PayloadNotFound, match="no payload folder"):
        read_payload(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("schema", 2, "manifest schema 2"),
        ("engine", "whisper.cpp", "unknown engine 'whisper.cpp'"),
        ("build_key", "XYZ", "not a sha256"),
        ("rank", "high", "'rank' is missing or not an integer"),
        ("rank", True, "'rank' is missing or not an integer"),
        ("cpu_features", "avx2", "'cpu_features' is missing or not a list"),
        ("tools", {"llama-server": "../../bin/sh"}, "paths inside the package"),
        ("libraries", {"llama": "/lib/libllama.so"}, "paths inside the package"),
        ("version", "", "'version' is missing or not a text"),
    ],
)
def test_a_manifest_that_cannot_be_used(make_payload: MakePayload, key: str, value: object, said: str) -> None:
    root = make_payload()
    manifest = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps({**manifest, key: value}))
    with pytest.raises(AbiMismatch, match=said):
        read_payload(root)
    assert [item.distribution for item in discover_all().broken] == [str(root)]


@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_any_manifest_is_a_payload_or_a_named_error(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "manifest.json").write_bytes(content)
        with pytest.raises((AbiMismatch, PayloadNotFound)):
            read_payload(Path(folder))


def test_an_installed_payload_is_found_without_being_imported(
    tmp_path: Path, make_payload: MakePayload, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    root = make_payload("forkyard-llama-cpp-avx512")
    monkeypatch.delenv("FORKYARD_LLM_PAYLOAD_PATH")
    site.mkdir()
    root.rename(site / "forkyard_llama_cpp_avx512")
    (site / "forkyard_llama_cpp_avx512" / "__init__.py").write_text("raise SystemExit('imported')")
    info = site / "forkyard_llama_cpp_avx512-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: forkyard-llama-cpp-avx512\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[forkyard_llm.payloads]\nforkyard-llama-cpp-avx512 = forkyard_llama_cpp_avx512\n"
    )
    monkeypatch.syspath_prepend(site)
    found = {payload.distribution: payload for payload in discover()}
    assert found["forkyard-llama-cpp-avx512"].root == (site / "forkyard_llama_cpp_avx512").resolve()


def test_an_entry_point_whose_package_is_gone_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "forkyard_llama_cpp_gone-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: forkyard-llama-cpp-gone\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[forkyard_llm.payloads]\nforkyard-llama-cpp-gone = forkyard_gone\n")
    monkeypatch.syspath_prepend(tmp_path)
    broken = {item.distribution: item.reason for item in discover_all().broken}
    assert "reinstall it" in broken["forkyard-llama-cpp-gone"]


def test_the_environment_stands_in_for_the_installed_payload_of_the_same_name(
    make_payload: MakePayload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_payload(rank=1)
    copy = tmp_path / "copy"
    first.rename(copy)
    second = make_payload(rank=2)
    monkeypatch.setenv("FORKYARD_LLM_PAYLOAD_PATH", f"{copy}:{second}")
    assert [payload.rank for payload in discover() if payload.variant == "avx2"] == [1]
