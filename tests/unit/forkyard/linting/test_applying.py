from __future__ import annotations

from typing import Any


def test_an_offset_is_found(lab: Any) -> None:
    patch = lab.edit("src/a.cpp", b"return  2", b"return 3")
    lab.files["src/a.cpp"] = b"// more\n" + lab.files["src/a.cpp"]
    lab.stack(patch)
    (finding,) = lab.found("apply")
    assert "not apply exactly" in finding.what
    assert finding.level == "error"


def test_a_context_that_is_not_there(lab: Any, line_of: Any) -> None:
    patch = lab.patch({"src/a.h": b"int one();\nint half();\n", "notes.txt": b"others\n"})
    lab.files["notes.txt"] = b"nothing\n"
    lab.stack(patch)
    (finding,) = lab.found("apply")
    assert "does not apply" in finding.what
    assert line_of(lab, finding) == "diff --git a/notes.txt b/notes.txt"


def test_every_patch_that_fails_is_found_in_one_run(lab: Any) -> None:
    one = lab.edit("src/a.h", b"int one", b"long one")
    two = lab.edit("src/a.cpp", b"return 1", b"return 7")
    three = lab.edit("notes.txt", b"notes", b"memos")
    lab.files["src/a.h"] = b"float one();\n"
    lab.files["notes.txt"] = b"x\n"
    lab.stack(one, two, three)
    assert [finding.patch for finding in lab.found("apply")] == ["a.patch", "c.patch"]


def test_a_patch_of_another_object(lab: Any) -> None:
    patch = lab.edit("src/a.cpp", b"return 1", b"return 7")
    lab.files["src/a.cpp"] += b"\n\n\n\n// elsewhere\n"
    lab.stack(patch)
    (finding,) = lab.found("apply")
    assert "index " in finding.why


def test_hunks_that_count_too_few(lab: Any, line_of: Any) -> None:
    patch = lab.edit("src/a.h", b"int two();\n", b"int two();\nint half();\nint third();\n")
    assert b"@@ -1,2 +1,4 @@" in patch
    lab.stack(patch.replace(b"@@ -1,2 +1,4 @@", b"@@ -1,2 +1,3 @@"))
    (finding,) = lab.found("hunk-counts")
    assert line_of(lab, finding).startswith("@@ -1,2 +1,3 @@")
    assert "apply" in lab.rules()


def test_a_whole_file_in_the_place_of_one_of_upstreams(lab: Any) -> None:
    message = b"part : x\n\nBecause.\n\nUpstream-Status: Pending\nRetire-When: file-exists never.c\nAdds-Files: a.h -> src/a.h\n"
    lab.stack(lab.patch({}, message=message), files={"a.h": b"int x;\n"})
    (finding,) = lab.found("apply")
    assert "overwrite src/a.h" in finding.what


def test_stacks_outside_the_recipe_are_applied_on_what_they_require(lab: Any) -> None:
    first = lab.edit("src/a.h", b"int one", b"long one")
    middle = lab.edit("notes.txt", b"notes", b"memos")
    changed = {"src/a.h": lab.files["src/a.h"].replace(b"int one", b"long one")}
    second = lab.patch({"src/a.h": changed["src/a.h"].replace(b"long one", b"char one")}, on=changed)
    lab.stack(first, name="first")
    lab.stack(middle, name="middle")
    lab.stack(second, name="second", recipe=False, more='requires = ["first"]\n')
    assert lab.rules() == []


def test_the_combination_of_the_recipe_is_what_is_applied(lab: Any) -> None:
    lab.stack(lab.edit("src/a.h", b"int one", b"long one"), name="first")
    lab.stack(lab.edit("src/a.h", b"int two", b"long two"), name="second")
    (finding,) = lab.found("apply")
    assert (finding.stack, finding.patch) == ("second", "a.patch")


def test_a_stack_after_one_that_fails_says_that_it_was_not_looked_at(lab: Any) -> None:
    bad = lab.edit("src/a.h", b"int one", b"long one").replace(b"-int one", b"-int nil")
    lab.stack(bad, name="first")
    lab.stack(lab.edit("notes.txt", b"notes", b"memos"), name="second")
    assert {(f.rule, f.stack) for f in lab.lint().findings} == {("apply", "first"), ("not-checked", "second")}
    (finding,) = lab.lint("second").findings
    assert (finding.rule, finding.level) == ("not-checked", "warning")


def test_stacks_that_conflict(lab: Any) -> None:
    lab.stack(lab.edit("src/a.h", b"int one", b"long one"), name="first")
    lab.stack(lab.edit("src/a.h", b"int two", b"long two"), name="second", more='conflicts = ["first"]\n')
    (finding,) = lab.lint().findings
    assert finding.rule == "combination"
    assert finding.file == "patches/second/stack.toml"
