"""Booting, with a QEMU that is a shell script."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from forkyard.errors import ToolchainError
from forkyard.guest.cases import NUMBER_GAP, TWO
from forkyard.guest.machine import QEMU, Boot, boot, qemu_command, qemu_version

Fake = Callable[[str], None]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def write(script: str) -> None:
        (tmp_path / QEMU).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / QEMU).chmod(0o755)

    return write


def booted(folder: Path, timeout_s: float = 30, told: list[str] | None = None) -> Boot:
    return boot(TWO, folder / "kernel", folder / "image", folder, timeout_s, (told if told is not None else []).append)


def test_a_guest_that_comes_to_its_end(fake: Fake, tmp_path: Path) -> None:
    fake(
        "for word; do case $word in file:*) echo hello > ${word#file:} ;; esac; done\n"
        "echo '@forkyard - kernel Ni4x'; echo; echo '@forkyard one status MCBhbnN3ZXJzIDE='; echo '@forkyard - done Cg=='"
    )
    told: list[str] = []
    came = booted(tmp_path, told=told)
    assert (came.problem, came.console, came.intake.kernel, told) == (None, "hello\n", "6.1", ["one"])


def test_a_guest_that_breaks_off(fake: Fake, tmp_path: Path) -> None:
    fake("echo '@forkyard - kernel Ni4x'")
    assert booted(tmp_path).problem == "the guest ended before its script did"


def test_a_qemu_that_refuses(fake: Fake, tmp_path: Path) -> None:
    fake("echo 'cannot set up guest memory' >&2; exit 1")
    assert booted(tmp_path).problem == "QEMU ended with 1: cannot set up guest memory"


def test_a_guest_past_its_time_is_killed_and_what_it_sent_is_kept(fake: Fake, tmp_path: Path) -> None:
    fake("echo '@forkyard one status MCBhbnN3ZXJzIDE='; sleep 600")
    started = time.monotonic()
    came = booted(tmp_path, timeout_s=1)
    assert time.monotonic() - started < 60
    assert came.problem == "the guest did not end within 1 s"
    assert came.intake.observations["one"].finished


def test_a_guest_ends_with_a_forkyard_that_is_killed(fake: Fake, tmp_path: Path) -> None:
    fake(f"echo $$ > {tmp_path}/pid; exec sleep 600")
    script = (
        "from pathlib import Path; from forkyard.guest.cases import TWO; from forkyard.guest.machine import boot\n"
        f"here = Path({str(tmp_path)!r}); boot(TWO, here, here, here, 600, print)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script])
    pid = tmp_path / "pid"
    assert soon(lambda: pid.exists() and pid.read_text().strip() != "")
    guest = Path("/proc") / pid.read_text().strip()
    assert guest.exists()
    parent.kill()
    parent.wait()
    assert soon(lambda: not guest.exists() or "\nState:\tZ" in (guest / "status").read_text())


def soon(holds: Callable[[], bool]) -> bool:
    """Whether it holds within half a minute."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.05)
    return False


def test_the_version(fake: Fake) -> None:
    fake("echo 'QEMU emulator version 7.2.22 (Debian 1:7.2)'")
    assert qemu_version() == "7.2.22"
    fake("echo broken; exit 1")
    with pytest.raises(ToolchainError, match="does not run"):
        qemu_version()


def test_without_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match="apt-get install -y qemu-system-x86"):
        qemu_version()


def test_no_kvm_and_nothing_of_the_hosts_configuration() -> None:
    words = qemu_command(NUMBER_GAP, Path("k"), Path("i"), Path("c"))
    assert "tcg,thread=multi" in words
    assert not any("kvm" in word for word in words)
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(words)
    assert words[words.index("-append") + 1] == "console=ttyS0 quiet panic=-1 disable_cpu_apicid=1"
