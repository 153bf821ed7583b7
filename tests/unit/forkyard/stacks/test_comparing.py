from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forkyard.stacks.comparing import compare_series
from forkyard.stacks.exporting import Exported, ExportedPatch

DATA = b"""\
Subject: x

Upstream-Status: Pending

diff --git a/f b/f
index 1111111111111111111111111111111111111111..2222222222222222222222222222222222222222 100644
--- a/f
+++ b/f
@@ -1,3 +1,3 @@ int main()
 context
-old
+new
 more
"""


def exported(*patches: tuple[str, str, bytes]) -> Exported:
    return Exported(tuple(ExportedPatch(name, data, subject, "", "") for name, subject, data in patches))


def found(old: dict[str, tuple[str, bytes]], *patches: tuple[str, str, bytes]) -> dict[str, tuple[str, ...]]:
    return {outcome.name: outcome.status for outcome in compare_series(old, exported(*patches))}


def test_what_can_become_of_a_patch() -> None:
    old = {"a": ("a", DATA), "b": ("b", DATA), "c": ("c", DATA), "d": ("d", DATA)}
    moved = DATA.replace(b"@@ -1,3 +1,3 @@ int main()", b"@@ -9,3 +9,3 @@").replace(b"1111", b"3333").replace(
        b" more", b" other"
    )  # fmt: skip
    changed = DATA.replace(b"+new", b"+newer")
    reworded = DATA.replace(b"Subject: x", b"Subject: y")
    assert found(
        old, ("a", "a", DATA), ("b", "b", moved), ("c", "c", changed), ("d", "y", reworded), ("e", "e", DATA)
    ) == {
        "a": ("unchanged",),
        "b": ("moved",),
        "c": ("changed",),
        "d": ("changed", "renamed"),
        "e": ("new",),
    }
    assert found(old, ("b", "b", DATA)) == {
        "b": ("unchanged",),
        "a": ("dropped",),
        "c": ("dropped",),
        "d": ("dropped",),
    }


def test_the_old_subject_is_told() -> None:
    (outcome,) = compare_series({"a": ("was", DATA)}, exported(("a", "is", DATA)))
    assert (outcome.subject, outcome.was) == ("is", "was")
    assert outcome.as_json() == {"name": "a", "status": ["renamed"], "subject": "is", "was": "was"}


@given(st.permutations("abcdef"))
def test_as_few_as_possible_are_called_reordered(order: list[str]) -> None:
    old = {name: (name, DATA) for name in "abcdef"}
    status = found(old, *((name, name, DATA) for name in order))
    staying = [name for name in order if status[name] == ("unchanged",)]
    assert staying == sorted(staying)
    # Nothing that moved could have stayed with those that did.
    for name in order:
        if name not in staying:
            together = [one for one in order if one in staying or one == name]
            assert together != sorted(together)
