from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from forkyard_llm import loading
from forkyard_llm.errors import AbiMismatch, EngineError, PayloadRejected
from forkyard_llm.payloads import Payload, read_payload

from forkyard.abi import write_abi

HEADER = "struct params { int level; double scale; };\nint answer(struct params params);\nint absent(void);\n"
SOURCE = '#include "engine.h"\nint answer(struct params p) { return p.level * (int) p.scale; }\n'
BUILD_KEY = "ab" * 32

Load = Callable[[Path], Any]


class TinyEngine:
    """What an adapter is to the loader: something made of a payload, its ABI module and its functions."""

    def __init__(self, payload: Payload, abi: ModuleType, api: Any, probe: ctypes.CDLL, mirror: Any) -> None:
        self.payload, self.abi, self.api, self.probe, self.mirror = payload, abi, api, probe, mirror


def compile_library(source: Path, library: Path, *flags: str) -> None:
    command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", str(library), str(source), *flags]
    subprocess.run(command, check=True, timeout=1800)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A payload folder with a tiny engine of our own in it."""
    root = tmp_path_factory.mktemp("built")
    (root / "lib").mkdir()
    (root / "engine.h").write_text(HEADER)
    (root / "engine.c").write_text(SOURCE)
    abi_sha256 = write_abi(root, headers=[root / "engine.h"])
    macros = (f'-DFORKYARD_BUILD_KEY="{BUILD_KEY}"', f'-DFORKYARD_ABI_SHA256="{abi_sha256}"')
    compile_library(root / "probe.c", root / "lib" / "libprobe-tiny.so", f"-I{root}", *macros)
    compile_library(root / "engine.c", root / "lib" / "libllama-tiny.so")
    manifest = {
        "schema": 1,
        "distribution": "forkyard-llama-cpp-tiny",
        "package": "forkyard_llama_cpp_tiny",
        "version": "1",
        "engine": "llama.cpp",
        "variant": "tiny",
        "capabilities": [],
        "cpu_features": [],
        "rank": 1,
        "build_key": BUILD_KEY,
        "abi_sha256": abi_sha256,
        "libraries": {"llama": "lib/libllama-tiny.so", "probe": "lib/libprobe-tiny.so"},
        "tools": {},
    }
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


@pytest.fixture
def tiny(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny payload to damage, in a process that has loaded nothing yet."""
    monkeypatch.setattr(loading, "_loaded", {})
    monkeypatch.setattr(loading, "_ENGINES", {"llama.cpp": TinyEngine})
    return Path(shutil.copytree(built, tmp_path / "tiny"))


def change_manifest(root: Path, **changes: Any) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def load(root: Path) -> Any:
    return loading.load(read_payload(root))


def test_a_sound_payload_loads_and_works(tiny: Path):
    engine = load(tiny)
    assert engine.api.answer(engine.abi.params(6, 7.0)) == 42
    assert engine.api.missing == ("absent",)
    assert engine.mirror is None, "this engine has no functions of the stack numa-mirror"
    assert loading.loaded() == (engine,)


def test_the_same_payload_is_the_same_engine(tiny: Path):
    assert load(tiny) is load(tiny)


def test_a_second_payload_with_libraries_of_the_same_name_is_refused(tiny: Path, tmp_path: Path):
    load(tiny)
    other = Path(shutil.copytree(tiny, tmp_path / "other"))
    change_manifest(other, distribution="forkyard-llama-cpp-other")
    with pytest.raises(PayloadRejected, match=r"beside forkyard-llama-cpp-tiny.*libllama-tiny\.so.*child process"):
        load(other)


def test_a_module_of_another_layout_is_refused(tiny: Path):
    module = tiny / "_abi.py"
    text = module.read_text()
    assert "('offsetof(struct params, scale)', 8)" in text
    module.write_text(text.replace("('offsetof(struct params, scale)', 8)", "('offsetof(struct params, scale)', 4)"))
    with pytest.raises(AbiMismatch, match=r"offsetof\(struct params, scale\): module 4, libraries 8, ctypes 8"):
        load(tiny)


def test_a_module_whose_structs_changed_is_refused(tiny: Path):
    module = tiny / "_abi.py"
    module.write_text(module.read_text().replace("('level', c_int32)", "('level', c_int64), ('more', c_int64)"))
    with pytest.raises(AbiMismatch, match="ctypes"):
        load(tiny)


def test_another_abi_json_is_refused(tiny: Path):
    (tiny / "abi.json").write_text("{}")
    with pytest.raises(AbiMismatch, match=r"sha256 of the ABI differs.*abi\.json"):
        load(tiny)


def test_another_abi_module_is_refused(tiny: Path):
    module = tiny / "_abi.py"
    module.write_text(module.read_text().replace('ABI_SHA256 = "', 'ABI_SHA256 = "00'))
    with pytest.raises(AbiMismatch, match=r"sha256 of the ABI differs.*_abi\.py"):
        load(tiny)


def test_libraries_of_another_build_are_refused(tiny: Path):
    change_manifest(tiny, build_key="cd" * 32)
    with pytest.raises(AbiMismatch, match=r"build key differs: the manifest says cdcd.*the probe says abab"):
        load(tiny)


@pytest.mark.parametrize("text", ["import nothing_of_this_name", "def", "x = undefined", "1 / 0", ""])
def test_a_module_that_does_not_run_is_refused(tiny: Path, text: str):
    (tiny / "_abi.py").write_text(text)
    with pytest.raises(AbiMismatch, match="is damaged"):
        load(tiny)


@pytest.mark.parametrize("name", ["_abi.py", "abi.json", "lib/libprobe-tiny.so", "lib/libllama-tiny.so"])
def test_a_missing_file_is_refused(tiny: Path, name: str):
    (tiny / name).unlink()
    with pytest.raises(AbiMismatch, match="damaged"):
        load(tiny)


def test_a_library_that_cannot_be_loaded_says_why(tiny: Path):
    (tiny / "lib" / "libllama-tiny.so").write_bytes(b"not a library")
    with pytest.raises(EngineError, match=r"libllama-tiny\.so cannot be loaded"):
        load(tiny)


def test_a_missing_system_library_is_named(tiny: Path, tmp_path: Path):
    (tmp_path / "gone.c").write_text("int gone(void) { return 1; }\n")
    (tmp_path / "needs.c").write_text("int gone(void); int answer(void) { return gone(); }\n")
    gone = tmp_path / "libgone-away.so.1"
    compile_library(tmp_path / "gone.c", gone)
    compile_library(tmp_path / "needs.c", tiny / "lib" / "libllama-tiny.so", str(gone))
    gone.unlink()
    with pytest.raises(EngineError, match=r"install the system package that has libgone-away\.so\.1"):
        load(tiny)


def test_a_probe_that_is_none_is_refused(tiny: Path):
    shutil.copy(tiny / "lib" / "libllama-tiny.so", tiny / "lib" / "libprobe-tiny.so")
    with pytest.raises(AbiMismatch, match="its probe library is not one"):
        load(tiny)


def test_a_failed_load_can_be_tried_again(tiny: Path):
    text = (tiny / "_abi.py").read_text()
    (tiny / "_abi.py").write_text("")
    with pytest.raises(AbiMismatch):
        load(tiny)
    (tiny / "_abi.py").write_text(text)
    assert load(tiny).api.answer


def test_layouts_of_different_length_are_refused():
    with pytest.raises(AbiMismatch, match="lists 1 sizes and offsets, the probe 2, ctypes 1"):
        loading.compare_layout("d", [("sizeof(a)", 4)], [4, 8], [4])


def test_only_the_first_few_differences_are_told():
    expected = [(f"sizeof(s{number})", 4) for number in range(6)]
    with pytest.raises(AbiMismatch, match=r"sizeof\(s2\).* and 3 more"):
        loading.compare_layout("d", expected, [8] * 6, [4] * 6)
