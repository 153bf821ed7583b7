from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

import pytest

from forkyard.errors import BuildError, ToolchainError
from forkyard.process import background, clean_environment, run, show, stream


def is_gone(pid: int) -> bool:
    """Whether a process has ended; waits a little, for the kernel to be done with it."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 9)
    return False


def pid_in(path: Path) -> int:
    for _ in range(250):
        if path.exists() and path.read_text().strip():
            return int(path.read_text())
        time.sleep(0.02)
    raise AssertionError(path)


NOISE = ["CFLAGS", "CXXFLAGS", "LDFLAGS", "CPATH", "LIBRARY_PATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "CMAKE_PREFIX_PATH"]
NOISE += [
    "CMAKE_ARGS",
    "CC",
    "CXX",
    "MAKEFLAGS",
    "LANG",
    "LANGUAGE",
    "PYTHONPATH",
    "GIT_DIR",
    "GGML_NATIVE",
    "SKBUILD_X",
]


def test_nothing_of_the_callers_environment_gets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NOISE:
        monkeypatch.setenv(name, "evil")
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    monkeypatch.setenv("LC_ALL", "de_DE")
    monkeypatch.setenv("HOME", "/home/me")
    found = clean_environment()
    assert not set(NOISE) & set(found)
    assert (found["TZ"], found["LC_ALL"], found["PYTHONHASHSEED"], found["HOME"]) == ("UTC", "C.UTF-8", "0", "/home/me")
    assert found["PATH"] == os.environ["PATH"]
    assert clean_environment("/bin", {"TZ": "x", "A": "b"})["TZ"] == "x"
    assert clean_environment("/bin")["PATH"] == "/bin"


def test_show_is_what_one_would_type() -> None:
    assert show(["a b", "c'd", "e"]) == "'a b' 'c'\"'\"'d' e"


def test_run_gives_output_and_status() -> None:
    done = run(["sh", "-c", "cat; echo err >&2; printf '\\377'; exit 3"], stdin=b"in", timeout_s=30)
    assert (done.returncode, done.stdout, done.stderr) == (3, "in\ufffd", "err\n")


def test_run_has_no_standard_input_unless_given() -> None:
    assert run(["cat"], timeout_s=30).stdout == ""


def start(command: list[str], folder: Path, *, long: bool) -> None:
    if long:
        stream(command, log=folder / "log", on_line=print, timeout_s=9)
    else:
        run(command, timeout_s=9)


@pytest.mark.parametrize("long", [False, True])
def test_a_missing_program_names_the_next_step(tmp_path: Path, long: bool) -> None:
    with pytest.raises(ToolchainError) as caught:
        start(["no-such-program"], tmp_path, long=long)
    assert "no-such-program" in caught.value.what
    assert caught.value.next_step or caught.value.why


@pytest.mark.parametrize("body", [b"", b"\0\1\2"])
@pytest.mark.parametrize("mode", [0o644, 0o755])
@pytest.mark.parametrize("long", [False, True])
def test_a_program_that_is_none(tmp_path: Path, body: bytes, mode: int, long: bool) -> None:
    program = tmp_path / "tool"
    program.write_bytes(body)
    program.chmod(mode)
    with pytest.raises(ToolchainError):
        start([str(program)], tmp_path, long=long)


def test_run_past_its_time_kills_the_whole_group(tmp_path: Path) -> None:
    command = ["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; wait"]
    with pytest.raises(BuildError, match="did not end within"):
        run(command, timeout_s=0.5)
    assert is_gone(pid_in(tmp_path / "pid"))


def test_stream_gives_lines_and_keeps_a_log(tmp_path: Path) -> None:
    lines: list[str] = []
    log = tmp_path / "logs" / "x.log"
    command = ["sh", "-c", "echo one; echo two >&2; printf 'three \\377'"]
    assert stream(command, log=log, on_line=lines.append, timeout_s=30) == 0
    assert lines == ["one", "two", "three \ufffd"]
    assert log.read_bytes() == f"$ {show(command)}\none\ntwo\nthree ".encode() + b"\xff"


def test_stream_tells_a_signal_from_a_status(tmp_path: Path) -> None:
    assert stream(["sh", "-c", "exit 7"], log=tmp_path / "l", on_line=print, timeout_s=30) == 7
    assert stream(["sh", "-c", "kill -9 $$"], log=tmp_path / "l", on_line=print, timeout_s=30) == -9


SCRIPTS = {
    "waits": "sleep 60 & echo $! > {pid}; wait",
    "leader gone": "sleep 60 & echo $! > {pid}",
    "ignores the polite signal": (
        "trap '' TERM; {python} -c 'import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)' &"
        " echo $! > {pid}; trap - TERM; wait"
    ),
}


@pytest.mark.parametrize("case", SCRIPTS)
def test_stream_past_its_time_kills_the_whole_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setattr("forkyard.process._GRACE_S", 0.3)
    script = SCRIPTS[case].format(pid=tmp_path / "pid", python=sys.executable)
    started = time.monotonic()
    with pytest.raises(BuildError, match="did not end within"):
        stream(["sh", "-c", script], log=tmp_path / "l", on_line=print, timeout_s=0.7)
    assert time.monotonic() - started < 30
    assert is_gone(pid_in(tmp_path / "pid"))


@pytest.mark.parametrize("case", SCRIPTS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_kills_the_whole_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, error: type[BaseException]
) -> None:
    monkeypatch.setattr("forkyard.process._GRACE_S", 0.3)
    script = SCRIPTS[case].format(pid=tmp_path / "pid", python=sys.executable) + "\n"
    script = script.replace("; wait", "; echo go; wait") if "wait" in script else script.rstrip() + "; echo go"

    def stop(line: str) -> None:
        raise error

    with pytest.raises(error):
        stream(["sh", "-c", script], log=tmp_path / "l", on_line=stop, timeout_s=60)
    assert is_gone(pid_in(tmp_path / "pid"))


def test_stream_hands_on_what_is_to_stay_open(tmp_path: Path) -> None:
    lines: list[str] = []
    with open(tmp_path / "f", "w") as kept, open(tmp_path / "g", "w") as other:
        command = ["sh", "-c", f"ls /proc/self/fd/{kept.fileno()} /proc/self/fd/{other.fileno()} 2>/dev/null; true"]
        stream(command, log=tmp_path / "l", on_line=lines.append, timeout_s=30, keep_open=[kept.fileno()])
        assert lines == [f"/proc/self/fd/{kept.fileno()}"]


def test_a_program_beside_the_work_ends_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = f"echo $$ > {tmp_path}/leader; sleep 600 & echo $! > {tmp_path}/member; echo said; wait"
    with background(["/bin/sh", "-c", script], log=log, env=clean_environment()) as status:
        pids = [pid_in(tmp_path / name) for name in ("leader", "member")]
        assert status() is None
    assert all(map(is_gone, pids))
    assert "said" in log.read_text()


def test_a_program_beside_the_work_ends_with_an_interruption(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        background(["/bin/sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 600"], log=tmp_path / "log"),
    ):
        pid = pid_in(tmp_path / "pid")
        raise KeyboardInterrupt
    assert is_gone(pid)


def test_a_program_that_is_not_there_is_not_begun(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError), background([str(tmp_path / "nothing")], log=tmp_path / "log"):
        pass
