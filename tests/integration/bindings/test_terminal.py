"""`chat`, `bench`, `perplexity` and `quantize` with real payloads: through pipes, and on a terminal."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest

from .tiny_texts import write_decoder

ENGINES = ["llama.cpp", "ik_llama.cpp"]
COMMAND = [sys.executable, "-m", "forkyard_llm"]
TIMEOUT_S = 600
PROMPT = "> \x1b[0m"
pytestmark = pytest.mark.parametrize("engine", ENGINES)


@pytest.fixture(autouse=True)
def real_payloads(
    payloads: dict[str, Path], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Child processes see the payloads built here, the bindings of the repository, and an empty cache."""
    monkeypatch.setenv("FORKYARD_LLM_PAYLOAD_PATH", os.pathsep.join(map(str, payloads.values())))
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    monkeypatch.setenv("FORKYARD_LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FORKYARD_LLM_PAYLOAD", raising=False)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    write_decoder(tmp_path / "tiny.gguf", bytes_as_tokens=True)
    return tmp_path / "tiny.gguf"


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def options(model: Path, engine: str, *more: str) -> list[str]:
    return ["chat", "-m", str(model), "--engine", engine, "-t", "1", "--temp", "0", *more]


def test_a_chat_through_a_pipe(smollm2: Path, engine: str, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    lines = f"What is the capital of France?\n\nAnd of Italy?\n/regenerate\n/save {saved}\n/quit\nNo more.\n"
    done = run(*options(smollm2, engine, "-n", "12", "-c", "512", "--system", "Be short."), stdin=lines)
    assert done.returncode == 0, done.stderr
    messages = json.loads(saved.read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2]
    assert "Paris" in messages[2]["content"]
    # The temperature is 0: the second answer is the same when it is made again.
    assert done.stdout == "".join(messages[index]["content"] + "\n" for index in (2, 4, 4))
    assert done.stderr == f"saved {saved}, 4 messages\n"
    assert not (tmp_path / "cache" / "chat-history").exists()


def test_a_full_context_drops_the_oldest(smollm2: Path, engine: str) -> None:
    lines = "".join(f"Say the number {number} ten times.\n" for number in range(4))
    done = run(*options(smollm2, engine, "-n", "60", "-c", "256"), stdin=lines)
    assert done.returncode == 0, done.stderr
    assert "to make room in the context of 256 tokens, the oldest" in done.stderr
    done = run(*options(smollm2, engine, "-n", "4", "-c", "256"), stdin="word " * 400)
    assert done.returncode == 2
    assert "this alone is longer than the context" in done.stderr


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.output = ""
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm", COLUMNS="100", LINES="30", LC_ALL="C.UTF-8")
            os.execv(sys.executable, [*COMMAND, *arguments])

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def until(self, text: str, count: int = 1) -> str:
        """What was shown since the last call, when it has `text` that many times."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.output.count(text) < count:
            assert time.monotonic() < deadline, self.output
            self._read(1.0)
        shown, self.output = self.output, ""
        return shown

    def interrupt(self) -> None:
        """Ctrl-C, and again when nothing comes of it: Python's readline loses one between two of its waits for keys."""
        deadline = time.monotonic() + TIMEOUT_S
        while not self.output:
            assert time.monotonic() < deadline
            time.sleep(0.5)
            self.type("\x03")
            self._read(20.0)
        self.until(PROMPT)

    def _read(self, seconds: float) -> None:
        if select.select([self._descriptor], [], [], seconds)[0]:
            try:
                self.output += os.read(self._descriptor, 65536).decode("utf-8", "replace")
            except OSError as error:
                assert error.errno == errno.EIO
                pytest.fail(f"it ended: {self.output}")

    def status(self) -> int:
        """Its exit code, when it has ended."""
        with contextlib.suppress(OSError):
            while os.read(self._descriptor, 65536):
                pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._descriptor)


@pytest.fixture
def terminal(smollm2: Path, engine: str) -> Iterator[Terminal]:
    opened = Terminal(*options(smollm2, engine, "-c", "1024"))
    try:
        yield opened
    finally:
        opened.close()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_chat_on_a_terminal(terminal: Terminal, tmp_path: Path) -> None:
    assert "1024 tokens of context" in terminal.until(PROMPT)
    terminal.type("What is the capital of France? Answer in one word.\r")
    assert "Paris" in plain(terminal.until(PROMPT))
    terminal.type("/nonsense\r")
    assert "error: there is no command /nonsense" in plain(terminal.until(PROMPT))

    # Far more than is made before it is stopped; the chat goes on, and remembers.
    terminal.type("Count from 1 to 1000 in words, and write every single one of them.\r")
    terminal.until("\x1b[?25l", 2)  # the answer is being drawn, after the wait for it
    time.sleep(0.5)
    terminal.type("\x03")
    terminal.until(PROMPT)
    terminal.type(f"/save {tmp_path}/chat.json\r")
    terminal.until(PROMPT)
    messages = json.loads((tmp_path / "chat.json").read_text())["messages"]
    assert len(messages) == 4
    assert messages[3]["content"]
    # Ctrl-C on a line that is being typed drops the line alone.
    terminal.type("never sent")
    terminal.until("never sent")
    terminal.interrupt()
    # The line before, from the history.
    terminal.type("\x10\r")
    assert "4 messages" in plain(terminal.until(PROMPT))
    terminal.type("\x04")
    assert terminal.status() == 0
    history = tmp_path / "cache" / "chat-history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "/nonsense" in history.read_text().splitlines()


def test_bench(smollm2: Path, engine: str) -> None:
    words = ["bench", "-m", str(smollm2), "--engine", engine]
    small = ["--", "-p", "8", "-n", "2", "-r", "1", "-t", "1"]
    document = json.loads(run(*words, "--json", *small).stdout)
    assert (document["engine"], len(document["results"])) == (engine, 2)
    assert all(result["avg_ts"] > 0 for result in document["results"])
    done = run(*words, *small)
    assert done.returncode == 0, done.stderr
    assert "| test" in re.sub(" +", " ", done.stdout)
    failed = run(*words, "--json", "--", "--no-such-option")
    assert failed.returncode == 7
    error = json.loads(failed.stdout)["error"]
    assert (error["type"], error["program"], error["exit_status"]) == ("EngineError", "llama-bench", 1)
    assert run(*words, "--", "-m", "other.gguf").returncode == 2


def test_perplexity(smollm2: Path, engine: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("The cat sat on the mat, and the dog ran to the river. " * 20)
    done = run("perplexity", "-m", str(smollm2), "--engine", engine, "--json", "--", "-f", str(tmp_path / "text"),
               "-c", "64", "-b", "64", "--chunks", "2", "-t", "1")  # fmt: skip
    assert done.returncode == 0, done.stdout
    document = json.loads(done.stdout)
    # The same sentence again and again.
    assert 1 < document["perplexity"] < 20
    assert document["standard_error"] > 0
    assert document["engine"] == engine


def test_quantize(tiny: Path, engine: str, tmp_path: Path) -> None:
    words = ["quantize", "-m", str(tiny), "--engine", engine, "-t", "1"]
    output = tmp_path / "out.gguf"
    done = run(*words, "--json", str(output), "q8_0", "--", "--leave-output-tensor")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes"] == output.stat().st_size < tiny.stat().st_size
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(output).tensors}
    assert (types["blk.0.ffn_down.weight"], types["output.weight"]) == ("Q8_0", "F32")
    before = tiny.read_bytes()
    assert run(*words, str(tiny), "q8_0").returncode == 2
    assert tiny.read_bytes() == before
    assert run(*words, str(output), "no-such-type").returncode == 7
