from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from forkyard.journal import Changes, commit_changes
from forkyard.stacks.exporting import Exported, ExportedPatch
from forkyard.stacks.model import Stack, load_stack
from forkyard.stacks.writing import overlaid, series_changes, sources_of, unused_files

ABOUT = 'title = "t"\nintent = "i"\nengines = ["llama.cpp", "ik_llama.cpp"]\nsince = "2026-01-01"\n'


def patch(name: str, *adds: str) -> bytes:
    trailers = "".join(f"Adds-Files: {path}\n" for path in adds)
    return f"Subject: {name}\n\nUpstream-Status: Pending\n{trailers}\ndiff --git a/f b/f\n".encode()


@pytest.fixture
def stack(project_root: Path, add_stack: Callable[..., Path]) -> Stack:
    folder = add_stack(
        project_root,
        "part",
        patches={"a.patch": patch("a", "mine.c", "both.c -> src/both.c"), "b.patch": patch("b")},
        files={"mine.c": b"m", "both.c": b"b", "README": b"r"},
        about=ABOUT,
        series="# a\na.patch\nb.patch\n",
    )
    (folder / "ik_llama.cpp").mkdir()
    (folder / "ik_llama.cpp" / "x.patch").write_bytes(patch("x", "both.c"))
    (folder / "ik_llama.cpp" / "series").write_text("x.patch\n")
    return load_stack(project_root, "part")


def exported(*names: str, files: dict[str, tuple[bytes, bool]] | None = None) -> Exported:
    return Exported(tuple(ExportedPatch(name, patch(name), name, "", "") for name in names), files or {})


def test_which_whole_files_patches_add(stack: Stack) -> None:
    assert sources_of(stack, "llama.cpp") == {"mine.c", "both.c"}
    assert sources_of(stack, "ik_llama.cpp") == {"both.c"}
    assert unused_files(stack, "llama.cpp", exported("a.patch")) == {"mine.c"}
    assert unused_files(stack, "llama.cpp", exported("a.patch", files={"mine.c": (b"m", False)})) == set()


def test_a_series_becomes_the_exported_one(project_root: Path, stack: Stack) -> None:
    changes = Changes()
    new = exported("a.patch", "c.patch", files={"deep/new.c": (b"n", True)})
    series_changes(changes, project_root, stack, "llama.cpp", new, gone=unused_files(stack, "llama.cpp", new))
    written = commit_changes(project_root, changes)
    assert written == [
        f"patches/part/{path}"
        for path in (
            "llama.cpp/a.patch",
            "llama.cpp/b.patch",
            "llama.cpp/c.patch",
            "llama.cpp/series",
            "src/deep/new.c",
            "src/mine.c",
        )
    ]
    assert [one.name for one in stack.series("llama.cpp").patches] == ["a.patch", "c.patch"]
    assert (stack.folder / "llama.cpp" / "series").read_text() == "# a\na.patch\nc.patch\n"
    assert os.access(stack.src / "deep" / "new.c", os.X_OK)
    assert sorted(path.name for path in stack.src.iterdir()) == ["README", "both.c", "deep"]
    assert commit_changes(project_root, changes) == []


def test_a_copy_shows_the_project_as_it_will_be(project_root: Path, stack: Stack, tmp_path: Path) -> None:
    changes = Changes()
    changes.write("patches/part/src/run.sh", b"#!", executable=True)
    changes.write("patches/new/deep/file", b"x")
    changes.delete("patches/part/src/mine.c")
    with overlaid(project_root, changes, tmp_path / "scratch") as copy:
        assert os.access(copy / "patches" / "part" / "src" / "run.sh", os.X_OK)
        assert (copy / "patches" / "new" / "deep" / "file").read_bytes() == b"x"
        assert not (copy / "patches" / "part" / "src" / "mine.c").exists()
        assert load_stack(copy, "part").series("llama.cpp").patches
        assert (copy / "recipes" / "mine.toml").exists()
    assert not copy.exists()
    assert stack.whole_file("mine.c") == b"m"
    assert not (stack.src / "run.sh").exists()
