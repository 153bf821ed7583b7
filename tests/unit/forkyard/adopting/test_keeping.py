"""A fork that clashes with the pin: nothing half-written, everything a person needs, and the way on from there."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkyard.adopting.report import document, text
from forkyard.errors import SourceError, UsageError

Edit = Callable[..., str]


@pytest.fixture
def clashing(world: Any, edited: Edit) -> Any:
    """Three patches on an older upstream; the second changes a line the pin has otherwise, in two files."""
    up, fork = world.upstream, world.fork
    up.commit("upstream : line nine", a_c=edited(n9="theirs"), b_c=edited(n5="theirs"))
    pin = up.commit("upstream : more", b_c=edited(n5="theirs", n29="more"))
    fork.commit("one : line two", a_c=edited(n2="mine"), bin=bytes(range(256)))
    fork.commit("two : line nine", a_c=edited(n2="mine", n9="mine"), b_c=edited(n5="mine").replace("\n", "\r\n"))
    fork.commit(
        "[x] three : file",
        new__c_c="three\n",
        env={"GIT_AUTHOR_NAME": "Jö", "GIT_AUTHOR_EMAIL": "jo@example.org"},
    )
    world.write_recipe(pin)
    world.pull(pin)
    fork.git("update-ref", "refs/remotes/up/master", pin)
    return world


def test_a_conflict_writes_no_patch_and_keeps_everything(clashing: Any, repo_class: Any) -> None:
    done = clashing.adopt(upstream="up/master")
    facts = document(done)
    assert (facts["state"], facts["written"]) == ("conflicts", [])
    assert list((clashing.root / "patches").iterdir()) == []
    assert [one["status"] for one in facts["patches"]] == ["clean", "conflict", "clean"]
    by_path = {one["path"]: one for one in facts["patches"][1]["conflicts"]}
    assert by_path["a.c"]["lines"] == ["10"]
    assert by_path["a.c"]["kind"] == "contents"
    assert set(by_path) == {"a.c", "b.c"}
    folder = clashing.root / "work" / "from-branch-mine"
    assert facts["folder"] == str(folder)
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(facts))
    report = (folder / "report.md").read_text()
    assert "`a.c`: contents, line 10 of the pin's file" in report
    assert "git rebase --onto pin fork-base mine" in report
    repo = repo_class(folder / "repo", clashing.fork.clock)
    assert repo.tree("mine") == clashing.fork.tree()
    assert repo.tree("fork-base") == clashing.upstream.tree("master~2")
    assert repo.tree("pin") == clashing.upstream.tree("master")
    assert repo.git("status", "--porcelain") == ""
    assert "CONFLICT  two-line-nine.patch" in text(done)


def test_the_mails_are_the_branch_for_git_am(clashing: Any, repo_class: Any) -> None:
    clashing.adopt(upstream="up/master")
    folder = clashing.root / "work" / "from-branch-mine"
    repo = repo_class(folder / "repo", clashing.fork.clock)
    repo.git("checkout", "--quiet", "-b", "again", "fork-base")
    repo.git("am", "--quiet", "-k", "--keep-cr", *map(str, sorted((folder / "mails").iterdir())))
    assert repo.tree() == clashing.fork.tree()
    assert repo.git("show", "-s", "--format=%an %s") == "Jö [x] three : file"


def test_a_person_finishes_with_the_command_that_is_named(clashing: Any, repo_class: Any, edited: Edit) -> None:
    done = clashing.adopt(upstream="up/master")
    repo = repo_class(clashing.root / "work" / "from-branch-mine" / "repo", clashing.fork.clock)
    first, _, last = document(done)["next"]
    repo.git(*first.partition("git ")[2].split(), ok=False)
    repo.write(a_c=edited(n2="mine", n9="both"), b_c=edited(n5="both", n29="more"))
    repo.git("add", "--all")
    repo.git("-c", "core.editor=true", "rebase", "--continue")
    resolved = repo.tree("mine")
    words = last.split()
    assert words[:4] == ["forkyard", "stack", "from-branch", str(repo.path)]
    again = clashing.adopt(words[4], repository=words[3], base=words[words.index("--base") + 1])
    assert document(again)["state"] == "written"
    assert [one["patch"] for one in document(again)["patches"]] == [one["patch"] for one in document(done)["patches"]]
    assert clashing.applied().tree == resolved
    # Their work is still theirs.
    assert repo.tree("mine") == resolved


def test_running_again_replaces_what_nobody_touched(clashing: Any) -> None:
    clashing.adopt(upstream="up/master")
    clashing.fork.commit("four : file", new__d_c="four\n")
    done = clashing.adopt(upstream="up/master")
    assert len(list((done.folder / "mails").iterdir())) == 4
    assert [path.name for path in done.folder.parent.iterdir()] == ["from-branch-mine"]


@pytest.mark.parametrize("how", ["commit", "edit", "rebase", "branch"])
def test_running_again_leaves_what_somebody_worked_in(clashing: Any, repo_class: Any, edited: Edit, how: str) -> None:
    done = clashing.adopt(upstream="up/master")
    repo = repo_class(done.folder / "repo", clashing.fork.clock)
    if how == "commit":
        repo.commit("more", a_c="x\n")
    elif how == "edit":
        repo.write(a_c="x\n")
    elif how == "rebase":
        repo.git("rebase", "--onto", "pin", "fork-base", "mine", ok=False)
    else:
        repo.git("checkout", "--quiet", "-b", "other")
        repo.commit("more", a_c="x\n")
    before = sorted((str(path), path.stat().st_mtime_ns) for path in done.folder.rglob("*") if path.is_file())
    with pytest.raises(SourceError, match="somebody worked in it"):
        clashing.adopt(upstream="up/master")
    after = sorted((str(path), path.stat().st_mtime_ns) for path in done.folder.rglob("*") if path.is_file())
    assert [line for line in before if "/.git/" not in line[0]] == [line for line in after if "/.git/" not in line[0]]


def test_partial_writes_what_comes_before_the_first_conflict(clashing: Any, repo_class: Any, edited: Edit) -> None:
    done = clashing.adopt(upstream="up/master", partial=True)
    facts = document(done)
    assert (facts["state"], facts["ready"]) == ("written in part", 1)
    assert (clashing.root / "patches/mine/llama.cpp/series").read_text() == "one-line-two.patch\n"
    clashing.applied()
    # The rest is picked as the report says, in a repository that has nothing of the fork.
    repo = repo_class(clashing.root.parent / "edit", clashing.fork.clock)
    repo.path.mkdir()
    repo.git("init", "--quiet")
    repo.git("fetch", "--quiet", str(clashing.upstream.path), "master")
    repo.git("checkout", "--quiet", "FETCH_HEAD")
    repo.commit("as the stack has it", a_c=edited(n2="mine", n9="theirs"), bin=bytes(range(256)))
    folder, fetch, pick = facts["next"][1].split(" && ")
    assert folder == f"cd {clashing.root / 'work' / 'mine-llama.cpp'}"
    repo.git(*fetch.split()[1:])
    repo.git(*pick.split()[1:], ok=False)
    assert "a.c" in repo.git("diff", "--name-only", "--diff-filter=U")
    repo.write(a_c=edited(n2="mine", n9="both"), b_c=edited(n5="both"))
    repo.git("add", "--all")
    repo.git("-c", "core.editor=true", "cherry-pick", "--continue")
    assert repo.git("log", "--format=%s", "-2") == "[x] three : file\ntwo : line nine"


def test_dry_run_keeps_nothing(clashing: Any) -> None:
    done = clashing.adopt(upstream="up/master", dry_run=True)
    assert len(done.conflicts) == 1
    assert not (clashing.root / "work").exists()


def test_add_to_recipe_puts_it_behind_the_others(world: Any, edited: Edit, repo_class: Any) -> None:
    world.fork.commit("one : line two", a_c=edited(n2="mine"))
    world.adopt(name="first", add_to_recipe=True)
    recipe = world.root / "recipes" / "llama.cpp.toml"
    assert 'stacks = ["first"]' in recipe.read_text()
    # The same line again: it clashes with the stack before it, not with the pin.
    world.fork.git("checkout", "--quiet", "-b", "other", "work~1")
    world.fork.commit("two : line two", a_c=edited(n2="other"))
    done = world.adopt("other", name="second", add_to_recipe=True)
    assert document(done)["state"] == "conflicts"
    assert 'stacks = ["first"]' in recipe.read_text()
    world.fork.commit("two : line twenty", a_c=edited(n2="line 2", n20="other"))
    done = world.adopt("other", name="third", add_to_recipe=True, squash=True)
    assert document(done)["state"] == "written"
    assert 'stacks = ["first", "third"]' in recipe.read_text()
    from forkyard.gitstore import Store
    from forkyard.stacks import apply_stacks, load_stacks

    stacks = load_stacks(world.root, ["first", "third"], "llama.cpp")
    assert [stack.name for stack in stacks] == ["first", "third"]
    tree = world.upstream.tree(world.pin)
    store = Store(world.cache.store("llama.cpp"))
    applied = apply_stacks(store, "llama.cpp", world.pin, "2026-01-01", tree, stacks)
    assert store.read_file(applied.tree, "a.c") == edited(n2="mine", n20="other").encode()


def test_two_at_once(world: Any, edited: Edit) -> None:
    world.fork.commit("one : line two", a_c=edited(n2="mine"))
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(document(world.adopt())["state"])
        except UsageError as error:
            results.append(error.what)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["there is a stack 'mine' already", "written"]
    assert world.applied().tree == world.fork.tree()


def test_a_file_where_the_pin_has_a_folder(world: Any, edited: Edit) -> None:
    up, fork = world.upstream, world.fork
    pin = up.commit("upstream : folder", thing__inside_c="theirs\n")
    fork.commit("one : thing", thing="mine\n")
    fork.commit("two : a", a_c=edited(n2="mine"))
    world.write_recipe(pin)
    world.pull(pin)
    fork.git("update-ref", "refs/remotes/up/master", pin)
    done = world.adopt(upstream="up/master")
    facts = document(done)
    assert facts["state"] == "conflicts"
    assert [one["status"] for one in facts["patches"]] == ["conflict", "clean"]


def test_modified_here_and_deleted_there(world: Any, edited: Edit, tmp_path: Path) -> None:
    up, fork = world.upstream, world.fork
    (up.path / "b.c").unlink()
    pin = up.commit("upstream : no b")
    fork.commit("one : b", b_c=edited(n2="mine"))
    world.write_recipe(pin)
    world.pull(pin)
    fork.git("update-ref", "refs/remotes/up/master", pin)
    done = world.adopt(upstream="up/master")
    # Nothing of it would be left, and yet it is not dropped silently.
    assert document(done)["state"] == "conflicts"
    assert document(done)["patches"][0]["conflicts"][0]["kind"] == "modify/delete"
