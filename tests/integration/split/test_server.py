"""llama-server with a split model: drafts, of a second model or of the model's own further layer; and no fit to memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from forkyard_llm.payloads import Payload

from ..conftest import ROOT, RpcServers
from . import split_models
from .conftest import ENGINE, TIMEOUT_S, Engine

TOKENS = 16
DEVICES = ("RPC0", "RPC1", "RPC2")
SECOND = ("--spec-type", "draft-simple", "-md")
"""The model itself follows: then every draft is right that one device makes."""
OWN = ("--spec-type", "draft-mtp")
COMMON = ("--", "-c", "256", "-np", "1", "-t", "1", "--no-warmup", "-fa", "on")
QUANTIZED = ("-ctk", "q8_0", "-ctv", "q8_0", "-ctkd", "q8_0", "-ctvd", "q8_0")


@dataclass(frozen=True)
class Answer:
    tokens: list[int]
    right: int
    """How many of them were drafted before."""


def answer(payload: Payload, folder: Path, words: list[str]) -> tuple[Answer, str]:
    """What llama-server says to one prompt, and what it logs."""
    command = [sys.executable, "-m", "forkyard_llm", "serve", "--port", "0", "--json", *words]
    environment = {name: value for name, value in os.environ.items() if name != "FORKYARD_LLM_PAYLOAD"}
    environment |= {"FORKYARD_LLM_PAYLOAD_PATH": str(payload.root), "FORKYARD_LLM_CACHE": str(folder)}
    environment |= {"PYTHONPATH": str(ROOT / "bindings" / "src")}
    serving = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert serving.stdout is not None
        ready = json.loads(serving.stdout.readline())
        wish = {"prompt": list(range(1, 9)), "n_predict": TOKENS, "temperature": 0, "return_tokens": True}
        with urllib.request.urlopen(f"{ready['url']}/completion", json.dumps(wish).encode(), timeout=TIMEOUT_S) as said:
            facts = json.load(said)
    finally:
        serving.terminate()
        serving.wait()
    return Answer(facts["tokens"], facts["timings"].get("draft_n_accepted", 0)), Path(ready["log"]).read_text()


def split(start: RpcServers) -> list[str]:
    """The words that split a model among all devices."""
    return ["--rpc", ",".join(start(ENGINE, len(DEVICES))), "-dev", ",".join(DEVICES), "-sm", "tensor", "-ngl", "99"]


@pytest.mark.parametrize(
    ("model", "words", "where"),
    [
        pytest.param("grouped", SECOND, ("-ngld", "99"), marks=pytest.mark.patch()),
        pytest.param(
            "grouped", SECOND, ("-ngld", "99", "-devd", "RPC1"), marks=[pytest.mark.patch(), pytest.mark.deep]
        ),
        pytest.param("grouped", SECOND, ("-devd", "none"), marks=pytest.mark.patch("split-draft-cpu")),
        pytest.param("drafting", (*OWN, *QUANTIZED), (), marks=pytest.mark.patch("split-v-heads")),
        pytest.param("drafting", OWN, ("-nkvo",), marks=[pytest.mark.patch("split-recurrent-state"), pytest.mark.deep]),
    ],
    ids=["all-devices", "one-device", "cpu", "own-q8_0", "own-host"],
)
def test_a_split_model_takes_the_drafts_that_a_whole_one_takes(
    patched: Engine,
    rpc_payload: Callable[[str], Payload],
    rpc_servers: RpcServers,
    tmp_path: Path,
    model: str,
    words: tuple[str, ...],
    where: tuple[str, ...],
) -> None:
    """As many are right: what is drafted from a wrong state is hardly ever what follows."""
    payload, path = rpc_payload(ENGINE), str(split_models.write_model(model, tmp_path))
    common = ["-m", path, *COMMON, *words, *([path] if words == SECOND else [])]

    whole, _ = answer(payload, tmp_path, common)

    assert whole.right > 0
    assert answer(payload, tmp_path, [*common, *split(rpc_servers), *where])[0] == whole


@pytest.mark.patch("split-fit")
def test_a_fit_that_is_asked_for_says_what_to_do_instead(
    patched: Engine, rpc_payload: Callable[[str], Payload], rpc_servers: RpcServers, tmp_path: Path
) -> None:
    words = ["-m", str(split_models.write_model("grouped", tmp_path)), *COMMON, *split(rpc_servers)]
    asked, log = answer(rpc_payload(ENGINE), tmp_path, [*words, "-fit", "on"])
    assert "all parameters stay as they are: set the context size (-c) to what the devices hold" in log
    # The bindings do not ask by themselves.
    by_itself, log = answer(rpc_payload(ENGINE), tmp_path, words)
    assert "fit params" not in log
    assert by_itself == asked
