"""A wheel that carries several instruction sets: linked into one folder for each, or loaded from beside the tools."""

from __future__ import annotations

import ctypes
import json
import zipfile
from pathlib import Path

import pytest

from ..toy import Toy

SLOW, FAST = "sse42", "mine"
LOADED = '[variants.few.engines."llama.cpp"]\noptions = { GGML_BACKEND_DL = true }\n'
FEW = """
schema = 1
[variants.mine]
title = "AVX2 once more"
kind = "isa"
extends = "avx2"
proof = ["avx2"]
rank = 31
[variants.mine.engines."llama.cpp"]
borrows = { sse42 = ["/common."] }
[variants.few]
title = "two instruction sets"
kind = "cpu"
members = ["sse42", "mine"]
rank = 0
"""


@pytest.mark.parametrize("loaded", [False, True], ids=["linked", "loaded"])
def test_each_instruction_set_has_its_library(toy: Toy, tmp_path: Path, loaded: bool) -> None:
    variants = tmp_path / "few.toml"
    variants.write_text(FEW + (LOADED if loaded else ""))
    if loaded:
        toy.edit_recipe('cpu-target = "ggml-cpu"', 'cpu-target = "ggml-cpu"\ncpu-score-target = "ggml-cpu-feats"')
    built = toy.build("--variants-file", str(variants), variant="few").built
    with zipfile.ZipFile(built["wheel"]) as wheel:
        wheel.extractall(tmp_path)
    root = tmp_path / "forkyard_toy_few"
    manifest = json.loads((root / "manifest.json").read_text())
    assert [(one["name"], one["rank"]) for one in manifest["members"]] == [(FAST, 31), (SLOW, 10)]
    assert manifest["cpu_features"] == manifest["members"][1]["cpu_features"]
    places = [one["libraries"]["ggml-cpu"] for one in manifest["members"]]
    if loaded:
        assert places == [f"bin/libggml-cpu-{name}-toy-few.so" for name in (FAST, SLOW)]
        assert "ggml-cpu" not in manifest["libraries"]
        # The engine is told what each was compiled for.
        assert [ctypes.CDLL(str(root / place)).ggml_backend_score() for place in places] == [4, 2]
    else:
        assert places == [f"lib/{FAST}/libggml-cpu-toy-few.so", "lib/libggml-cpu-toy-few.so"]
        assert manifest["libraries"]["ggml-cpu"] == places[1]
    for place, fast in zip(places, (True, False), strict=True):
        library = ctypes.CDLL(str(root / place))
        assert hasattr(library, "ggml_toy_add") == fast
        assert hasattr(library, "ggml_toy_name")
    # What asks for no instruction set was compiled once.
    assert sum("common.c" in unit for unit in built["compiled"]) == 1
    assert sum("cpu.c" in unit for unit in built["compiled"]) == 2
    assert toy.build("--variants-file", str(variants), variant="few").built["fresh"] is False


def test_a_backend_without_a_toolkit_and_a_tool_of_its_own(toy: Toy, tmp_path: Path) -> None:
    variants = tmp_path / "remote.toml"
    variants.write_text(
        'schema = 1\n[variants.remote]\ntitle = "others"\nkind = "backend"\nmembers = ["sse42", "avx2"]\nrank = 0\n'
        '[variants.remote.backend]\nremote = true\n[variants.remote.engines."llama.cpp"]\nmodule = "ggml-rpc"\n'
        'tools = ["ggml-rpc-server"]\noptions = { GGML_BACKEND_DL = true, GGML_RPC = true, GGML_RPC_RDMA = false }\n'
    )
    toy.edit_recipe('cpu-target = "ggml-cpu"', 'cpu-target = "ggml-cpu"\ncpu-score-target = "ggml-cpu-feats"')
    with zipfile.ZipFile(toy.build("--variants-file", str(variants), variant="remote").built["wheel"]) as wheel:
        wheel.extractall(tmp_path)
        assert not any(
            "toolkit" in wheel.read(name).decode() for name in wheel.namelist() if name.endswith(".cdx.json")
        )
    root = tmp_path / "forkyard_toy_remote"
    manifest = json.loads((root / "manifest.json").read_text())
    assert manifest["libraries"]["ggml-rpc"] == "bin/libggml-rpc.so"
    assert hasattr(ctypes.CDLL(str(root / "bin" / "libggml-rpc.so")), "ggml_toy_name")
    assert manifest["tools"]["ggml-rpc-server"] == "bin/ggml-rpc-server"
    assert (root / "bin" / "ggml-rpc-server").is_file()
    backend = manifest["backend"]
    assert (backend["toolkit"], backend["remote"], backend["library"]) == (None, True, "ggml-rpc")
    # An option that got lost: it would be a wheel for the CPU alone.
    variants.write_text(variants.read_text().replace("GGML_RPC = true", "GGML_RPC = false"))
    failed = toy.build("--variants-file", str(variants), variant="remote")
    assert failed.status == 9
    assert "no CMake target ggml-rpc-server, which" in failed.stdout + failed.stderr


def test_a_flag_that_does_not_arrive_is_caught(toy: Toy, tmp_path: Path) -> None:
    """The copy of a target that loses its flags would be a wheel that is slow where it should be fast."""
    variants = tmp_path / "few.toml"
    variants.write_text(FEW)
    template = toy.root / "wheels" / "CMakeLists.txt.j2"
    text = template.read_text()
    line = 'target_compile_options({{ cpu_target }}-{{ member.name }} PRIVATE {{ member.flags | join(" ") }})'
    assert line in text
    template.write_text(text.replace(line, ""))
    failed = toy.build("--variants-file", str(variants), variant="few")
    assert failed.status == 8
    assert "ggml-cpu for mine: holds no avx2 instruction" in failed.stdout + failed.stderr
