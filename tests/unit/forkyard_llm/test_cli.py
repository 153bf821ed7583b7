"""The command line: output, JSON, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forkyard_llm import cli, command_options
from forkyard_llm.errors import (
    AbiMismatch,
    DownloadError,
    EngineError,
    ForkyardLlmError,
    ModelError,
    PayloadNotFound,
    PayloadRejected,
    Rejection,
    UnsupportedOption,
    UsageError,
)

MakePayload = Callable[..., Path]


@pytest.fixture(autouse=True)
def only_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forkyard_llm.payloads.metadata.entry_points", lambda **_: ())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options `generate` was given; it answers "one two" or raises what is in the list."""
    seen: list[Any] = []
    module = types.ModuleType("forkyard_llm.generate")

    def options(**given: Any) -> dict[str, Any]:
        return given

    def streamed(given: dict[str, Any], emit: Callable[[str], None]) -> None:
        for item in [*(item for item in seen if not isinstance(item, dict)), "one", " two"]:
            if isinstance(item, BaseException):
                raise item
            emit(item)
        seen.append(given)

    def measured(given: dict[str, Any]) -> dict[str, Any]:
        pieces: list[str] = []
        streamed(given, pieces.append)
        return {"text": "".join(pieces)}

    module.GenerateOptions = options  # type: ignore[attr-defined]
    module.streamed = streamed  # type: ignore[attr-defined]
    module.measured = measured  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "forkyard_llm.generate", module)
    monkeypatch.setattr(command_options, "resolve", lambda name, **_: Path(name))
    return seen


def run(capfdbinary: pytest.CaptureFixture[bytes], *arguments: str) -> tuple[int, str, str]:
    code = cli.run(arguments)
    out, err = capfdbinary.readouterr()
    return code, out.decode(), err.decode()


def test_generate_streams(asked: list[Any], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    code, out, err = run(capfdbinary, "generate", "-m", "m.gguf", "-p", "zero")
    assert (code, out, err) == (0, "one two\n", "")


def test_generate_json_is_one_document(asked: list[Any], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    code, out, _ = run(capfdbinary, "generate", "-m", "m.gguf", "-p", "zero", "--json")
    assert code == 0
    assert json.loads(out) == {"text": "one two"}


def test_generate_passes_on_only_what_was_said(asked: list[Any], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    sampling = ["--temp", "0", "--top-k", "5", "--top-p", "0.5", "--min-p", "0.1", "--seed", "3"]
    sampling += ["--repeat-penalty", "1.1"]
    others = ["-n", "7", "-c", "99", "-t", "2", "--stop", "A", "--stop", "B"]
    others += ["--numa", "mirror", "--numa-mirror", "weights,best-effort"]
    chosen = ["--engine", "ik_llama.cpp", "--variant", "avx2"]
    run(capfdbinary, "generate", "-m", "m", "-p", "x", *sampling, *others, *chosen)
    given = asked[-1]
    assert given["sampling"] == {
        "temperature": 0.0,
        "top_k": 5,
        "top_p": 0.5,
        "min_p": 0.1,
        "seed": 3,
        "repeat_penalty": 1.1,
    }
    assert given["stop"] == ("A", "B")
    assert (given["max_tokens"], given["context"], given["threads"]) == (7, 99, 2)
    assert (given["numa"], given["numa_mirror"]) == ("mirror", "weights,best-effort")
    assert (given["engine"], given["variant"]) == ("ik_llama.cpp", "avx2")


def test_generate_on_several_devices(asked: list[Any], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    words = [
        "--gpu-layers",
        "-1",
        "--device",
        "A",
        "--device",
        "B",
        "--split-mode",
        "tensor",
        "--tensor-split",
        "1,2.5",
    ]
    words += ["--rpc-server", "h:1", "--rpc-server", "h:2", "--allow-remote-rpc", "--type-k", "q8_0", "--type-v", "f16"]
    run(capfdbinary, "generate", "-m", "m", "-p", "x", *words)
    assert asked[-1]["devices"] == {
        "n_gpu_layers": -1,
        "devices": ("A", "B"),
        "split_mode": "tensor",
        "tensor_split": [1.0, 2.5],
        "rpc_servers": ("h:1", "h:2"),
        "allow_remote_rpc": True,
        "type_k": "q8_0",
        "type_v": "f16",
    }
    run(capfdbinary, "generate", "-m", "m", "-p", "x", "--gpu-layers", "auto")
    assert asked[-1]["devices"] == {"n_gpu_layers": "auto"}
    for odd in (["--gpu-layers", "all"], ["--tensor-split", "1;2"], ["--tensor-split", "1,,2"]):
        code, _, err = run(capfdbinary, "generate", "-m", "m", "-p", "x", *odd)
        assert code == 2
        assert f"{odd[0]} {odd[1]}: take " in err


def test_generate_without_sampling_options(asked: list[Any], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    run(capfdbinary, "generate", "-m", "m", "-p", "x")
    assert asked[-1]["sampling"] == asked[-1]["devices"] == {}
    assert asked[-1]["numa"] is asked[-1]["numa_mirror"] is None


@pytest.mark.parametrize(("piped", "prompt"), [("text\n", "text"), ("text", "text"), ("a\n\n", "a\n"), ("é", "é")])
def test_the_prompt_comes_from_standard_input(
    asked: list[Any],
    capfdbinary: pytest.CaptureFixture[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    piped: str,
    prompt: str,
) -> None:
    (tmp_path / "prompt").write_text(piped, encoding="utf-8")
    with (tmp_path / "prompt").open(encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        run(capfdbinary, "generate", "-m", "m")
    assert asked[-1]["prompt"] == prompt


def test_a_prompt_that_is_no_text(
    asked: list[Any],
    capfdbinary: pytest.CaptureFixture[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "prompt").write_bytes(b"\xff")
    with (tmp_path / "prompt").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        code, _, err = run(capfdbinary, "generate", "-m", "m")
    assert code == 2
    assert "not UTF-8" in err


def test_no_prompt_on_a_terminal(
    asked: list[Any], capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: True))
    code, _, err = run(capfdbinary, "generate", "-m", "m")
    assert code == 2
    assert "give one with -p" in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("why"), 2),
        (PayloadNotFound("why"), 3),
        (PayloadRejected("why", [Rejection("forkyard-x", "because")]), 4),
        (AbiMismatch("why"), 5),
        (ModelError("why", offset=17), 6),
        (EngineError("why"), 7),
        (UnsupportedOption("why"), 8),
        (DownloadError("why"), 9),
        (ForkyardLlmError("why"), 1),
    ],
)
def test_every_error_has_its_code_and_its_json(
    asked: list[Any], capfdbinary: pytest.CaptureFixture[bytes], error: ForkyardLlmError, code: int
) -> None:
    asked.append(error)
    got, out, err = run(capfdbinary, "generate", "-m", "m", "-p", "x")
    assert (got, out, err) == (code, "", "error: why\n")
    got, out, err = run(capfdbinary, "generate", "-m", "m", "-p", "x", "--json")
    body = json.loads(out)["error"]
    assert got == body["exit_code"] == code
    assert body["type"] == type(error).__name__
    assert body["message"] == "why"
    if isinstance(error, ModelError):
        assert body["offset"] == 17
    if isinstance(error, PayloadRejected):
        assert body["rejections"] == [{"distribution": "forkyard-x", "reason": "because"}]


def test_ctrl_c_ends_with_130_and_keeps_what_was_said(
    asked: list[Any], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    asked.extend(["said", KeyboardInterrupt()])
    code, out, err = run(capfdbinary, "generate", "-m", "m", "-p", "x")
    assert (code, out, err) == (130, "said", "interrupted\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate"],
        ["nonsense"],
        ["generate", "-m", "m", "-p", "x", "--temp", "-1"],
        ["generate", "-m", "m", "-p", "x", "--numa", "mirrors"],
        ["models", "get"],
        ["models", "remove"],
        ["quantize", "-m", "m", "out.gguf"],
    ],
)
def test_wrong_usage_is_2(capfdbinary: pytest.CaptureFixture[bytes], arguments: list[str]) -> None:
    code, _, err = run(capfdbinary, *arguments)
    assert code == 2
    assert "Usage:" in err
    code, out, _ = run(capfdbinary, *arguments, "--json")
    assert json.loads(out)["error"]["exit_code"] == code == 2


def test_json_after_the_dashes_is_not_ours(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    code, out, err = run(capfdbinary, "serve", "-m", "smollm2-135m", "--offline", "--", "--json")
    assert (code, out) == (3, "")
    assert "no payload" in err


@pytest.mark.parametrize(
    "command",
    [
        *([], ["generate"], ["chat"], ["serve"], ["bench"], ["perplexity"], ["quantize"], ["doctor"]),
        *(["models"], ["models", "list"], ["models", "get"], ["models", "verify"], ["models", "remove"]),
    ],
)
def test_help_lists_the_exit_codes(capfdbinary: pytest.CaptureFixture[bytes], command: list[str]) -> None:
    code, out, _ = run(capfdbinary, *command, "--help")
    assert code == 0
    for number in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 130):
        assert f"\n    {number} " in out


def test_doctor_s_exit_code_says_whether_anything_is_usable(
    capfdbinary: pytest.CaptureFixture[bytes], make_payload: MakePayload
) -> None:
    code, out, _ = run(capfdbinary, "doctor")
    assert code == 3
    assert "no payloads installed" in out
    make_payload()
    code, out, _ = run(capfdbinary, "doctor", "--json")
    facts = json.loads(out)
    assert code == 3
    assert facts["usable"] is False
    assert "reinstall it" in facts["payloads"][0]["reason"]


def test_models_list(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    code, out, _ = run(capfdbinary, "models", "list")
    assert code == 0
    assert "smollm2-135m" in out
    assert "not here yet" in out
    code, out, _ = run(capfdbinary, "models", "list", "--json")
    assert {entry["name"] for entry in json.loads(out)["models"]} == {"smollm2-135m", "gemma3-270m"}


def test_models_get_prints_the_licence_note_and_obeys_offline(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    code, out, err = run(capfdbinary, "models", "get", "gemma3-270m", "--offline")
    assert (code, out) == (9, "")
    assert "Gemma Terms of Use" in err
    assert "offline" in err


def test_models_get_of_an_unknown_name(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    code, _, err = run(capfdbinary, "models", "get", "nothing")
    assert code == 2
    assert "known: gemma3-270m, smollm2-135m" in err


def test_a_grammar_and_a_schema_come_from_files(
    asked: list[Any], capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    (tmp_path / "g").write_text('root ::= "é"', encoding="utf-8")
    (tmp_path / "s").write_text("{}")
    run(capfdbinary, "generate", "-m", "m", "-p", "x", "--grammar", str(tmp_path / "g"))
    assert asked[-1]["sampling"] == {"grammar": 'root ::= "é"'}
    run(capfdbinary, "generate", "-m", "m", "-p", "x", "--json-schema", str(tmp_path / "s"))
    assert asked[-1]["sampling"] == {"json_schema": "{}"}
    (tmp_path / "g").write_bytes(b"\xff")
    code, _, err = run(capfdbinary, "generate", "-m", "m", "-p", "x", "--grammar", str(tmp_path / "g"))
    assert (code, "not UTF-8" in err) == (2, True)
    assert run(capfdbinary, "generate", "-m", "m", "-p", "x", "--grammar", str(tmp_path / "none"))[0] == 2


def test_models_are_verified_and_removed(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run(capfdbinary, "models", "verify", "--json")
    assert (code, json.loads(out)) == (0, {"models": []})
    code, out, _ = run(capfdbinary, "models", "verify", "smollm2-135m", "gemma3-270m")
    assert (code, out.count("missing; `models get` fetches it\n")) == (6, 2)
    code, out, _ = run(capfdbinary, "models", "remove", "smollm2-135m", "--json")
    assert (code, json.loads(out)) == (0, {"models": [{"name": "smollm2-135m", "bytes": 0}]})
    removed: list[str] = []
    monkeypatch.setattr(cli, "remove", lambda name: removed.append(name) or 98_000_000)
    code, out, _ = run(capfdbinary, "models", "remove", "smollm2-135m", "gemma3-270m")
    assert (code, out.count("removed, 98 MB")) == (0, 2)
    for command in ("get", "verify", "remove"):
        assert run(capfdbinary, "models", command, "smollm2-135m", "nothing")[0] == 2
    assert removed == ["smollm2-135m", "gemma3-270m"]


def test_models_get_takes_several(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "get", lambda name, **_: Path("/models") / name)
    code, out, _ = run(capfdbinary, "models", "get", "smollm2-135m", "gemma3-270m")
    assert (code, out) == (0, "/models/smollm2-135m\n/models/gemma3-270m\n")
    code, out, _ = run(capfdbinary, "models", "get", "smollm2-135m", "--json")
    (entry,) = json.loads(out)["models"]
    assert (entry["name"], entry["path"], entry["bytes"]) == ("smollm2-135m", "/models/smollm2-135m", 98362432)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the modules behind `chat`, `bench`, `perplexity` and `quantize` were given."""
    seen: list[Any] = []

    def recorded(*given: Any, **named: Any) -> dict[str, str]:
        seen.append((given, named))
        return {"done": "yes"}

    programs = types.ModuleType("forkyard_llm.program_commands")
    for name in ("bench", "perplexity", "quantize"):
        setattr(programs, name, recorded)
    monkeypatch.setitem(sys.modules, "forkyard_llm.program_commands", programs)
    talking = types.ModuleType("forkyard_llm.terminal_chat")
    talking.chat = recorded  # type: ignore[attr-defined]
    talking.ChatOptions = lambda **given: given  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "forkyard_llm.terminal_chat", talking)
    monkeypatch.setattr(command_options.selection, "select", lambda engine, variant: (engine, variant))
    monkeypatch.setattr(command_options, "resolve", lambda name, **_: Path(name))
    return seen


@pytest.mark.parametrize("command", ["bench", "perplexity"])
def test_words_go_to_the_engine_s_program(
    ran: list[Any], capfdbinary: pytest.CaptureFixture[bytes], command: str
) -> None:
    words = [command, "-m", "m", "--engine", "ik_llama.cpp", "--variant", "avx2"]
    assert run(capfdbinary, *words, "--", "-p", "8", "--json") == (0, "", "")
    given = (("ik_llama.cpp", "avx2"), Path("m"), ("-p", "8", "--json"))
    assert ran == [(given, {"as_json": False})]
    code, out, _ = run(capfdbinary, command, "-m", "m", "--json")
    assert (code, json.loads(out)) == (0, {"done": "yes"})


def test_quantize(ran: list[Any], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run(capfdbinary, "quantize", "-m", "m", "-t", "2", "out", "q8_0", "--", "--pure") == (0, "", "")
    assert ran == [((("auto", None), Path("m"), Path("out"), "q8_0", ("--pure",)), {"count": 2, "as_json": False})]


def test_chat_passes_on_only_what_was_said(ran: list[Any], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    words = ["--system", "S", "-c", "0", "-n", "5", "-t", "2", "--temp", "0", "--gpu-layers", "3", "--engine", "x"]
    assert run(capfdbinary, "chat", "-m", "m", *words)[0] == 0
    ((options, _), _) = ran[0]
    assert options["sampling"] == {"temperature": 0.0}
    nothing = {"numa": None, "numa_mirror": None, "verbose": False}
    assert options["arguments"] == {**nothing, "n_threads": 2, "n_gpu_layers": 3}
    assert (options["system"], options["context"], options["max_tokens"], options["engine"]) == ("S", 0, 5, "x")
    run(capfdbinary, "chat", "-m", "m")
    ((options, _), _) = ran[1]
    assert (options["sampling"], options["arguments"], options["context"]) == ({}, nothing, None)
    assert run(capfdbinary, "chat", "-m", "m", "--system", "\udcff")[0] == 2


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def test_a_reader_that_goes_away_is_no_traceback(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "forkyard_llm", "models", "list"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        code = process.wait(timeout=1800)
        assert process.stderr.read() == ""
    assert code == 141


def test_importing_the_package_loads_no_engine_and_little_else(environment: dict[str, str]) -> None:
    code = (
        "import sys, forkyard_llm\n"
        "heavy = ('rich', 'click', 'archspec', 'filelock')\n"
        "loaded = [name for name in sys.modules if name.startswith('forkyard_llm.') or name in heavy]\n"
        "assert loaded == ['forkyard_llm.errors'], loaded\n"
        "assert 'Llama' in dir(forkyard_llm)\n"
        "assert forkyard_llm.select.__module__ == 'forkyard_llm.selection'\n"
        "try:\n"
        "    forkyard_llm.nothing\n"
        "except AttributeError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.stderr == ""
    assert done.stdout == "module 'forkyard_llm' has no attribute 'nothing'\n"


@pytest.fixture
def vectors(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `embed` and `rank` were given; each text becomes its length, or its letters' numbers with pooling none."""
    seen: list[Any] = []
    module = types.ModuleType("forkyard_llm.embedding_commands")

    def options(*given: Any) -> tuple[Any, ...]:
        return given

    def embedded(given: tuple[Any, ...], texts: list[str], *, truncate: bool) -> dict[str, Any]:
        seen.append((given, list(texts), truncate))
        found = [[float(len(text))] for text in texts]
        if given[1] == "none":
            return {"embeddings": [[[float(ord(letter))] for letter in text] for text in texts], "pooling": "none"}
        return {"embeddings": found, "pooling": "mean"}

    def ranked(given: tuple[Any, ...], query: str, documents: list[str]) -> dict[str, Any]:
        seen.append((given, query, list(documents)))
        return {"results": [{"index": 0, "score": 0.5, "document": documents[0]}]}

    module.EmbeddingOptions = options  # type: ignore[attr-defined]
    module.embedded = embedded  # type: ignore[attr-defined]
    module.ranked = ranked  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "forkyard_llm.embedding_commands", module)
    monkeypatch.setattr(command_options, "resolve", lambda name, **_: Path(name))
    return seen


def test_embed_writes_a_line_for_each_vector(vectors: list[Any], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run(capfdbinary, "embed", "-m", "m.gguf", "a", "bcd") == (0, "1\n3\n", "")
    assert run(capfdbinary, "embed", "-m", "m.gguf", "--pooling", "none", "AB", "C")[1] == "65\n66\n\n67\n\n"
    code, out, _ = run(capfdbinary, "embed", "-m", "m.gguf", "--truncate", "-c", "0", "-t", "3", "--json", "a")
    assert (code, json.loads(out)) == (0, {"embeddings": [[1.0]], "pooling": "mean"})
    assert vectors[-1] == ((Path("m.gguf"), None, "auto", None, 0, 3, False), ["a"], True)
    assert run(capfdbinary, "embed", "-m", "m.gguf")[0] == 2
    assert run(capfdbinary, "embed", "-m", "m.gguf", "a\udcff")[0] == 2


def test_embed_and_rank_take_lines_of_standard_input(
    vectors: list[Any], capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for command, line in (("embed", ["-"]), ("rank", ["q", "-"])):
        (tmp_path / "in").write_bytes("é\n\nb\n".encode())
        with (tmp_path / "in").open() as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            assert run(capfdbinary, command, "-m", "m.gguf", *line)[0] == 0
        assert ["é", "", "b"] in vectors[-1]
        (tmp_path / "in").write_bytes(b"\xff")
        with (tmp_path / "in").open() as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            assert run(capfdbinary, command, "-m", "m.gguf", *line)[0] == 2


def test_rank_writes_the_number_and_the_document(vectors: list[Any], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run(capfdbinary, "rank", "-m", "m.gguf", "q", "one", "two") == (0, "0.5\tone\n", "")
    assert vectors == [((Path("m.gguf"), "rank", "auto", None, 512, None, False), "q", ["one", "two"])]
    assert run(capfdbinary, "rank", "-m", "m.gguf", "q")[0] == 2
