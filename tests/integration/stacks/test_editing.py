"""A stack as commits and back, by the real command: what a person does in an edit, and everything it may run into."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from forkyard.recipes import load_recipe
from forkyard.stacks.model import load_stack, stack_names

from ..faults.test_storage import assert_storage_error, namespace, twice
from ..toy import REPOSITORY, Answer, Toy, finish, git, make_toy

SEED = int(os.environ.get("FORKYARD_TEST_SEED", "20260102"))
ENGINE = ("--engine", "llama.cpp")
BODY = "\n\nBecause.\n\nUpstream-Status: Pending"


def make_stacks(toy: Toy) -> None:
    """Two stacks, the second made on the first."""
    toy.stack(
        "one",
        {
            "alpha": [("src/part1.cpp", "value) + 1", "value) + 11")],
            "beta": [("src/part2.cpp", "value) + 2", "value) + 22")],
            "gamma": [("src/part3.cpp", "value + 3", "value + 33")],
        },
        order=10,
    )
    delta = [("src/part4.cpp", "value + 4", "value + 44"), ("src/part1.cpp", "+ 11", "+ 111")]
    toy.stack("two", {"delta": delta}, on="one", order=20)
    # As in life, no two were made in the same second.
    for second, path in enumerate(sorted((toy.root / "patches").glob("*/llama.cpp/*.patch")), start=1):
        path.write_text(path.read_text().replace(" 12:00:00 +0000", f" 12:00:{second:02} +0000"))


@pytest.fixture
def pair(toy: Toy) -> Toy:
    """The toy with two stacks."""
    make_stacks(toy)
    return toy


def files(toy: Toy) -> dict[str, tuple[bytes, bool]]:
    """Everything in the project that people keep in git, and whether it is executable."""
    found = {}
    for name in ("recipes", "patches"):
        for path in (toy.root / name).rglob("*"):
            if path.is_file():
                found[path.relative_to(toy.root).as_posix()] = (path.read_bytes(), os.access(path, os.X_OK))
    return found


def ok(answer: Answer) -> dict[str, Any]:
    assert answer.status == 0, f"exit {answer.status}\n{answer.stdout}\n{answer.stderr}"
    return answer.json


def edit(toy: Toy, name: str = "one", *options: str) -> Path:
    """The folder of an edit."""
    return Path(ok(toy.run("stack", "edit", name, *ENGINE, *options))["path"])


def refresh(toy: Toy, name: str = "one", *options: str) -> Answer:
    return toy.run("stack", "refresh", name, *ENGINE, *options)


def statuses(document: Mapping[str, Any]) -> dict[str, list[str]]:
    return {patch["name"]: patch["status"] for patch in document["patches"]}


def rewrite(folder: Path, path: str, old: str, new: str) -> None:
    text = (folder / path).read_text()
    assert old in text
    (folder / path).write_text(text.replace(old, new, 1))


def amend(folder: Path, count: int, path: str, old: str, new: str) -> None:
    """Change the commit ``count`` before the last, and put the later ones on it again."""
    tip = git(folder, "rev-parse", "HEAD").strip()
    git(folder, "checkout", "--quiet", f"HEAD~{count}")
    rewrite(folder, path, old, new)
    git(folder, "commit", "--quiet", "--all", "--amend", "--no-edit")
    if count:
        git(folder, "cherry-pick", f"{tip}~{count}..{tip}")


def commit(folder: Path, message: str) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", message)


def assert_exact(toy: Toy, *names: str) -> None:
    """Every series exports to itself, and the recipe patches with all of them."""
    for name in names or ("one", "two"):
        assert ok(toy.run("stack", "export", name, *ENGINE, "--check"))["same"]
    ok(toy.run("lock", "toy"))


# -- edit and refresh ----------------------------------------------------------------------------------


def test_an_edit_holds_a_commit_for_each_patch(pair: Toy) -> None:
    answer = ok(pair.run("stack", "edit", "one", *ENGINE))
    folder = pair.root / "work" / "one-llama.cpp"
    assert (answer["path"], answer["state"], answer["patches"]) == (str(folder), "made", 3)
    assert git(folder, "log", "--format=%s", "refs/forkyard/base..HEAD").split() == ["gamma", "beta", "alpha"]
    assert git(folder, "symbolic-ref", "--short", "HEAD").strip() == "forkyard/one" == answer["branch"]
    assert git(folder, "rev-parse", "refs/forkyard/imported", "refs/forkyard/base").split() == [
        answer["tip"],
        answer["base"],
    ]
    assert git(folder, "status", "--porcelain") == ""
    assert answer["next"][-1] == "forkyard stack refresh one --engine llama.cpp"


def test_the_second_stack_is_edited_on_the_first(pair: Toy) -> None:
    folder = edit(pair, "two")
    assert git(folder, "log", "--format=%s", "-4").split() == ["delta", "gamma", "beta", "alpha"]
    assert git(folder, "log", "--format=%s", "refs/forkyard/base..HEAD").split() == ["delta"]


def test_a_refresh_of_nothing_writes_nothing(pair: Toy) -> None:
    edit(pair)
    before = files(pair)
    stamps = {path: path.stat().st_mtime_ns for path in (pair.root / "patches").rglob("*")}
    answer = ok(refresh(pair))
    assert answer["written"] == []
    assert set(map(tuple, statuses(answer).values())) == {("unchanged",)}
    assert files(pair) == before
    assert {path: path.stat().st_mtime_ns for path in (pair.root / "patches").rglob("*")} == stamps


def test_an_amended_patch_and_what_stands_on_it(pair: Toy) -> None:
    ok(pair.run("lock", "toy"))
    folder = edit(pair)
    # part1.cpp is changed by the second stack as well, three lines below.
    amend(folder, 2, "src/part1.cpp", '#include "parts.h"', '#include "parts.h"\n#include <cstdint>')
    answer = ok(refresh(pair))
    assert statuses(answer) == {
        "alpha.patch": ["changed"],
        "beta.patch": ["unchanged"],
        "gamma.patch": ["unchanged"],
    }
    assert answer["followers"] == [{"stack": "two", "patches": ["delta.patch"]}]
    assert answer["stale_locks"] == ["toy"]
    assert answer["next"] == ["forkyard lock toy"]
    assert answer["written"] == ["patches/one/llama.cpp/alpha.patch", "patches/two/llama.cpp/delta.patch"]
    assert pair.run("lock", "toy", "--check").status == 3
    assert_exact(pair)
    assert ok(refresh(pair))["written"] == []


def test_the_lock_is_renewed_in_the_same_go(pair: Toy) -> None:
    ok(pair.run("lock", "toy"))
    folder = edit(pair)
    amend(folder, 0, "src/part3.cpp", "value + 33", "value + 333")
    assert ok(refresh(pair, "one", "--lock"))["renewed_locks"] == ["toy"]
    ok(pair.run("lock", "toy", "--check"))
    answer = ok(refresh(pair, "one", "--lock"))
    assert (answer["written"], answer["renewed_locks"]) == ([], [])


def test_a_lock_that_a_killed_refresh_left_behind_is_renewed(pair: Toy) -> None:
    ok(pair.run("lock", "toy"))
    folder = edit(pair)
    amend(folder, 0, "src/part3.cpp", "value + 33", "value + 333")
    ok(refresh(pair))
    answer = ok(refresh(pair, "one", "--lock"))
    assert (answer["written"], answer["renewed_locks"]) == ([], ["toy"])


def test_new_dropped_reordered_and_reworded(pair: Toy) -> None:
    series = pair.root / "patches" / "one" / "llama.cpp" / "series"
    series.write_text(
        "# about alpha\nalpha.patch\n\n# about beta\nbeta.patch  # keep\n# about gamma\ngamma.patch\n# end\n"
    )
    folder = edit(pair)
    # gamma first and under another subject, alpha gone, beta last but for a new one.
    git(folder, "checkout", "--quiet", "refs/forkyard/base")
    git(folder, "cherry-pick", "forkyard/one")
    git(folder, "commit", "--amend", "--quiet", "--message", f"part : gamma in other words{BODY}")
    git(folder, "cherry-pick", "forkyard/one~1")
    rewrite(folder, "src/part4.cpp", "value + 4", "value + 4 /* new */")
    commit(folder, f"Part 4: a new one!{BODY}")
    answer = refresh(pair, "one", "--only")
    document = ok(answer)
    found = statuses(document)
    assert found["beta.patch"] in (["unchanged"], ["reordered"])
    assert sorted(found) == ["alpha.patch", "beta.patch", "gamma.patch", "part-4-a-new-one.patch"]
    assert found["alpha.patch"] == ["dropped"]
    assert "renamed" in found["gamma.patch"]
    assert ("reordered" in found["gamma.patch"]) != ("reordered" in found["beta.patch"])
    assert found["part-4-a-new-one.patch"] == ["new"]
    assert {patch["was"] for patch in document["patches"]} == {None, "gamma"}
    assert not (series.parent / "alpha.patch").exists()
    assert series.read_text() == (
        "# about gamma\ngamma.patch\n# about alpha\n\n# about beta\nbeta.patch  # keep\npart-4-a-new-one.patch\n# end\n"
    )


def test_new_files_become_whole_files_and_go_again(pair: Toy) -> None:
    folder = edit(pair)
    (folder / "src" / "ours").mkdir()
    (folder / "src" / "ours" / "new file.cpp").write_bytes(b"int ours;\r\n")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    rewrite(folder, "src/part4.cpp", "value + 4", "value + 4 /* hook */")
    commit(folder, "part 4 : add files")
    answer = ok(refresh(pair, "one", "--only"))
    src = pair.root / "patches" / "one" / "src"
    assert (src / "src" / "ours" / "new file.cpp").read_bytes() == b"int ours;\r\n"
    assert os.access(src / "run.sh", os.X_OK)
    patch = (src.parent / "llama.cpp" / "part-4-add-files.patch").read_text()
    assert "Upstream-Status: Pending\nAdds-Files: run.sh\nAdds-Files: src/ours/new file.cpp\n" in patch
    assert "int ours" not in patch
    notes = "\n".join(answer["notes"])
    assert "added `Upstream-Status: Pending`" in notes
    assert "src/ours/new file.cpp is a new whole file" in notes
    assert ok(pair.run("stack", "export", "one", *ENGINE, "--check"))["same"]
    # A second refresh of the same commits changes nothing, though they lack the trailers.
    assert ok(refresh(pair, "one", "--only"))["written"] == []
    git(folder, "rm", "--quiet", "run.sh")
    git(folder, "commit", "--quiet", "--amend", "--no-edit")
    answer = ok(refresh(pair, "one", "--only"))
    assert not (src / "run.sh").exists()
    assert "run.sh is no whole file of the stack any more" in answer["notes"]
    assert (src / "src" / "ours" / "new file.cpp").exists()


def test_files_that_no_patch_ever_added_are_left_alone(pair: Toy) -> None:
    src = pair.root / "patches" / "one" / "src"
    src.mkdir()
    (src / "README.md").write_text("about our files")
    folder = edit(pair)
    amend(folder, 0, "src/part3.cpp", "value + 33", "value + 333")
    ok(refresh(pair))
    assert (src / "README.md").read_text() == "about our files"


def test_a_detached_head_is_fine(pair: Toy) -> None:
    folder = edit(pair)
    git(folder, "checkout", "--quiet", "--detach")
    amend(folder, 0, "src/part3.cpp", "value + 33", "value + 333")
    assert statuses(ok(refresh(pair)))["gamma.patch"] == ["changed"]


def test_every_commit_gone_is_an_empty_series(pair: Toy) -> None:
    folder = edit(pair, "two")
    git(folder, "reset", "--quiet", "--hard", "refs/forkyard/base")
    assert statuses(ok(refresh(pair, "two"))) == {"delta.patch": ["dropped"]}
    assert (pair.root / "patches" / "two" / "llama.cpp" / "series").read_text() == ""
    assert_exact(pair)
    rewrite(folder, "src/part4.cpp", "value + 4", "value + 4444")
    commit(folder, f"again{BODY}")
    assert statuses(ok(refresh(pair, "two"))) == {"again.patch": ["new"]}
    assert_exact(pair)


def test_folding_later_edits_of_whole_files(pair: Toy) -> None:
    folder = edit(pair)
    (folder / "ours.c").write_text("int one;\n")
    commit(folder, f"add ours{BODY}")
    (folder / "ours.c").write_text("int two;\n")
    rewrite(folder, "src/part4.cpp", "value + 4", "value + 4 /* hook */")
    commit(folder, f"edit ours and a hook{BODY}")
    (folder / "ours.c").write_text("int three;\n")
    commit(folder, f"edit ours alone{BODY}")
    answer = ok(refresh(pair, "one", "--only", "--fold"))
    assert (pair.root / "patches" / "one" / "src" / "ours.c").read_text() == "int three;\n"
    assert list(statuses(answer)) == [
        "alpha.patch",
        "beta.patch",
        "gamma.patch",
        "add-ours.patch",
        "edit-ours-and-a-hook.patch",
    ]
    assert any("'edit ours alone' only edited whole files" in note for note in answer["notes"])
    hook = (pair.root / "patches" / "one" / "llama.cpp" / "edit-ours-and-a-hook.patch").read_text()
    assert "ours.c" not in hook
    # The branch follows, the work tree is as it was, and the old commits can still be found.
    assert git(folder, "status", "--porcelain") == ""
    assert (folder / "ours.c").read_text() == "int three;\n"
    assert "edit ours alone" in git(folder, "log", "-1", "--format=%s", "HEAD@{1}")
    assert ok(refresh(pair, "one", "--only"))["written"] == []


# -- what an edit may be in ------------------------------------------------------------------------------


def refused(toy: Toy, *needles: str, status: int = 2, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """A refresh that is refused, with these words, and changes nothing."""
    before = files(toy)
    answer = refresh(toy, "one", *options)
    assert answer.status == status, answer.stdout
    text = json.dumps(answer.json)
    for needle in needles:
        assert needle in text, text
    assert files(toy) == before
    return answer.json


def test_without_an_edit(pair: Toy) -> None:
    assert "forkyard stack edit one" in refused(pair, "there is no edit of one")["next"]


def test_a_dirty_edit_is_refused_with_its_paths(pair: Toy) -> None:
    folder = edit(pair)
    rewrite(folder, "src/part1.cpp", "11", "12")
    (folder / "src" / "part2.cpp").unlink()
    (folder / "staged.c").write_text("x")
    git(folder, "add", "staged.c")
    (folder / "un known.c").write_text("x")
    (folder / "src" / "part4.cpp").chmod(0o755)
    refused(pair, "src/part1.cpp", "src/part2.cpp", "staged.c", "un known.c", "src/part4.cpp")


def test_a_merge_is_refused(pair: Toy) -> None:
    folder = edit(pair)
    git(folder, "checkout", "--quiet", "-b", "side", "HEAD~1")
    commit(folder, "aside")
    git(folder, "merge", "--quiet", "--message", "two ways", "forkyard/one")
    refused(pair, "cannot hold merges", "two ways")


@pytest.mark.parametrize("operation", ["rebase", "cherry-pick", "merge", "revert"])
def test_an_unfinished_operation_is_refused(pair: Toy, operation: str) -> None:
    folder = edit(pair)
    git(folder, "checkout", "--quiet", "-b", "side", "HEAD~1")
    rewrite(folder, "src/part3.cpp", "value + 3", "value + 5")
    commit(folder, f"other{BODY}")
    words = {
        "rebase": ["rebase", "forkyard/one"],
        "cherry-pick": ["cherry-pick", "forkyard/one"],
        "merge": ["merge", "forkyard/one"],
        "revert": ["revert", "--no-edit", "forkyard/one"],
    }[operation]
    with pytest.raises(AssertionError):
        git(folder, *words)
    refused(pair, f"a {operation} is not finished")


def test_commits_on_another_base_are_refused(pair: Toy) -> None:
    folder = edit(pair)
    git(folder, "checkout", "--quiet", "--orphan", "fresh")
    commit(folder, "all of it")
    refused(pair, "do not stand on the stack's base", "refs/forkyard/base")


def test_a_message_that_cannot_be_a_patch(pair: Toy) -> None:
    folder = edit(pair)
    git(folder, "commit", "--quiet", "--amend", "--message", "gamma\n\ndiff --git a/x b/x\n\nUpstream-Status: Pending")
    refused(pair, "gamma.patch cannot be a patch file", status=6)


def test_an_edit_of_another_stack_is_not_taken(pair: Toy) -> None:
    folder = edit(pair, "two")
    refused(pair, "is not an edit of one", options=("--path", str(folder)))
    assert pair.run("stack", "edit", "one", *ENGINE, "--path", str(folder), "--fresh").status == 2
    assert git(folder, "log", "-1", "--format=%s").strip() == "delta"


def test_what_is_no_edit_is_left_alone(pair: Toy, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.txt").write_text("mine")
    answer = pair.run("stack", "edit", "one", *ENGINE, "--path", str(tmp_path / "mine"), "--fresh")
    assert answer.status == 2
    assert (tmp_path / "mine" / "work.txt").read_text() == "mine"


# -- a series that changes meanwhile ---------------------------------------------------------------------


def change_elsewhere(toy: Toy, tmp_path: Path) -> None:
    """Somebody else refreshes the same stack from an edit of theirs."""
    folder = edit(toy, "one", "--path", str(tmp_path / "theirs"))
    amend(folder, 2, "src/part1.cpp", '#include "parts.h"', '#include "parts.h" // theirs')
    ok(refresh(toy, "one", "--path", str(folder)))


def test_an_untouched_edit_follows(pair: Toy, tmp_path: Path) -> None:
    folder = edit(pair)
    change_elsewhere(pair, tmp_path)
    assert ok(pair.run("stack", "edit", "one", *ENGINE))["state"] == "updated"
    assert "theirs" in (folder / "src" / "part1.cpp").read_text()
    assert git(folder, "status", "--porcelain") == ""
    assert ok(refresh(pair))["written"] == []
    assert ok(pair.run("stack", "edit", "one", *ENGINE))["state"] == "as-it-was"


@pytest.mark.parametrize("dirty", [False, True])
def test_both_changed(pair: Toy, tmp_path: Path, dirty: bool) -> None:
    folder = edit(pair)
    amend(folder, 0, "src/part3.cpp", "value + 33", "value + 34")
    if dirty:
        (folder / "scratch.txt").write_text("mine")
    change_elsewhere(pair, tmp_path)
    refused(pair, "scratch.txt" if dirty else "has changed since its edit began")
    answer = ok(pair.run("stack", "edit", "one", *ENGINE))
    assert (answer["state"], answer["next"]) == ("both-changed", ["forkyard stack edit one --engine llama.cpp --join"])
    assert "value + 34" in (folder / "src" / "part3.cpp").read_text()
    if dirty:
        assert pair.run("stack", "edit", "one", *ENGINE, "--join").status == 2
        assert (folder / "scratch.txt").read_text() == "mine"
        (folder / "scratch.txt").unlink()
    refused(pair, "has changed since its edit began")
    mine = git(folder, "rev-parse", "HEAD")
    assert ok(pair.run("stack", "edit", "one", *ENGINE, "--join"))["state"] == "joined"
    assert git(folder, "rev-parse", "refs/forkyard/before-join") == mine
    assert git(folder, "status", "--porcelain") == ""
    assert "// theirs" in (folder / "src" / "part1.cpp").read_text()
    assert "value + 34" in (folder / "src" / "part3.cpp").read_text()
    assert statuses(ok(refresh(pair))) == {
        "alpha.patch": ["unchanged"],
        "beta.patch": ["unchanged"],
        "gamma.patch": ["changed"],
    }
    assert_exact(pair)


def test_both_changed_the_same_patch(pair: Toy, tmp_path: Path) -> None:
    folder = edit(pair)
    amend(folder, 2, "src/part1.cpp", '#include "parts.h"', '#include "parts.h" // mine')
    change_elsewhere(pair, tmp_path)
    head = git(folder, "rev-parse", "HEAD")
    answer = pair.run("stack", "edit", "one", *ENGINE, "--join")
    assert (answer.status, "'alpha'" in answer.json["why"]) == (6, True)
    assert "--path" in answer.json["next"]
    assert git(folder, "rev-parse", "HEAD") == head


def test_the_stack_before_changes(pair: Toy) -> None:
    second, first = edit(pair, "two"), edit(pair, "one")
    rewrite(second, "src/part4.cpp", "value + 44", "value + 45")
    git(second, "commit", "--quiet", "--all", "--amend", "--no-edit")
    amend(first, 2, "src/part1.cpp", '#include "parts.h"', '#include "parts.h" // first')
    ok(refresh(pair, "one"))
    assert "what the stack is made on" in refresh(pair, "two").json["why"]
    assert ok(pair.run("stack", "edit", "two", *ENGINE, "--join"))["state"] == "joined"
    assert statuses(ok(refresh(pair, "two"))) == {"delta.patch": ["changed"]}
    assert "value + 45" in (pair.root / "patches" / "two" / "llama.cpp" / "delta.patch").read_text()
    assert_exact(pair)


def test_only_fresh_throws_an_edit_away(pair: Toy) -> None:
    folder = edit(pair)
    (folder / "mine.txt").write_text("mine")
    assert ok(pair.run("stack", "edit", "one", *ENGINE))["state"] == "as-it-was"
    assert (folder / "mine.txt").exists()
    assert ok(pair.run("stack", "edit", "one", *ENGINE, "--fresh"))["state"] == "made"
    assert not (folder / "mine.txt").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["one-llama.cpp"]


# -- what stands on a stack --------------------------------------------------------------------------------


def test_a_follower_that_conflicts_stops_everything(pair: Toy) -> None:
    folder = edit(pair)
    amend(folder, 2, "src/part1.cpp", "+ 11", "+ 12")
    answer = refused(pair, "two/delta.patch conflicts", "src/part1.cpp", "--only", status=6)
    assert "nothing was written" in answer["what"]
    document = ok(refresh(pair, "one", "--only"))
    assert document["written"] == ["patches/one/llama.cpp/alpha.patch"]
    assert any("perhaps out of place now: two" in note for note in document["notes"])
    assert pair.run("stack", "export", "two", *ENGINE, "--check").status == 6


def test_a_follower_that_only_the_series_alone_put_out_of_place_is_exported_again(pair: Toy) -> None:
    folder = edit(pair)
    amend(folder, 2, "src/part1.cpp", '#include "parts.h"', '#include "parts.h"\n#include <cstdint>')
    ok(refresh(pair, "one", "--only"))
    answer = pair.run("stack", "export", "two", *ENGINE, "--check")
    assert answer.status == 12
    assert answer.json["first_difference"] == "delta.patch"
    assert statuses(ok(pair.run("stack", "export", "two", *ENGINE))) == {"delta.patch": ["moved"]}
    assert_exact(pair)


def share_with_other_engine(toy: Toy, content: str, later: str | None) -> None:
    """A whole file both engines add; the second engine's series may edit it in a later patch."""
    folder = edit(toy)
    (folder / "ours.c").write_text(content)
    commit(folder, f"add ours{BODY}")
    ok(refresh(toy, "one", "--only"))
    text = toy.recipe.read_text().replace('name = "toy"', 'name = "other"').replace("llama.cpp", "ik_llama.cpp", 1)
    (toy.root / "recipes" / "other.toml").write_text(text.replace('stacks = ["one", "two"]', 'stacks = ["one"]'))
    about = toy.root / "patches" / "one" / "stack.toml"
    about.write_text(about.read_text().replace('["llama.cpp"]', '["llama.cpp", "ik_llama.cpp"]'))
    (about.parent / "ik_llama.cpp").mkdir()
    shutil.copy(about.parent / "llama.cpp" / "add-ours.patch", about.parent / "ik_llama.cpp")
    (about.parent / "ik_llama.cpp" / "series").write_text("add-ours.patch\n")
    if later is not None:
        other = Path(ok(toy.run("stack", "edit", "one", "--engine", "ik_llama.cpp"))["path"])
        (other / "ours.c").write_text(later)
        commit(other, f"edit ours{BODY}")
        ok(toy.run("stack", "refresh", "one", "--engine", "ik_llama.cpp"))


def test_a_whole_file_shared_with_another_engine(pair: Toy) -> None:
    share_with_other_engine(pair, "int ours;\n", None)
    other = ("stack", "export", "one", "--engine", "ik_llama.cpp", "--check")
    # This also gets the other engine's pin.
    assert ok(pair.run(*other))["same"]
    folder = pair.root / "work" / "one-llama.cpp"
    (folder / "ours.c").write_text("int changed;\n")
    git(folder, "commit", "--quiet", "--all", "--amend", "--no-edit")
    document = ok(refresh(pair))
    assert document["checked_engines"] == ["ik_llama.cpp"]
    assert "ik_llama.cpp adds ours.c as well and gets the new content" in document["notes"]
    assert ok(pair.run(*other))["same"]
    git(folder, "reset", "--quiet", "--hard", "HEAD~1")
    assert statuses(ok(refresh(pair)))["add-ours.patch"] == ["dropped"]
    assert (pair.root / "patches" / "one" / "src" / "ours.c").read_text() == "int changed;\n", "the other engine has it"
    assert ok(pair.run(*other))["same"]


def test_an_engine_whose_pin_is_not_here_is_named(pair: Toy) -> None:
    share_with_other_engine(pair, "int ours;\n", None)
    folder = pair.root / "work" / "one-llama.cpp"
    (folder / "ours.c").write_text("int changed;\n")
    git(folder, "commit", "--quiet", "--all", "--amend", "--no-edit")
    document = ok(refresh(pair))
    assert document["checked_engines"] == []
    assert any("ik_llama.cpp also adds ours.c and was not checked" in note for note in document["notes"])


def test_another_engine_that_would_not_apply_any_more_stops_everything(pair: Toy) -> None:
    share_with_other_engine(pair, "int ours;\n", "int theirs;\n")
    folder = pair.root / "work" / "one-llama.cpp"
    (folder / "ours.c").write_text("int other;\n")
    git(folder, "commit", "--quiet", "--all", "--amend", "--no-edit")
    refused(pair, "would not apply to ik_llama.cpp any more", "ours.c", status=6)
    (folder / "ours.c").write_text("int ours;\n")
    git(folder, "commit", "--quiet", "--all", "--amend", "--no-edit")
    assert ok(refresh(pair))["written"] == []


# -- export and import -------------------------------------------------------------------------------------


def test_a_patch_whose_context_moved_is_written_anew(pair: Toy) -> None:
    """The pin moves under the stacks; what they were made on is still in the store."""
    edit(pair)
    rewrite(pair.engine, "src/part1.cpp", '#include "parts.h"', '#include "parts.h"\n#include <cstddef>')
    git(pair.engine, "commit", "--quiet", "--all", "--message", "Move things")
    pair.write_recipe(stacks=["one", "two"])
    before = files(pair)
    answer = pair.run("stack", "export", "one", *ENGINE, "--check")
    assert (answer.status, answer.json["first_difference"]) == (12, "alpha.patch")
    assert files(pair) == before
    document = ok(pair.run("stack", "export", "one", *ENGINE, "--only"))
    assert statuses(document) == {"alpha.patch": ["moved"], "beta.patch": ["unchanged"], "gamma.patch": ["unchanged"]}
    ok(pair.run("stack", "export", "two", *ENGINE))
    assert_exact(pair)


def test_a_patch_that_conflicts_is_named_with_its_hunk(pair: Toy) -> None:
    edit(pair)
    rewrite(pair.engine, "src/part1.cpp", "value) + 1", "value) + 5")
    git(pair.engine, "commit", "--quiet", "--all", "--message", "Change the same line")
    pair.write_recipe(stacks=["one", "two"])
    for options in ((), ("--check",)):
        answer = pair.run("stack", "export", "one", *ENGINE, *options)
        assert answer.status == 6
        assert "one/alpha.patch" in answer.json["what"]
        assert "src/part1.cpp: @@ -1,5 +1,5 @@" in answer.json["why"]


def test_complete_mails_for_git_am(pair: Toy, tmp_path: Path) -> None:
    folder = edit(pair)
    (folder / "ours.c").write_text("int ours;\n")
    commit(folder, f"[part] add ours{BODY}")
    ok(refresh(pair, "one", "--only"))
    mails = ok(pair.run("stack", "export", "one", *ENGINE, "--to", str(tmp_path / "mails")))["files"]
    assert [Path(mail).name for mail in mails][0] == "0001-alpha.patch"
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(pair.engine), str(clone))
    git(clone, "am", "--quiet", "--keep-non-patch", *mails)
    assert git(clone, "rev-parse", "HEAD^{tree}") == git(folder, "rev-parse", "HEAD^{tree}")
    assert git(clone, "log", "-1", "--format=%s").strip() == "[part] add ours"
    assert pair.run("stack", "export", "one", *ENGINE, "--to", str(tmp_path / "mails")).status == 2


def test_import_shows_the_commits(pair: Toy) -> None:
    document = ok(pair.run("stack", "import", "one", *ENGINE))
    assert [(row["name"], row["subject"]) for row in document["commits"]] == [
        ("alpha.patch", "alpha"),
        ("beta.patch", "beta"),
        ("gamma.patch", "gamma"),
    ]
    folder = edit(pair)
    assert document["tip"] == git(folder, "rev-parse", "HEAD").strip()


def test_import_into_a_clone_makes_a_branch_and_touches_nothing_else(pair: Toy, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(pair.engine), str(clone))
    (clone / "src" / "part1.cpp").write_text("mine\n")
    (clone / "un known").write_text("mine\n")
    status, head = git(clone, "status", "--porcelain"), git(clone, "rev-parse", "HEAD")
    words = ("stack", "import", "two", *ENGINE, "--into", str(clone), "--branch", "try/two")
    document = ok(pair.run(*words))
    assert (document["branch"], document["standing_on"]) == ("try/two", pair.commit)
    assert git(clone, "log", "--format=%s", "-5", "try/two").splitlines() == [
        "delta",
        "gamma",
        "beta",
        "alpha",
        "Make a toy",
    ]
    assert git(clone, "merge-base", "try/two", "HEAD") == head
    assert (git(clone, "status", "--porcelain"), git(clone, "rev-parse", "HEAD")) == (status, head)
    git(clone, "fsck", "--strict", "--no-dangling")
    answer = pair.run(*words)
    assert (answer.status, "--force" in answer.json["next"]) == (2, True)
    git(clone, "branch", "--force", "try/two", "HEAD")
    ok(pair.run(*words, "--force"))
    assert git(clone, "log", "-1", "--format=%s", "try/two").strip() == "delta"
    git(clone, "stash", "--quiet", "--include-untracked")
    git(clone, "checkout", "--quiet", "try/two")
    assert "checked out" in pair.run(*words, "--force").json["what"]


def test_import_into_a_repository_without_the_pin(pair: Toy, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    git(tmp_path, "init", "--quiet", str(empty))
    document = ok(pair.run("stack", "import", "one", *ENGINE, "--into", str(empty)))
    assert document["standing_on"] is None
    assert git(empty, "log", "--format=%s", "forkyard/one").splitlines()[:3] == ["gamma", "beta", "alpha"]
    git(empty, "fsck", "--strict", "--no-dangling")
    for folder, branch in ((tmp_path / "nothing", "x"), (empty, "a..b")):
        assert pair.run("stack", "import", "one", *ENGINE, "--into", str(folder), "--branch", branch).status == 2


def theirs(toy: Toy, tmp_path: Path) -> Path:
    """A clone of the engine with two commits of somebody's."""
    clone = tmp_path / "contributor"
    git(tmp_path, "clone", "--quiet", str(toy.engine), str(clone))
    rewrite(clone, "src/part4.cpp", "value + 4", "value + 4 /* theirs */")
    (clone / "contributed.c").write_text("int contributed;\n")
    git(clone, "add", "--all")
    author = "J\u00fcrgen <j@example.org>"
    git(clone, "commit", "--quiet", "--author", author, "--message", "part 4 : contribute\n\nFor a reason.")
    rewrite(clone, "src/part4.cpp", "theirs", "theirs, again")
    git(clone, "commit", "--quiet", "--all", "--author", author, "--message", "part 4 : again")
    return clone


@pytest.mark.parametrize("form", ["files", "mbox", "folder", "cover letter"])
def test_mails_are_appended(toy: Toy, tmp_path: Path, form: str) -> None:
    toy.stack("one", {"alpha": [("src/part1.cpp", "value) + 1", "value) + 11")]})
    clone = theirs(toy, tmp_path)
    out = tmp_path / "mails"
    cover = ["--cover-letter"] if form == "cover letter" else []
    git(clone, "format-patch", "--quiet", *cover, "--output-directory", str(out), "HEAD~2")
    given = [str(path) for path in sorted(out.iterdir())]
    if form == "mbox":
        (tmp_path / "series.mbox").write_text("".join(Path(path).read_text() for path in given))
        given = [str(tmp_path / "series.mbox")]
    elif form == "folder":
        given = [str(out)]
    document = ok(toy.run("stack", "import", "one", *ENGINE, *given))
    assert statuses(document) == {
        "alpha.patch": ["unchanged"],
        "part-4-contribute.patch": ["new"],
        "part-4-again.patch": ["new"],
    }
    patch = (toy.root / "patches" / "one" / "llama.cpp" / "part-4-contribute.patch").read_text()
    assert "From: =?UTF-8?q?J=C3=BCrgen?= <j@example.org>\n" in patch
    assert "Subject: part 4 : contribute\n" in patch
    assert (toy.root / "patches" / "one" / "src" / "contributed.c").read_text() == "int contributed;\n"
    assert_exact(toy, "one")


def test_a_quilt_folder_is_imported_in_its_order(toy: Toy, tmp_path: Path) -> None:
    toy.stack("one", {"alpha": [("src/part1.cpp", "value) + 1", "value) + 11")]})
    clone = theirs(toy, tmp_path)
    quilt = tmp_path / "quilt"
    quilt.mkdir()
    (quilt / "series").write_text("# first\nz.patch -p1\na.patch\n")
    for name, words in (("z.patch", ["HEAD~2", "HEAD~1"]), ("a.patch", ["HEAD~1", "HEAD"])):
        (quilt / name).write_text(f"Description: part : {name}\nForwarded: no\n\n" + git(clone, "diff", *words))
    answer = toy.run("stack", "import", "one", *ENGINE, str(quilt))
    assert (answer.status, "--author" in answer.json["next"]) == (6, True)
    document = ok(toy.run("stack", "import", "one", *ENGINE, str(quilt), "--author", "A Person <a@example.org>"))
    assert list(statuses(document)) == ["alpha.patch", "part-z-patch.patch", "part-a-patch.patch"]
    assert_exact(toy, "one")


def test_mails_made_elsewhere_are_merged_where_their_base_is_known(toy: Toy, tmp_path: Path) -> None:
    """A contributor worked on plain upstream; the stack changed the same file above."""
    toy.stack("one", {"alpha": [("src/part1.cpp", "#include", "// a line\n// another\n#include")]})
    clone = tmp_path / "contributor"
    git(tmp_path, "clone", "--quiet", str(toy.engine), str(clone))
    rewrite(clone, "src/part1.cpp", "value) + 1", "value) + 10")
    git(clone, "commit", "--quiet", "--all", "--message", "part 1 : contribute")
    git(clone, "format-patch", "--quiet", "--output-directory", str(tmp_path / "mails"), "HEAD~1")
    document = ok(toy.run("stack", "import", "one", *ENGINE, str(tmp_path / "mails")))
    assert list(statuses(document)) == ["alpha.patch", "part-1-contribute.patch"]
    assert_exact(toy, "one")


def test_mails_that_conflict_are_named_and_nothing_is_written(toy: Toy, tmp_path: Path) -> None:
    toy.stack("one", {"alpha": [("src/part4.cpp", "value + 4", "value + 40")]})
    before = files(toy)
    clone = theirs(toy, tmp_path)
    git(clone, "format-patch", "--quiet", "--output-directory", str(tmp_path / "mails"), "HEAD~2")
    answer = toy.run("stack", "import", "one", *ENGINE, str(tmp_path / "mails"))
    assert answer.status == 6
    assert "0001-part-4-contribute.patch does not apply" in answer.json["what"]
    assert "src/part4.cpp: @@ -1,3 +1,3 @@" in answer.json["why"]
    assert files(toy) == before


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"", 6), (b"hello\n", 6), (b"From: a <a@b>\nSubject: x\n\nno date\n", 6), (bytes(range(256)), 6)],
)
def test_what_is_no_patch_is_refused(toy: Toy, tmp_path: Path, content: bytes, status: int) -> None:
    toy.stack("one", {"alpha": [("src/part4.cpp", "value + 4", "value + 40")]})
    before = files(toy)
    (tmp_path / "x.patch").write_bytes(content)
    assert toy.run("stack", "import", "one", *ENGINE, str(tmp_path / "x.patch")).status == status
    assert toy.run("stack", "import", "one", *ENGINE, str(tmp_path / "not-there")).status == 2
    assert files(toy) == before


REAL = [(name, engine) for name in stack_names(REPOSITORY) for engine in load_stack(REPOSITORY, name).about.engines]


@pytest.mark.parametrize(("name", "engine"), REAL)
def test_export_after_import_changes_nothing_in_the_repository(name: str, engine: str) -> None:
    """Every series of this project, on the real pin; one that is called like a recipe is for another pin of an engine."""
    recipe = load_recipe(engine, REPOSITORY)
    chosen = ["--engine", recipe.family, "--recipe", recipe.name]
    command = [sys.executable, "-m", "forkyard", "stack", "export", name, *chosen, "--check", "--json"]
    environment = {**os.environ, "FORKYARD_ROOT": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode == 5:
        pytest.skip(f"the pin of {engine} cannot be had here: {done.stdout}")
    assert (done.returncode, json.loads(done.stdout)["differences"]) == (0, [])


# -- new -----------------------------------------------------------------------------------------------------


def test_from_a_new_stack_to_a_patch(toy: Toy) -> None:
    words = ("--title", "A thing", "--intent", "So that there is one.")
    document = ok(toy.run("stack", "new", "thing", *ENGINE, *words, "--add-to-recipe"))
    assert sorted(document["written"]) == [
        "patches/.gitattributes",
        "patches/thing/llama.cpp/series",
        "patches/thing/stack.toml",
        "recipes/toy.toml",
    ]
    assert 'stacks = ["thing"]' in toy.recipe.read_text()
    ok(toy.run("lock", "toy"))
    folder = edit(toy, "thing")
    rewrite(folder, "src/part4.cpp", "value + 4", "value + 40")
    commit(folder, "part 4 : more")
    assert statuses(ok(refresh(toy, "thing", "--lock"))) == {"part-4-more.patch": ["new"]}
    assert_exact(toy, "thing")
    assert toy.run("stack", "new", "thing", *ENGINE, *words).status == 2


def test_a_stack_that_has_nothing_for_an_engine(pair: Toy) -> None:
    answer = pair.run("stack", "edit", "one", "--engine", "ik_llama.cpp")
    assert answer.status == 3
    assert pair.run("stack", "edit", "nosuch", *ENGINE).status == 3


# -- faults ----------------------------------------------------------------------------------------------------


def prepared(folder: Path) -> Toy:
    """A toy with an edit whose refresh changes two stacks, a series file and whole files."""
    toy = make_toy(folder)
    make_stacks(toy)
    there = edit(toy)
    amend(there, 2, "src/part1.cpp", '#include "parts.h"', '#include "parts.h"\n#include <cstdint>')
    (there / "ours.c").write_text("int ours;\n")
    commit(there, f"add ours{BODY}")
    git(there, "reset", "--quiet", "--hard", "HEAD~1")
    git(there, "cherry-pick", "ORIG_HEAD")
    return toy


@pytest.mark.parametrize("moments", [6, pytest.param(20, marks=pytest.mark.deep)])
def test_killed_at_random_moments(tmp_path: Path, moments: int) -> None:
    """Whatever the moment, the next command finds all old files or all new ones, and a refresh ends with the new."""
    print(f"FORKYARD_TEST_SEED={SEED}")
    model = prepared(tmp_path / "model")
    old = {path: data for path, data in files(model).items() if not path.endswith("toy.toml")}
    started = time.perf_counter()
    ok(refresh(model))
    took = time.perf_counter() - started
    new = {path: data for path, data in files(model).items() if not path.endswith("toy.toml")}
    assert old != new
    toy = prepared(tmp_path / "killed")
    backup = tmp_path / "backup"
    shutil.copytree(toy.root, backup, symlinks=True)
    chance = random.Random(SEED)
    cut, states = 0, set()
    for number in range(moments):
        shutil.rmtree(toy.root)
        shutil.copytree(backup, toy.root, symlinks=True)
        child = toy.start("stack", "refresh", "one", *ENGINE)
        # Most of a refresh is reading; the writing at its end is what matters.
        after = took * (0.25 + 0.85 * (number + chance.random()) / moments)
        time.sleep(after)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            cut += 1
        child.communicate()
        assert toy.wait_until_alone() == {}
        # Any command that reads the project first finishes what was begun.
        assert toy.run("stack", "export", "two", *ENGINE, "--check").status in (0, 12)
        found = {path: data for path, data in files(toy).items() if not path.endswith("toy.toml")}
        assert found in (old, new), f"killed after {after:.3f} s"
        states.add("old" if found == old else "new")
        started = time.perf_counter()
        ok(refresh(toy))
        # A machine that was busy with something else at first is faster later.
        took = min(took, time.perf_counter() - started)
        assert {path: data for path, data in files(toy).items() if not path.endswith("toy.toml")} == new
        assert ok(refresh(toy))["written"] == []
    assert cut >= moments // 3
    assert "old" in states


def test_lock_files_of_a_killed_git_are_swept(tmp_path: Path) -> None:
    """Those of forkyard's own refs always, others only if they appeared while forkyard had git at work."""
    toy = prepared(tmp_path)
    folder = next((toy.root / "work").iterdir()) / ".git"
    left = [folder / "refs" / "forkyard" / "base.lock", folder / "index.lock", folder / "HEAD.lock"]
    (folder / "forkyard-moving").touch()
    for lock in left:
        lock.touch()
    ok(refresh(toy))
    assert not any(lock.exists() for lock in left)
    assert not (folder / "forkyard-moving").exists()


def test_a_lock_of_the_persons_own_git_is_respected(tmp_path: Path) -> None:
    toy = prepared(tmp_path)
    folder = next((toy.root / "work").iterdir()) / ".git"
    lock = folder / "HEAD.lock"
    # One from before forkyard was killed, and one without any mark.
    (folder / "forkyard-moving").touch()
    lock.touch()
    os.utime(lock, (lock.stat().st_mtime - 3600,) * 2)
    for _ in range(2):
        answer = refresh(toy, "one", "--fold")
        assert answer.status in (0, 4), answer.stdout
        assert lock.exists()


def test_two_refreshes_at_once(tmp_path: Path) -> None:
    toy = prepared(tmp_path)
    children = [toy.start("stack", "refresh", "one", *ENGINE) for _ in range(2)]
    answers = [ok(finish(child)) for child in children]
    assert sorted(bool(answer["written"]) for answer in answers) == [False, True]
    assert_exact(toy)


def test_a_full_disk_leaves_the_project_as_it_was(tmp_path: Path) -> None:
    toy = prepared(tmp_path)
    before = files(toy)
    if namespace() is None:
        pytest.skip("this machine lets nobody mount a small disk")
    aside = tmp_path / "aside"
    shutil.move(toy.root, aside)
    # The disk holds the project and hardly a page more.
    size = sum(-(-path.stat().st_size // 4096) * 4 + 4 for path in aside.rglob("*") if path.is_file()) + 64
    prepare = f'cp -a "{aside}/." "{toy.root}"; dd if=/dev/zero of="{toy.root}/filler" bs=1k 2>/dev/null || true'
    inspect = f'mkdir "$BASE/left"; cp -a "{toy.root}/patches" "{toy.root}/recipes" "$BASE/left"'
    inspect += f'; rm "{toy.root}/filler"'
    words = ["stack", "refresh", "one", *ENGINE]
    first, second = twice(toy, toy.root, f"{size}k", "size=256m", words, prepare=prepare, inspect=inspect)
    assert_storage_error(first, "the disk is full")
    shutil.rmtree(toy.root)
    shutil.copytree(toy.home / "left", toy.root)
    assert files(toy) == before
    assert ok(second)["written"]


@pytest.mark.parametrize("command", ["refresh", "edit"])
def test_a_read_only_project(tmp_path: Path, command: str) -> None:
    toy = prepared(tmp_path)
    if namespace() is None:
        pytest.skip("this machine lets nobody mount a disk")
    before = files(toy)
    aside = tmp_path / "aside"
    shutil.move(toy.root, aside)
    prepare = f'cp -a "{aside}/." "{toy.root}"; mount -o remount,ro "{toy.root}"'
    inspect = f'mkdir "$BASE/left"; cp -a "{toy.root}/patches" "{toy.root}/recipes" "$BASE/left"'
    words = ["stack", command, "one", *ENGINE]
    first, second = twice(toy, toy.root, "256m", "rw", words, prepare=prepare, inspect=inspect)
    assert_storage_error(first, "the file system is read-only")
    assert second.status == 0
    shutil.rmtree(toy.root)
    shutil.copytree(toy.home / "left", toy.root)
    assert files(toy) == before


def test_a_read_only_project_can_be_checked(tmp_path: Path) -> None:
    """Comparing takes no lock and writes nothing."""
    toy = prepared(tmp_path)
    for path in [toy.root, *toy.root.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)
    assert ok(toy.run("stack", "export", "one", *ENGINE, "--check"))["same"]
    for path in [toy.root, *toy.root.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o200)
