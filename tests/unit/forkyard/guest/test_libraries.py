from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from forkyard.errors import ToolchainError
from forkyard.gates.elf import ElfFile
from forkyard.guest import libraries
from forkyard.guest.libraries import needed


def elf(*names: str, runpath: str | None = None, interpreter: str | None = None) -> ElfFile:
    return ElfFile("EM_X86_64", 64, None, names, runpath, None, interpreter, {}, False, b"", ())


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A payload with a program and a library, and two folders of a system; files hold their own names."""
    known = {
        "server": elf("libown.so", "libc.so.6", runpath="$ORIGIN/../lib", interpreter="/lib64/ld.so"),
        "libown.so": elf("libm.so.6", runpath="$ORIGIN"),
        "libm.so.6": elf("libc.so.6"),
        "libc.so.6": elf("libm.so.6"),  # a circle must not be walked for ever
        "lost": elf("libnowhere.so"),
    }
    for path in ("pay/bin/server", "pay/bin/lost", "pay/lib/libown.so", "sys1/libm.so.6", "sys2/libc.so.6",
                 "sys2/libm.so.6"):  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(Path(path).name)
    monkeypatch.setattr(libraries, "read_elf", lambda data: known[data.decode()])
    return tmp_path


def test_libraries_are_followed_and_the_payloads_own_left_out(machine: Path) -> None:
    found = needed([machine / "pay/bin/server"], machine / "pay", (machine / "sys1", machine / "sys2"))
    assert found.libraries == {"libc.so.6": machine / "sys2/libc.so.6", "libm.so.6": machine / "sys1/libm.so.6"}
    assert found.loaders == {"/lib64/ld.so": Path("/lib64/ld.so")}


def test_a_library_that_is_nowhere(machine: Path) -> None:
    with pytest.raises(ToolchainError, match=r"libnowhere.so is not on this machine[\s\S]*bin/lost"):
        needed([machine / "pay/bin/lost"], machine / "pay", (machine / "sys1",))


def test_no_elf_file(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\n")
    with pytest.raises(ToolchainError, match="cannot be read"):
        needed([tmp_path / "script"], tmp_path)
    with pytest.raises(ToolchainError, match="cannot be read"):
        needed([tmp_path / "absent"], tmp_path)


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("git") is None, reason="wants a real program")
def test_a_real_program(tmp_path: Path) -> None:
    git = Path(shutil.which("git") or "").resolve()
    found = needed([git], tmp_path)
    assert "libc.so.6" in found.libraries
    assert all(path.is_file() for path in [*found.libraries.values(), *found.loaders.values()])
    assert len(found.loaders) == 1
