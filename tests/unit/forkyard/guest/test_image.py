from __future__ import annotations

import stat
from pathlib import Path

import pytest

from forkyard.errors import SourceError
from forkyard.guest import image
from forkyard.guest.cpio import archive
from forkyard.guest.image import Parts, contents, write_image
from forkyard.guest.libraries import Needed


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    for name in ("system/bin/busybox", "system/usr/bin/numactl", "system/usr/lib/x86_64-linux-gnu/libnuma.so.1",
                 "pay/bin/llama-server", "pay/lib/libllama.so", "pay/bin/libggml-cpu-avx2.so",
                 "pay/lib/avx512/libggml.so", "m.gguf", "host/libc.so.6", "host/ld.so"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)

    def found(programs, own, folders) -> Needed:
        own = {"llama-server", "libllama.so", "libggml-cpu-avx2.so", "libggml.so"}
        assert {path.name for path in programs} == {*own, "numactl"}
        assert folders[0] == tmp_path / "system/usr/lib/x86_64-linux-gnu"
        return Needed({"libc.so.6": tmp_path / "host/libc.so.6"}, {"/lib64/ld.so": tmp_path / "host/ld.so"})

    monkeypatch.setattr(image, "needed", found)
    return Parts(tmp_path / "system", tmp_path / "pay", ("llama-server",), tmp_path / "m.gguf")


def test_everything_is_where_the_script_looks_for_it(parts: Parts, tmp_path: Path) -> None:
    entries = {entry.path: entry for entry in contents(parts, "#!/bin/sh\n")}
    assert {"init", "bin/busybox", "bin/sh", "bin/numactl", "engine/bin/llama-server", "engine/lib/libllama.so",
            "engine/bin/libggml-cpu-avx2.so", "engine/lib/avx512/libggml.so", "lib/host/libc.so.6", "lib64/ld.so", "model.gguf", "question", "dev/console"} <= entries.keys()  # fmt: skip
    assert entries["init"].content == b"#!/bin/sh\n"
    for name in ("init", "bin/busybox", "engine/bin/llama-server", "lib64/ld.so"):
        assert entries[name].mode & stat.S_IXUSR
    write_image(tmp_path / "image", list(entries.values()))
    assert (tmp_path / "image").read_bytes() == b"".join(archive(entries.values()))


@pytest.mark.parametrize("name", ["pay/bin/llama-server", "system/bin/busybox", "system/usr/bin/numactl", "m.gguf"])
def test_a_file_that_is_missing(parts: Parts, tmp_path: Path, name: str) -> None:
    (tmp_path / name).unlink()
    with pytest.raises(SourceError, match=f"there is no {Path(name).name} for the guest"):
        contents(parts, "")


def test_there_must_be_one_kernel(parts: Parts) -> None:
    with pytest.raises(SourceError, match="do not hold one kernel"):
        _ = parts.kernel
    (parts.system / "boot").mkdir()
    (parts.system / "boot/vmlinuz-6.1").touch()
    assert parts.kernel.name == "vmlinuz-6.1"
