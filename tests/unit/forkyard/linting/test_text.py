from __future__ import annotations

from typing import Any

import pytest

from forkyard.linting.upstream_style import TextStyle, UpstreamStyle

MESSAGE = (
    b"part : x\n\nBecause.\n\nUpstream-Status: Pending\nRetire-When: file-exists never.c\nAdds-Files: our.c -> %s\n"
)


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("ascii", b"int half(); // \xc2\xbd\n"),
        ("trailing-space", b"int half(); \n"),
        ("trailing-space", b"int half(); \r\n"),
        ("indent", b"\tint half();\n"),
        ("line-end", b"int half();\r\n"),
        ("final-newline", b"int half();"),
    ],
)
def test_a_line_we_add(lab: Any, rule: str, line: bytes, line_of: Any) -> None:
    lab.stack(lab.edit("src/a.h", b"int two();\n", b"int two();\n" + line))
    (finding,) = lab.found(rule)
    assert finding.level == "error"
    assert line_of(lab, finding) == "+" + line.decode().rstrip("\n")
    assert "src/a.h" in finding.what


@pytest.mark.parametrize(
    ("rule", "content", "line"),
    [
        ("ascii", b"int x;\n// \xe2\x80\x94\n", 2),
        ("trailing-space", b"int x; \n", 1),
        ("indent", b"int x;\n\nint\ty;\n", 3),
        ("line-end", b"int x;\r\n", 1),
        ("final-newline", b"int x;\nint y;", 2),
    ],
)
def test_a_whole_file_of_ours(lab: Any, rule: str, content: bytes, line: int) -> None:
    lab.stack(lab.patch({}, message=MESSAGE % b"src/our.c"), files={"our.c": content})
    (finding,) = lab.found(rule)
    assert (finding.file, finding.line) == ("patches/part/src/our.c", line)


def test_a_whole_file_is_checked_as_what_it_becomes(lab: Any) -> None:
    lab.stack(lab.patch({}, message=MESSAGE % b"our.txt"), files={"our.c": b"blanks \nno line feed"})
    assert lab.rules() == []


def test_data_is_not_text(lab: Any) -> None:
    lab.stack(lab.patch({}, message=MESSAGE % b"data.bin"), files={"our.c": b"\0\xff \n\t"})
    assert lab.rules() == []


def test_only_lines_we_add_count(lab: Any) -> None:
    lab.files.pop(".clang-format")
    lab.files["src/a.h"] = b"int one(); \n\tint two();\n// \xc2\xbd\n"
    lab.stack(lab.patch({"src/a.h": b"int one(); \n\tint two();\n// \xc2\xbd\nint half();\n"}))
    assert lab.rules() == []


@pytest.mark.parametrize(
    ("path", "old", "new", "rules"),
    [
        ("Makefile", b"\tcc\n", b"\tcc\n\tld\n", []),
        ("Makefile", b"\tcc\n", b"\tcc\n    ld\n", ["indent"]),
        ("notes.txt", b"notes\n", b"notes \nend", []),
        ("cut.txt", b"no line feed", b"still no line feed", []),
        ("b.wide", b"wide\n", b"wide\n12345678901234567890\n", []),
        ("b.wide", b"wide\n", b"wide\n123456789012345678901\n", ["line-length"]),
        ("src/a.h", b"int two();\n", b"int two();\n" + b"x" * 300 + b"\n", []),
    ],
)
def test_upstreams_own_configuration_decides(lab: Any, path: str, old: bytes, new: bytes, rules: list[str]) -> None:
    lab.files.pop(".clang-format")
    lab.stack(lab.edit(path, old, new))
    assert lab.rules() == rules


def test_many_lines_are_one_finding(lab: Any) -> None:
    lab.files.pop(".clang-format")
    lab.stack(lab.edit("src/a.h", b"int two();\n", b"int two();\n" + b"\tint x;\n" * 9))
    (finding,) = lab.found("indent")
    assert "and 3 more" in finding.what


def test_configurations_of_folders_add_up(lab: Any) -> None:
    lab.files["models/.editorconfig"] = b"[*.jinja]\nindent_style = unset\nmax_line_length = off\n"
    lab.files["other/.editorconfig"] = b"root = true\n[*]\nend_of_line = crlf\nnonsense\n"
    lab.stack(lab.edit("models/.editorconfig", b"off", b"77"))
    lab.lint()
    from forkyard.console import Silent
    from forkyard.gitstore import Store
    from forkyard.linting.pin import PinTree
    from forkyard.recipes import load_recipe
    from forkyard.sources import obtain

    recipe = load_recipe("mine", lab.root)
    pin = PinTree(Store(lab.cache.store("llama.cpp")), recipe, obtain(recipe, lab.cache, Silent()))
    with UpstreamStyle.of(pin) as style:
        assert style.of_text("models/a.jinja") == TextStyle()
        assert style.of_text("models/a.c") == TextStyle(indent="space")
        assert style.of_text("other/a.c") == TextStyle(line_feeds=False)
    with UpstreamStyle.of(None) as style:
        assert style.of_text("models/a.c") == TextStyle()
        assert not style.formats("a.c")
