from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forkyard.linting.excerpts import SHORT, excerpt

FUNCTION = [b"int f() {", b"    return 1;", b"}", b""]


def file(count: int = 200) -> list[bytes]:
    return FUNCTION * count


def text(part: list[tuple[bytes, int | None]]) -> list[bytes]:
    return [line for line, _ in part]


def test_a_short_file_is_left_whole() -> None:
    lines = file(SHORT // 4)
    assert excerpt(lines, [3]) == [(line, index) for index, line in enumerate(lines)]


def test_the_function_around_a_line() -> None:
    assert excerpt(file(), [401]) == [
        (b"", 399),
        (b"int f() {", 400),
        (b"    return 1;", 401),
        (b"}", 402),
    ]


def test_lines_of_one_function_are_seen_once() -> None:
    part = excerpt(file(), [400, 401, 402, 600])
    assert [index for _, index in part] == [*range(399, 403), *range(599, 603)]


def test_an_empty_line_is_seen_with_what_it_parts() -> None:
    assert [index for _, index in excerpt(file(), [403])] == list(range(399, 407))


def test_conditions_that_are_open_are_opened_and_closed() -> None:
    lines = [*file(), b"#if A", b"#ifdef B", b"", *file(1), b"#else", b"", *file(2), b"#endif", b"#endif"]
    at = lines.index(b"#else") + 7
    part = excerpt(lines, [at])
    assert text(part)[:2] == [b"#if A", b"#ifdef B"]
    assert text(part)[-2:] == [b"#endif", b"#endif"]
    assert [index for _, index in part[:2]] == [None, None] or part[0][1] is not None


def test_the_guard_of_a_header_is_no_condition() -> None:
    lines = [b"#ifndef A_H", b"#define A_H", b"", *file(), b"#endif"]
    assert b"#ifndef A_H" not in text(excerpt(lines, [500]))


@given(
    st.lists(
        st.sampled_from([b"", b"}", b"int f() {", b"#if A", b"#else", b"#endif", b"    x;", b"};"]),
        min_size=SHORT + 1,
        max_size=SHORT + 60,
    ),
    st.data(),
)
def test_every_wanted_line_is_seen_once_and_in_order(lines: list[bytes], data: st.DataObject) -> None:
    wanted = sorted(data.draw(st.sets(st.integers(0, len(lines) - 1), min_size=1, max_size=20)))
    part = excerpt(lines, wanted)
    seen = [index for _, index in part if index is not None]
    assert seen == sorted(set(seen))
    assert set(wanted) <= set(seen)
    assert all(index is None or lines[index] == line for line, index in part)
