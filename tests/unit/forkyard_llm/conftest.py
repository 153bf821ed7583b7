"""Payload folders made of nothing, and an environment none of the machine's own settings reach."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm import verdicts

MakePayload = Callable[..., Path]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FORKYARD_LLM_PAYLOAD", "FORKYARD_LLM_PAYLOAD_PATH", "FORKYARD_LLM_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FORKYARD_LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verdicts, "_remembered", {})


@pytest.fixture
def make_payload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakePayload:
    """Make a payload folder that FORKYARD_LLM_PAYLOAD_PATH names; keyword arguments replace manifest keys."""
    folders: list[Path] = []

    def make(name: str = "forkyard-llama-cpp-avx2", *, abi: str = "", **changes: Any) -> Path:
        engine = "ik_llama.cpp" if "ik-llama" in name else "llama.cpp"
        manifest: dict[str, Any] = {
            "schema": 1,
            "distribution": name,
            "package": name.replace("-", "_"),
            "version": "1.0",
            "engine": engine,
            "recipe": engine,
            "variant": name.split("-cpp-")[-1],
            "pin": {"commit": "0" * 40, "tree": "0" * 40, "date": "2026-01-01", "build_number": 1},
            "capabilities": [],
            "cpu_features": [],
            "rank": 30,
            "hardware": "none",
            "build_key": "a" * 64,
            "abi_sha256": "b" * 64,
            "libraries": {"llama": "lib/libllama.so", "probe": "lib/libprobe.so"},
            "tools": {"llama-server": "bin/llama-server"},
            **changes,
        }
        root = tmp_path / "payloads" / name.replace("-", "_")
        for relative in [*manifest["libraries"].values(), *manifest["tools"].values()]:
            path = root / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (root / "manifest.json").write_text(json.dumps(manifest))
        (root / "abi.json").write_text("{}")
        (root / "_abi.py").write_text(abi)
        folders.append(root)
        monkeypatch.setenv("FORKYARD_LLM_PAYLOAD_PATH", ":".join(map(str, folders)))
        return root

    return make
