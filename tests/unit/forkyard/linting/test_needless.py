from __future__ import annotations

from typing import Any

import pytest

ADDS = b"part : x\n\nBecause.\n\nUpstream-Status: Pending\nRetire-When: file-exists never.c\nAdds-Files: our.c -> src/our.c\n"


def test_white_space_alone(lab: Any, line_of: Any) -> None:
    lab.stack(lab.edit("src/a.cpp", b"return  2", b"return 2"))
    (finding,) = lab.found("only-white-space")
    assert finding.level == "error"
    assert line_of(lab, finding) == "-    return  2;"


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("src/a.cpp", b"return  2", b"return 3"),
        ("src/a.cpp", b'"a.h"', b'"a.h "'),
        ("Makefile", b"\tcc\n", b"\t\tcc\n"),
        ("cut.txt", b"no line feed", b"no line feed\n"),
    ],
)
def test_more_than_white_space(lab: Any, path: str, old: bytes, new: bytes) -> None:
    lab.files.pop(".clang-format")
    lab.stack(lab.edit(path, old, new))
    assert lab.rules() == []


def test_a_mode_alone(lab: Any) -> None:
    lab.stack(lab.patch({"src/a.h": ("100755", lab.files["src/a.h"])}))
    (finding,) = lab.lint().findings
    assert (finding.rule, finding.level) == ("only-mode", "warning")


def test_a_mode_with_a_change(lab: Any) -> None:
    lab.stack(lab.patch({"src/a.h": ("100755", b"int half();\n")}))
    assert lab.rules() == []


def test_a_file_that_ends_as_it_began(lab: Any) -> None:
    changed = {"notes.txt": b"memos\n"}
    one = lab.patch({**changed, "src/a.h": b"int half();\n"})
    back = lab.patch({"notes.txt": b"notes\n"}, on={**changed, "src/a.h": b"int half();\n"})
    lab.stack(one, back)
    (finding,) = lab.lint().findings
    assert (finding.rule, finding.level, finding.patch) == ("no-change", "error", "a.patch")
    assert "notes.txt" in finding.what


def test_a_file_that_another_stack_changes_back_has_changed_twice(lab: Any) -> None:
    changed = {"notes.txt": b"memos\n"}
    lab.stack(lab.patch(changed), name="first")
    lab.stack(lab.patch({"notes.txt": b"notes\n"}, on=changed), name="second")
    assert lab.rules() == []


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (b"int two() {\n", b"\nint two() {\n", "only blank lines"),
        (b"int two() {\n", b"\nvoid f();\n\nint two() {\n", "next to one"),
        (b"}\n\nint two", b"}\nvoid f();\n\n\nint two", "next to one"),
    ],
)
def test_blank_lines_too_many(lab: Any, old: bytes, new: bytes, what: str) -> None:
    lab.files.pop(".clang-format")
    lab.stack(lab.edit("src/a.cpp", old, new))
    (finding,) = lab.lint().findings
    assert (finding.rule, finding.level) == ("blank-lines", "warning")
    assert what in finding.what


def test_a_block_with_the_blank_line_it_needs(lab: Any) -> None:
    lab.stack(lab.edit("src/a.cpp", b"int two() {\n", b"void f();\n\nint two() {\n"))
    assert lab.rules() == []


def test_a_file_of_ours_edited_by_the_next_patch(lab: Any) -> None:
    ours = {"src/our.c": b"int x;\n"}
    edit = lab.patch({"src/our.c": b"int y;\n"}, on=ours)
    lab.stack(lab.patch({}, message=ADDS), edit, files={"our.c": ours["src/our.c"]})
    (finding,) = lab.lint().findings
    assert (finding.rule, finding.level, finding.patch) == ("fold", "warning", "b.patch")
    assert "a.patch" in finding.what


def test_a_file_of_ours_edited_by_another_stack(lab: Any) -> None:
    ours = {"src/our.c": b"int x;\n"}
    lab.stack(lab.patch({}, message=ADDS), name="first", files={"our.c": ours["src/our.c"]})
    lab.stack(lab.patch({"src/our.c": b"int y;\n"}, on=ours), name="second")
    assert lab.rules() == []


def test_a_new_file_inside_the_diff(lab: Any) -> None:
    lab.stack(lab.patch({"src/our.c": b"int x;\n"}))
    (finding,) = lab.lint().findings
    assert (finding.rule, finding.level) == ("whole-file-in-diff", "warning")


def test_a_file_under_src_that_nothing_adds(lab: Any) -> None:
    lab.stack(lab.patch({}, message=ADDS), files={"our.c": b"int x;\n", "deep/other.c": b"int y;\n"})
    (finding,) = lab.lint().findings
    assert (finding.rule, finding.level, finding.file) == ("unused-file", "error", "patches/part/src/deep/other.c")


def test_a_file_that_another_engine_uses_is_used(lab: Any) -> None:
    folder = lab.stack(lab.patch({}, message=ADDS), files={"our.c": b"int x;\n"})
    (folder / "stack.toml").write_text((folder / "stack.toml").read_text().replace('["llama.cpp"]', '["ik_llama.cpp"]'))
    (folder / "llama.cpp").rename(folder / "ik_llama.cpp")
    lab.in_recipe.clear()
    lab.pin()
    assert lab.found("unused-file") == []
    assert [finding.rule for finding in lab.lint(engine="llama.cpp").findings] == []


def test_a_file_that_is_not_under_src(lab: Any, line_of: Any) -> None:
    lab.stack(lab.patch({}, message=ADDS))
    (finding,) = lab.found("adds-files")
    assert line_of(lab, finding).startswith("Adds-Files: our.c")
