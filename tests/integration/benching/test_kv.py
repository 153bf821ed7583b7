"""``forkyard bench kv`` with the engines' own programs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from forkyard.cli import main

SHORT = ("--context", "128", "--windows", "2", "--prompt", "8", "--generate", "1", "--depths", "0,16")
CACHES = "f16,q4_0,q4_0+32,q4_0:centers,q4_0:hadamard"


@pytest.mark.parametrize(("engine", "way"), [("llama.cpp", "centers"), ("ik_llama.cpp", "hadamard")])
def test_the_engines_are_asked_and_understood(
    engine_payload: Callable[[str], Path],
    smollm2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    way: str,
) -> None:
    package = engine_payload(engine)
    archive = shutil.make_archive(str(tmp_path / package.name), "zip", package.parent, package.name)
    monkeypatch.setenv("FORKYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FORKYARD_LLM_CACHE", str(tmp_path / "llm"))
    caches = [word for word in CACHES.split(",") if not word.startswith("q4_0:") or word.endswith(way)]
    command = ["bench", "kv", "--json", "--quiet", "--model", str(smollm2), "--wheel", archive, *SHORT]
    done = CliRunner().invoke(main, [*command, "--repetitions", "1", "--caches", ",".join(caches)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    answer = json.loads(done.stdout)
    assert done.exit_code == 0, answer
    rows: dict[str, dict[str, Any]] = {row["cache"]: row for row in answer["rows"]}
    assert not [row["refused"] for row in rows.values() if row["refused"]]
    quality = {name: row["quality"] for name, row in rows.items()}
    # Both have whole cells; q4_0 has 4.5 bits a value.
    assert quality["q4_0"]["cache_mib"] == pytest.approx(quality["f16"]["cache_mib"] * 4.5 / 16, abs=0.02)
    assert quality["f16"]["kld_mean"] is None
    assert quality["q4_0"]["kld_mean"] > quality["q4_0+32"]["kld_mean"] > 0
    assert quality["q4_0"]["kld_mean"] > quality[f"q4_0:{way}"]["kld_mean"] > 0
    assert quality["q4_0+32"]["cache_mib"] > quality["q4_0"]["cache_mib"]
    timed = ["pp8", "tg1", "pp8 @ d16", "tg1 @ d16"] if engine == "llama.cpp" else ["pp8", "tg1", "tg1 @ d16"]
    assert sorted(rows["q4_0+32"]["tests"]) == sorted(timed)
    assert rows[f"q4_0:{way}"]["tests"] == {}
