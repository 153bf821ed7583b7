"""Text that becomes bytes, for engines and for standard output, in every locale."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from forkyard_llm.chat import chat_request
from forkyard_llm.completion_text import stop_strings
from forkyard_llm.errors import UsageError
from forkyard_llm.text import to_engine

# What a user's environment may say; de_DE need not be installed.
LOCALES: list[dict[str, str]] = [
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "POSIX"},
    {"PYTHONIOENCODING": "ascii:strict"},
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "utf-16"},
    {"LANG": "de_DE.ISO-8859-1", "LC_ALL": ""},
]


def run(
    arguments: list[str | bytes], locale: dict[str, str], *, program: str = "forkyard_llm"
) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **locale}
    command = [sys.executable, "-m", program, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, timeout=1800, check=False)


@pytest.mark.parametrize("text", ["é", "a\0b", "", "\U0001f600"])
def test_text_goes_to_the_engine_as_utf_8(text: str) -> None:
    assert to_engine(text, "it") == text.encode()
    assert to_engine(text.encode(), "it") == text.encode()


def test_what_is_neither_text_nor_bytes_is_named() -> None:
    assert to_engine(bytearray(b"\xff"), "the text") == b"\xff"
    with pytest.raises(UsageError, match="the text must be a text or bytes; got 5"):
        to_engine(5, "the text")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x\udcff", "byte 0xff at character 2 is not UTF-8"),
        ("\ud83d", r"character 1 is U\+D83D, half of a surrogate pair"),
    ],
)
def test_what_is_no_text_is_named(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"the prompt is not text that an engine can read: {why}"):
        to_engine(text, "the prompt")
    with pytest.raises(UsageError, match="a stop text is not text"):
        stop_strings(["fine", text])
    for message in ({"role": "user", "content": text}, {"role": text, "content": "hello"}):
        with pytest.raises(UsageError, match="message 0 is not text"):
            chat_request([message])


def test_a_c_string_ends_at_nul() -> None:
    for text in ("a\0b", b"a\0b"):
        with pytest.raises(UsageError, match="a key contains a NUL character"):
            to_engine(text, "a key", nul=False)


@pytest.mark.parametrize("option", [b"-p", b"--stop"])
def test_a_command_line_that_is_no_text_is_wrong_usage(tmp_path: Path, option: bytes) -> None:
    # No model is there: it is not even looked for.
    done = run(["generate", "-m", str(tmp_path / "none.gguf"), "-p", "fine", option, b"x\xff", "--json"], {})
    error = json.loads(done.stdout.decode("utf-8"))["error"]
    assert (done.returncode, error["type"]) == (2, "UsageError")
    assert "byte 0xff at character 2 is not UTF-8" in error["message"]
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("locale", LOCALES)
def test_json_is_utf_8_whatever_the_locale(tmp_path: Path, locale: dict[str, str]) -> None:
    name = os.fsencode(tmp_path) + "/é😀".encode() + b"\xff.gguf"
    done = run(["generate", "-m", name, "-p", "x", "--json"], locale)
    error = json.loads(done.stdout.decode("utf-8"))["error"]
    assert (done.returncode, error["type"]) == (6, "ModelError")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("arguments", [["models", "list"], ["doctor"], ["doctor", "--json"], ["--help"]])
def test_no_name_is_too_strange_to_be_shown(tmp_path: Path, locale: dict[str, str], arguments: list[str]) -> None:
    strange = {
        "FORKYARD_LLM_CACHE": os.fsdecode(os.fsencode(tmp_path) + "/é😀".encode() + b"\xff"),
        "FORKYARD_LLM_PAYLOAD_PATH": os.fsdecode(os.fsencode(tmp_path) + b"/\xfe"),
    }
    done = run([*arguments], {**locale, **strange})
    assert done.returncode == (3 if "doctor" in arguments else 0)
    assert done.stderr == b""
    assert done.stdout
    if "--json" in arguments:
        assert json.loads(done.stdout.decode("utf-8"))["usable"] is False


@pytest.mark.parametrize(("redirection", "code"), [(">&-", 0), ("<&- >&- 2>&-", 0), (">/dev/full", 1), ("2>&-", 0)])
@pytest.mark.parametrize("arguments", ["models list", "models list --json", "--help"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written(redirection: str, code: int, arguments: str, unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": unbuffered}
    command = ["sh", "-c", f'"$0" -m forkyard_llm {arguments} {redirection}', sys.executable]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=1800, check=False, text=True)
    assert done.returncode == code
    assert done.stderr == ("error: cannot write to standard output: No space left on device\n" if code else "")
