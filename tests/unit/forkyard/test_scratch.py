"""What a living process owns stays; what a dead one left goes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from forkyard.scratch import owned_file, owned_folder, sweep

OWNER = """
import sys
from pathlib import Path
from forkyard.scratch import owned_file, owned_folder
with owned_folder(Path(sys.argv[1]), "folder-") as folder, owned_file(Path(sys.argv[1]), "file-") as file:
    (folder / "content").write_text("x")
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_an_owned_folder_lives_as_long_as_its_block(tmp_path: Path) -> None:
    with owned_folder(tmp_path / "new", "work-") as folder:
        (folder / "content").write_text("x")
        sweep(tmp_path / "new")
        assert (folder / "content").exists()
    assert list((tmp_path / "new").iterdir()) == []


def test_an_owned_file_may_be_renamed_away(tmp_path: Path) -> None:
    with owned_file(tmp_path, ".incoming-") as file:
        file.write_text("whole")
        file.replace(tmp_path / "result")
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_an_owned_file_goes_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), owned_file(tmp_path, ".incoming-"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_only_what_has_no_living_owner_is_swept(tmp_path: Path) -> None:
    (tmp_path / "file-dead").write_text("x")
    (tmp_path / "other").write_text("x")
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    sweep(tmp_path, "file-")
    sweep(tmp_path, "folder-")
    assert len(list(tmp_path.glob("folder-*/content"))) == 1
    assert len(list(tmp_path.glob("file-*"))) == 1
    owner.kill()
    owner.communicate()
    sweep(tmp_path, "file-")
    sweep(tmp_path, "folder-")
    assert list(tmp_path.glob("folder-*")) + list(tmp_path.glob("file-*")) == []


def test_a_folder_that_is_not_there_is_swept_already(tmp_path: Path) -> None:
    sweep(tmp_path / "nowhere")


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "content").write_text("x")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(outside)
    sweep(inside)
    assert (outside / "content").exists()
