"""Toolkits: taken from the registry and checked, or installed; and what the system lacks."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forkyard import toolkits
from forkyard.archives import unpack_wheel
from forkyard.cache import Cache
from forkyard.console import Console
from forkyard.errors import NetworkError, SourceError, ToolchainError
from forkyard.recipes.variants import Backend, SystemPart, Toolkit, ToolkitPackage
from forkyard.sources import registry
from forkyard.toolchain import Toolchain
from forkyard.toolkits import choose, cmake_options, remedy

Files = Mapping[str, tuple[bytes, int]]
BACKEND = Backend.model_validate(
    {"toolkit": "kit", "libraries": ["librun.so.13"], "unit-mib": 1, "ccache": "1G", "library-folders": ["maker/lib"]}
)


def wheel(files: Files) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, (content, mode) in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return data.getvalue()


COMPILER = wheel({"maker/bin/kitc": (b"#!/bin/sh\necho kitc\n", 0o100755), "maker/include/kit.h": (b"", 0o100644)})
LIBRARIES = wheel({"maker/lib/librun.so.13": (b"\x7fELF", 0o100644)})


def package(project: str, data: bytes) -> ToolkitPackage:
    return ToolkitPackage(project=project, version="13.4", sha256=hashlib.sha256(data).hexdigest())


@pytest.fixture
def kit() -> Toolkit:
    return Toolkit(
        title="a kit",
        folder="maker",
        packages=(package("kit-compiler", COMPILER), package("kit-libraries", LIBRARIES)),
        proof=("bin/kitc",),
        options={"KIT": "{root}/bin/kitc", "RUN": "{lib}/librun.so.13", "DRIVER": False},
    )


@pytest.fixture
def index(server: Any, reply: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A registry on this machine that has both wheels, the compiler's for two platforms."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    other = hashlib.sha256(b"other").hexdigest()
    pages = {
        "kit-compiler": [("kit_compiler-13.4-py3-none-win_amd64.whl", other), ("kit_compiler-13.4-py3-none-x.whl", "")],
        "kit-libraries": [("kit_libraries-13.4-py3-none-x.whl", "")],
    }
    for project, data in (("kit-compiler", COMPILER), ("kit-libraries", LIBRARIES)):
        digest = hashlib.sha256(data).hexdigest()
        links = "".join(f'<a href="/{name}#sha256={known or digest}">{name}</a>' for name, known in pages[project])
        server.replies[f"/simple/{project}/"] = reply(links.encode(), headers={"Content-Type": "text/html"})
        server.replies[f"/{pages[project][-1][0]}"] = reply(data)
    found = registry.IndexSettings(indexes=(f"{server.url}/simple/",))
    monkeypatch.setattr(registry, "index_settings", lambda: found)
    return server


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    made = Cache(tmp_path / "cache")
    made.prepare()
    return made


def test_it_comes_from_the_registry_once(kit: Toolkit, index: Any, cache: Cache, toolchain: Toolchain) -> None:
    chosen = choose("kit", kit, BACKEND, toolchain, cache)
    assert chosen.installed is None
    chosen.check()
    root = chosen.folder(cache, Console())
    assert root is not None
    assert (root / "bin" / "kitc").stat().st_mode & 0o777 == 0o755
    assert (root / "lib" / "librun.so.13").stat().st_mode & 0o777 == 0o644
    asked = len(index.requests)
    assert chosen.folder(cache, Console(), offline=True) == root
    assert len(index.requests) == asked
    assert cmake_options(kit, BACKEND, root) == {
        "KIT": f"{root}/bin/kitc",
        "RUN": f"{root}/lib/librun.so.13",
        "DRIVER": False,
    }
    # Nothing of this machine decides the key of what is made with it.
    assert str(cache.root) not in str(chosen.identity)
    assert [path.name for path in cache.scratch.iterdir()] == []


def test_another_version_is_another_toolkit(kit: Toolkit, cache: Cache, toolchain: Toolchain) -> None:
    newer = kit.model_copy(update={"packages": (*kit.packages[:1], package("kit-libraries", b"newer"))})
    first, second = (choose("kit", one, BACKEND, toolchain, cache) for one in (kit, newer))
    assert first.identity != second.identity
    assert first.digest != second.digest


def test_a_wheel_with_another_content_is_refused(
    kit: Toolkit, index: Any, cache: Cache, toolchain: Toolchain, reply: Any
) -> None:
    index.replies["/kit_libraries-13.4-py3-none-x.whl"] = reply(b"something else")
    chosen = choose("kit", kit, BACKEND, toolchain, cache)
    with pytest.raises(SourceError, match="is not the file that was asked for"):
        chosen.folder(cache, Console())
    assert not (cache.root / "toolkits").exists()


def test_offline_without_the_wheels(kit: Toolkit, index: Any, cache: Cache, toolchain: Toolchain) -> None:
    with pytest.raises(NetworkError, match=r"kit-compiler 13\.4 is not in the cache"):
        choose("kit", kit, BACKEND, toolchain, cache).folder(cache, Console(), offline=True)


def installed(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


@pytest.mark.parametrize("folder", ["lib", "lib64", "targets/x86_64-linux/lib"])
def test_an_installed_one_stands_in(
    kit: Toolkit,
    cache: Cache,
    toolchain: Toolchain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
) -> None:
    root = installed(tmp_path / "opt", "bin/kitc", f"{folder}/librun.so.13")
    monkeypatch.setenv("FORKYARD_KIT", str(root))
    chosen = choose("kit", kit, BACKEND, toolchain, cache)
    assert chosen.folder(cache, Console(), offline=True) == root
    assert cmake_options(kit, BACKEND, root)["RUN"] == f"{root}/{folder}/librun.so.13"
    assert not any("package" in key for key in chosen.identity)
    # Another compiler in its place makes other bytes.
    (root / "bin" / "kitc").write_text("newer kitc")
    assert choose("kit", kit, BACKEND, toolchain, cache).identity["sha256"] != chosen.identity["sha256"]


@pytest.mark.parametrize(
    ("names", "lacking"),
    [(["bin/kitc", "lib/librun.so.12"], "librun.so.13"), (["lib/librun.so.13"], "bin/kitc"), ([], "bin/kitc")],
)
def test_what_is_no_such_toolkit_is_refused(
    kit: Toolkit,
    cache: Cache,
    toolchain: Toolchain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    lacking: str,
) -> None:
    monkeypatch.setenv("FORKYARD_KIT", str(installed(tmp_path / "opt", *names)))
    with pytest.raises(ToolchainError, match="FORKYARD_KIT does not name a kit") as caught:
        choose("kit", kit, BACKEND, toolchain, cache)
    assert lacking in str(caught.value.why)
    assert "unset it" in str(caught.value.next_step)


# -- what the system must have -------------------------------------------------------------------------


def part(**facts: Any) -> SystemPart:
    return SystemPart.model_validate({"why": "it is needed", **facts})


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a program on PATH that prints a line."""

    def make(line: str) -> Path:
        toolkits._is_new.cache_clear()
        path = tmp_path / "bin" / "shaderc"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\necho '{line}'\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
        return path

    return make


@pytest.mark.parametrize(
    ("line", "least", "there"),
    [
        ("6.1.4", "6.1", True),
        ("HIP version: 5.2.21153-0", "6.1", False),
        ("version 10.0", "6.1", True),
        ("no number", "6.1", False),
        ("anything", None, True),
    ],
)
def test_a_program_and_its_version(
    program: Callable[[str], Path], cache: Cache, toolchain: Toolchain, line: str, least: str | None, there: bool
) -> None:
    program(line)
    kit = Toolkit(title="a kit", system=(part(program="shaderc", least=least),))
    chosen = choose("kit", kit, BACKEND, toolchain, cache)
    assert (chosen.missing == ()) is there
    assert chosen.folder(cache, Console()) is None
    assert ("sha256" in chosen.identity) is there


def test_what_is_missing_is_named_with_the_command_that_installs_it(
    cache: Cache, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(toolkits, "this_package_manager", lambda: "apt")
    monkeypatch.setattr(toolkits, "_include_folders", lambda _: (tmp_path,))
    parts = (
        part(program="no-such-program", install={"apt": "one two"}),
        part(header="no/such.hpp", install={"apt": "three", "dnf": "four"}),
    )
    chosen = choose("kit", Toolkit(title="a kit", system=parts), BACKEND, toolchain, cache)
    with pytest.raises(ToolchainError, match=r"no-such-program, <no/such\.hpp> is missing") as caught:
        chosen.check()
    assert str(caught.value.next_step).endswith("apt-get install -y one two three")
    assert caught.value.exit_code == 7
    monkeypatch.setattr(toolkits, "this_package_manager", lambda: "dnf")
    assert "no package of this system is known to have it" in remedy(parts)
    installed(tmp_path, "no/such.hpp")
    assert choose("kit", Toolkit(title="a kit", system=parts[1:]), BACKEND, toolchain, cache).missing == ()


def test_headers_are_looked_for_where_the_compiler_does(toolchain: Toolchain) -> None:
    toolkits._include_folders.cache_clear()
    assert toolkits._place(part(header="stdio.h"), replace(toolchain, cxx=Path("c++"))) is not None
    assert toolkits._place(part(header="no/such/header.h"), replace(toolchain, cxx=Path("c++"))) is None


# -- unpacking ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files",
    [
        {"../outside": (b"x", 0o100644)},
        {"/etc/outside": (b"x", 0o100644)},
        {"a/../../outside": (b"x", 0o100644)},
        {"link": (b"/etc/passwd", 0o120777)},
    ],
)
def test_a_hostile_wheel_writes_nothing_outside(tmp_path: Path, files: Files) -> None:
    (tmp_path / "hostile.whl").write_bytes(wheel(files))
    with pytest.raises(SourceError, match="tries to write outside its folder"):
        unpack_wheel(tmp_path / "hostile.whl", tmp_path / "in" / "to")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["hostile.whl"]


def test_a_damaged_wheel(tmp_path: Path) -> None:
    (tmp_path / "cut.whl").write_bytes(COMPILER[:-10])
    with pytest.raises(SourceError, match="is damaged"):
        unpack_wheel(tmp_path / "cut.whl", tmp_path / "to")
    (tmp_path / "large.whl").write_bytes(COMPILER)
    with pytest.raises(SourceError, match="unpacks to more than 5 bytes"):
        unpack_wheel(tmp_path / "large.whl", tmp_path / "to", max_bytes=5)
