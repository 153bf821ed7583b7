from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from forkyard.cache import Cache
from forkyard.doctor import examine
from forkyard.errors import StorageError, ToolchainError
from forkyard.toolchain import detect, find_compilers, native_features

FAKE = """\
#!/bin/sh
case "$1" in
  --version) echo "{version}"; echo "more" ;;
  -dumpmachine) echo x86_64-test-linux-gnu ;;
  -print-prog-name=*) echo "{programs}/${{1#-print-prog-name=}}" ;;
  -print-file-name=*) echo "{openmp}" ;;
  -march=native) printf '#define __AVX2__ 1\\n#define __FMA__ 1\\n#define __x86_64__ 1\\n#define __AVX512F__ 1\\n' ;;
  *) exit 1 ;;
esac
"""
Make = Callable[..., Path]


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Put a fake compiler on an otherwise empty PATH; returns its folder."""
    folder = tmp_path / "bin"
    programs = tmp_path / "programs"
    programs.mkdir()
    folder.mkdir()
    for name in ("cc1", "cc1plus", "as", "ld", "collect2"):
        (programs / name).write_text(name)
    (tmp_path / "libgomp.so.1").write_text("openmp")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)

    def make(*names: str, version: str = "gcc (Test) 13.2.0", openmp: str | None = None, body: str = FAKE) -> Path:
        text = body.format(version=version, programs=programs, openmp=openmp or tmp_path / "libgomp.so.1")
        for name in names or ("cc", "c++"):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        return folder

    return make


def test_everything_about_a_compiler(compiler: Make, cache: Cache, tmp_path: Path) -> None:
    folder = compiler()
    found = detect(cache)
    assert (found.c, found.cxx) == (folder / "cc", folder / "c++")
    assert (found.family, found.version, found.target) == ("gcc", "gcc (Test) 13.2.0", "x86_64-test-linux-gnu")
    assert found.openmp == tmp_path / "libgomp.so.1"
    assert len(found.sha256) == 64
    assert str(tmp_path) not in json.dumps(found.as_json())


def test_clang_is_told_by_its_version(compiler: Make, cache: Cache) -> None:
    compiler(version="Debian clang version 14.0.6")
    assert detect(cache).family == "clang"


@pytest.mark.parametrize("program", ["cc1", "cc1plus", "as", "ld", "collect2"])
def test_a_change_of_any_program_changes_the_digest(compiler: Make, cache: Cache, tmp_path: Path, program: str) -> None:
    compiler()
    before = detect(cache).sha256
    assert detect(cache).sha256 == before
    (tmp_path / "programs" / program).write_text("another")
    assert detect(cache).sha256 != before


def test_the_openmp_library_and_the_compiler_are_in_the_digest(compiler: Make, cache: Cache, tmp_path: Path) -> None:
    compiler()
    before = detect(cache).sha256
    (tmp_path / "libgomp.so.1").write_text("other")
    changed = detect(cache).sha256
    compiler("cc")
    with (tmp_path / "bin" / "cc").open("a") as script:
        script.write("# other\n")
    assert len({before, changed, detect(cache).sha256}) == 3


def test_the_digest_does_not_depend_on_where_things_lie(
    compiler: Make, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler()
    before = detect(cache).sha256
    shutil.copytree(tmp_path / "bin", tmp_path / "elsewhere")
    monkeypatch.setenv("PATH", str(tmp_path / "elsewhere"))
    assert detect(cache).sha256 == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 3}', "null", "\udcff"])
def test_a_damaged_memory_of_digests_is_forgotten(compiler: Make, cache: Cache, text: str) -> None:
    compiler()
    before = detect(cache).sha256
    (cache.root / "toolchain-digests.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert detect(cache).sha256 == before


def test_a_memory_that_cannot_be_written_is_no_error(compiler: Make, tmp_path: Path) -> None:
    compiler()
    (tmp_path / "file").write_text("")
    (tmp_path / "cache").mkdir()
    assert detect(Cache(tmp_path / "cache")).sha256


def test_without_openmp(compiler: Make, cache: Cache) -> None:
    compiler(openmp="libgomp.so.1")
    assert detect(cache).openmp is None


def test_the_first_complete_pair_is_used(compiler: Make) -> None:
    folder = compiler("clang", "clang++", "gcc")
    assert find_compilers() == (folder / "clang", folder / "clang++")
    compiler("g++")
    assert find_compilers() == (folder / "gcc", folder / "g++")
    compiler("cc", "c++")
    assert find_compilers() == (folder / "cc", folder / "c++")


def test_cc_and_cxx_choose(compiler: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = compiler("cc", "c++", "my-cc", "my-c++")
    monkeypatch.setenv("CC", "my-cc")
    assert find_compilers() == (folder / "my-cc", folder / "c++")
    monkeypatch.setenv("CXX", str(folder / "my-c++"))
    assert find_compilers() == (folder / "my-cc", folder / "my-c++")


def test_no_compiler_and_a_wrong_choice(compiler: Make, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToolchainError) as caught:
        detect(cache)
    assert "CC and CXX" in str(caught.value.next_step)
    compiler()
    monkeypatch.setenv("CXX", "no-such-c++")
    with pytest.raises(ToolchainError, match=r"no-such-c\+\+"):
        detect(cache)


@pytest.mark.parametrize(
    ("name", "value", "what", "then"),
    [
        ("CC", "gcc -m64", "CC holds a command with options: 'gcc -m64'", "set CC=gcc; flags belong into the recipe"),
        ("CXX", "g++  -std=c++20", "CXX holds a command with options", "set CXX=g++; flags"),
        ("CC", "ccache gcc", "CC holds a command with a launcher", "set CC=gcc; forkyard uses ccache by itself"),
        ("CC", "gcc '-DX=a b'", "CC holds a command with options", "set CC=gcc"),
        ("CC", "/", "CC names no program: / cannot be found", "correct CC"),
        ("CC", "{folder}/plain", "CC names no program", "correct CC, say CC=gcc"),
        ("CXX", "{folder}/missing", "CXX names no program", "correct CXX, say CXX=g++"),
        ("CC", "gcc-99", "gcc-99 cannot be found", "install one"),
        ("CC", "gcc -m64 'unclosed", "CC holds a command with options", "set CC=gcc"),
    ],
)
def test_what_cc_and_cxx_cannot_be(
    compiler: Make, cache: Cache, monkeypatch: pytest.MonkeyPatch, name: str, value: str, what: str, then: str
) -> None:
    folder = compiler("cc", "c++", "gcc", "g++", "ccache")
    (folder / "plain").write_text("no program")
    monkeypatch.setenv(name, value.format(folder=folder))
    with pytest.raises(ToolchainError) as caught:
        detect(cache)
    assert what in caught.value.what
    assert then in (caught.value.next_step or "")
    assert "is not on this machine" not in caught.value.what
    (check,) = (check for check in examine(cache) if check.name == "compiler")
    assert what in check.found
    assert check.fix == caught.value.next_step


def test_half_a_pair(compiler: Make, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = compiler("gcc")
    with pytest.raises(ToolchainError, match=f"there is {folder}/gcc, but no C and C.. compiler that belong together"):
        detect(cache)
    compiler("my-cc")
    monkeypatch.setenv("CC", " my-cc ")
    with pytest.raises(ToolchainError, match="my-cc, but no C and"):
        detect(cache)
    compiler("c++")
    assert detect(cache).c == folder / "my-cc"


def test_a_launcher_is_no_compiler(compiler: Make, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler("ccache", "cc", "c++")
    monkeypatch.setenv("CC", "ccache")
    with pytest.raises(ToolchainError, match="launcher"):
        detect(cache)


def test_compilers_of_two_kinds(compiler: Make, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler()
    compiler("clang", "clang++", version="Debian clang version 14.0.6")
    compiler("gcc-12", version="gcc-12 (Test) 12.2.0")
    for c in ("clang", "gcc-12"):
        monkeypatch.setenv("CC", c)
        with pytest.raises(ToolchainError, match="not of one kind and version") as caught:
            detect(cache)
        assert "set both CC and CXX" in (caught.value.next_step or "")
    monkeypatch.setenv("CC", "clang")
    monkeypatch.setenv("CXX", "clang++")
    assert detect(cache).major == 14


@pytest.mark.parametrize("char", [":", "$", ";"])
def test_a_compiler_in_a_folder_that_programs_take_apart(
    compiler: Make, cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, char: str
) -> None:
    odd = compiler().rename(tmp_path / f"a{char}b")
    monkeypatch.setenv("CC", str(odd / "cc"))
    monkeypatch.setenv("CXX", str(odd / "c++"))
    with pytest.raises(StorageError, match="compiler cc"):
        detect(cache)


@pytest.mark.parametrize(
    ("version", "major"),
    [
        ("gcc (Ubuntu 9.4.0-1ubuntu1~20.04.1) 9.4.0", 9),
        ("g++ (GCC) 11.4.1 20230605 (Red Hat 11.4.1-2)", 11),
        ("Ubuntu clang version 18.1.3 (1ubuntu1)", 18),
        ("something else", None),
    ],
)
def test_the_major_version(compiler: Make, cache: Cache, version: str, major: int | None) -> None:
    compiler(version=version)
    assert detect(cache).major == major


@pytest.mark.parametrize(
    ("version", "manager", "package"),
    [
        ("Debian clang version 14.0.6", "apt", "libomp-14-dev"),
        ("clang version 17.0.6 (Fedora 17.0.6-2.fc39)", "dnf", "libomp-devel"),
        ("clang version 17.0.6", "pacman", "openmp"),
        ("clang version 17.0.6", "zypper", "libomp-devel"),
        ("Alpine clang version 17.0.5", "apk", "openmp-dev"),
        ("gcc (Test) 13.2.0", "apt", "libgomp1"),
    ],
)
def test_the_openmp_library_that_is_missing(
    compiler: Make, cache: Cache, monkeypatch: pytest.MonkeyPatch, version: str, manager: str, package: str
) -> None:
    compiler(version=version, openmp="libomp.so")
    monkeypatch.setattr("forkyard.toolchain.this_package_manager", lambda: manager)
    (check,) = (check for check in examine(cache) if check.name == "openmp")
    assert check.state == "missing"
    assert (check.fix or "").endswith(f" {package}")
    assert ("libomp" in check.found) == ("clang" in version)


BROKEN = {
    "fails": "#!/bin/sh\necho broken >&2\nexit 1\n",
    "says nothing": "#!/bin/sh\nexit 0\n",
    "no program": "\0\0\0",
    "no interpreter": "#!/nonexistent/sh\n",
    "killed": "#!/bin/sh\nkill -9 $$\n",
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_compiler(compiler: Make, cache: Cache, case: str) -> None:
    compiler(body=BROKEN[case])
    with pytest.raises(ToolchainError):
        detect(cache)


def test_native_features_have_proc_cpuinfo_names(compiler: Make, cache: Cache) -> None:
    compiler()
    assert native_features(detect(cache)) == ("avx2", "avx512f", "fma")


def test_a_compiler_without_march_native(compiler: Make, cache: Cache) -> None:
    compiler(body=FAKE.replace("-march=native", "-march=never"))
    with pytest.raises(ToolchainError) as caught:
        native_features(detect(cache))
    assert "named variant" in str(caught.value.next_step)


def test_flags_of_the_caller_do_not_reach_the_compiler(
    compiler: Make, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(body=FAKE.replace("case", '[ -z "$CPATH$GCC_EXEC_PREFIX" ] || exit 9\ncase', 1))
    monkeypatch.setenv("CPATH", "/evil")
    monkeypatch.setenv("GCC_EXEC_PREFIX", "/evil")
    assert detect(cache).family == "gcc"


def test_names_match_proc_cpuinfo() -> None:
    from forkyard.toolchain import _MACROS

    listed = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    flags = next((set(line.split()) for line in listed.splitlines() if line.startswith("flags")), set())
    assert len(set(_MACROS.values())) == len(_MACROS)
    if "avx2" in flags:
        assert {"avx2", "fma", "bmi2", "abm"} <= set(_MACROS.values()) & flags
