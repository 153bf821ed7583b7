from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from forkyard import doctor
from forkyard.cache import Cache
from forkyard.doctor import Check, as_json, examine
from forkyard.toolchain import Toolchain


@pytest.fixture
def empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(doctor, "this_package_manager", lambda: "apt")
    return folder


def named(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_a_bare_machine_is_told_everything_at_once(empty_path: Path, cache: Cache) -> None:
    found = named(examine(cache))
    assert found["git"].state == "missing"
    assert found["compiler"].state == "missing"
    for name in ("git", "compiler"):
        assert "apt-get install" in str(found[name].fix)
    assert not as_json(list(found.values()), Path("/x"))["ok"]


def test_an_old_git_and_a_broken_compiler(empty_path: Path, cache: Cache) -> None:
    for name, text in (("git", "echo git version 2.20.1"), ("cc", "exit 1"), ("c++", "echo wrong >&2; exit 1")):
        (empty_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (empty_path / name).chmod(0o755)
    found = named(examine(cache))
    assert found["git"].state == "missing"
    assert "2.20.1" in found["git"].found
    assert found["compiler"].state == "missing"
    assert "wrong" in found["compiler"].found


def test_a_git_that_builds_but_cannot_rebase(empty_path: Path, cache: Cache) -> None:
    (empty_path / "git").write_text("#!/bin/sh\necho git version 2.34.1\n")
    (empty_path / "git").chmod(0o755)
    found = named(examine(cache))["git"]
    assert found.state == "advice"
    assert "2.38" in found.found


def test_a_cache_that_cannot_be_made(empty_path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (empty_path / "git").symlink_to(str(shutil.which("git", path="/usr/bin:/bin:/usr/local/bin")))
    found = named(examine(Cache(tmp_path / "file" / "cache")))
    assert found["cache"].state == "missing"
    assert "FORKYARD_CACHE" in str(found["cache"].fix)


def test_little_space_is_advice(cache: Cache, monkeypatch: pytest.MonkeyPatch, empty_path: Path) -> None:
    usage = shutil.disk_usage(cache.root)
    monkeypatch.setattr("forkyard.doctor.shutil.disk_usage", lambda _: usage._replace(free=1 << 30))
    assert named(examine(cache))["cache"].state == "advice"


def test_another_machine(cache: Cache, monkeypatch: pytest.MonkeyPatch, empty_path: Path) -> None:
    monkeypatch.setattr("forkyard.doctor.platform.machine", lambda: "aarch64")
    assert named(examine(cache))["machine"].state == "missing"


def test_what_code_for_other_machines_is_compiled_with(
    cache: Cache, project_root: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "detect", lambda cache: toolchain)
    monkeypatch.setattr(doctor, "native_features", lambda toolchain: ())
    checks = named(examine(cache, project_root))
    for name, kit in (
        ("aarch64", "Zig 0.17.1 (clang 22.1.8) from the package registry"),
        ("rpc", "the compiler of all else"),
    ):
        assert checks[name].state == "ok"
        assert checks[name].found == f"can be built, with {kit}"


def test_for_machines() -> None:
    checks = [Check("a", "ok", "x"), Check("b", "advice", "y", "do")]
    assert as_json(checks, Path("/r")) == {
        "ok": True,
        "root": "/r",
        "checks": [
            {"name": "a", "state": "ok", "found": "x", "fix": None},
            {"name": "b", "state": "advice", "found": "y", "fix": "do"},
        ],
    }
