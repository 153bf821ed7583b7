"""The project's own repository, wherever the project is in it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from forkyard.errors import SourceError, UsageError
from forkyard.gitstore.project import ProjectRepository, uncommitted

PERSON = {
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", *words], cwd=folder, env={**os.environ, **PERSON}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def commit(folder: Path, message: str = "change") -> str:
    git(folder, "add", "--all", "--force", ".")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", message)
    return git(folder, "rev-parse", "HEAD")


def fill(project: Path, text: str = "one\n") -> None:
    (project / "patches" / "part").mkdir(parents=True, exist_ok=True)
    (project / "patches" / "part" / "a.patch").write_text(text)
    (project / "recipes").mkdir(exist_ok=True)
    (project / "recipes" / "mine.toml").write_text("x = 1\n")
    (project / "README.md").write_text("read\n")


@pytest.fixture(autouse=True)
def no_users_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration of whoever runs the tests is not what is tested."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


def top(tmp_path: Path) -> Path:
    project = tmp_path / "top"
    project.mkdir()
    git(project, "init", "--quiet", "--initial-branch=main")
    return project


def in_a_folder(tmp_path: Path) -> Path:
    project = tmp_path / "mono" / "tools" / "för kyard"
    project.mkdir(parents=True)
    git(tmp_path / "mono", "init", "--quiet", "--initial-branch=main")
    # What is beside the project has the same names.
    fill(tmp_path / "mono", "another\n")
    return project


def linked(tmp_path: Path) -> Path:
    first = top(tmp_path)
    (first / "seed").write_text("seed\n")
    commit(first)
    git(first, "worktree", "add", "--quiet", "-b", "side", str(tmp_path / "linked"))
    assert (tmp_path / "linked" / ".git").is_file()
    return tmp_path / "linked"


@pytest.fixture(params=[top, in_a_folder, linked])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make: Callable[[Path], Path] = request.param
    made = make(tmp_path)
    fill(made)
    return made


def test_files_are_as_they_were(project: Path, tmp_path: Path) -> None:
    old = commit(project)
    fill(project, "two\n")
    (project / "patches" / "part" / "b.patch").write_text("new\n")
    repository = ProjectRepository(project)

    assert repository.revision("HEAD") == old
    assert repository.export_folders(old, ["recipes", "patches", "absent"], tmp_path / "out") == ["recipes", "patches"]
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert files == ["patches/part/a.patch", "recipes/mine.toml"]
    assert (tmp_path / "out/patches/part/a.patch").read_text() == "one\n"
    assert repository.changed_since(old) == ["patches/part/a.patch", "patches/part/b.patch"]


def test_a_change_in_the_moment_the_index_was_written(project: Path) -> None:
    """Size and times tell nothing then, and git looks into the file; it must still know that it has to."""
    git(project, "config", "core.trustctime", "false")
    path, moment = project / "README.md", 1_700_000_000_000_000_000
    os.utime(path, ns=(moment, moment))
    old = commit(project)
    path.write_text("daer\n")
    index = git(project, "rev-parse", "--path-format=absolute", "--git-path", "index")
    for changed in (path, index):
        os.utime(changed, ns=(moment, moment))
    assert ProjectRepository(project).changed_since(old) == ["README.md"]


def test_a_deleted_and_a_staged_file_have_changed(project: Path) -> None:
    old = commit(project)
    (project / "README.md").unlink()
    (project / "recipes" / "mine.toml").rename(project / "recipes" / "yours.toml")
    git(project, "add", "--all", ".")
    (project / ".gitignore").write_text("*.log\n")
    (project / "x.log").write_text("ignored")
    changed = ProjectRepository(project).changed_since(old)
    assert changed == [".gitignore", "README.md", "recipes/mine.toml", "recipes/yours.toml"]


def test_nothing_changed(project: Path) -> None:
    assert ProjectRepository(project).changed_since(commit(project)) == []


def test_bytes_are_those_committed_whatever_attributes_say(project: Path, tmp_path: Path) -> None:
    folder = project / "patches" / "part"
    (project / ".gitattributes").write_text(
        "*.patch text eol=crlf\n*.id export-subst ident\nhidden export-ignore\n*.z filter=z\n"
    )
    git(project, "config", "filter.z.smudge", "false")
    git(project, "config", "filter.z.clean", "cat")
    git(project, "config", "core.autocrlf", "input")
    contents = {
        "a.patch": b"one\ntwo\n",
        "b.id": b"$Format:%H$ $Id$\n",
        "hidden": b"hidden\n",
        "c.z": b"z\n",
        "d.bin": b"\0\xff\r\n\x01",
        '\u00fcn\u00efcode \u2713 "q" \t.txt': b"",
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    (folder / "tool").write_bytes(b"#!/bin/sh\n")
    (folder / "tool").chmod(0o755)
    ProjectRepository(project).export_folders(commit(project), ["patches"], tmp_path / "out")

    out = tmp_path / "out" / "patches" / "part"
    assert {name: (out / name).read_bytes() for name in contents} == contents
    assert (out / "tool").stat().st_mode & 0o777 == 0o755
    assert (out / "hidden").stat().st_mode & 0o777 == 0o644


def test_two_files_of_one_content(project: Path, tmp_path: Path) -> None:
    (project / "patches" / "part" / "same.patch").write_text("one\n")
    ProjectRepository(project).export_folders(commit(project), ["patches"], tmp_path / "out")
    assert (tmp_path / "out/patches/part/same.patch").read_text() == "one\n"
    assert (tmp_path / "out/patches/part/a.patch").read_text() == "one\n"


def test_a_link_is_refused(project: Path, tmp_path: Path) -> None:
    (project / "patches" / "link").symlink_to("/etc/passwd")
    old = commit(project)
    with pytest.raises(SourceError, match="patches/link is no ordinary file") as caught:
        ProjectRepository(project).export_folders(old, ["patches"], tmp_path / "out")
    assert "120000" in str(caught.value)


def test_a_folder_is_taken_literally(project: Path, tmp_path: Path) -> None:
    (project / "patches*").mkdir()
    (project / "patches*" / "star").write_text("star\n")
    old = commit(project)
    assert ProjectRepository(project).export_folders(old, ["patches*"], tmp_path / "out") == ["patches*"]
    assert not (tmp_path / "out" / "patches").exists()


@pytest.mark.parametrize("name", ["nosuch", "", "HEAD~9", "HEAD:README.md", "--all", "a\0b", "HEAD^{tree}", "v1..v2"])
def test_an_unknown_revision(project: Path, name: str) -> None:
    commit(project)
    repository = ProjectRepository(project)
    assert repository.find_revision(name) is None
    with pytest.raises(UsageError, match="the project has no revision"):
        repository.revision(name)


def test_names_of_a_revision(project: Path) -> None:
    old = commit(project)
    git(project, "tag", "--annotate", "--message", "v1", "v1")
    new = commit(project, "again")
    repository = ProjectRepository(project)
    found = [repository.revision(name) for name in ("v1", "HEAD~1", old[:10], "@~1", "HEAD", "@")]
    assert found == [old, old, old, old, new, new]


def test_no_repository(tmp_path: Path) -> None:
    fill(tmp_path)
    repository = ProjectRepository(tmp_path)
    for ask in (lambda: repository.revision("HEAD"), lambda: repository.changed_since("HEAD"), repository.prefix):
        with pytest.raises(UsageError, match="not in a git work tree") as caught:
            ask()
        assert "worktree" in str(caught.value)


def test_a_repository_without_commits(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no revision 'HEAD'"):
        ProjectRepository(top(tmp_path)).revision("HEAD")


def test_inside_a_git_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not in a git work tree"):
        ProjectRepository(top(tmp_path) / ".git").revision("HEAD")


def test_a_shallow_clone_says_so(tmp_path: Path) -> None:
    project = top(tmp_path)
    fill(project)
    commit(project)
    commit(project, "again")
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{project}", "shallow")
    with pytest.raises(UsageError, match="shallow") as caught:
        ProjectRepository(tmp_path / "shallow").revision("HEAD~1")
    assert "`git fetch --unshallow`" in str(caught.value)
    git(tmp_path / "shallow", "fetch", "--quiet", "--unshallow")
    assert ProjectRepository(tmp_path / "shallow").revision("HEAD~1")


def test_somebody_elses_repository(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = commit(project)

    class Foreign(ProjectRepository):
        def _environment(self, index: Path | None, *, users_config: bool) -> dict[str, str]:
            return {
                **super()._environment(index, users_config=users_config),
                "GIT_TEST_ASSUME_DIFFERENT_OWNER": "1",
            }

    with pytest.raises(UsageError, match="does not trust") as caught:
        Foreign(project).revision("HEAD")
    # What is advised helps.
    subprocess.run(str(caught.value.next_step).partition("run: ")[2], shell=True, check=True, timeout=1800)
    assert Foreign(project).revision("HEAD") == old
    Path(os.environ["GIT_CONFIG_GLOBAL"]).unlink()
    # The user's word counts, in a file and in the environment.
    Path(os.environ["GIT_CONFIG_GLOBAL"]).write_text("[safe]\n\tdirectory = *\n")
    assert Foreign(project).revision("HEAD") == old
    Path(os.environ["GIT_CONFIG_GLOBAL"]).unlink()
    for name, value in (("COUNT", "1"), ("KEY_0", "safe.directory"), ("VALUE_0", "*")):
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    assert Foreign(project).revision("HEAD") == old


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("linked", [False, True])
def test_the_advice_for_a_project_of_somebody_else_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    folder = top(tmp_path)
    fill(folder)
    old = commit(folder)
    monkeypatch.delenv("SUDO_UID", raising=False)
    if linked:
        git(folder, "worktree", "add", "--quiet", "--detach", str(tmp_path / "linked"))
        folder = tmp_path / "linked"
    for path in [tmp_path, *tmp_path.rglob("*")]:
        os.chown(path, 12345, 12345, follow_symlinks=False)
    with pytest.raises(UsageError, match="does not trust") as caught:
        ProjectRepository(folder).revision("HEAD")
    subprocess.run(str(caught.value.next_step).partition("run: ")[2], shell=True, check=True, timeout=1800)
    assert ProjectRepository(folder).revision("HEAD") == old


def test_a_hooks_environment_names_another_repository(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = commit(project)
    (tmp_path / "other").mkdir()
    git(tmp_path / "other", "init", "--quiet")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "other" / "index"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    repository = ProjectRepository(project)
    assert repository.revision("HEAD") == old
    assert repository.changed_since("HEAD") == []


def test_settings_of_the_user_change_no_answer(project: Path) -> None:
    old = commit(project)
    fill(project, "two\n")
    Path(os.environ["GIT_CONFIG_GLOBAL"]).write_text(
        "[diff]\n\trelative = false\n\tnoprefix = true\n\texternal = false\n\trenames = copies\n[color]\n\tui = always\n"
        "[core]\n\tquotePath = true\n"
    )
    assert ProjectRepository(project).changed_since(old) == ["patches/part/a.patch"]


def test_nothing_is_written(project: Path, tmp_path: Path) -> None:
    old = commit(project)
    folder = Path(git(project, "rev-parse", "--path-format=absolute", "--git-common-dir"))

    def state() -> dict[str, tuple[int, int]]:
        return {
            str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*") if path.is_file()
        }

    before = state()
    os.utime(project / "README.md", (1, 1))
    repository = ProjectRepository(project)
    repository.export_folders(old, ["patches"], tmp_path / "out")
    assert repository.changed_since(old) == []
    assert state() == before


ALL = ["patches/part/a.patch", "recipes/mine.toml", "README.md", "not/there"]


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    project = top(tmp_path)
    fill(project)
    commit(project)
    return project


def _edit(path: Path) -> None:
    path.write_text("mine\n")


def _stage(path: Path) -> None:
    _edit(path)
    git(path.parent, "add", path.name)


def _stage_only(path: Path) -> None:
    """Staged, and then put back: the edit is in the index alone."""
    before = path.read_text()
    _stage(path)
    path.write_text(before)


def _delete(path: Path) -> None:
    path.unlink()


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("elsewhere")


def _mode(path: Path) -> None:
    path.chmod(0o755)


def _hide(path: Path) -> None:
    git(path.parent, "update-index", "--assume-unchanged", path.name)
    _edit(path)


def _skip(path: Path) -> None:
    git(path.parent, "update-index", "--skip-worktree", path.name)
    _edit(path)


@pytest.mark.parametrize("change", [_edit, _stage, _stage_only, _delete, _link, _mode, _hide, _skip])
def test_what_git_could_not_give_back(clean: Path, change: Callable[[Path], None]) -> None:
    assert uncommitted(clean, ALL) == ([], [])
    index = (clean / ".git" / "index").read_bytes()
    assert uncommitted(clean, ALL) == ([], [])
    assert (clean / ".git" / "index").read_bytes() == index, "the person's index is only read"
    change(clean / "patches" / "part" / "a.patch")
    assert uncommitted(clean, ALL) == (["patches/part/a.patch"], [])
    assert uncommitted(clean, ["recipes/mine.toml", "README.md"]) == ([], [])


def test_unknown_and_ignored_files_cannot_be_given_back(clean: Path) -> None:
    (clean / ".git" / "info").mkdir(exist_ok=True)
    (clean / ".git" / "info" / "exclude").write_text("*.lock\n")
    for name in ("new *.txt", "recipes/x.lock"):
        (clean / name).write_text("x")
    git(clean, "add", "--intent-to-add", "new *.txt")
    assert uncommitted(clean, ["new *.txt", "recipes/x.lock", "recipes/mine.toml"])[0] == [
        "new *.txt",
        "recipes/x.lock",
    ]


def test_before_the_first_commit_nothing_can_be_given_back(tmp_path: Path) -> None:
    project = top(tmp_path)
    fill(project)
    git(project, "add", "README.md")
    assert uncommitted(project, ALL) == (sorted(ALL[:3]), [])


def test_a_project_without_git(tmp_path: Path) -> None:
    fill(tmp_path / "plain")
    assert uncommitted(tmp_path / "plain", ALL) == ([], sorted(ALL[:3]))


def test_each_file_is_asked_of_the_repository_it_is_in(clean: Path, tmp_path: Path) -> None:
    """A submodule, a linked work tree, a link to another repository, and a recipe outside of all."""
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    (other / "a.patch").write_text("x")
    commit(other)
    git(clean, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other), "patches/sub")
    (clean / "patches" / "link").symlink_to(other)
    commit(clean)
    linked = tmp_path / "linked"
    git(clean, "worktree", "add", "--quiet", str(linked))
    outside = tmp_path / "mine.toml"
    outside.write_text("x")
    paths = ["patches/sub/a.patch", "patches/link/a.patch", "README.md", str(outside)]
    assert uncommitted(clean, paths) == ([], [str(outside)])
    assert uncommitted(linked, ["README.md"]) == ([], [])
    for path in ("patches/sub/a.patch", "patches/link/a.patch", "README.md"):
        (clean / path).write_text("mine")
    assert uncommitted(clean, paths) == (sorted(paths[:3]), [str(outside)])
    assert uncommitted(linked, ["README.md"]) == ([], [])


def test_line_ends_that_git_converts_are_no_edit(clean: Path) -> None:
    git(clean, "config", "core.autocrlf", "true")
    git(clean, "rm", "--quiet", "--cached", "-r", ".")
    git(clean, "reset", "--quiet", "--hard")
    assert b"\r\n" in (clean / "README.md").read_bytes()
    assert uncommitted(clean, ALL) == ([], [])
