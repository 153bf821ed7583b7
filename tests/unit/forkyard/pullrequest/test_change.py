"""What a branch changes, read from its diff."""

from __future__ import annotations

from typing import Any

import pytest

from forkyard.gitstore.differences import changed_files
from forkyard.pullrequest.change import enumerators, read_change
from forkyard.pullrequest.duplicates import searches
from forkyard.pullrequest.size import measure
from forkyard.pullrequest.text_style import not_ascii, untidy

HEADER = """
/* GGML_TYPE_NOT_THIS */
enum ggml_type {
    GGML_TYPE_F32 = 0, // GGML_TYPE_NOR_THIS
    GGML_TYPE_Q4_0,
%s    GGML_TYPE_COUNT = 99,
};
    enum ggml_op {
        GGML_OP_NONE = 0,
%s        GGML_OP_COUNT,
    };
int GGML_TYPE_use(int GGML_TYPE_argument);
"""


def change_of(forge: Any, old: dict[str, Any], new: dict[str, Any]) -> Any:
    return read_change(forge.store, forge.tree(old), forge.tree(new))


def test_files_lines_and_contexts(forge: Any) -> None:
    old = {
        "a.cpp": b"int first() {\n" + b"    x;\n" * 6 + b"    y;\n}\n",
        "gone": b"1\n2\n",
        "mode": b"m\n",
        "bin": b"\0\1",
        "name with space": b"s\n",
    }
    new = {
        "a.cpp": old["a.cpp"].replace(b"y", b"z"),
        "mode": ("100755", b"m\n"),
        "bin": b"\0\2",
        "added": b"n1\nn2",
        "name with space": ("120000", b"target"),
    }
    files = {file.path: file for file in changed_files(forge.store, forge.tree(old), forge.tree(new))}

    assert {path: file.status for path, file in files.items()} == {
        "a.cpp": "M", "added": "A", "bin": "M", "gone": "D", "mode": "M", "name with space": "T",
    }  # fmt: skip
    assert files["a.cpp"].added == [(8, b"    z;")]
    assert (files["a.cpp"].removed, files["a.cpp"].contexts) == (1, ["int first() {"])
    assert (files["gone"].removed, files["gone"].added) == (2, [])
    assert files["bin"].binary
    assert (files["mode"].mode, files["mode"].added, files["mode"].removed) == ("100755", [], 0)
    assert files["added"].added == [(1, b"n1"), (2, b"n2")]
    assert files["added"].no_final_newline
    assert not files["a.cpp"].no_final_newline


def test_lines_that_look_like_a_diff_do_not_confuse(forge: Any) -> None:
    tricky = b"-- a\n++ b\n@@ -1 +1 @@ f(\ndiff --git a/x b/x\nSubproject commit 1\n\\ No newline\n"

    (file,) = changed_files(forge.store, forge.tree({}), forge.tree({"t": tricky}))

    assert [line for _, line in file.added] == tricky.splitlines()
    (file,) = changed_files(forge.store, forge.tree({"t": tricky}), forge.tree({}))
    assert file.removed == 6


def test_new_types_and_operators(forge: Any) -> None:
    change = change_of(
        forge,
        {"ggml/include/ggml.h": (HEADER % ("", "")).encode()},
        {"ggml/include/ggml.h": (HEADER % ("    GGML_TYPE_TBQ3_0 = 42,\n", "        GGML_OP_TURBO,\n")).encode()},
    )

    assert change.new_types == ("GGML_TYPE_TBQ3_0",)
    assert change.new_operators == ("GGML_OP_TURBO",)
    assert change.symbols()[:2] == ["GGML_TYPE_TBQ3_0", "GGML_OP_TURBO"]
    assert change.public() == ["ggml/include/ggml.h"]


def test_comments_and_uses_are_no_enumerators() -> None:
    assert enumerators(HEADER % ("", ""), "GGML_TYPE_") == ["GGML_TYPE_F32", "GGML_TYPE_Q4_0", "GGML_TYPE_COUNT"]
    assert enumerators("", "GGML_TYPE_") == []


def test_a_header_that_only_moves_lines_adds_no_type(forge: Any) -> None:
    text = (HEADER % ("", "")).encode()
    change = change_of(forge, {"ggml/include/ggml.h": text}, {"ggml/include/ggml.h": b"// more\n" + text})

    assert (change.new_types, change.new_operators) == ((), ())


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("CMakeLists.txt", b"find_package(Boost REQUIRED)\n"),
        ("src/CMakeLists.txt", b"  FetchContent_Declare(x)\n"),
        ("requirements/requirements-x.txt", b"numpy\n"),
        ("vendor/new/x.h", b"x\n"),
    ],
)
def test_dependencies(forge: Any, path: str, text: bytes) -> None:
    assert change_of(forge, {"a": b""}, {"a": b"", path: text}).dependencies()


def test_no_dependency(forge: Any) -> None:
    new = {"CMakeLists.txt": b"add_library(x x.cpp)\n", "src/x.cpp": b"// find_package(Boost)\n"}
    assert change_of(forge, {}, new).dependencies() == []


def test_backends_and_operator_files(forge: Any) -> None:
    new = {
        "ggml/src/ggml-cpu/ops.cpp": b"x\n",
        "ggml/src/ggml-cuda/rope.cu": b"x\n",
        "ggml/src/ggml.c": b"x\n",
        "ggml/src/ggml-cpu/CMakeLists.txt": b"x\n",
    }
    change = change_of(forge, {}, new)

    assert change.backends() == ["cpu", "cuda"]
    assert "ggml/src/ggml-cpu/ops.cpp" in change.operator_files()
    assert "ggml/src/ggml-cuda/rope.cu" in change.operator_files()
    assert "ggml/src/ggml.c" not in change.operator_files()


def test_text_rules(forge: Any) -> None:
    new = {
        "a.cpp": "ok\n\tint x;\nint y; \nint z = '\u2014';\n".encode(),
        "b.cpp": b"crlf\r\n",
        "c.h": b"no end",
        "Makefile": b"x:\n\tcc\n",
        "d.md": "two blanks  \nand \u00fc\n".encode(),
    }
    files = change_of(forge, {}, new).files

    assert not_ascii(files) == ["a.cpp:4: U+2014"]
    assert untidy(files) == [
        "a.cpp:2: tab in the indentation",
        "a.cpp:3: trailing whitespace",
        "b.cpp:1: CRLF line end",
        "c.h: no line feed at the end",
    ]


def test_old_faults_of_upstream_are_not_the_branchs(forge: Any) -> None:
    old = b"\tint x; \n" * 3 + b"end"
    files = change_of(forge, {"a.cpp": old}, {"a.cpp": b"new\n" + old}).files

    assert untidy(files) == []


def test_size(forge: Any) -> None:
    change = change_of(forge, {"a": b"1\n2\n"}, {"a": b"1\nx\ny\n", "ours.cpp": b"l\n" * 500})
    size = measure(change, frozenset({"ours.cpp"}))

    assert (size.added, size.removed, size.files, size.whole_added, size.hooks_added) == (502, 1, 2, 500, 2)
    assert size.review_hours == (1.25, 2.51)
    assert (size.comfortable, size.reviewable) == (False, True)
    assert not measure(change_of(forge, {}, {"a": b"l\n" * 1001}), frozenset()).reviewable


def test_searches_name_symbols_and_files(forge: Any) -> None:
    body = b"int llama_kv_cache::build_rope_shift(int a) {\n" + b"    x;\n" * 6 + b"    y;\n}\n"
    change = change_of(forge, {"src/kv.cpp": body}, {"src/kv.cpp": body.replace(b"y", b"z")})

    found = searches("https://example.org/a/b", change)

    assert [search.query for search in found] == [
        'is:pr "build_rope_shift"', 'is:issue "build_rope_shift"', 'is:pr "kv.cpp"', 'is:issue "kv.cpp"',
    ]  # fmt: skip
    assert found[0].url == "https://example.org/a/b/pulls?q=is%3Apr%20%22build_rope_shift%22"
