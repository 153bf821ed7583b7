from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm import gguf_check
from forkyard_llm.cli import run
from forkyard_llm.measuring.engine import Engine

from .conftest import MakeEngine


@pytest.fixture
def call(model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command; its exit code and what it wrote to standard output."""
    monkeypatch.setattr(gguf_check, "check", lambda *_, **__: None)

    def called(*words: str) -> tuple[int, str]:
        code = run([word.replace("MODEL", str(model)) for word in words])
        return code, capsys.readouterr().out

    return called


def folder(engine: Engine) -> str:
    return str(engine.bench.parents[1])


SHORT = ("-m", "MODEL", "--prompt", "8", "--generate", "4", "--rounds", "6")


def test_a_scenario_and_what_is_kept_of_it(call: Any, make_engine: MakeEngine, tmp_path: Path) -> None:
    one, other = make_engine(), make_engine("ik_llama.cpp", speed="150.0")
    words = ("--payload", folder(one), "--payload", folder(other))
    code, text = call("bench", "variants", *SHORT, *words, "-t", "1", "--json")
    assert code == 0
    document = json.loads(text)
    assert document["run"]["scenario"] == "variants"
    assert document["arms"][1]["results"]["tg4"]["gain"]["verdict"] == "faster"
    code, text = call("results", "list", "--json")
    assert [(found["id"], found["finished"]) for found in json.loads(text)["runs"]] == [(document["run"]["id"], True)]
    assert "| ik_llama.cpp |" in call("results", "show", "last")[1]
    for kind in ("md", "jsonl", "llama-bench"):
        assert call("results", "export", "last", "--format", kind, "--out", str(tmp_path / kind))[0] == 0
        assert str(tmp_path) not in (tmp_path / kind).read_text()
    assert call("results", "bundle", "last", "--out", str(tmp_path / "x.zip"))[0] == 0
    assert call("results", "import", str(tmp_path / "x.zip"))[1] == "0 of 1 runs were new\n"
    assert call("results", "remove", "last")[0] == 0
    assert call("results", "import", str(tmp_path / "x.zip"))[1] == "1 of 1 runs were new\n"
    code, text = call("results", "compare", "last", "last", "--json")
    assert {row["verdict"] for row in json.loads(text)["rows"]} == {"tie"}


def test_a_slower_build_can_fail(call: Any, make_engine: MakeEngine) -> None:
    engine = make_engine(speed="ub / 10.0")
    same, less = folder(engine), f"{folder(engine)} -ub 256"
    assert call("compare", *SHORT, same, same, "--fail-if-slower")[0] == 0
    assert call("compare", *SHORT, same, less)[0] == 0
    assert call("compare", *SHORT, same, less, "--fail-if-slower")[0] == 10
    assert call("compare", *SHORT, less, same, "--fail-if-slower")[0] == 0


@pytest.mark.parametrize(
    "words",
    [
        ("bench", "threads", "-m", "MODEL", "--threads", "x"),
        ("bench", "threads", "-m", "MODEL", "--threads", "0"),
        ("bench", "threads", "-m", "MODEL", "--payload", ""),
        ("bench", "threads", "-m", "MODEL", "--", "-o", "csv"),
        ("compare", "-m", "MODEL", "no-such-payload", "llama.cpp"),
        ("results", "show", "last"),
        ("results", "import", "MODEL"),
    ],
)
def test_what_means_nothing(call: Any, make_engine: MakeEngine, words: tuple[str, ...]) -> None:
    assert call(*words)[0] in (2, 3)


def test_without_a_scenario_it_is_llama_bench(call: Any) -> None:
    code, text = call("bench", "-m", "MODEL", "--engine", "llama.cpp", "--json")
    assert code == 3  # no payload is installed here
    assert json.loads(text)["error"]["type"] == "PayloadNotFound"
