"""Why a server ended, from what it wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from forkyard_llm.server_log import ending, explain

TOOL = Path("/payload/bin/llama-server")
USAGE = "usage: /payload/bin/llama-server [options]\n\ngeneral:\n\n" + "".join(
    f"  -{number}, --option-{number} N      an option that may have failed or be invalid\n" for number in range(412)
)


def explained(tmp_path: Path, text: str, *, start: int = 0, started: bool = False) -> str:
    log = tmp_path / "serve.log"
    log.write_bytes(text.encode())
    return explain(log, start, TOOL, started=started)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            "error: unknown argument: --foo\n" + USAGE,
            "it does not know --foo; `/payload/bin/llama-server --help` lists",
        ),
        ("error: invalid argument: --foo\n", "it does not know --foo; "),
        ("error: unknown argument: --api-prefix=/x\n" + USAGE, "it takes the value as the next argument, without `=`"),
        ("stoi\n" + USAGE, "must be a number"),
        ('error while handling argument "-c": stoi\n\nusage:\n-c N   size\n', "must be a number"),
        ("terminate called after throwing an instance of 'std::invalid_argument'\n  what():  stoi\n", "a number"),
        ("error: invalid parameter for argument: -ctk\n" + USAGE, "an argument lacks its value"),
        ("\ncouldn't bind to server socket: hostname=127.0.0.1 port=8080\n\n", "another program took the port"),
        ("E srv start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8080\n", "took the port"),
        ("E srv: the server is built without SSL support\nfailed to initialize HTTP server\n", "built without TLS"),
        ("llama-server: error while loading shared libraries: libgomp.so.1: cannot open\n", "libgomp.so.1 cannot"),
        ("llama-server: /usr/lib/libstdc++.so.6: version `GLIBCXX_3.4.32' not found\n", "lacks GLIBCXX_3.4.32"),
        ("  what():  std::bad_alloc\nfailed to load model\n", "memory ran out"),
        ("cannot allocate 80 GB\nerror loading model: x\n", "memory ran out"),
        ("unable to allocate CPU buffer\n", "memory ran out"),
        (
            "llama_model_load: error loading model: missing tensor 'x'\nexiting due to model loading error\n",
            "the model",
        ),
    ],
)
def test_the_cause_comes_first_and_usage_is_cut(tmp_path: Path, text: str, cause: str) -> None:
    message = explained(tmp_path, text)
    assert cause in message.partition("; log: ")[0]
    assert text.strip().splitlines()[0] in message
    assert "option-1" not in message


def test_errors_far_from_the_end_are_shown_before_it(tmp_path: Path) -> None:
    text = "hello\n\x1b[31mE \x1b[0mcannot find the thing\n" + "".join(f"later {number}\n" for number in range(3000))
    lines = explained(tmp_path, text).splitlines()
    assert lines[0].endswith("its first errors and its end:")
    assert lines[1:3] == ["  | E cannot find the thing", "  | ..."]
    assert lines[-1] == "  | later 2999"
    assert len(lines) == 15


def test_of_a_server_that_was_up_only_the_end_counts(tmp_path: Path) -> None:
    text = "E cannot allocate\n" + "".join(f"request {number}\n" for number in range(3000)) + "GGML_ASSERT(x) failed\n"
    message = explained(tmp_path, text, started=True)
    assert message.startswith("log: ")
    assert "allocate" not in message
    assert message.endswith("| GGML_ASSERT(x) failed")


def test_what_was_there_before_the_start_is_not_its_doing(tmp_path: Path) -> None:
    before = "error: unknown argument: --old\n"
    assert "--old" not in explained(tmp_path, before + "bye\n", start=len(before))
    assert explained(tmp_path, before, start=len(before)).endswith("serve.log (empty)")
    assert explained(tmp_path, before, start=10**6).endswith("(empty)")


def test_nothing_but_usage(tmp_path: Path) -> None:
    assert explained(tmp_path, USAGE).endswith("which has only its usage")


def test_a_log_of_anything_is_shown(tmp_path: Path) -> None:
    message = explained(tmp_path, "x" * 100_000 + "\n\x00\xff\n")
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended with exit code 0"),
        (1, "ended with exit code 1"),
        (-6, "crashed with SIGABRT"),
        (-9, "was killed with SIGKILL: by the kernel for lack of memory, unless"),
        (-4, "crashed with SIGILL: it executes an instruction"),
        (-250, "crashed with signal 250"),
    ],
)
def test_ends_have_names(code: int, words: str) -> None:
    assert ending(code).startswith(words)
