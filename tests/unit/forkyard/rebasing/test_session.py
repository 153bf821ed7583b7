"""One rebase from its start over conflicts to its end: what is written when, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from forkyard.console import Console, Silent
from forkyard.errors import BusyError, ForkyardError, PatchError, RecipeError, StorageError, UsageError
from forkyard.gitstore import Store
from forkyard.gitstore.running import Repository
from forkyard.gitstore.work import WorkRepository
from forkyard.journal import project_lock
from forkyard.rebasing import session as session_module
from forkyard.rebasing.session import AlreadyDoneError, Rebased, Session
from forkyard.rebasing.state import read_state, state_folder, write_state
from forkyard.recipes import load_recipe
from forkyard.workshop import clean as clean_cache

from .lab import Lab, git, numbered, statuses, text


@pytest.fixture
def hop(lab: Lab) -> list[str]:
    """Two upstream commits; the first patch of the series conflicts at the second one, the second patch does not."""
    made = lab.history({"a.c": numbered(), "b.c": numbered()}, {"a.c": numbered(l5="theirs"), "b.c": numbered(l20="x")})
    first = {"a.c": numbered(l5="mine"), "b.c": numbered()}
    lab.series(made[0], ("one", first), ("two", {**first, "b.c": numbered(l2="mine"), "new.c": text("ours")}))
    return made


@pytest.fixture
def clean(lab: Lab) -> list[str]:
    """Two upstream commits without conflicts."""
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(l20="new")})
    lab.series(made[0], ("one", {"a.c": numbered(l5="mine")}))
    return made


def waiting(lab: Lab, to: str, **options: Any) -> Rebased:
    done = lab.session().start(to, **options)
    assert done.worktree is not None
    return done


def restore(lab: Lab, before: dict[str, tuple[int, bytes]]) -> None:
    """Put the project back, resolutions apart."""
    for path, (_, data) in before.items():
        (lab.root / path).write_bytes(data)


def resolve(session: Session, content: bytes = numbered(l5="both")) -> None:
    (session.worktree / "a.c").write_bytes(content)


def test_without_conflicts_everything_is_written_at_once(lab: Lab, clean: list[str]) -> None:
    before = lab.snapshot()
    done = lab.session().start(clean[1])
    assert done.finished is not None
    changed = {path for path, data in lab.snapshot().items() if before.get(path) != data}
    assert changed == set(done.finished.paths) == {"recipes/mine.toml", "patches/part/llama.cpp/one.patch"}
    recipe = load_recipe("mine", lab.root)
    assert recipe.pin.commit == clean[1]
    assert b"# The recipe of a test." in recipe.path.read_bytes()
    assert read_state(lab.root, "mine") is None
    assert not (lab.root / "work").exists()
    lab.session().start(clean[0])
    assert lab.snapshot() == before


def test_the_pin_itself(lab: Lab, clean: list[str]) -> None:
    before = lab.snapshot()
    done = lab.session().start(clean[0])
    assert done.finished is not None
    assert done.finished.paths == ()
    assert statuses(done.replay) == ["clean"]
    assert lab.snapshot() == before


def test_a_dry_run_leaves_nothing(lab: Lab, hop: list[str]) -> None:
    before = lab.snapshot()
    done = lab.session().start(hop[1], dry_run=True)
    assert statuses(done.replay) == ["conflict", "clean"]
    assert (done.finished, done.worktree) == (None, None)
    assert lab.snapshot() == before
    assert read_state(lab.root, "mine") is None
    assert not (lab.root / "work").exists()


def test_a_conflict_resolved_once_is_never_asked_again(lab: Lab, hop: list[str]) -> None:
    before = lab.snapshot()
    first = waiting(lab, hop[1])
    tree = first.worktree
    assert tree is not None
    assert lab.snapshot() == before
    # What a person sees is what git itself would show.
    assert "both modified:   a.c" in git(tree, "status")
    assert b"<<<<" in (tree / "a.c").read_bytes()
    assert sorted(path.name for path in (lab.root / "work").iterdir()) == ["rebase-mine"]
    resolve(lab.session())
    done = lab.session().resume()
    assert done.finished is not None
    assert statuses(done.replay) == ["resolved", "clean"]
    (record,) = [path for path in lab.snapshot() if path.endswith(".resolution")]
    assert record in done.finished.paths
    assert not tree.exists()
    assert read_state(lab.root, "mine") is None
    # This machine's copy went; the project's record is enough.
    assert list((lab.root / ".forkyard").rglob("*.resolution")) == []
    kept = (lab.root / record).read_bytes()
    # Somebody else's clone, with nothing but the record.
    restore(lab, before)
    assert (lab.root / record).read_bytes() == kept
    again = lab.session().start(hop[1])
    assert statuses(again.replay) == ["resolved", "clean"]
    assert again.finished is not None


def test_going_back_needs_no_question_of_its_own(lab: Lab, hop: list[str]) -> None:
    """Back on the old base a resolved patch meets the same lines again; whatever is asked is asked once."""
    waiting(lab, hop[1])
    resolve(lab.session())
    lab.session().resume()
    for _ in range(2):
        back = lab.session().start(hop[0])
        if back.worktree is not None:
            resolve(lab.session(), numbered(l5="mine"))
            assert lab.session().resume().finished is not None
        there = lab.session().start(hop[1])
        assert there.finished is not None


def test_whole_files_of_ours_stay_what_they_are(lab: Lab) -> None:
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(l20="new")})
    first = {"a.c": numbered(), "ours.c": ("100755", text("whole"))}
    lab.series(made[0], ("one", first), whole_files=True)
    lab.series(
        made[0], ("two", {**first, "inside.c": text("in the diff")}), stack="q", order=200, after=lab.tree(first)
    )
    before = lab.snapshot()
    assert before["patches/part/src/ours.c"] == (0o755, text("whole"))
    lab.session().start(made[1])
    assert "patches/q/src/inside.c" not in lab.snapshot()
    lab.session().start(made[0])
    assert lab.snapshot() == before


def test_upstream_has_a_file_of_that_name_by_now(lab: Lab) -> None:
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(), "ours.c": text("theirs")})
    lab.series(made[0], ("one", {"a.c": numbered(l1="x"), "ours.c": text("whole")}), whole_files=True)
    tree = waiting(lab, made[1]).worktree
    assert tree is not None
    (tree / "ours.c").write_bytes(text("theirs", "and ours"))
    done = lab.session().resume()
    assert done.finished is not None
    assert any("ours.c is no whole file of the stack any more" in note for note in done.finished.notes)
    assert b"Adds-Files" not in (lab.root / "patches/part/llama.cpp/one.patch").read_bytes()
    assert not (lab.root / "patches/part/src/ours.c").exists()
    assert lab.files(lab.replay(made[1], made[1]).tree)["ours.c"] == text("theirs", "and ours")


def test_skip(lab: Lab, hop: list[str]) -> None:
    waiting(lab, hop[1])
    done = lab.session().resume(skip=True)
    assert statuses(done.replay) == ["dropped", "clean"]
    assert (lab.root / "patches/part/llama.cpp/series").read_text() == "two.patch\n"
    assert not (lab.root / "patches/part/llama.cpp/one.patch").exists()
    assert list((lab.root / "patches").rglob("*.resolution")) == []


def test_abort(lab: Lab, hop: list[str]) -> None:
    before = lab.snapshot()
    waiting(lab, hop[1])
    state = lab.session().abort()
    assert state is not None
    assert state.new.commit == hop[1]
    assert lab.snapshot() == before
    assert list((lab.root / "work").iterdir()) == []
    with pytest.raises(UsageError, match="no rebase of mine is under way"):
        lab.session().abort()


def test_resolutions_survive_an_abort(lab: Lab) -> None:
    made = lab.history({"a.c": numbered(), "b.c": numbered()}, {"a.c": numbered(l5="u"), "b.c": numbered(l7="v")})
    first = {"a.c": numbered(l5="mine"), "b.c": numbered()}
    lab.series(made[0], ("one", first), ("two", {**first, "b.c": numbered(l7="mine")}))
    waiting(lab, made[1])
    resolve(lab.session())
    second = lab.session().resume()
    assert second.state.waiting is not None
    assert second.state.waiting.patch == "two.patch"
    lab.session().abort()
    again = waiting(lab, made[1])
    assert statuses(again.replay) == ["resolved", "conflict"]


def test_several_conflicts_one_after_the_other(lab: Lab) -> None:
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(l3="u", l9="u", l15="u")})
    sides = [numbered(l3="1"), numbered(l3="1", l9="2"), numbered(l3="1", l9="2", l15="3")]
    lab.series(made[0], *((f"p{number}", {"a.c": side}) for number, side in enumerate(sides)))
    done = waiting(lab, made[1])
    assert statuses(done.replay) == ["conflict"] * 3
    for number, content in enumerate(
        [numbered(l3="A", l9="u", l15="u"), numbered(l3="A", l9="B", l15="u"), numbered(l3="A", l9="B", l15="C")]
    ):
        assert done.state.waiting is not None
        assert done.state.waiting.patch == f"p{number}.patch"
        resolve(lab.session(), content)
        done = lab.session().resume()
    assert done.finished is not None
    assert lab.files(lab.replay(made[1], made[1]).tree) == {"a.c": numbered(l3="A", l9="B", l15="C")}


@pytest.mark.parametrize("spoil", [None, "lock", "ready"])
def test_the_next_conflict_is_laid_out_where_the_last_was(lab: Lab, spoil: str | None) -> None:
    """Checking thousands of files out again for each conflict took most of the time."""
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(l3="u", l9="u"), "u.c": text("upstream")})
    lab.series(made[0], ("p0", {"a.c": numbered(l3="1")}), ("p1", {"a.c": numbered(l3="1", l9="2")}))
    tree = waiting(lab, made[1]).worktree
    assert tree is not None
    # Kept open: the number of a file that is gone may be another's. A second name would make it look changed to git.
    old = os.open(tree / "u.c", os.O_RDONLY)
    # A build, edits that do not belong to it, a branch and a folder of the person's own.
    git(tree, "branch", "mine")
    git(tree, "symbolic-ref", "HEAD", "refs/heads/mine")
    (tree / ".git/info/exclude").write_text("*.o\n")
    (tree / "u.o").write_bytes(b"built")
    git(tree, "init", "--quiet", "nested")
    (tree / "nested/n.c").write_bytes(b"n")
    (tree / ".git/info/exclude").write_text("*.o\nnested\n")
    resolve(lab.session(), numbered(l3="A", l9="u"))
    if spoil == "lock":
        (tree / ".git/index.lock").touch()
        os.utime(tree / ".git/index.lock", (0, 0))
    elif spoil == "ready":
        # As a kill in the middle of laying out leaves it.
        shutil.copytree(tree, tree.with_name(f".{tree.name}.unfinished"))
    done = lab.session().resume()
    assert done.state.waiting is not None
    assert done.state.waiting.patch == "p1.patch"
    assert {path.name for path in tree.iterdir()} == {".git", "a.c", "u.c"}
    assert git(tree, "symbolic-ref", "HEAD").strip() == "refs/heads/rebase"
    assert git(tree, "status", "--porcelain").split() == ["UU", "a.c"]
    assert os.path.samestat((tree / "u.c").stat(), os.fstat(old)) == (spoil != "lock")
    os.close(old)
    assert not tree.with_name(f".{tree.name}.unfinished").exists()
    resolve(lab.session(), numbered(l3="A", l9="B"))
    assert lab.session().resume().finished is not None
    assert not list((lab.root / "work").iterdir())


def test_only_one_at_a_time(lab: Lab, hop: list[str]) -> None:
    waiting(lab, hop[1])
    with pytest.raises(UsageError, match="a rebase of mine is under way"):
        lab.session().start(hop[1])
    # Looking is allowed.
    lab.session().start(hop[1], dry_run=True)


def test_locked_by_another(lab: Lab, clean: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "BUSY_S", 0.1)
    with project_lock(lab.root), pytest.raises(BusyError):
        lab.session().start(clean[1])


def test_whoever_waited_reads_the_recipe_again(lab: Lab, clean: list[str]) -> None:
    late = lab.session()
    lab.session().start(clean[1])
    done = late.start(clean[1])
    assert done.state.old.commit == clean[1]
    assert done.finished is not None
    assert done.finished.paths == ()


# -- some stacks, another folder ---------------------------------------------------------------------


def two_stacks(lab: Lab) -> list[str]:
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(l20="new", l15="theirs")})
    first = {"a.c": numbered(l2="first")}
    lab.series(made[0], ("one", first), stack="first", order=1)
    second = {"a.c": numbered(l2="first", l9="second")}
    lab.series(made[0], ("two", second), stack="second", order=2, after=lab.tree(first))
    return made


def test_one_stack_into_a_folder(lab: Lab, tmp_path: Path) -> None:
    made = two_stacks(lab)
    before, out = lab.snapshot(), tmp_path / "out"
    done = lab.session().start(made[1], stacks=["second"], out=out)
    assert done.finished is not None
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == [
        "second/llama.cpp/series",
        "second/llama.cpp/two.patch",
    ]
    assert lab.snapshot() == before
    assert read_state(lab.root, "mine") is None


@pytest.mark.parametrize("names", [["second"], ["first", "second"]])
def test_chosen_stacks_never_move_the_pin(lab: Lab, names: list[str]) -> None:
    """Even all of them: `--stack` says that the recipe's pin stays."""
    made = two_stacks(lab)
    before = lab.snapshot()
    done = lab.session().start(made[1], stacks=names)
    assert done.finished is None
    assert "--out DIR keeps the patches" in done.notes[0]
    assert lab.snapshot() == before


def test_a_stack_that_is_not_in_the_recipe(lab: Lab, tmp_path: Path) -> None:
    made = two_stacks(lab)
    lab.stacks.remove("second")
    (lab.root / "patches/second").rename(lab.root / "patches/third")
    lab.series(made[0], ("two", {"a.c": numbered(l9="second")}), stack="second", order=2)
    lab.stacks.remove("second")
    (lab.root / "patches/third/llama.cpp/two.patch").unlink()
    (lab.root / "patches/third/llama.cpp/series").write_text("")
    lab.pin(made[0])
    before = lab.snapshot()
    done = lab.session().start(made[1], stacks=["second"], out=tmp_path / "out")
    assert statuses(done.replay) == ["clean"]
    assert (tmp_path / "out/second/llama.cpp/two.patch").is_file()
    assert lab.snapshot() == before


def test_a_folder_is_not_forgotten_over_a_conflict(lab: Lab, hop: list[str], tmp_path: Path) -> None:
    before, out = lab.snapshot(), tmp_path / "out"
    waiting(lab, hop[1], out=out)
    resolve(lab.session())
    done = lab.session().resume()
    assert done.finished is not None
    assert done.finished.out == out
    assert (out / "part/llama.cpp/one.patch").is_file()
    assert len(list(out.rglob("*.resolution"))) == 1
    assert lab.snapshot() == before
    # The project has no record of it, so this machine's stays.
    assert statuses(lab.session().start(hop[1], dry_run=True).replay) == ["resolved", "clean"]


def test_an_empty_series_into_a_folder(lab: Lab, tmp_path: Path) -> None:
    made = lab.history({"a.c": numbered()}, {"a.c": text("new")})
    lab.series(made[0])
    done = lab.session().start(made[1], out=tmp_path / "out")
    assert done.finished is not None
    assert (tmp_path / "out/part/llama.cpp/series").read_text() == ""


def test_the_folder_holds_the_last_rebase_only(lab: Lab, hop: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    waiting(lab, hop[1], out=out)
    resolve(lab.session())
    lab.session().resume()
    assert (out / "part/llama.cpp/one.patch").is_file()
    shutil.rmtree(lab.root / ".forkyard")
    waiting(lab, hop[1], out=out)
    lab.session().resume(skip=True)
    assert not (out / "part/llama.cpp/one.patch").exists()


# -- what may be found when going on -----------------------------------------------------------------


def test_markers_are_left(lab: Lab, hop: list[str]) -> None:
    waiting(lab, hop[1])
    for _ in range(2):
        with pytest.raises(UsageError, match=r"one.patch is not resolved: a\.c"):
            lab.session().resume()
    # Nothing was taken over, and nothing of the person's was touched.
    assert b"<<<<" in (lab.session().worktree / "a.c").read_bytes()
    assert list((lab.root / ".forkyard").rglob("*.resolution")) == []
    resolve(lab.session())
    assert lab.session().resume().finished is not None


def test_the_work_tree_was_deleted(lab: Lab, hop: list[str]) -> None:
    waiting(lab, hop[1])
    shutil.rmtree(lab.session().worktree)
    with pytest.raises(UsageError, match="was laid out anew"):
        lab.session().resume()
    assert b"<<<<" in (lab.session().worktree / "a.c").read_bytes()
    resolve(lab.session())
    assert lab.session().resume().finished is not None


def test_the_work_tree_lost_its_repository(lab: Lab, hop: list[str]) -> None:
    waiting(lab, hop[1])
    resolve(lab.session(), text("an hour of work"))
    shutil.rmtree(lab.session().worktree / ".git")
    with pytest.raises(UsageError, match="was laid out anew") as error:
        lab.session().resume()
    assert "rebase-mine.old-1" in str(error.value.why)
    assert (lab.root / "work/rebase-mine.old-1/a.c").read_bytes() == text("an hour of work")


def test_a_killed_start_leaves_no_tree_that_reads_as_resolved(
    lab: Lab, hop: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repository is there, the conflict is not yet in it: taken for a resolution it would lose the patch."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for step in ("_continue_from", "show_conflict"):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(WorkRepository, step, killed)
            if read_state(lab.root, "mine") is None:
                lab.session().start(hop[1])
            else:
                lab.session().resume()
        assert not lab.session().worktree.exists()
        with pytest.raises(UsageError, match="was laid out anew"):
            lab.session().resume()
        shutil.rmtree(lab.session().worktree)
    with pytest.raises(UsageError, match="was laid out anew"):
        lab.session().resume()
    with pytest.raises(UsageError, match="is not resolved"):
        lab.session().resume()
    assert sorted(path.name for path in (lab.root / "work").iterdir()) == ["rebase-mine"]


def test_something_else_is_where_the_work_tree_goes(lab: Lab, hop: list[str]) -> None:
    mine = lab.root / "work" / "rebase-mine" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("dear to me")
    done = waiting(lab, hop[1])
    assert (lab.root / "work/rebase-mine.old-1/notes.txt").read_text() == "dear to me"
    assert done.worktree is not None
    assert b"<<<<" in (done.worktree / "a.c").read_bytes()


def test_the_person_committed(lab: Lab, hop: list[str]) -> None:
    tree = waiting(lab, hop[1]).worktree
    assert tree is not None
    resolve(lab.session())
    git(tree, "commit", "--quiet", "--all", "--message", "resolved")
    (tree / "b.c").write_bytes(numbered(l11="too", l20="x"))
    git(tree, "add", "b.c")
    done = lab.session().resume()
    assert done.finished is not None
    # The other file goes with the resolution.
    assert b"line 11" in (lab.root / "patches/part/llama.cpp/one.patch").read_bytes()
    assert statuses(lab.session().start(hop[0], dry_run=True).replay)


@pytest.mark.parametrize(
    ("operation", "marks", "end"),
    [
        ("merge", ["MERGE_HEAD"], "git merge --abort"),
        ("cherry-pick", ["CHERRY_PICK_HEAD"], "git cherry-pick --abort"),
        ("rebase", ["rebase-merge"], "git rebase --abort"),
        ("bisect", ["BISECT_LOG"], "git bisect reset"),
    ],
)
def test_an_operation_of_the_persons_own(lab: Lab, hop: list[str], operation: str, marks: list[str], end: str) -> None:
    tree = waiting(lab, hop[1]).worktree
    assert tree is not None
    resolve(lab.session())
    for mark in marks:
        (tree / ".git" / mark).write_text("x")
    with pytest.raises(UsageError, match=f"a {operation} of your own is unfinished") as error:
        lab.session().resume()
    assert end in str(error.value.next_step)
    for mark in marks:
        (tree / ".git" / mark).unlink()
    assert lab.session().resume().finished is not None


def test_a_file_deleted_upstream(lab: Lab) -> None:
    made = lab.history({"a.c": numbered(), "z": b""}, {"z": b""})
    lab.series(made[0], ("one", {"a.c": numbered(l5="mine"), "z": b"", "new.c": text("new")}))
    tree = waiting(lab, made[1]).worktree
    assert tree is not None
    assert (tree / "a.c").read_bytes() == numbered(l5="mine")
    assert "deleted by us:   a.c" in git(tree, "status")
    with pytest.raises(UsageError, match=r"is not resolved: a\.c"):
        lab.session().resume()
    git(tree, "rm", "--quiet", "a.c")
    done = lab.session().resume()
    assert done.finished is not None
    assert lab.files(lab.replay(made[1], made[1]).tree) == {"z": b"", "new.c": text("new")}


def test_a_file_deleted_upstream_and_kept(lab: Lab) -> None:
    made = lab.history({"a.c": numbered(), "z": b""}, {"z": b""})
    lab.series(made[0], ("one", {"a.c": numbered(l5="mine"), "z": b""}))
    tree = waiting(lab, made[1]).worktree
    assert tree is not None
    git(tree, "add", "a.c")
    assert lab.session().resume().finished is not None
    assert lab.files(lab.replay(made[1], made[1]).tree) == {"a.c": numbered(l5="mine"), "z": b""}


def test_a_link_stays_a_link(lab: Lab) -> None:
    made = lab.history({"l": ("120000", b"a"), "z": b""}, {"l": ("120000", b"b"), "z": b""})
    lab.series(made[0], ("one", {"l": ("120000", b"c"), "z": b""}))
    tree = waiting(lab, made[1]).worktree
    assert tree is not None
    assert os.readlink(tree / "l") == "c"
    git(tree, "add", "l")
    assert lab.session().resume().finished is not None
    (entry,) = [one for one in lab.upstream.entries(lab.replay(made[1], made[1]).tree) if one.path == "l"]
    assert (entry.mode, lab.content(entry)) == ("120000", b"c")


def test_a_huge_file_left_in_the_work_tree(lab: Lab, hop: list[str]) -> None:
    tree = waiting(lab, hop[1]).worktree
    assert tree is not None
    resolve(lab.session())
    (tree / "model.gguf").write_bytes(os.urandom(6 << 20))
    with pytest.raises(UsageError, match="too large to be kept"):
        lab.session().resume()
    (tree / "model.gguf").unlink()
    assert lab.session().resume().finished is not None


def test_a_record_that_arrived_meanwhile(lab: Lab, hop: list[str]) -> None:
    """Pulled in from somebody who resolved the same conflict."""
    before = lab.snapshot()
    waiting(lab, hop[1])
    resolve(lab.session())
    lab.session().resume()
    (record,) = (lab.root / "patches").rglob("*.resolution")
    data = record.read_bytes()
    restore(lab, before)
    record.unlink()
    waiting(lab, hop[1])
    record.write_bytes(data)
    done = lab.session().resume()
    assert statuses(done.replay) == ["resolved", "clean"]


def test_the_conflict_became_another(lab: Lab) -> None:
    """A record for an earlier patch is taken away; what waits is not what the person sees."""
    made = lab.history({"a.c": numbered(), "b.c": numbered()}, {"a.c": numbered(l5="u"), "b.c": numbered(l7="v")})
    first = {"a.c": numbered(l5="mine"), "b.c": numbered()}
    lab.series(made[0], ("one", first), ("two", {**first, "b.c": numbered(l7="mine")}))
    waiting(lab, made[1])
    resolve(lab.session())
    second = lab.session().resume()
    assert second.worktree is not None
    (second.worktree / "b.c").write_bytes(text("an hour of work"))
    for record in (lab.root / ".forkyard").rglob("*.resolution"):
        record.unlink()
    with pytest.raises(UsageError, match="was laid out anew"):
        lab.session().resume()
    assert (lab.root / "work/rebase-mine.old-1/b.c").read_bytes() == text("an hour of work")


def test_upstreams_history_is_at_hand_where_a_conflict_is_resolved(lab: Lab, hop: list[str]) -> None:
    done = waiting(lab, hop[1])
    tree = done.worktree
    assert tree is not None
    (culprit,) = done.replay.outcomes[0].culprits
    assert "+theirs" in git(tree, "show", culprit.commit)
    assert git(tree, "log", "--format=%H", "-Stheirs", "HEAD").split() == [hop[1]]
    assert hop[1] in git(tree, "blame", "-l", "HEAD", "--", "b.c")
    resolve(lab.session())
    assert lab.session().resume().finished is not None


def test_cleaning_the_sources_costs_no_resolution(lab: Lab, hop: list[str]) -> None:
    tree = waiting(lab, hop[1]).worktree
    assert tree is not None
    resolve(lab.session())
    git(tree, "add", "a.c")
    said: list[str] = []

    class Listener(Silent):
        def note(self, text: str) -> None:
            said.append(text)

    clean_cache(lab.cache, ["sources"], dry_run=False, reporter=Listener())
    assert said == [f"upstream's history is no longer at hand in {tree}; the work there is complete"]
    assert git(tree, "status", "--short").splitlines() == ["M  a.c"]
    assert lab.session().resume().finished is not None


def test_a_store_deleted_by_hand_costs_no_resolution(lab: Lab, hop: list[str]) -> None:
    waiting(lab, hop[1])
    resolve(lab.session(), text("an hour of work"))
    shutil.rmtree(lab.cache.root / "store")
    # The same is fetched and made again, under the same names.
    done = lab.session().resume()
    assert done.finished is not None
    assert lab.files(lab.replay(hop[1], hop[1]).tree)["a.c"] == text("an hour of work")


# -- taking it back ----------------------------------------------------------------------------------


def test_undo_is_exact(lab: Lab, hop: list[str]) -> None:
    (lab.root / "patches/part/llama.cpp/one.patch").chmod(0o755)
    before = lab.snapshot()
    waiting(lab, hop[1])
    resolve(lab.session())
    done = lab.session().resume()
    assert done.finished is not None
    undone = lab.session().undo()
    assert undone is not None
    assert (undone.old, undone.new, undone.left) == (hop[0], hop[1], ())
    assert set(undone.paths) == set(done.finished.paths)
    assert not (lab.root / "patches/part/llama.cpp/resolutions").exists()
    assert lab.snapshot() == before
    with pytest.raises(UsageError, match="no rebase of mine to undo"):
        lab.session().undo()
    # What was resolved once is not asked again.
    assert statuses(lab.session().start(hop[1]).replay) == ["resolved", "clean"]


def test_undo_leaves_the_edits_of_others_alone(lab: Lab, hop: list[str]) -> None:
    before = lab.snapshot()
    waiting(lab, hop[1])
    lab.session().resume(skip=True)
    (lab.root / "patches/part/llama.cpp/two.patch").write_bytes(b"mine by now")
    (lab.root / "patches/part/llama.cpp/new.patch").write_bytes(b"mine")
    undone = lab.session().undo()
    assert undone is not None
    assert undone.left == ("patches/part/llama.cpp/two.patch",)
    after = lab.snapshot()
    assert after.pop("patches/part/llama.cpp/two.patch")[1] == b"mine by now"
    assert after.pop("patches/part/llama.cpp/new.patch")[1] == b"mine"
    assert after == {path: facts for path, facts in before.items() if not path.endswith("two.patch")}


def test_undo_while_one_is_under_way(lab: Lab, hop: list[str]) -> None:
    before = lab.snapshot()
    waiting(lab, hop[1])
    assert lab.session().undo() is None
    assert lab.snapshot() == before
    assert read_state(lab.root, "mine") is None


def test_undo_with_a_damaged_record(lab: Lab, clean: list[str]) -> None:
    lab.session().start(clean[1])
    after = lab.snapshot()
    (state_folder(lab.root, "mine") / "undo" / "list.json").write_bytes(b"{")
    with pytest.raises(RecipeError, match="cannot be read"):
        lab.session().undo()
    assert lab.snapshot() == after


# -- each run does only what a resolution changes ----------------------------------------------------


@pytest.fixture
def merges(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every merge of trees and every patch that a git works at, as they happen."""
    seen: list[str] = []
    plain = Repository._attempt

    def watched(self: Repository, *words: str, **options: Any) -> Any:
        if words[0] in ("merge-tree", "apply", "mailinfo"):
            seen.append(words[0])
        return plain(self, *words, **options)

    monkeypatch.setattr(Repository, "_attempt", watched)
    return seen


def long_series(lab: Lab) -> list[str]:
    """Ten patches of which the third, the eighth and the ninth conflict."""
    names = [f"f{number}.c" for number in range(10)]
    old = {name: numbered() for name in names}
    new = {**old, **{f"f{number}.c": numbered(l5=f"theirs {number}") for number in (2, 7, 8)}, "other.c": text("x")}
    made = lab.history(old, new)
    states: list[dict[str, bytes]] = [old]
    for name in names:
        states.append({**states[-1], name: numbered(l5="mine")})
    lab.series(made[0], *((f"p{number}", state) for number, state in enumerate(states[1:])))
    return made


def test_only_what_follows_a_resolution_is_done_again(lab: Lab, merges: list[str]) -> None:
    made = long_series(lab)
    waiting(lab, made[1])
    for number, expected in ((2, 7), (7, 2)):
        (lab.session().worktree / f"f{number}.c").write_bytes(numbered(l5="both"))
        merges.clear()
        done = lab.session().resume()
        # One merge for each patch after it, one diff for the record, and nothing is applied anew.
        assert merges.count("merge-tree") == expected
        assert merges.count("mailinfo") == 0
        assert done.worktree is not None
    (lab.session().worktree / "f8.c").write_bytes(numbered(l5="both"))
    merges.clear()
    assert lab.session().resume().finished is not None
    assert merges.count("merge-tree") == 1


@pytest.mark.parametrize("spoil", ["gone", "garbage", "another git", "objects"])
def test_what_was_worked_out_may_be_lost(lab: Lab, spoil: str) -> None:
    made = long_series(lab)
    results = []
    before = lab.snapshot()
    for spoiled in (False, True):
        waiting(lab, made[1])
        for number in (2, 7, 8):
            (lab.session().worktree / f"f{number}.c").write_bytes(numbered(l5="both"))
            kept = lab.session().folder / "answers.json"
            if spoiled and spoil == "gone":
                kept.unlink()
            elif spoiled and spoil == "garbage":
                kept.write_bytes(b'{"answers": [')
            elif spoiled and spoil == "another git":
                facts = json.loads(kept.read_bytes())
                kept.write_text(json.dumps({**facts, "git": "git version 0"}))
            elif spoiled:
                shutil.rmtree(lab.cache.root / "store")
            done = lab.session().resume()
        assert done.finished is not None
        results.append(lab.snapshot())
        restore(lab, before)
        for path in set(results[-1]) - set(before):
            (lab.root / path).unlink()
    assert results[0] == results[1]


def test_another_mode_of_a_whole_file_is_another_series(lab: Lab, hop: list[str]) -> None:
    lab.series(hop[0], ("one", {"a.c": numbered(l5="mine"), "b.c": numbered(), "w.c": b"w"}), whole_files=True)
    (lab.root / "patches/part/llama.cpp/two.patch").unlink()
    waiting(lab, hop[1])
    (lab.root / "patches/part/src/w.c").chmod(0o755)
    resolve(lab.session())
    with pytest.raises(PatchError, match="the stacks were changed"):
        lab.session().resume()


def test_history_is_fetched_once(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source whose history does not lead to the pin is asked once, not in every run."""
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(l5="theirs")})
    lab.series(made[0], ("one", {"a.c": numbered(l5="mine")}))
    alone = lab.commit({"a.c": numbered(l5="theirs")}, "no parents")
    fetched: list[str | None] = []
    plain = Store.fetch

    def watched(self: Store, *words: Any, history: str | None = "none", **options: Any) -> None:
        fetched.append(history)
        plain(self, *words, history=history, **options)

    monkeypatch.setattr(Store, "fetch", watched)
    waiting(lab, alone, source=str(lab.upstream.path))
    assert [one for one in fetched if one != "none"]
    fetched.clear()
    resolve(lab.session())
    assert lab.session().resume().finished is not None
    assert fetched == []


# -- what may have changed ---------------------------------------------------------------------------


def change_series(lab: Lab) -> None:
    path = lab.root / "patches/part/llama.cpp/two.patch"
    path.write_bytes(path.read_bytes().replace(b"Why.", b"Because."))


def change_pin(lab: Lab) -> None:
    lab.pin(lab.commit({"a.c": text("elsewhere")}))


def change_stacks(lab: Lab) -> None:
    lab.recipe.write_text(lab.recipe.read_text().replace('stacks = ["part"]', "stacks = []"))


@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        (change_series, PatchError, "the stacks were changed"),
        (change_pin, RecipeError, "the recipe's pin was changed"),
        (change_stacks, RecipeError, "the recipe's stacks were changed"),
    ],
)
def test_the_project_changed_meanwhile(
    lab: Lab, hop: list[str], change: Any, error: type[ForkyardError], what: str
) -> None:
    waiting(lab, hop[1])
    before = lab.snapshot()
    change(lab)
    resolve(lab.session())
    with pytest.raises(error, match=what) as caught:
        lab.session().resume()
    assert "--abort" in str(caught.value.next_step)
    for path, (_, data) in before.items():
        (lab.root / path).write_bytes(data)
    assert lab.session().resume().finished is not None


def test_a_damaged_record(lab: Lab, hop: list[str]) -> None:
    before = lab.snapshot()
    waiting(lab, hop[1])
    (state_folder(lab.root, "mine") / "state.json").write_bytes(b"{")
    for attempt in (
        lambda: lab.session().resume(),
        lambda: lab.session().start(hop[1]),
        lambda: lab.session().status(),
    ):
        with pytest.raises(RecipeError, match="cannot be read"):
            attempt()
    assert lab.session().abort() is None
    assert lab.snapshot() == before
    waiting(lab, hop[1])


def test_a_damaged_resolution(lab: Lab, hop: list[str]) -> None:
    waiting(lab, hop[1])
    resolve(lab.session())
    lab.session().resume()
    (record,) = (lab.root / "patches").rglob("*.resolution")
    record.write_bytes(b"\0" * 100)
    before = lab.snapshot()
    with pytest.raises(PatchError, match="not a recorded resolution") as error:
        lab.session().start(hop[0])
    assert error.value.where == str(record)
    assert lab.snapshot() == before


def test_a_damaged_journal(lab: Lab, clean: list[str]) -> None:
    journal = lab.root / ".forkyard" / "journal"
    journal.mkdir(parents=True)
    (journal / "list.json").write_text('{"writes": [["recipes/mine.toml", "00ff", false]], "deletes": []}')
    (journal / "00ff").write_text("not that")
    before = lab.snapshot()
    with pytest.raises(StorageError, match="the record of an unfinished change is damaged"):
        lab.session().start(clean[1])
    assert lab.snapshot() == before
    shutil.rmtree(journal)
    assert lab.session().start(clean[1]).finished is not None


# -- cut off at the end ------------------------------------------------------------------------------


def test_cut_off_after_everything_was_written(lab: Lab, clean: list[str]) -> None:
    done = lab.session().start(clean[1])
    for attempt in ("resume", "abort", "status"):
        write_state(lab.root, done.state)
        with pytest.raises(AlreadyDoneError, match="is done: everything is written"):
            getattr(lab.session(), attempt)()
        assert load_recipe("mine", lab.root).pin.commit == clean[1]
    # The next rebase is not held up by it.
    assert lab.session().start(clean[0]).finished is not None


def test_a_recipe_outside_the_project(lab: Lab, clean: list[str], tmp_path: Path) -> None:
    lab.recipe.rename(tmp_path / "own.toml")
    session = Session(lab.root, str(tmp_path / "own.toml"), lab.cache, Console(quiet=True))
    done = session.start(clean[1])
    assert done.finished is not None
    assert clean[1] in (tmp_path / "own.toml").read_text()


def test_a_patch_that_is_none(lab: Lab, clean: list[str]) -> None:
    (lab.root / "patches/part/llama.cpp/one.patch").write_bytes(b"not a patch\n")
    before = lab.snapshot()
    with pytest.raises(PatchError):
        lab.session().start(clean[1])
    assert lab.snapshot() == before


def test_a_commit_nobody_has(lab: Lab, clean: list[str]) -> None:
    before = lab.snapshot()
    with pytest.raises(ForkyardError, match="no source delivered"):
        lab.session().start("9" * 40)
    assert lab.snapshot() == before


def test_a_commit_of_the_other_engine(lab: Lab) -> None:
    mark = "ggml/src/iqk/iqk_mul_mat.cpp"
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(l20="new"), mark: text("ik")})
    lab.series(made[0], ("one", {"a.c": numbered(l5="mine")}))
    before = lab.snapshot()
    with pytest.raises(UsageError, match=r"is no commit of llama\.cpp, but of ik_llama\.cpp"):
        lab.session().start(made[1])
    assert lab.snapshot() == before


def test_a_stack_that_is_not_there(lab: Lab, clean: list[str]) -> None:
    with pytest.raises(RecipeError, match="there is no stack 'prat'"):
        lab.session().start(clean[1], stacks=["prat"])
