from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from forkyard.cache import Cache
from forkyard.console import Silent
from forkyard.errors import BuildError
from forkyard.pure import bindings_digest, build_bindings

PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "forkyard-llm"
version = "{version}"
requires-python = ">=3.10"
[tool.hatch.build.targets.wheel]
packages = ["src/forkyard_llm"]
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    package = tmp_path / "root" / "bindings" / "src" / "forkyard_llm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (tmp_path / "root" / "bindings" / "pyproject.toml").write_text(PYPROJECT.format(version="1.0"))
    return tmp_path / "root"


def test_the_digest_sees_content_names_and_nothing_else(root: Path) -> None:
    package = root / "bindings" / "src" / "forkyard_llm"
    digests = [bindings_digest(root / "bindings")]

    def note() -> None:
        digests.append(bindings_digest(root / "bindings"))

    (package / "a.py").write_text("1")
    note()
    (package / "a.py").write_text("2")
    note()
    (package / "a.py").rename(package / "b.py")
    note()
    (package / "models.json").write_text("{}")
    note()
    assert len(set(digests)) == len(digests)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "a.pyc").write_text("x")
    (root / "bindings" / "dist").mkdir()
    (root / "bindings" / "dist" / "old.whl").write_text("x")
    (root / "other").write_text("x")
    assert bindings_digest(root / "bindings") == digests[-1]


def test_moving_bytes_between_files_changes_the_digest(root: Path) -> None:
    folder = root / "bindings"
    (folder / "a").write_bytes(b"1")
    (folder / "b").write_bytes(b"2")
    two = bindings_digest(root / "bindings")
    (folder / "b").unlink()
    (folder / "a").write_bytes(b"1b\0002")
    assert bindings_digest(root / "bindings") != two


def test_a_wheel_is_made_once_and_put_where_it_belongs(root: Path, tmp_path: Path) -> None:
    cache, out = Cache(tmp_path / "cache"), tmp_path / "out"
    (wheel,) = build_bindings(root, cache, out, Silent())
    first = wheel.read_bytes()
    assert wheel.name == "forkyard_llm-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        assert "forkyard_llm/__init__.py" in archive.namelist()
        assert len({info.date_time for info in archive.infolist()}) == 1
    before = wheel.stat().st_mtime_ns
    assert build_bindings(root, cache, out, Silent())[0].stat().st_mtime_ns == before
    wheel.write_bytes(b"damaged")
    assert build_bindings(root, cache, out, Silent())[0].read_bytes() == first
    (root / "bindings" / "pyproject.toml").write_text(PYPROJECT.format(version="2.0"))
    assert build_bindings(root, cache, out, Silent())[0].name == "forkyard_llm-2.0-py3-none-any.whl"
    assert len(list(out.iterdir())) == 1, "the older wheel is gone"


def test_the_same_files_give_the_same_bytes_elsewhere(root: Path, tmp_path: Path) -> None:
    made = [build_bindings(root, Cache(tmp_path / name), tmp_path / f"out-{name}", Silent())[0] for name in ("a", "b")]
    assert made[0].read_bytes() == made[1].read_bytes()


def test_the_drop_ins_wheel_lies_beside_and_neither_takes_the_others_place(root: Path, tmp_path: Path) -> None:
    package = root / "bindings" / "llama_cpp" / "src" / "llama_cpp"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    text = PYPROJECT.format(version="1.0")
    for old, new in (("forkyard-llm", "forkyard-llama-cpp-python"), ("forkyard_llm", "llama_cpp")):
        text = text.replace(old, new)
    before = bindings_digest(root / "bindings")
    (package.parents[1] / "pyproject.toml").write_text(text)
    assert bindings_digest(root / "bindings") == before
    expected = ["forkyard_llama_cpp_python-1.0-py3-none-any.whl", "forkyard_llm-1.0-py3-none-any.whl"]
    for _ in range(2):
        made = build_bindings(root, Cache(tmp_path / "cache"), tmp_path / "out", Silent())
        assert sorted(wheel.name for wheel in made) == expected
        assert sorted(wheel.name for wheel in (tmp_path / "out").iterdir()) == expected
    (package / "more.py").write_text("")
    build_bindings(root, Cache(tmp_path / "cache"), tmp_path / "out", Silent())
    with zipfile.ZipFile(tmp_path / "out" / expected[0]) as archive:
        assert "llama_cpp/more.py" in archive.namelist()


def test_a_broken_project_says_why(root: Path, tmp_path: Path) -> None:
    (root / "bindings" / "pyproject.toml").write_text("[project]\nname = 3\n")
    with pytest.raises(BuildError) as caught:
        build_bindings(root, Cache(tmp_path / "cache"), tmp_path / "out", Silent())
    assert caught.value.why
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []
