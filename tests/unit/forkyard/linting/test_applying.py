from __future__ import annotations

from typing import Any

from forkyard.console import Silent
from forkyard.locking import lock_recipe
from forkyard.recipes import load_recipe

MESSAGE = b"part : change it\n\nBecause.\n\nUpstream-Status: Pending\nRetire-When: file-exists never.c\n"


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


def test_a_broken_file_is_the_first_finding_and_the_only_one_of_its_file(lab: Any) -> None:
    """Also where its name comes last, and where all that is made on it fails because of it."""
    first = lab.edit("src/a.h", b"int one", b"long one")
    after = dict(lab.files) | {"src/a.h": lab.files["src/a.h"].replace(b"int one", b"long one")}
    second = lab.forge.patch(after, {**after, "src/a.h": b"double one();\nint two();\n"}, MESSAGE)
    folder = lab.stack(first, second)
    series = folder / "llama.cpp"
    (series / "a.patch").rename(series / "z.patch")
    (series / "series").write_text("z.patch\nb.patch\n")
    (series / "z.patch").write_bytes(b"hello \x80 \r\n\tx \n")
    report = lab.lint()
    errors = [finding for finding in report.findings if finding.level == "error"]
    assert [(finding.rule, finding.patch) for finding in errors] == [
        ("patch-file", "z.patch"),
        ("apply", "b.patch"),
    ]
    assert errors[0].where == "patches/part/llama.cpp/z.patch:1"
    assert "line ends" in errors[0].what
    assert "part/z.patch, which comes before it, was left out" in errors[1].why
    assert errors[1].next == "mend part/z.patch first"


def test_those_that_fail_stand_in_the_order_they_apply(lab: Any) -> None:
    one = lab.edit("src/a.h", b"int one", b"long one")
    two = lab.edit("notes.txt", b"notes", b"memos")
    lab.files["src/a.h"] = b"float one();\n"
    lab.files["notes.txt"] = b"x\n"
    folder = lab.stack(one, two)
    series = folder / "llama.cpp"
    (series / "a.patch").rename(series / "z.patch")
    (series / "series").write_text("z.patch\nb.patch\n")
    assert [finding.patch for finding in lab.found("apply")] == ["z.patch", "b.patch"]
    assert lab.lint().findings[0].patch == "z.patch"


def cut(data: bytes) -> bytes:
    """The patch without its last file: whole by all its own signs."""
    return data[: data.rindex(b"diff --git")]


def test_a_patch_that_lost_a_file_is_not_the_locks(lab: Any) -> None:
    changes = {"notes.txt": b"memos\n", "src/a.h": b"long one();\nint two();\n"}
    whole = lab.patch(changes)
    on = {**lab.files, **changes}
    later = lab.forge.patch(on, {**on, "src/a.h": b"double one();\nint two();\n"}, MESSAGE)
    folder = lab.stack(whole, later)
    file = folder / "llama.cpp" / "a.patch"
    lab.pin()
    lock_recipe(load_recipe("mine", lab.root), lab.root, lab.cache, Silent(), check_only=False)
    assert not lab.found("lock")
    file.write_bytes(cut(whole))
    first, second = lab.lint().findings[:2]
    assert (first.rule, first.level, first.where) == ("lock", "error", "patches/part/llama.cpp/a.patch")
    assert "forkyard lock mine" in first.next
    assert (second.rule, second.patch) == ("apply", "b.patch")
    # Of a patch that git converted it is known better, and it is said once.
    file.write_bytes(whole.replace(b"\n", b"\r\n"))
    first = lab.lint().findings[0]
    assert (first.rule, first.patch) == ("patch-file", "a.patch")
    assert not lab.found("lock")


def test_an_edit_that_was_meant_is_locked_and_clean(lab: Any) -> None:
    lab.stack(lab.edit("notes.txt", b"notes", b"memos"))
    recipe = load_recipe("mine", lab.root)
    lock_recipe(recipe, lab.root, lab.cache, Silent(), check_only=False)
    file = lab.root / "patches" / "part" / "llama.cpp" / "a.patch"
    file.write_bytes(lab.edit("notes.txt", b"notes", b"lists"))
    assert lab.found("lock")
    assert lock_recipe(recipe, lab.root, lab.cache, Silent(), check_only=False)
    assert lab.lint().errors == 0
