"""What a word names, and a project as it was."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from forkyard.cache import Cache
from forkyard.errors import ForkyardError, PatchError, RecipeError, UsageError
from forkyard.gitstore.project import ProjectRepository
from forkyard.rangediff.revisions import ProjectAt, Wanted, read_word
from forkyard.recipes import LocalSource, RegistrySource


def git(folder: Path, *words: str) -> str:
    names = ["-c", "user.name=A", "-c", "user.email=a@x", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *names, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(root: Path) -> str:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--allow-empty", "--message", "change")
    return git(root, "rev-parse", "HEAD")


@pytest.fixture
def root(project_root: Path) -> Path:
    git(project_root, "init", "--quiet")
    return project_root


def at(root: Path, word: str, cache: Cache, then: Callable[[ProjectAt], object]) -> object:
    project = ProjectRepository(root)
    with ProjectAt.open(read_word(word, project), project, cache) as opened:
        return then(opened)


def test_words(root: Path) -> None:
    first, second = commit(root), commit(root)
    git(root, "tag", "v1", first)
    git(root, "branch", "me@work", first)
    git(root, "branch", "me@0123456")
    project = ProjectRepository(root)
    for word, commit_id, target in (
        ("worktree", None, None),
        ("HEAD", second, None),
        ("@", second, None),
        ("@~1", first, None),
        ("HEAD@{0}", second, None),
        ("v1", first, None),
        ("me@work", first, None),
        # A name that is there comes before what it could mean otherwise.
        ("me@0123456", second, None),
        ("v1@0123456", first, "0123456"),
        ("HEAD~1@latest", first, "latest"),
        ("me@work@0123456", first, "0123456"),
        ("worktree@0123456", None, "0123456"),
        ("@0123456", None, "0123456"),
    ):
        assert read_word(word, project) == Wanted(word, commit_id, target), word
    assert read_word("@0123456", project, usual=Wanted("v1", first)) == Wanted("@0123456", first, "0123456")
    assert read_word("worktree@01234567", project, usual=Wanted("v1", first)).commit is None


@pytest.mark.parametrize("word", ["nosuch", "nosuch@0123456", "v9@latest", "", "HEAD~9"])
def test_an_unknown_word(root: Path, word: str) -> None:
    commit(root)
    with pytest.raises(UsageError, match="the project has no revision"):
        read_word(word, ProjectRepository(root))


def test_without_git_the_worktree_can_be_named(project_root: Path) -> None:
    project = ProjectRepository(project_root)
    assert read_word("worktree", project).commit is None
    assert read_word("@latest", project).target == "latest"
    assert read_word("worktree@latest", project).target == "latest"
    with pytest.raises(UsageError, match="not in a git work tree"):
        read_word("HEAD", project)


def test_labels() -> None:
    full = "0123456789ab" + "c" * 28
    assert Wanted("worktree").label == "worktree"
    assert Wanted("v1", full).label == "v1 (0123456789ab)"
    assert Wanted(full, full).label == "0123456789ab"
    assert Wanted("0123456", full).label == "0123456789ab"
    assert Wanted("0", full).label == "0 (0123456789ab)"


def test_a_stack_that_is_not_there(root: Path, cache: Cache, add_stack: Callable[..., Path]) -> None:
    commit(root)
    folder = add_stack(root, patches={"a.patch": b"x"})
    assert at(root, "HEAD", cache, lambda project: project.stack("part")) is None
    assert at(root, "worktree", cache, lambda project: project.stack("part")) is not None
    shutil.rmtree(folder)
    (root / "patches" / "part").mkdir()
    assert at(root, "worktree", cache, lambda project: project.stack("part")) is None


@pytest.mark.parametrize(
    ("about", "error"),
    [
        (b"title = 3\n", "title"),
        (b"not toml", "not valid TOML"),
        (b'title = "caf\xe9"\n', "is not UTF-8"),
        (None, "was no stack"),
    ],
)
def test_an_old_form_of_a_stack_is_named(
    root: Path, cache: Cache, add_stack: Callable[..., Path], about: bytes | None, error: str
) -> None:
    folder = add_stack(root, patches={"a.patch": b"x"})
    if about is None:
        (folder / "stack.toml").unlink()
    else:
        (folder / "stack.toml").write_bytes(about)
    old = commit(root)
    with pytest.raises(RecipeError, match=error) as caught:
        at(root, "HEAD", cache, lambda project: project.stack("part"))
    assert f"HEAD ({old[:12]})" in str(caught.value)
    assert str(cache.scratch) not in str(caught.value)


def test_files_are_named_as_git_names_them(root: Path, cache: Cache, add_stack: Callable[..., Path]) -> None:
    add_stack(root, about='title = "x"\nnonsense = 1\n')
    old = commit(root)
    with pytest.raises(RecipeError) as caught:
        at(root, old, cache, lambda project: project.stack("part"))
    assert caught.value.where == f"{old[:12]}:patches/part/stack.toml:2"


def test_an_error_keeps_its_kind(root: Path, cache: Cache, add_stack: Callable[..., Path]) -> None:
    add_stack(root, series="gone.patch\n")
    old = commit(root)

    def read(project: ProjectAt) -> None:
        with project.explained():
            stack = project.stack("part")
            assert stack is not None
            stack.series("llama.cpp")

    with pytest.raises(PatchError, match="gone") as caught:
        at(root, "HEAD", cache, read)
    assert caught.value.where == f"{old[:12]}:patches/part/llama.cpp/series:1"
    with pytest.raises(PatchError) as caught:
        at(root, "worktree", cache, read)
    assert caught.value.where == f"{root}/patches/part/llama.cpp/series:1"


def test_what_is_read_is_deleted(root: Path, cache: Cache) -> None:
    commit(root)
    at(root, "HEAD", cache, lambda project: project.root.is_dir() or pytest.fail("it is not there"))
    assert list(cache.scratch.iterdir()) == []


def test_the_recipe_of_then_with_the_sources_of_now(root: Path, cache: Cache) -> None:
    commit(root)
    text = (root / "recipes" / "mine.toml").read_text()
    (root / "recipes" / "mine.toml").write_text(text.replace("1" * 40, "3" * 40))

    def sources(project: ProjectAt) -> tuple[str, object]:
        recipe = project.recipe("llama.cpp", "part")
        return recipe.pin.commit, recipe.sources

    assert at(root, "HEAD", cache, sources) == (
        "1" * 40,
        (LocalSource(kind="local", path=str(root / "recipes" / "clone")),),
    )
    assert at(root, "worktree", cache, sources)[0] == "3" * 40  # type: ignore[index]


PINS = """\
schema = 1

[[pins]]
commit = "1111111111111111111111111111111111111111"
tree = "2222222222222222222222222222222222222222"
date = "2026-01-05"
note = "known since"

[pins.source]
kind = "registry"
project = "carrier"
version = "1.0"
sha256 = "4444444444444444444444444444444444444444444444444444444444444444"
folder = "vendor"
absent = "absent.tsv"
"""


def test_where_an_old_pin_is_known_to_be_now(root: Path, cache: Cache) -> None:
    recipe = root / "recipes" / "mine.toml"
    recipe.write_text(recipe.read_text().replace('tree = "2222222222222222222222222222222222222222"\n', ""))
    commit(root)
    (root / "recipes" / "llama.cpp.pins.toml").write_text(PINS)
    (root / "recipes" / "absent.tsv").write_text("")

    def look(project: ProjectAt) -> None:
        found = project.recipe("llama.cpp", "part")
        assert isinstance(found.sources[-1], RegistrySource)
        assert found.pin.tree == "2" * 40
        assert (found.folder / "absent.tsv").is_file()

    at(root, "HEAD", cache, look)
    at(root, "worktree", cache, look)


def test_which_recipe(root: Path, cache: Cache) -> None:
    text = (root / "recipes" / "mine.toml").read_text()
    commit(root)

    def name(project: ProjectAt) -> str:
        return project.recipe("llama.cpp", "part").name

    assert at(root, "worktree", cache, name) == "mine"
    (root / "recipes" / "yours.toml").write_text(text.replace('"mine"', '"yours"'))
    with pytest.raises(UsageError, match="--recipe"):
        at(root, "worktree", cache, name)
    (root / "recipes" / "yours.toml").write_text(
        text.replace('"mine"', '"yours"').replace("stacks = []", 'stacks = ["part"]')
    )
    assert at(root, "worktree", cache, name) == "yours"
    (root / "recipes" / "llama.cpp.toml").write_text(text.replace('"mine"', '"llama.cpp"'))
    assert at(root, "worktree", cache, name) == "llama.cpp"
    assert at(root, "HEAD", cache, name) == "mine"

    def chosen(ref: str) -> Callable[[ProjectAt], str]:
        return lambda project: project.recipe("llama.cpp", "part", ref).name

    assert at(root, "worktree", cache, chosen("yours")) == "yours"
    assert at(root, "HEAD", cache, chosen(str(root / "recipes" / "mine.toml"))) == "mine"
    with pytest.raises(RecipeError, match="no recipe 'yours'"):
        at(root, "HEAD", cache, chosen("yours"))
    with pytest.raises(RecipeError, match="not for ik_llama.cpp"):
        at(root, "HEAD", cache, lambda project: project.recipe("ik_llama.cpp", "part", "mine"))
    with pytest.raises(RecipeError, match="was no recipe for ik_llama.cpp"):
        at(root, "HEAD", cache, lambda project: project.recipe("ik_llama.cpp", "part"))
    assert at(root, "HEAD", cache, lambda project: project.series_of("mine")) == "llama.cpp"


def test_a_recipe_elsewhere_is_the_same_at_every_revision(root: Path, cache: Cache, tmp_path: Path) -> None:
    commit(root)
    shutil.copy(root / "recipes" / "mine.toml", tmp_path / "own.toml")
    path = at(root, "HEAD", cache, lambda project: project.recipe("llama.cpp", "p", str(tmp_path / "own.toml")).path)
    assert path == tmp_path / "own.toml"


def test_stacks_before_one(root: Path, cache: Cache, add_stack: Callable[..., Path]) -> None:
    about = 'title = "x"\nintent = "x"\nengines = ["llama.cpp"]\nsince = "2026-01-01"\n'
    add_stack(root, "needed", about=about + "order = 5\n")
    add_stack(root, "deep", about=about + "order = 1\n")
    add_stack(root, "other", about="broken")
    add_stack(root, "part", about=about + 'requires = ["needed"]\n')
    (root / "patches" / "needed" / "stack.toml").write_text(about + 'order = 5\nrequires = ["deep"]\n')

    def before(project: ProjectAt) -> list[list[str]]:
        stack = project.stack("part")
        assert stack is not None
        return [[one.name for one in some] for some in project.before(stack, project.recipe("llama.cpp", "part"))]

    # A stack that has nothing to do with it is not even read.
    assert at(root, "worktree", cache, before) == [[], ["deep", "needed"]]
    recipe = root / "recipes" / "mine.toml"
    recipe.write_text(recipe.read_text().replace("stacks = []", 'stacks = ["part", "needed", "deep"]'))
    commit(root)
    assert at(root, "HEAD", cache, before) == [["deep", "needed", "part"]] * 2
    recipe.write_text(recipe.read_text().replace('"deep"]', '"gone"]'))
    commit(root)
    with pytest.raises(ForkyardError, match="'gone'"):
        at(root, "HEAD", cache, before)


def test_whole_files(root: Path, cache: Cache, add_stack: Callable[..., Path]) -> None:
    folder = add_stack(root, files={"a/b.c": b"1", "run": b"2"})
    (folder / "src" / "run").chmod(0o755)
    commit(root)
    (folder / "src" / "a" / "b.c").write_bytes(b"3")

    def files(project: ProjectAt) -> dict[str, tuple[str, bool]]:
        stack = project.stack("part")
        assert stack is not None
        return project.files(stack)

    old, new = (at(root, word, cache, files) for word in ("HEAD", "worktree"))
    assert isinstance(old, dict)
    assert isinstance(new, dict)
    assert sorted(old) == sorted(new) == ["a/b.c", "run"]
    assert old["run"] == new["run"]
    assert old["run"][1] is True
    assert old["a/b.c"] != new["a/b.c"]
