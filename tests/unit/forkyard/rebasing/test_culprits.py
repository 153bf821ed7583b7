"""Which upstream commit made a patch conflict."""

from __future__ import annotations

from typing import Any

from forkyard.gitstore import Store
from forkyard.rebasing.culprits import Culprit
from forkyard.rebasing.replaying import Replay

from .lab import Files, Lab, numbered, statuses, text

OTHER = {"other.c": text("nothing")}


def rebased(lab: Lab, patched: Files, *versions: Files, **options: Any) -> tuple[list[str], Replay]:
    """Upstream goes through some versions; a patch made on the first is replayed on the last."""
    made = lab.history(*({**OTHER, "number": text(number), **files} for number, files in enumerate(versions)))
    lab.series(made[0], ("fix", {**OTHER, "number": text(0), **patched}))
    return made, lab.replay(made[0], made[-1], **options)


def culprits(done: Replay) -> list[tuple[str, str]]:
    return [(one.path, one.commit) for outcome in done.outcomes for one in outcome.culprits]


def test_contents(lab: Lab) -> None:
    versions = [
        {"a.c": numbered()},
        {"a.c": numbered(l18="far away")},
        {"a.c": numbered(l18="far away", l5="theirs")},
        {"a.c": numbered(l18="far away", l5="theirs", l15="later")},
        {"a.c": numbered(l18="far away", l5="theirs, again", l15="later")},
    ]
    made, done = rebased(lab, {"a.c": numbered(l5="mine")}, *versions)
    assert done.history
    assert statuses(done) == ["conflict"]
    (found,) = done.outcomes[0].culprits
    assert found == Culprit("a.c", made[2], "version 2", "Up Stream", "2026-01-07T10:00:00+00:00")


def test_a_deleted_file(lab: Lab) -> None:
    versions = [{"a.c": numbered()}, {"a.c": numbered(l18="x")}, {}, {}]
    made, done = rebased(lab, {"a.c": numbered(l5="mine")}, *versions)
    assert culprits(done) == [("a.c", made[2])]


def test_a_file_the_patch_deletes(lab: Lab) -> None:
    versions = [{"a.c": numbered()}, {"a.c": numbered()}, {"a.c": numbered(l18="x")}, {"a.c": numbered(l18="y")}]
    made, done = rebased(lab, {}, *versions)
    assert culprits(done) == [("a.c", made[2])]


def test_a_renamed_file(lab: Lab) -> None:
    """The rename is not to blame: the patch follows it."""
    versions = [
        {"a.c": numbered()},
        {"lib/b.c": numbered()},
        {"lib/b.c": numbered(l18="x")},
        {"lib/b.c": numbered(l18="x", l5="theirs")},
    ]
    made, done = rebased(lab, {"a.c": numbered(l5="mine")}, *versions)
    assert culprits(done) == [("lib/b.c", made[3])]


def test_changed_before_it_was_renamed(lab: Lab) -> None:
    versions = [{"a.c": numbered()}, {"a.c": numbered(l5="theirs")}, {"lib/b.c": numbered(l5="theirs")}]
    made, done = rebased(lab, {"a.c": numbered(l5="mine")}, *versions)
    assert culprits(done) == [("lib/b.c", made[1])]


def test_renamed_twice(lab: Lab) -> None:
    """The commit to blame knows the file by a name that neither base has."""
    versions = [
        {"a.c": numbered()},
        {"b.c": numbered()},
        {"b.c": numbered(l5="theirs")},
        {"c.c": numbered(l5="theirs")},
    ]
    made, done = rebased(lab, {"a.c": numbered(l5="mine")}, *versions)
    assert culprits(done) == [("c.c", made[2])]


def test_the_same_new_file(lab: Lab) -> None:
    versions: list[Files] = [{}, {}, {"new.c": text("theirs")}, {"new.c": text("theirs")}]
    made, done = rebased(lab, {"new.c": text("mine")}, *versions)
    assert culprits(done) == [("new.c", made[2])]


def test_each_file_has_its_own(lab: Lab) -> None:
    versions = [
        {"a.c": numbered(), "b.c": numbered()},
        {"a.c": numbered(), "b.c": numbered(l5="theirs")},
        {"a.c": numbered(l5="theirs"), "b.c": numbered(l5="theirs")},
    ]
    made, done = rebased(lab, {"a.c": numbered(l5="mine"), "b.c": numbered(l5="mine")}, *versions)
    assert culprits(done) == [("a.c", made[2]), ("b.c", made[1])]


def test_a_later_patch_is_not_blamed_on_what_an_earlier_one_met(lab: Lab) -> None:
    files = [numbered(), numbered(l5="theirs"), numbered(l5="theirs", l15="theirs")]
    made = lab.history(*({"a.c": content} for content in files))
    lab.series(
        made[0],
        ("one", {"a.c": numbered(l5="mine")}),
        ("two", {"a.c": numbered(l5="mine", l10="mine")}),
        ("three", {"a.c": numbered(l5="mine", l10="mine", l15="mine")}),
    )
    done = lab.replay(made[0], made[2])
    assert statuses(done) == ["conflict", "clean", "conflict"]
    assert culprits(done) == [("a.c", made[1]), ("a.c", made[2])]
    assert [one.follows_conflict for one in done.outcomes] == [False, True, True]


def test_a_conflict_that_came_and_went_and_came(lab: Lab) -> None:
    """Where bisecting meets the conflict twice, one of its beginnings is named, and its commit really begins one."""
    contents = [numbered(l5=word) for word in ("line 5", "theirs", "line 5", "line 5", "others")]
    made, done = rebased(lab, {"a.c": numbered(l5="mine")}, *({"a.c": content} for content in contents))
    ((_, commit),) = culprits(done)
    assert commit in (made[1], made[4])


def test_a_merge_of_two_lines_of_history(lab: Lab) -> None:
    root = lab.commit({"a.c": numbered()})
    left = lab.commit({"a.c": numbered(l5="theirs")}, "left", root)
    right = lab.commit({"a.c": numbered(l18="x")}, "right", root)
    files = {"a.c": numbered(l5="theirs", l18="x")}
    words = ["commit-tree", lab.tree(files), "-p", left, "-p", right, "-m", "merge"]
    env = {f"GIT_{who}_{what}": "up@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    merge = lab.upstream._git(*words, env=env).decode().strip()
    lab.series(root, ("fix", {"a.c": numbered(l5="mine")}))
    assert culprits(lab.replay(root, merge)) == [("a.c", left)]


def test_without_history_there_are_files_and_hunks_only(lab: Lab, tmp_path: Any) -> None:
    made, _ = rebased(lab, {"a.c": numbered(l5="mine")}, *({"a.c": numbered(l5=word)} for word in ("line 5", "x", "y")))
    shallow = Store(tmp_path / "shallow.git")
    shallow.ensure()
    for commit in (made[0], made[2]):
        shallow.fetch(str(lab.upstream.path), commit)
    lab.upstream = shallow
    done = lab.replay(made[0], made[2])
    assert not done.history
    assert statuses(done) == ["conflict"]
    assert culprits(done) == []
    assert [region.span for region in done.outcomes[0].carried.open[0].regions] == ["5"]  # type: ignore[union-attr]


def test_going_back_has_no_culprit(lab: Lab) -> None:
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(l5="theirs")})
    lab.series(made[1], ("fix", {"a.c": numbered(l5="mine")}))
    done = lab.replay(made[1], made[0])
    assert (done.history, statuses(done), culprits(done)) == (False, ["conflict"], [])
