from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkyard.errors import PatchError
from forkyard.stacks.retiring import FORMS, LONGEST_LINE, LONGEST_REGEX, Condition, parse_condition

FILES = {"a.c": b"int one;\r\nint two(void);\n", "raw": b"\xff\xfe two\n"}


def read(path: str) -> bytes | None:
    if path == "elsewhere":
        raise KeyError(path)
    return FILES.get(path)


def holds(text: str, reachable: bool | None = None) -> bool | None:
    return parse_condition(text).holds(read, lambda commit: reachable)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file-exists a.c", True),
        ("file-exists b.c", False),
        ("file-exists elsewhere", True),
        ("file-absent a.c", False),
        ("file-absent b.c", True),
        ("file-absent elsewhere", False),
        ("symbol-present a.c two", True),
        ("symbol-present a.c one;$", True),
        ("symbol-present a.c three", False),
        ("symbol-present a.c one;.*two", False),
        ("symbol-present b.c two", False),
        ("symbol-present elsewhere two", None),
        ("symbol-present raw two", True),
        ("symbol-absent a.c two", False),
        ("symbol-absent a.c three", True),
        ("symbol-absent b.c two", None),
        ("symbol-absent elsewhere two", None),
        ("  file-exists   a.c ", True),
    ],
)
def test_a_condition_of_files(text: str, expected: bool | None) -> None:
    assert holds(text) is expected


@pytest.mark.parametrize("known", [True, False, None])
def test_a_condition_of_history(known: bool | None) -> None:
    asked = []
    condition = parse_condition("commit-reachable 0123abc")
    assert condition.holds(read, lambda commit: asked.append(commit) or known) is known
    assert asked == ["0123abc"]


def test_the_regular_expression_is_the_rest_of_the_text() -> None:
    condition = parse_condition("symbol-present ggml/a.cpp ldtilecfg reads 8 bytes only")
    assert condition == Condition("symbol-present", "ggml/a.cpp", "ldtilecfg reads 8 bytes only")


def test_what_supersedes_the_patch() -> None:
    condition = parse_condition("superseded-by upstream's PR 123 when symbol-present a.c two when done")
    assert condition.superseded_by == "upstream's PR 123"
    assert (condition.kind, condition.pattern) == ("symbol-present", "two when done")
    assert condition.describe().startswith("upstream's PR 123 has taken its place: ")
    assert parse_condition("file-exists a.c").superseded_by is None


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_described(form: str) -> None:
    text = form.replace("PATH", "a/b.c").replace("REGEX", "one two").replace("COMMIT", "abcdef0")
    sentence = parse_condition(text).describe()
    assert all(word in sentence for word in text.split()[1:])


def test_only_the_start_of_a_very_long_line_is_searched() -> None:
    data = b"x" * LONGEST_LINE + b"y"
    condition = parse_condition("symbol-present a.c y")
    assert condition.holds(lambda path: data, lambda commit: None) is False
    assert condition.holds(lambda path: data[1:], lambda commit: None) is True


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        ("whenever", "starts with 'whenever'"),
        ("superseded-by x when", "starts with 'superseded-by'"),
        ("superseded-by x when never", "starts with 'never'"),
        ("file-exists", "takes 1 argument"),
        ("file-exists a b", "takes 1 argument"),
        ("symbol-present a.c", "takes 2 arguments"),
        ("file-exists /etc/passwd", "inside a tree"),
        ("file-exists ../a", "inside a tree"),
        ("file-exists a\\b", "inside a tree"),
        ("symbol-present src/*.c x", "is a pattern"),
        ("commit-reachable HEAD", "no commit id"),
        ("commit-reachable 012345", "no commit id"),
        ("symbol-absent a.c (", "does not compile"),
        ("symbol-absent a.c a{99999999999999999999}", "does not compile"),
        ("symbol-absent a.c [[a]", "does not compile"),
        ("symbol-absent a.c " + "x" * (LONGEST_REGEX + 1), "201 characters"),
        ("symbol-absent a.c (a+)+$", "can take for ever"),
        ("symbol-absent a.c (?:x(a*))*$", "can take for ever"),
        ("symbol-absent a.c (a|aa){2,}", "can take for ever"),
        ("symbol-absent a.c (a?){30}", "can take for ever"),
        ("symbol-absent a.c .*a.*b.*c.*d", "repeats 4 times"),
        ("symbol-absent a.c " + "a?" * 25 + "a" * 25, "chooses 25 times"),
        ("symbol-absent a.c " + "(a|a)" * 30, "chooses 30 times"),
    ],
)
def test_what_cannot_be_evaluated(text: str, why: str) -> None:
    with pytest.raises(PatchError) as caught:
        parse_condition(text, "x.patch:7")
    assert why in str(caught.value.why)
    assert caught.value.where == "x.patch:7"
    assert caught.value.next_step


@pytest.mark.parametrize(
    "pattern",
    [
        r"if.[(]rot[)]|[^_a-z]rot.[?]",
        r"float.yarn_attn_factor.=",
        r"\(+[*+]",
        r"[]+*(]{1}x",
        r"(?:a|b)c",
        r"(?i)(?P<n>llama)_x(?=\()",
        r"a*?b++",
        r"x\{3\}{",
    ],
)
def test_ordinary_expressions_are_taken(pattern: str) -> None:
    assert parse_condition(f"symbol-present a.c {pattern}").pattern == pattern


@given(st.text(max_size=300))
def test_any_text_is_a_condition_or_refused(text: str) -> None:
    for candidate in (text, f"symbol-present a.c {text}", f"superseded-by {text} when file-exists {text}"):
        try:
            condition = parse_condition(candidate)
        except PatchError:
            continue
        assert condition.describe()
        assert holds(candidate) in (True, False, None)


@given(st.from_regex(re.compile(r"[ab()|*+?{},2]{1,30}"), fullmatch=True))
def test_what_is_taken_ends_soon(pattern: str) -> None:
    try:
        condition = parse_condition(f"symbol-present a.c {pattern}")
    except PatchError:
        return
    started = time.process_time()
    condition.holds(lambda path: b"a" * 60 + b"c\n" + b"ab" * 30 + b"c", lambda commit: None)
    assert time.process_time() - started < 2.0
