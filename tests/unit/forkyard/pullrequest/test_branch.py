"""The branch: one commit a patch on the target, nothing beside, and refusals that say what to do."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from forkyard.errors import PatchError, RecipeError, SourceError, UsageError
from forkyard.gitstore import Entry
from forkyard.gitstore.history import commits
from forkyard.pullrequest.branch import exported_series
from forkyard.pullrequest.policy import MARKER
from forkyard.stacks.applying import apply_stacks
from forkyard.stacks.model import Stack, load_stack

from .conftest import AUTHOR, FAMILY, HOME, Upstream


def moved(upstream: Upstream) -> Any:
    """A later upstream: other lines above what the stack changes, and a commit of upstream's own as its base."""
    files = {**HOME, "src/kv.cpp": b"#include <new>\n\n" + HOME["src/kv.cpp"], "new.txt": b"new\n"}
    return upstream.commit(files, upstream.home.commit)


def test_one_commit_a_patch_on_upstreams_own_commit(upstream: Upstream, kv: Stack) -> None:
    target = moved(upstream)

    prepared = upstream.prepare(kv, target)

    assert (prepared.base, prepared.adrift) == (target.commit, False)
    history = commits(upstream.store, f"{target.commit}..{prepared.tip}")
    assert [one.message for one in history] == [f"{MARKER} first\n", f"{MARKER} second\n"]
    assert [one.author for one in history] == [AUTHOR, AUTHOR]
    assert history[0].parents == (target.commit,)
    text = upstream.store.read_file(prepared.tree, "src/kv.cpp")
    assert text == b"#include <new>\n\n" + HOME["src/kv.cpp"].replace(b"one", b"first").replace(b"end\n", b"the end\n")
    assert upstream.store.read_file(prepared.tree, "new.txt") == b"new\n"
    assert upstream.prepare(kv, target).tip == prepared.tip, "the same input gives the same commits"


def test_some_patches_of_a_stack(upstream: Upstream, kv: Stack) -> None:
    prepared = upstream.prepare(kv, patches=["second"])

    assert [one.patch for one in prepared.commits] == ["second.patch"]
    assert upstream.store.read_file(prepared.tree, "src/kv.cpp") == HOME["src/kv.cpp"].replace(b"end\n", b"the end\n")


def test_an_unknown_patch_is_named_with_what_there_is(upstream: Upstream, kv: Stack) -> None:
    with pytest.raises(UsageError, match=r"(?s)secnd.*did you mean second\.patch"):
        upstream.prepare(kv, patches=["secnd"])


def test_a_conflict_sends_to_rebase(upstream: Upstream, kv: Stack) -> None:
    target = upstream.commit({**HOME, "src/kv.cpp": HOME["src/kv.cpp"].replace(b"one();", b"uno();")})

    with pytest.raises(PatchError) as error:
        upstream.prepare(kv, target)

    assert "kv/first.patch conflicts" in error.value.what
    assert error.value.where == "src/kv.cpp"
    assert f"forkyard rebase llama.cpp --to {target.commit} --stack kv" in str(error.value.next_step)


def test_what_upstream_has_is_left_out(upstream: Upstream, kv: Stack) -> None:
    half = HOME["src/kv.cpp"].replace(b"one();", b"first();")
    prepared = upstream.prepare(kv, upstream.commit({**HOME, "src/kv.cpp": half}))

    assert prepared.empty == ("first.patch",)
    assert [one.patch for one in prepared.commits] == ["second.patch"]
    with pytest.raises(PatchError, match="nothing is left"):
        upstream.prepare(kv, upstream.commit({**HOME, "src/kv.cpp": half.replace(b"end\n", b"the end\n")}))


def test_stacks_that_only_come_before_are_left_out(upstream: Upstream) -> None:
    early = {**HOME, "src/other.cpp": b"a\nB\nc\nd\ne\n", "src/kv.cpp": b"// early\n" + HOME["src/kv.cpp"]}
    first = upstream.add("early", {"early.patch": early})
    change = {"src/kv.cpp": early["src/kv.cpp"].replace(b"three();", b"drei();")}
    late = upstream.add("late", {"late.patch": change}, on=early)

    prepared = upstream.prepare(late, usual=[first, late], known={"early": first, "late": late})

    assert upstream.store.read_file(prepared.tree, "src/other.cpp") == HOME["src/other.cpp"]
    assert upstream.store.read_file(prepared.tree, "src/kv.cpp") == HOME["src/kv.cpp"].replace(b"three", b"drei")


@pytest.fixture
def pair(upstream: Upstream, kv: Stack) -> dict[str, Stack]:
    on = {**HOME, "src/kv.cpp": HOME["src/kv.cpp"].replace(b"one", b"first").replace(b"end\n", b"the end\n")}
    top = upstream.add(
        "top",
        {"top.patch": {"src/kv.cpp": on["src/kv.cpp"] + b"top\n"}},
        on=on,
        about='requires = ["kv"]\norder = 200\n',
    )
    return {"kv": kv, "top": top}


def test_a_required_stack_that_is_not_upstream_is_refused(upstream: Upstream, pair: dict[str, Stack]) -> None:
    with pytest.raises(UsageError) as error:
        upstream.prepare(pair["top"], known=pair, usual=list(pair.values()))

    assert "needs stacks that upstream does not have: kv" in error.value.what
    assert "nothing says that upstream has first.patch" in str(error.value.why)
    assert "--on-top-of kv" in str(error.value.next_step)


def test_on_top_of_a_required_stack(upstream: Upstream, pair: dict[str, Stack]) -> None:
    prepared = upstream.prepare(pair["top"], known=pair, usual=list(pair.values()), on_top_of=["kv"])

    assert [one.patch for one in prepared.beneath] == ["first.patch", "second.patch"]
    assert [one.patch for one in prepared.commits] == ["top.patch"]
    assert prepared.below == prepared.beneath[-1].commit
    with pytest.raises(UsageError, match="does not need stack 'other'"):
        upstream.prepare(pair["top"], known=pair, usual=list(pair.values()), on_top_of=["kv", "other"])


def test_on_top_of_what_the_engine_cannot_be_built_without(upstream: Upstream, pair: dict[str, Stack]) -> None:
    """Nobody requires it, and it is in no one's way if the branch already stands on it or it has nothing for us."""
    empty = upstream.add("empty", {})
    known = {**pair, "empty": empty, "essential": upstream.add("essential", {"e.patch": {"src/new.cpp": b"int y;\n"}})}
    usual = [known["essential"], *pair.values()]

    alone = upstream.prepare(pair["kv"], known=known, usual=usual, support=["essential", "empty"])
    assert [one.patch for one in alone.beneath] == ["e.patch"]
    assert [one.patch for one in alone.commits] == ["first.patch", "second.patch"]

    both = upstream.prepare(pair["top"], known=known, usual=usual, on_top_of=["kv"], support=["essential", "kv"])
    assert [one.patch for one in both.beneath] == ["e.patch", "first.patch", "second.patch"]
    assert [one.patch for one in both.commits] == ["top.patch"]


def test_a_required_stack_that_upstream_has_is_no_obstacle(upstream: Upstream) -> None:
    merged = {**HOME, "src/other.cpp": b"a\nb\nC\nd\ne\n"}
    needed = upstream.add(
        "needed",
        {"n.patch": {"src/other.cpp": merged["src/other.cpp"]}},
        message="o : {name}\n\nUpstream-Status: Pending\nRetire-When: symbol-present src/other.cpp ^C$\n",
    )
    top = upstream.add("top", {"t.patch": {"include/llama.h": b"int x;\n"}}, on=merged, about='requires = ["needed"]\n')
    known = {"needed": needed, "top": top}

    prepared = upstream.prepare(top, upstream.commit(merged), known=known, usual=[needed, top])

    assert [(one.stack, one.merged) for one in prepared.requirements] == [("needed", True)]
    assert [one.patch for one in prepared.commits] == ["t.patch"]


def test_a_requirement_that_does_not_exist(upstream: Upstream) -> None:
    stack = upstream.add("lonely", {"l.patch": {"include/llama.h": b"int x;\n"}}, about='requires = ["ghost"]\n')

    with pytest.raises(RecipeError, match="ghost"):
        upstream.prepare(stack)


def test_retire_when_is_told_of_a_patch_that_still_changes_something(upstream: Upstream) -> None:
    stack = upstream.add(
        "old",
        {"o.patch": {"src/other.cpp": b"a\nb\nc\nd\nE\n"}},
        message="o : {name}\n\nUpstream-Status: Pending\nRetire-When: file-exists new.txt\n",
    )

    assert upstream.prepare(stack).commits[0].retired is None
    assert "new.txt" in str(upstream.prepare(stack, moved(upstream)).commits[0].retired)


def test_without_upstreams_commit_the_branch_begins_at_one_of_ours(upstream: Upstream, kv: Stack) -> None:
    folder = upstream.commit(dict(HOME))
    absent = type(folder)("1" * 40, folder.tree, folder.date, 0, "registry", "a folder", ())

    prepared = upstream.prepare(kv, absent)

    assert prepared.adrift
    assert commits(upstream.store, prepared.base)[0].parents == ()


def test_a_target_that_is_not_there_as_a_whole(upstream: Upstream, kv: Stack) -> None:
    entries = [*upstream.store.entries(upstream.home.tree), Entry("100644", "blob", "1" * 40, "far.txt")]
    partial = dataclasses.replace(upstream.home, tree=upstream.store.write_tree(entries))

    with pytest.raises(SourceError, match=r"(?s)lacks files.*far\.txt.*--source PATH"):
        upstream.prepare(kv, partial)


def test_whole_files_of_ours_are_in_the_branch_and_in_the_series(upstream: Upstream) -> None:
    new = b"ours\n"
    message = b"new : add\n\nUpstream-Status: Pending\nAdds-Files: ours.cpp -> src/ours.cpp\n"
    old = upstream.forge.tree(HOME)
    base = upstream.store.commit(old, None, AUTHOR, b"b\n")
    made = upstream.store.commit(upstream.forge.tree({**HOME, "src/ours.cpp": new}), base, AUTHOR, message)
    data = upstream.store.export(made, exclude=["src/ours.cpp"])
    upstream.add_stack(upstream.root, "whole", patches={"w.patch": data}, files={"ours.cpp": new})
    target = moved(upstream)

    prepared = upstream.prepare(load_stack(upstream.root, "whole"), target)
    series = exported_series(upstream.store, prepared, target)

    assert upstream.store.read_file(prepared.tree, "src/ours.cpp") == new
    assert prepared.whole_files == {"src/ours.cpp"}
    assert series["whole"].files == {"ours.cpp": (new, False)}


def test_the_series_applies_exactly_at_the_target(upstream: Upstream, pair: dict[str, Stack], tmp_path: Any) -> None:
    target = moved(upstream)
    prepared = upstream.prepare(pair["top"], target, known=pair, usual=list(pair.values()), on_top_of=["kv"])

    series = exported_series(upstream.store, prepared, target)

    root = tmp_path / "derived"
    stacks = []
    for name, exported in series.items():
        upstream.add_stack(root, name, patches={patch.name: patch.data for patch in exported.patches})
        stacks.append(load_stack(root, name))
    patched = apply_stacks(upstream.store, FAMILY, target.commit, target.date, target.tree, stacks)
    assert patched.tree == prepared.tree
    assert all(b"Upstream-Status: Pending" in patch.data for one in series.values() for patch in one.patches)
