"""What git does with our files where it is told to convert line ends: nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from forkyard.plan import logic_digest

REPOSITORY = Path(__file__).parents[3]
FOLDERS = ("patches", "recipes", "wheels", "src/forkyard/abi", "tests/resources")


def test_a_clone_with_autocrlf_has_the_same_bytes_and_so_the_same_keys(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        config = ("core.autocrlf=true", "core.eol=crlf", "core.safecrlf=false", "user.name=a", "user.email=a@b")
        settings = [word for one in config for word in ("-c", one)]
        subprocess.run(["git", *settings, *words], cwd=tmp_path, check=True, capture_output=True, timeout=1800)

    one, other = tmp_path / "one", tmp_path / "other"
    for folder in FOLDERS:
        shutil.copytree(REPOSITORY / folder, one / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / ".gitattributes", one)
    (one / "text").write_bytes(b"a line\n")
    git("init", "--quiet", "one")
    git("-C", "one", "add", "--all", "--force")
    git("-C", "one", "commit", "--quiet", "--message", "all")
    git("clone", "--quiet", "one", "other")
    files = [path.relative_to(one) for path in one.rglob("*") if path.is_file() and ".git" not in path.parts]
    assert len(files) > 50
    assert [path for path in files if (one / path).read_bytes() != (other / path).read_bytes()] == []
    assert logic_digest(one) == logic_digest(other)
