from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forkyard.errors import ToolchainError
from forkyard.linting import formatting

MESSAGE = (
    b"part : x\n\nBecause.\n\nUpstream-Status: Pending\nRetire-When: file-exists never.c\nAdds-Files: our.c -> %s\n"
)


def test_a_line_of_ours_in_another_format(lab: Any, line_of: Any) -> None:
    lab.stack(lab.edit("src/a.cpp", b"    return 1;\n", b"    int  x=1;\n    return x;\n"))
    (finding,) = lab.found("clang-format")
    assert (finding.rule, finding.level, finding.stack) == ("clang-format", "warning", "part")
    assert line_of(lab, finding) == "+    int  x=1;"
    assert "    int x = 1;" in finding.next


def test_lines_of_upstreams_do_not_matter(lab: Any) -> None:
    # upstream's own `return  2` is not as its clang-format wants it, two lines further down
    lab.stack(lab.edit("src/a.cpp", b"int two() {\n", b"int two() {\n    one();\n"))
    assert lab.rules() == []


def test_what_a_later_patch_takes_away_does_not_matter(lab: Any) -> None:
    bad = lab.files["src/a.cpp"].replace(b"return 1", b"return  1+1")
    good = bad.replace(b"return  1+1", b"return 3")
    lab.stack(lab.patch({"src/a.cpp": bad}), lab.patch({"src/a.cpp": good}, on={"src/a.cpp": bad}))
    assert lab.found("clang-format") == []


def test_the_patch_that_wrote_the_line_is_named(lab: Any) -> None:
    one = {"src/a.cpp": b"// before\n" + lab.files["src/a.cpp"]}
    two = {"src/a.cpp": one["src/a.cpp"].replace(b"return 1", b"return  1+1")}
    three = {"src/a.cpp": b"// first of all\n" + two["src/a.cpp"]}
    lab.stack(lab.patch(one), lab.patch(two, on=one), lab.patch(three, on=two))
    (finding,) = lab.found("clang-format")
    assert finding.patch == "b.patch"


def test_a_whole_file_of_ours(lab: Any) -> None:
    lab.stack(lab.patch({}, message=MESSAGE % b"src/our.c"), files={"our.c": b"int x;\nint  y;\n"})
    (finding,) = lab.found("clang-format")
    assert (finding.file, finding.line) == ("patches/part/src/our.c", 2)


def test_a_whole_file_that_is_clean(lab: Any) -> None:
    lab.stack(lab.patch({}, message=MESSAGE % b"src/our.c"), files={"our.c": b"int x;\nint y;\n"})
    assert lab.rules() == []


@pytest.mark.parametrize("path", [b"our.py", b"our.metal"])
def test_other_languages_are_left_alone(lab: Any, path: bytes) -> None:
    lab.stack(lab.patch({}, message=MESSAGE % path), files={"our.c": b"int  y;\n"})
    assert lab.rules() == []


def test_without_a_configuration_there_is_no_format(lab: Any) -> None:
    del lab.files[".clang-format"]
    lab.files["elsewhere/.clang-format"] = b"BasedOnStyle: LLVM\n"
    lab.stack(lab.edit("src/a.cpp", b"return 1", b"return  1+1"))
    assert lab.rules() == []


def test_the_nearest_configuration_counts(lab: Any) -> None:
    lab.files["src/.clang-format"] = b"DisableFormat: true\n"
    lab.stack(lab.edit("src/a.cpp", b"return 1", b"return  1+1"))
    assert lab.rules() == []


def test_an_option_of_a_newer_clang_format(lab: Any) -> None:
    lab.files[".clang-format"] = b"BasedOnStyle: LLVM\nOfTheFuture: true\n"
    lab.stack(lab.edit("src/a.cpp", b"return 1", b"return 3"))
    (finding,) = lab.lint().findings
    assert (finding.rule, finding.level) == ("not-checked", "warning")
    assert "OfTheFuture" in finding.why


def test_without_clang_format(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> Path:
        msg = "clang-format is not installed"
        raise ToolchainError(msg)

    monkeypatch.setattr(formatting, "program", gone)
    lab.stack(lab.edit("src/a.cpp", b"return 1", b"return 3"))
    (finding,) = lab.lint().findings
    assert (finding.rule, finding.why) == ("not-checked", "clang-format is not installed")
