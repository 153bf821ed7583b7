from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forkyard.errors import NetworkError, RecipeError
from forkyard.linting import as_text

REPOSITORY = Path(__file__).parents[4]
REAL = (REPOSITORY / "patches" / "fixes" / "ik_llama.cpp" / "build-info-generator.patch").read_bytes()


def test_a_pin_that_is_not_at_hand(lab: Any) -> None:
    lab.stack(lab.edit("src/a.h", b"int two();\n", b"\tint two(); \n"))
    shutil.rmtree(lab.root / "recipes" / "clone")
    report = lab.lint()
    assert {finding.rule for finding in report.findings} == {"not-checked", "trailing-space", "only-white-space"}
    (finding,) = [f for f in report.findings if f.rule == "not-checked"]
    assert (finding.level, finding.stack, finding.engine) == ("warning", None, "llama.cpp")
    assert "forkyard stack lint --fetch" in finding.next
    assert [pin.checked for pin in report.pins] == [False]
    assert "on no pin" in as_text(report)


def test_a_pin_that_cannot_be_fetched(lab: Any) -> None:
    lab.stack(lab.edit("notes.txt", b"notes", b"memos"))
    shutil.rmtree(lab.root / "recipes" / "clone")
    with pytest.raises(NetworkError):
        lab.lint(fetch=True)


def test_one_engine_alone(lab: Any) -> None:
    lab.stack(lab.edit("notes.txt", b"notes", b"memos \xc2\xbd"))
    assert lab.lint(engine="llama.cpp").errors == 1
    assert lab.lint(engine="ik_llama.cpp").findings == ()


def test_one_stack_alone(lab: Any) -> None:
    lab.stack(lab.edit("notes.txt", b"notes", b"\xc2\xbd"), name="first")
    lab.stack(lab.edit("cut.txt", b"no", b"\xc2\xbd"), name="second")
    assert {finding.stack for finding in lab.lint("second").findings} == {"second"}
    assert lab.lint("second").stacks == ("second",)
    assert [size.stack for size in lab.lint("second").sizes] == ["second"]
    assert lab.lint().errors == 2


def test_a_stack_nobody_knows(lab: Any) -> None:
    with pytest.raises(RecipeError, match="no stack 'nothing'"):
        lab.lint("nothing")


def test_an_engine_without_a_recipe(lab: Any) -> None:
    folder = lab.stack(lab.edit("notes.txt", b"notes", b"\xc2\xbd"), recipe=False)
    (folder / "stack.toml").write_text((folder / "stack.toml").read_text().replace('["llama.cpp"]', '["ik_llama.cpp"]'))
    (folder / "llama.cpp").rename(folder / "ik_llama.cpp")
    assert lab.rules() == ["ascii", "not-checked"]


def test_a_stack_in_no_recipe_is_checked_all_the_same(lab: Any) -> None:
    lab.stack(lab.edit("notes.txt", b"notes", b"memos").replace(b"-notes", b"-votes"), recipe=False)
    assert lab.rules() == ["apply"]


def test_a_series_of_another_stack_that_cannot_be_read(lab: Any) -> None:
    lab.stack(lab.edit("notes.txt", b"notes", b"memos"), name="first")
    folder = lab.stack(lab.edit("cut.txt", b"no", b"still no"), name="second")
    (folder / "llama.cpp" / "series").write_text("nothing.patch\n")
    found = {(finding.rule, finding.stack) for finding in lab.lint().findings}
    assert found == {("series", "second"), ("not-checked", "first")}


def test_the_document_and_the_text(lab: Any) -> None:
    lab.stack(lab.edit("src/a.cpp", b"return 1;", b"return  1+1; "))
    report = lab.lint()
    document = json.loads(json.dumps(report.as_json()))
    assert (document["ok"], document["errors"], document["warnings"]) == (False, 1, 1)
    assert document["seconds"] > 0
    first = document["findings"][0]
    assert first["where"] == f"{first['file']}:{first['line']}"
    assert set(first) == {"rule", "level", "stack", "engine", "patch", "file", "line", "where", "what", "why", "next"}
    assert document["pins"][0]["checked"] is True
    assert document["sizes"][0]["added"] == 1
    text = as_text(report)
    assert text.index("error: ") < text.index("warning: ")
    assert "1 error, 1 warning in 1 patch of 1 stack, checked on the pin of llama.cpp" in text
    assert "\n         " in text, "what clang-format wants is indented under its finding"


def test_a_project_without_stacks(lab: Any) -> None:
    report = lab.lint()
    assert (report.findings, report.sizes, report.pins) == ((), (), ())
    assert "0 errors, 0 warnings in 0 patches of 0 stacks" in as_text(report)


HOSTILE = [
    b"",
    b"\n" * 1000,
    b"\0" * 100,
    REAL.replace(b"From: ", b"From: \0"),
    REAL.replace(b"Forkyard <", b"F" * 300_000 + b" <"),
    REAL.replace(b"Subject: build", b"Subject: =?utf-8?q?=00=0A?="),
    REAL.replace(b"Date: Mon, 23 Nov 2026", b"Date: never"),
    REAL.replace(b"common/CMakeLists.txt", b"../../CMakeLists.txt"),
    REAL.replace(b"common/CMakeLists.txt", b".git/config"),
    REAL.replace(b"-> cmake/", b"-> ../cmake/"),
    REAL.replace(b"@@ -31,13 +31,19 @@", b"@@ -31,13 +31,999999999 @@"),
    REAL.replace(b"@@ -31,13 +31,19 @@", b"@@ -99999999999999999999 +31,19 @@"),
    REAL.replace(b"\n", b"\r\n"),
    REAL + REAL,
    REAL.replace(b"set(BUILD", b"x" * 2_000_000),
    b"From " + b"0" * 40 + b"\n" + REAL,
    REAL.replace(b"Adds-Files: cmake/forkyard-build-info-gen.cmake", b"Adds-Files: . "),
    REAL.replace(b"Adds-Files: cmake/forkyard", b"Adds-Files: cmake/\xff\0"),
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_hostile_patch_is_a_finding(lab: Any, number: int) -> None:
    lab.files["common/CMakeLists.txt"] = b"x\n" * 60
    lab.stack(HOSTILE[number])
    report = lab.lint()
    assert report.errors
    assert as_text(report)
    assert json.dumps(report.as_json())


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("stack.toml", b"\xff"),
        ("stack.toml", b"title = "),
        ("stack.toml", b""),
        ("llama.cpp/series", b"\xff\xfe"),
        ("llama.cpp/series", b"a.patch\na.patch\n"),
        ("llama.cpp/series", b"../x\n"),
        ("llama.cpp/series", b"a\0b\n"),
    ],
)
def test_a_hostile_stack_is_a_finding(lab: Any, path: str, data: bytes) -> None:
    folder = lab.stack(lab.edit("notes.txt", b"notes", b"memos"))
    (folder / path).write_bytes(data)
    assert lab.lint().errors


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.one_of(
        st.binary(max_size=300),
        st.integers(0, len(REAL)).map(lambda end: REAL[:end]),
        st.tuples(st.integers(0, len(REAL)), st.binary(max_size=8)).map(
            lambda at: REAL[: at[0]] + at[1] + REAL[at[0] :]
        ),
    )
)
def test_any_bytes_are_linted(lab: Any, data: bytes) -> None:
    if not lab.in_recipe:
        lab.files["common/CMakeLists.txt"] = b"x\n" * 60
        lab.stack(b"")
    (lab.root / "patches" / "part" / "llama.cpp" / "a.patch").write_bytes(data)
    assert lab.lint().errors
