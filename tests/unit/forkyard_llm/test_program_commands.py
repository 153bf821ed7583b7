"""`bench`, `perplexity` and `quantize`, with a small Python program in the place of the engine's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm import program_commands
from forkyard_llm.errors import AbiMismatch, EngineError, ModelError, UnsupportedOption, UsageError
from forkyard_llm.payloads import Payload, read_payload
from forkyard_llm.program_commands import bench, perplexity, quantize

from .gguf_bytes import gguf

MakePayload = Callable[..., Path]
NAMES = ("llama-bench", "llama-perplexity", "llama-quantize")
PROGRAM = """\
#!{python}
import json, os, pathlib, signal, sys, time
here = pathlib.Path({state!r})
with (here / "calls").open("a") as calls:
    print(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], "LLAMA_ARG_MODEL" in os.environ]), file=calls)
exec((here / "does").read_text())
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "does").write_text("")
    return folder


@pytest.fixture
def payload(make_payload: MakePayload, state: Path) -> Payload:
    found = read_payload(make_payload(tools={name: f"bin/{name}" for name in NAMES}))
    for name in NAMES:
        found.tool(name).write_text(PROGRAM.format(python=sys.executable, state=str(state)))
        found.tool(name).chmod(0o755)
    return found


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_ARG_THREADS", raising=False)
    monkeypatch.setattr("forkyard_llm.programs.default_threads", lambda: 5)
    monkeypatch.setattr(program_commands, "default_threads", lambda: 5)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf())
    return path


def calls(state: Path) -> list[Any]:
    return [json.loads(line) for line in (state / "calls").read_text().splitlines()]


def test_bench_writes_what_the_program_writes(
    payload: Payload, model: Path, state: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (state / "does").write_text("print('| table |'); print('loud', file=sys.stderr)")
    assert bench(payload, model, ["-p", "8"], as_json=False) is None
    assert capfd.readouterr() == ("| table |\n", "loud\n")
    assert calls(state) == [["llama-bench", ["-m", str(model), "-t", "5", "-p", "8"], False]]


def test_bench_as_data(payload: Payload, model: Path, state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (state / "does").write_text("print('[{\"avg_ts\": 3.5}]')")
    document = bench(payload, model, ["-t", "1"], as_json=True)
    assert document is not None
    assert document["results"] == [{"avg_ts": 3.5}]
    assert (document["engine"], document["model"]) == ("llama.cpp", str(model))
    assert document["payload"]["distribution"] == payload.distribution
    assert calls(state)[0][1] == ["-m", str(model), "-t", "1", "-o", "json"]
    assert capfd.readouterr().out == ""
    with pytest.raises(UsageError, match="-o is set by forkyard-llm itself; use its option --json"):
        bench(payload, model, ["-o", "csv"], as_json=True)
    (state / "does").write_text("print('no')")
    with pytest.raises(EngineError, match="llama-bench wrote no JSON"):
        bench(payload, model, [], as_json=True)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("0.02.675.485 I Final estimate: PPL = 91.0551 +/- 22.28967", (91.0551, 22.28967)),
        ("Final estimate: PPL over 2 chunks for n_ctx=64 = 91.8916 +/- 22.43148", (91.8916, 22.43148)),
        ("Final estimate: PPL = nan +/- 1", (None, 1.0)),
        ("Final HellaSwag score: 3", (None, None)),
    ],
)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_perplexity_as_data(
    payload: Payload, model: Path, state: Path, said: str, found: tuple[float | None, ...], stream: str
) -> None:
    (state / "does").write_text(f"print({said!r}, file=sys.{stream})")
    document = perplexity(payload, model, ["-f", "x"], as_json=True)
    assert document is not None
    assert (document["perplexity"], document["standard_error"]) == found


def test_the_model_is_ours_to_say(
    payload: Payload, model: Path, state: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LLAMA_ARG_MODEL", "other.gguf")
    perplexity(payload, model, [], as_json=False)
    assert calls(state)[0][2] is False
    assert "LLAMA_ARG_MODEL=other.gguf is kept from llama-perplexity: forkyard-llm's option -m" in caplog.text
    for run in (bench, perplexity):
        with pytest.raises(UsageError, match="use its option -m"):
            run(payload, model, ["--model", "x"], as_json=False)
    assert len(calls(state)) == 1


def test_files_are_checked_before_anything_starts(payload: Payload, model: Path, state: Path) -> None:
    model.write_bytes(b"GGUX")
    for run in (
        lambda: bench(payload, model, [], as_json=False),
        lambda: perplexity(payload, model, [], as_json=False),
        lambda: quantize(payload, model, state / "out", "q8_0", [], count=None, as_json=False),
    ):
        with pytest.raises(ModelError):
            run()
    assert not (state / "calls").exists()


def test_a_payload_without_the_program(make_payload: MakePayload, model: Path) -> None:
    with pytest.raises(AbiMismatch, match="llama-bench"):
        bench(read_payload(make_payload()), model, [], as_json=False)


@pytest.mark.parametrize(
    ("does", "words", "facts"),
    [
        ("sys.exit(3)", "llama-perplexity ended with exit code 3", {"exit_status": 3, "signal": None}),
        ("os.kill(os.getpid(), 11)", "crashed with SIGSEGV", {"exit_status": None, "signal": "SIGSEGV"}),
    ],
)
def test_a_program_that_fails(
    payload: Payload, model: Path, state: Path, does: str, words: str, facts: dict[str, Any]
) -> None:
    (state / "does").write_text(f"print('error: because', flush=True); {does}")
    with pytest.raises(EngineError, match=words + ".*; its own messages say why"):
        perplexity(payload, model, [], as_json=False)
    with pytest.raises(EngineError, match=words + ".*: error: because") as caught:
        perplexity(payload, model, [], as_json=True)
    assert caught.value.details() == {"program": "llama-perplexity", **facts}


def test_quantize(
    payload: Payload, model: Path, state: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (state / "does").write_text("print('working'); pathlib.Path(sys.argv[-3]).write_bytes(b'12345')")
    output = tmp_path / "out.gguf"
    document = quantize(payload, model, output, "q8_0", ["--pure"], count=None, as_json=True)
    assert (document["output"], document["type"], document["bytes"]) == (str(output), "q8_0", 5)
    assert capfd.readouterr() == ("", "working\n")
    quantize(payload, model, output, "q4_0", [], count=2, as_json=False)
    assert capfd.readouterr() == ("working\n", "")
    files = [str(model), str(output)]
    assert [arguments for _, arguments, _ in calls(state)] == [["--pure", *files, "q8_0", "5"], [*files, "q4_0", "2"]]


def test_quantize_never_writes_over_the_model(payload: Payload, model: Path, state: Path, tmp_path: Path) -> None:
    (tmp_path / "same.gguf").symlink_to(model)
    for output in (model, tmp_path / "same.gguf"):
        with pytest.raises(UsageError, match="is the model itself"):
            quantize(payload, model, output, "q8_0", [], count=None, as_json=False)
    assert not (state / "calls").exists()


def test_an_interrupted_program_is_asked_to_end(payload: Payload, model: Path, state: Path) -> None:
    (state / "does").write_text(
        "signal.signal(signal.SIGTERM, lambda *_: ((here / 'ended').touch(), os._exit(0)))\n"
        "(here / 'started').touch()\ntime.sleep(60)"
    )
    code = (
        "import pathlib, sys\nfrom forkyard_llm.payloads import read_payload\n"
        "from forkyard_llm.program_commands import bench\n"
        "bench(read_payload(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]), [], as_json=False)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, str(payload.root), str(model)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not (state / "started").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) != 0
    assert (state / "ended").exists()


@pytest.mark.parametrize("run", [bench, perplexity])
def test_rpc_servers_are_not_called_unasked(
    payload: Payload, model: Path, state: Path, run: Callable[..., object]
) -> None:
    with pytest.raises(UnsupportedOption, match="has no RPC"):
        run(payload, model, ["--rpc", "10.0.0.1:50052"], as_json=False)
    assert not (state / "calls").exists()
