from __future__ import annotations

from typing import Any

import pytest

from forkyard.gitstore import Author

TRAILERS = b"Upstream-Status: Pending\nRetire-When: file-exists never.c\n"


def edit(lab: Any, message: bytes) -> bytes:
    return lab.edit("src/a.h", b"int one();\n", b"int one();\nint half();\n", message=message)


def test_a_clean_stack_has_no_finding(lab: Any) -> None:
    lab.stack(edit(lab, b"part : change it\n\nBecause.\n\n" + TRAILERS))
    assert lab.lint().findings == ()


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("01-fix.patch", "starts with a number"),
        ("1.patch", "starts with a number"),
        ("fix.diff", "end in .patch"),
        ("fü.patch", "ASCII"),
        ("a fix.patch", "blanks"),
    ],
)
def test_a_name_that_will_not_do(lab: Any, name: str, what: str) -> None:
    folder = lab.stack(edit(lab, b"part : x\n\nBecause.\n\n" + TRAILERS))
    (folder / "llama.cpp" / "a.patch").rename(folder / "llama.cpp" / name)
    (folder / "llama.cpp" / "series").write_text(f"{name}\n")
    (finding,) = lab.found("patch-name")
    assert what in finding.what
    assert finding.level == "error"
    assert finding.patch == name


def test_a_number_inside_a_name_is_fine(lab: Any) -> None:
    folder = lab.stack(edit(lab, b"part : x\n\nBecause.\n\n" + TRAILERS))
    (folder / "llama.cpp" / "a.patch").rename(folder / "llama.cpp" / "q8-0.patch")
    (folder / "llama.cpp" / "series").write_text("q8-0.patch\n")
    assert lab.rules() == []


@pytest.mark.parametrize("subject", [b"part: change it", b"change it", b"part :change it", b"part :"])
def test_a_subject_that_upstream_would_not_take(lab: Any, subject: bytes, line_of: Any) -> None:
    lab.stack(edit(lab, subject + b"\n\nBecause.\n\n" + TRAILERS))
    (finding,) = lab.found("subject")
    assert line_of(lab, finding).startswith("Subject: ")


@pytest.mark.parametrize("subject", [b"ggml-cpu : x", b"kv-cache, llama : x: y", b"server : " + b"long " * 40])
def test_a_subject_as_upstream_writes_it(lab: Any, subject: bytes) -> None:
    lab.stack(edit(lab, subject + b"\n\nBecause.\n\n" + TRAILERS))
    assert lab.rules() == []


def test_another_engine_has_its_own_subjects(lab: Any) -> None:
    lab.recipe = lab.recipe.replace('family = "llama.cpp"', 'family = "ik_llama.cpp"')
    about = 'title = "t"\nintent = "i"\nengines = ["ik_llama.cpp"]\ncapability = "c"\ntest = ["tests"]\nmeasure = "m"\n'
    lab.stack(
        edit(lab, b"Change it\n\nBecause.\n\n" + TRAILERS),
        about=about + 'since = "2026-01-01"\n',
        family="ik_llama.cpp",
    )
    assert lab.rules() == []


def test_a_message_of_trailers_alone(lab: Any) -> None:
    lab.stack(edit(lab, b"part : x\n\n" + TRAILERS))
    (finding,) = lab.found("message")
    assert "why" in finding.what


def test_no_status_upstream(lab: Any) -> None:
    lab.stack(edit(lab, b"part : x\n\nBecause.\n\nRetire-When: file-exists never.c\n"))
    assert "trailers" in lab.rules()


def test_a_status_that_is_none(lab: Any, line_of: Any) -> None:
    lab.stack(edit(lab, b"part : x\n\nBecause.\n\nUpstream-Status: Soon\nRetire-When: file-exists never.c\n"))
    (finding,) = lab.found("trailers")
    assert line_of(lab, finding) == "Upstream-Status: Soon"


def test_no_condition_of_retirement(lab: Any) -> None:
    lab.stack(edit(lab, b"part : x\n\nBecause.\n\nUpstream-Status: Pending\n"))
    assert lab.rules() == ["retire-when"]


def test_a_condition_no_program_can_evaluate(lab: Any, line_of: Any) -> None:
    message = (
        b"part : x\n\nBecause.\n\nUpstream-Status: Pending\nRetire-When: file-exists never.c\nRetire-When: some day\n"
    )
    lab.stack(edit(lab, message))
    (finding,) = lab.found("retire-when")
    assert line_of(lab, finding) == "Retire-When: some day"
    assert "file-exists PATH" in finding.next


@pytest.mark.parametrize(
    "condition",
    [b"file-exists src/a.h", b"file-absent never.c", b"symbol-present src/a.h two", b"symbol-absent src/a.h three"],
)
def test_a_condition_that_holds_already(lab: Any, condition: bytes) -> None:
    lab.stack(edit(lab, b"part : x\n\nBecause.\n\nUpstream-Status: Pending\nRetire-When: " + condition + b"\n"))
    (finding,) = lab.found("retire-when-holds")
    assert finding.level == "error"


@pytest.mark.parametrize(
    "condition",
    [b"file-absent src/a.h", b"symbol-present src/a.h half", b"symbol-absent src/a.h two", b"commit-reachable 0123456"],
)
def test_a_condition_that_does_not_hold_yet(lab: Any, condition: bytes) -> None:
    lab.stack(edit(lab, b"part : x\n\nBecause.\n\nUpstream-Status: Pending\nRetire-When: " + condition + b"\n"))
    assert lab.rules() == []


def test_the_pin_itself_is_reachable(lab: Any) -> None:
    author = Author("a", "a@b", "2026-01-05T00:00:00Z")
    commit = lab.forge.store.commit(lab.forge.tree(lab.files), None, author, b"pin\n")
    message = f"part : x\n\nBecause.\n\nUpstream-Status: Pending\nRetire-When: commit-reachable {commit[:12]}\n"
    lab.stack(edit(lab, message.encode()))
    assert lab.rules() == ["retire-when-holds"]


def test_a_symbol_absent_from_a_file_the_pin_does_not_have(lab: Any) -> None:
    lab.stack(edit(lab, b"part : x\n\nBecause.\n\nUpstream-Status: Pending\nRetire-When: symbol-absent gone.c x\n"))
    (finding,) = lab.found("retire-when")
    assert "no file gone.c" in finding.what
