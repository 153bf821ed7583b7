from __future__ import annotations

import json
from typing import Any

import pytest


@pytest.fixture
def about(lab: Any) -> Any:
    """A stack with one clean patch whose stack.toml a test changes: ``about(old, new)``."""

    def change(old: str = "", new: str = "", name: str = "part") -> None:
        folder = lab.stack(lab.edit("notes.txt", b"notes", b"memos"), name=name)
        text = (folder / "stack.toml").read_text()
        assert old in text
        (folder / "stack.toml").write_text(text.replace(old, new) if old else text)

    return change


def test_a_complete_one(lab: Any, about: Any) -> None:
    about()
    assert lab.rules() == []


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ('test = ["tests/test_part.py"]\n', "", "test"),
        ('["tests/test_part.py"]', '["tests/nothing.py"]', "test"),
        ('["tests/test_part.py"]', '["../mine.toml"]', "test"),
        ('["tests/test_part.py"]', '["/etc/passwd"]', "test"),
        ('measure = "figures"\n', "", "measure"),
        ('measure = "figures"', 'measure = " "', "measure"),
        ('capability = "part"\n', "", "capability"),
        ("https://example.org/1", "issue 1", "answers"),
        ("https://example.org/1", "https://[", "answers"),
        ("https://example.org/1", "ftp://example.org", "answers"),
    ],
)
def test_what_is_missing_or_wrong(lab: Any, about: Any, old: str, new: str, rule: str) -> None:
    about(old, new)
    (finding,) = lab.lint().findings
    assert (finding.rule, finding.level, finding.file) == (rule, "error", "patches/part/stack.toml")
    if new:
        key = (lab.root / finding.file).read_text().splitlines()[finding.line - 1]
        assert key.startswith(rule)


ADDS = b"part : x\n\nBecause.\n\nUpstream-Status: Pending\nRetire-When: file-exists never.c\nAdds-Files: api.h -> src/api.h\n"
API = b"int api(void);\n"


def with_headers(lab: Any, headers: str, **options: Any) -> None:
    patch = lab.patch({"notes.txt": b"memos\n"}, message=ADDS)
    lab.stack(patch, files={"api.h": API}, more=f"headers = {headers}\n", **options)


def test_a_header_the_stack_adds(lab: Any) -> None:
    with_headers(lab, '["src/api.h"]')
    assert lab.rules() == []


@pytest.mark.parametrize(
    ("header", "step"),
    [
        ("src/apis.h", "did you mean src/api.h?"),
        ("api.h", "did you mean src/api.h?"),
        # There, but upstream's: the recipe names those.
        ("CMakeLists.txt", "name it in an Adds-Files trailer"),
        ("nothing/like/it.hpp", "name it in an Adds-Files trailer"),
    ],
)
def test_a_header_the_stack_does_not_add(lab: Any, header: str, step: str) -> None:
    with_headers(lab, f'["{header}"]')
    (finding,) = lab.lint().findings
    assert (finding.rule, finding.level, finding.file) == ("headers", "error", "patches/part/stack.toml")
    assert finding.what == f"no patch for llama.cpp adds the header {header}"
    assert finding.next.startswith(step)
    assert (lab.root / finding.file).read_text().splitlines()[finding.line - 1].startswith("headers")


def test_a_header_another_engine_lacks(lab: Any, add_stack: Any) -> None:
    with_headers(lab, '["src/api.h"]')
    folder = lab.root / "patches" / "part"
    (folder / "ik_llama.cpp").mkdir()
    (folder / "ik_llama.cpp" / "series").write_text("")
    text = (folder / "stack.toml").read_text()
    (folder / "stack.toml").write_text(text.replace('["llama.cpp"]', '["llama.cpp", "ik_llama.cpp"]'))
    (finding,) = lab.found("headers")
    assert (finding.engine, finding.what) == ("ik_llama.cpp", "no patch for ik_llama.cpp adds the header src/api.h")


@pytest.mark.parametrize("header", ["/etc/passwd", "../x.h", "src//api.h", "", 3])
def test_what_is_no_path_in_the_tree(lab: Any, header: str | int) -> None:
    with_headers(lab, json.dumps([header]))
    (finding,) = lab.found("stack-toml")
    assert "headers" in finding.what


def test_one_test_of_a_file_may_be_named(lab: Any, about: Any) -> None:
    about("test_part.py", "test_part.py::test_it[a]")
    assert lab.rules() == []


def test_the_stack_of_fixes_adds_no_capability(lab: Any, about: Any) -> None:
    about('capability = "fixes"\n', "", name="fixes")
    assert lab.rules() == []


def test_stacks_of_the_same_order(lab: Any, about: Any) -> None:
    about()
    about("order = 20", "order = 10", name="other")
    assert [(f.stack, f.level) for f in lab.found("order")] == [("other", "warning"), ("part", "warning")]


def test_a_stack_that_is_required_and_not_there(lab: Any, about: Any) -> None:
    about("order = 10", 'order = 10\nrequires = ["nothing"]')
    assert [f.what for f in lab.found("requires")] == ["there is no stack 'nothing'"]


def test_a_stack_that_requires_itself(lab: Any, about: Any) -> None:
    about("order = 10", 'order = 10\nconflicts = ["part"]')
    assert [f.what for f in lab.found("conflicts")] == ["`conflicts` names the stack itself"]


def test_what_is_required_applies_first(lab: Any, about: Any) -> None:
    about("order = 10", 'order = 10\nrequires = ["other"]')
    lab.stack(lab.edit("src/a.h", b"int one", b"long one"), name="other")
    (finding,) = lab.found("requires")
    assert "applies later" in finding.what


def test_an_engine_without_a_patch(lab: Any) -> None:
    lab.stack()
    (finding,) = lab.lint().findings
    assert (finding.rule, finding.level, finding.file) == ("empty-series", "warning", "patches/part/llama.cpp/series")


def test_a_stack_toml_that_cannot_be_read(lab: Any, about: Any) -> None:
    about('title = "a stack"', 'name = "a stack"')
    (finding,) = [f for f in lab.lint().findings if f.rule == "stack-toml"]
    assert (finding.level, finding.stack, finding.file) == ("error", "part", "patches/part/stack.toml")


def test_a_series_that_cannot_be_read(lab: Any, about: Any) -> None:
    about()
    (lab.root / "patches" / "part" / "llama.cpp" / "series").write_text("a.patch\nnothing.patch\n")
    (finding,) = [f for f in lab.lint().findings if f.rule == "series"]
    assert (finding.level, finding.file, finding.line) == ("error", "patches/part/llama.cpp/series", 2)
