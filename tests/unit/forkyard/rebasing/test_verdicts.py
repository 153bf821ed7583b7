"""What is said about a patch on a new base, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from forkyard.gitstore import Store
from forkyard.rebasing.verdicts import Upstreamed, Verdict, judge

from .lab import Lab, numbered, statuses, text, verdicts

OLD, NEW = {"a.c": text("old", "both")}, {"a.c": text("new", "both"), "b.c": b""}


def judged(lab: Lab, *conditions: str, **facts: Any) -> Verdict:
    known = {
        "empty": False,
        "resolved": False,
        "upstreamed": None,
        "reachable": lambda _commit: None,
        "was_reachable": lambda _commit: None,
        **facts,
    }
    return judge(lab.upstream, conditions, lab.tree(OLD), lab.tree(NEW), **known)


def test_nothing_known(lab: Lab) -> None:
    assert judged(lab) == Verdict("unknown", ("its tests were not run without it",))
    assert not judged(lab).retires


def test_merged_because_nothing_is_left(lab: Lab) -> None:
    found = judged(lab, empty=True)
    assert found.word == "merged"
    assert found.retires
    assert "changes nothing" in found.evidence[0]


def test_resolved_to_nothing(lab: Lab) -> None:
    assert judged(lab, empty=True, resolved=True).word == "merged-modified"


def test_the_same_change_upstream(lab: Lab) -> None:
    found = judged(lab, upstreamed=Upstreamed("c" * 40), empty=True)
    assert (found.word, "c" * 40 in found.evidence[0]) == ("merged", True)


def test_the_same_change_taken_back(lab: Lab) -> None:
    found = judged(lab, upstreamed=Upstreamed("c" * 40, "d" * 40, "none"))
    assert found.word == "unknown"
    assert f"it is not there now: {'d' * 40} took it back" in found.evidence[0]


@pytest.mark.parametrize(
    ("conditions", "word", "evidence"),
    [
        (["symbol-present a.c ^new$"], "merged-modified", "a line of upstream's a.c matches ^new$"),
        (["symbol-absent a.c ^old$"], "merged-modified", "no line of upstream's a.c matches ^old$"),
        (["file-exists b.c"], "merged-modified", "upstream has the file b.c"),
        (["superseded-by the new thing when file-exists b.c"], "superseded", "the new thing has taken its place"),
        (["symbol-present a.c ^both$"], "unknown", "so it was on the old base: the condition tells nothing"),
        (["symbol-present a.c ^gone$"], "unknown", "not so: a line of upstream's a.c matches ^gone$"),
        (["symbol-absent nowhere.c x"], "unknown", "not known here whether no line"),
        (["commit-reachable 1234567"], "unknown", "not known here whether upstream's history contains"),
        (["when it is ready"], "unknown", "its Retire-When cannot be read"),
        # One that holds is enough; what is wrong with the others is said where none holds.
        (["symbol-present a.c ^both$", "file-exists b.c"], "merged-modified", "upstream has the file b.c"),
        (["nonsense", "file-absent a.c"], "unknown", "not so: upstream has no file a.c any more"),
    ],
)
def test_conditions(lab: Lab, conditions: Sequence[str], word: str, evidence: str) -> None:
    found = judged(lab, *conditions)
    assert found.word == word
    assert any(evidence in line for line in found.evidence), found.evidence


@pytest.mark.parametrize(
    ("now", "before", "word"),
    [(True, False, "merged-modified"), (True, True, "unknown"), (False, False, "unknown"), (None, None, "unknown")],
)
def test_commit_reachable(lab: Lab, now: bool | None, before: bool | None, word: str) -> None:
    asked = {"reachable": lambda _: now, "was_reachable": lambda _: before}
    assert judged(lab, "commit-reachable 1234567", **asked).word == word


# -- with a history ----------------------------------------------------------------------------------


def test_found_by_patch_id_where_the_lines_were_changed_again(lab: Lab) -> None:
    """Upstream took the patch as it is and went on from there: only a person sees whether it still does the same."""
    made = lab.history(
        {"a.c": numbered()},
        {"a.c": numbered(l1="new")},
        {"a.c": numbered(l1="new", l10="mine")},
        {"a.c": numbered(l1="new", l10="mine, better")},
    )
    lab.series(made[0], ("fix", {"a.c": numbered(l10="mine")}), ("next", {"a.c": numbered(l10="mine", l20="more")}))
    done = lab.replay(made[0], made[3])
    assert statuses(done) == ["conflict", "clean"]
    assert verdicts(done) == ["unknown", "unknown"]
    (said, *_) = done.outcomes[0].verdict.evidence
    assert said.startswith(f"upstream commit {made[2]} makes the same change (same patch id), but its lines are others")
    assert lab.files(done.tree) == {"a.c": numbered(l1="new", l10="mine", l20="more")}


def test_found_by_patch_id_and_still_there(lab: Lab) -> None:
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(l10="mine")}, {"a.c": numbered(l10="mine", l1="new")})
    lab.series(made[0], ("fix", {"a.c": numbered(l10="mine")}))
    done = lab.replay(made[0], made[2])
    assert (statuses(done), verdicts(done)) == (["dropped"], ["merged"])
    assert done.outcomes[0].verdict.evidence[0] == f"upstream commit {made[1]} makes the same change (same patch id)"


def test_taken_and_taken_back_inside_a_larger_commit(lab: Lab) -> None:
    made = lab.history(
        {"a.c": numbered(), "b.c": numbered()},
        {"a.c": numbered(l10="mine"), "b.c": numbered()},
        {"a.c": numbered(l1="new"), "b.c": numbered(l5="much else")},
        {"a.c": numbered(l1="new"), "b.c": numbered(l5="much else", l9="later")},
    )
    lab.series(made[0], ("fix", {"a.c": numbered(l10="mine"), "b.c": numbered()}))
    done = lab.replay(made[0], made[3])
    assert (statuses(done), verdicts(done)) == (["clean"], ["unknown"])
    (said, *_) = done.outcomes[0].verdict.evidence
    assert said == (
        f"upstream commit {made[1]} makes the same change (same patch id), but it is not there now: "
        f"{made[2]} took it back"
    )
    assert lab.files(done.tree)["a.c"] == numbered(l1="new", l10="mine")


@pytest.mark.parametrize(
    ("patch", "now", "status", "files"),
    [
        # Two places, one of them taken back.
        (numbered(l3="a", l15="b"), numbered(l15="b"), "clean", numbered(l3="a", l15="b")),
        # One place, one of its lines taken back.
        (numbered(l3="a", l4="b"), numbered(l3="a"), "conflict", numbered(l3="a", l4="b")),
        # Taken back with other words than there were.
        (numbered(l3="a"), numbered(l3="Line 3"), "conflict", numbered(l3="a")),
    ],
)
def test_taken_back_in_part(lab: Lab, patch: bytes, now: bytes, status: str, files: bytes) -> None:
    made = lab.history({"a.c": numbered()}, {"a.c": patch}, {"a.c": now})
    lab.series(made[0], ("fix", {"a.c": patch}))
    done = lab.replay(made[0], made[2])
    assert (statuses(done), verdicts(done)) == ([status], ["unknown"])
    assert f"upstream commit {made[1]} makes the same change" in done.outcomes[0].verdict.evidence[0]
    assert f"{made[2]} took it back" in done.outcomes[0].verdict.evidence[0]
    assert lab.files(done.tree)["a.c"] == files


def test_a_new_file_taken_and_taken_back(lab: Lab) -> None:
    made = lab.history({"a.c": b"1\n"}, {"a.c": b"1\n", "ours.c": text("mine")}, {"a.c": b"2\n"})
    lab.series(made[0], ("fix", {"a.c": b"1\n", "ours.c": text("mine")}), whole_files=True)
    done = lab.replay(made[0], made[2])
    assert (statuses(done), verdicts(done)) == (["clean"], ["unknown"])
    assert f"it is not there now: {made[2]} took it back" in done.outcomes[0].verdict.evidence[0]


def test_merged_in_other_commits_names_the_last_of_them(lab: Lab) -> None:
    """No patch id tells it, but history does."""
    made = lab.history(
        {"a.c": numbered()},
        {"a.c": numbered(l3="a")},
        {"a.c": numbered(l3="a", l15="b", l18="theirs")},
        {"a.c": numbered(l3="a", l15="b", l18="theirs", l20="x")},
    )
    lab.series(made[0], ("fix", {"a.c": numbered(l3="a", l15="b")}))
    done = lab.replay(made[0], made[3])
    assert (statuses(done), verdicts(done)) == (["dropped"], ["merged"])
    assert done.outcomes[0].verdict.evidence[0].endswith(f"all of it is there since upstream commit {made[2]}")


def test_found_by_an_empty_merge_without_history(lab: Lab, tmp_path: Any) -> None:
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(l10="mine")}, {"a.c": numbered(l2="new", l10="mine")})
    lab.series(made[0], ("fix", {"a.c": numbered(l10="mine")}))
    shallow = Store(tmp_path / "shallow.git")
    shallow.ensure()
    for commit in (made[0], made[2]):
        shallow.fetch(str(lab.upstream.path), commit)
    lab.upstream = shallow
    done = lab.replay(made[0], made[2])
    assert not done.history
    assert (statuses(done), verdicts(done)) == (["dropped"], ["merged"])
    assert "changes nothing" in done.outcomes[0].verdict.evidence[0]


def test_taken_and_taken_back(lab: Lab) -> None:
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(l10="mine")}, {"a.c": numbered()})
    lab.series(made[0], ("fix", {"a.c": numbered(l10="mine")}))
    done = lab.replay(made[0], made[2])
    assert (statuses(done), verdicts(done)) == (["clean"], ["unknown"])
    assert f"{made[2]} took it back" in done.outcomes[0].verdict.evidence[0]
    again = lab.commit({"a.c": numbered(l10="mine")}, "reland", made[2])
    assert (statuses(lab.replay(made[0], again)), verdicts(lab.replay(made[0], again))) == (["dropped"], ["merged"])


def test_reachable_with_history(lab: Lab) -> None:
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(l3="theirs")}, {"a.c": numbered(l3="theirs", l20="x")})
    side = lab.commit({"a.c": numbered(l9="elsewhere")}, "side", made[0])
    for number, (commit, word) in enumerate(
        [(made[1], "merged-modified"), (made[0], "unknown"), (side, "unknown"), ("1234567", "unknown")]
    ):
        name = f"p{number}"
        lab.stacks.clear()
        lab.series(
            made[0], ("fix", {"a.c": numbered(l10="mine")}, f"Retire-When: commit-reachable {commit}"), stack=name
        )
        done = lab.replay(made[0], made[2])
        assert verdicts(done) == [word], commit
        if commit in (side, "1234567"):
            # All of history is here, so what is not in it is not in it.
            assert done.outcomes[0].verdict.evidence[0].startswith("not so: ")


@pytest.mark.parametrize("form", ["commit-reachable {}", "superseded-by a rewrite when commit-reachable {}"])
@pytest.mark.parametrize(
    ("now", "word"),
    [
        ({"a.c": numbered()}, "unknown"),
        ({"a.c": numbered(l3="theirs")}, "unknown"),
        ({"a.c": numbered(l3="theirs", l5="theirs, better")}, "retires"),
        ({"a.c": numbered(l3="theirs", l5="theirs", l20="x")}, "retires"),
    ],
    ids=["taken back", "taken back in part", "went on", "there"],
)
def test_a_commit_that_is_reachable_but_not_there(lab: Lab, form: str, now: dict[str, bytes], word: str) -> None:
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(l3="theirs", l5="theirs")}, now)
    lab.series(made[0], ("fix", {"a.c": numbered(l12="mine")}, f"Retire-When: {form.format(made[1])}"))
    done = lab.replay(made[0], made[2], retire=True)
    verdict = done.outcomes[0].verdict
    assert verdict.retires == (word == "retires")
    assert statuses(done) == ["dropped" if word == "retires" else "clean"]
    if word == "unknown":
        assert "what that commit did is not there now, or not all of it" in verdict.evidence[0]


def test_retiring(lab: Lab) -> None:
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(l3="otherwise")})
    lab.series(
        made[0],
        ("fix", {"a.c": numbered(l10="mine")}, "Retire-When: symbol-present a.c ^otherwise$"),
        ("old", {"a.c": numbered(l10="mine", l15="x")}, "Retire-When: superseded-by B when symbol-absent a.c ^line.3$"),
        ("keep", {"a.c": numbered(l10="mine", l15="x", l20="mine")}),
    )
    done = lab.replay(*made)
    assert statuses(done) == ["clean", "clean", "clean"]
    assert verdicts(done) == ["merged-modified", "superseded", "unknown"]
    retired = lab.replay(*made, retire=True)
    assert statuses(retired) == ["dropped", "dropped", "clean"]
    assert lab.files(retired.tree) == {"a.c": numbered(l3="otherwise", l20="mine")}


def test_a_conflict_can_retire(lab: Lab) -> None:
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(l10="otherwise")})
    lab.series(made[0], ("fix", {"a.c": numbered(l10="mine")}, "Retire-When: symbol-present a.c ^otherwise$"))
    assert (statuses(lab.replay(*made)), verdicts(lab.replay(*made))) == (["conflict"], ["merged-modified"])
    assert statuses(lab.replay(*made, retire=True)) == ["dropped"]
