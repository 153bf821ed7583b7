"""A rebase of a project with edits that are not committed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forkyard.console import Console
from forkyard.errors import PatchError, UsageError
from forkyard.rebasing import session as session_module

from .lab import Lab, git, numbered, text


@pytest.fixture
def hop(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two upstream commits without conflicts, and the project committed."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(l20="new")})
    lab.series(
        made[0], ("one", {"a.c": numbered(l5="mine"), "ours.c": text("ours")}, "Adds-Files: ours.c"), whole_files=True
    )
    (lab.root / ".gitignore").write_text(".forkyard/\nwork/\n")
    git(lab.root, "init", "--quiet")
    git(lab.root, "add", "--all")
    git(lab.root, "commit", "--quiet", "--message", "begin")
    return made


@pytest.mark.parametrize(
    "path",
    [
        "recipes/mine.toml",
        "patches/part/llama.cpp/series",
        "patches/part/llama.cpp/one.patch",
        "patches/part/src/ours.c",
    ],
)
def test_it_is_refused(lab: Lab, hop: list[str], path: str) -> None:
    file = lab.root / path
    commented = path.endswith(("toml", "series"))
    if commented:
        file.write_bytes(b"# mine\n" + file.read_bytes())
    else:
        file.chmod(0o755)
    before = lab.snapshot()
    with pytest.raises(UsageError, match="not committed") as caught:
        lab.session().start(hop[1])
    assert caught.value.why == path
    assert "--allow-dirty" in str(caught.value.next_step)
    assert lab.snapshot() == before
    assert not (lab.root / ".forkyard" / "rebase").exists()
    assert lab.session().start(hop[1], dry_run=True).finished is None
    if commented:
        assert lab.session().start(hop[1], allow_dirty=True).finished is not None
        assert b"# mine\n" in file.read_bytes()


@pytest.mark.parametrize(
    "path", ["patches/part/stack.toml", "patches/part/notes.txt", "README.md", "recipes/other.txt"]
)
def test_what_it_does_not_write_is_no_reason(lab: Lab, hop: list[str], path: str) -> None:
    file = lab.root / path
    content = (file.read_bytes() if file.exists() else b"") + b"# mine\n"
    file.write_bytes(content)
    assert lab.session().start(hop[1]).finished is not None
    assert file.read_bytes() == content


def test_an_edit_while_it_runs_is_not_written_over(lab: Lab, hop: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    series, real = lab.root / "patches/part/llama.cpp/series", session_module.replay

    def replay(*args: Any, **options: Any) -> Any:
        done = real(*args, **options)
        series.write_bytes(b"# mine\n" + series.read_bytes())
        return done

    monkeypatch.setattr(session_module, "replay", replay)
    before = lab.snapshot()
    with pytest.raises(PatchError, match="changed since the rebase began"):
        lab.session().start(hop[1])
    after = lab.snapshot()
    assert after.pop("patches/part/llama.cpp/series")[1].startswith(b"# mine\n")
    assert after == {path: data for path, data in before.items() if path in after}


def test_once_written_it_is_an_edit_until_it_is_committed(lab: Lab, hop: list[str]) -> None:
    lab.session().start(hop[1])
    with pytest.raises(UsageError, match="not committed"):
        lab.session().start(hop[0])
    git(lab.root, "commit", "--quiet", "--all", "--message", "moved")
    assert lab.session().start(hop[0]).finished is not None


def test_a_project_without_git_is_told_so(lab: Lab, capsys: Any) -> None:
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(l20="new")})
    lab.series(made[0], ("one", {"a.c": numbered(l5="mine")}))
    done = session_module.Session(lab.root, "mine", lab.cache, Console()).start(made[1])
    assert done.finished is not None
    assert "the project is not in git" in capsys.readouterr().err
