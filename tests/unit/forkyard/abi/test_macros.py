from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkyard.abi.macros import constants, parse_integer


@pytest.mark.parametrize(
    ("token", "value"),
    [
        ("0", 0),
        ("42", 42),
        ("017", 15),
        ("0x1F", 31),
        ("0b101", 5),
        ("0xFFFFFFFFu", 0xFFFFFFFF),
        ("10ULL", 10),
        ("08", None),
        ("1.5", None),
        ("x", None),
        ("'a'", None),
    ],
)
def test_integer_literals(token: str, value: int | None):
    assert parse_integer(token) == value


@given(st.integers(min_value=0, max_value=2**64 - 1), st.sampled_from(["", "u", "L", "uLL"]))
def test_every_integer_literal_is_read_back(value: int, suffix: str):
    assert parse_integer(f"{value}{suffix}") == value
    assert parse_integer(f"{value:#x}{suffix}") == value


def test_aliases_signs_strings_and_parentheses():
    found = constants(
        [
            ("MAGIC", ["0x10u"]),
            ("ALIAS", ["MAGIC"]),
            ("NULL_TOKEN", ["-", "1"]),
            ("WRAPPED", ["(", "(", "7", ")", ")"]),
            ("KEY", ['"general.alignment"']),
        ]
    )
    assert found == {"ALIAS": 16, "KEY": "general.alignment", "MAGIC": 16, "NULL_TOKEN": -1, "WRAPPED": 7}


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ("( ( enum strategy ) 5 )", 5),
        ("( enum strategy ) 5", 5),
        ("( enum strategy ) - 1", -1),
        ("( ( enum strategy ) ( 0x10 ) )", 16),
        ("( ( enum strategy ) OTHER )", 7),
        ('( ( enum strategy ) "x" )', None),
        ("( ( uint8_t ) 300 )", None),
        ("( enum strategy )", None),
    ],
)
def test_a_cast_to_an_enum_keeps_the_value(body: str, value: int | None):
    found = constants([("OTHER", ["7"]), ("IT", body.split())])
    assert found.get("IT") == value


def test_what_is_no_constant_is_left_out():
    assert (
        constants([("A", ["B"]), ("B", ["A"]), ("C", ["UNKNOWN"]), ("D", ["1", "+", "2"]), ("E", ["-", '"x"'])]) == {}
    )


@given(
    st.dictionaries(st.sampled_from("ABCDEF"), st.lists(st.sampled_from([*"ABCDEF()-1", "enum", '"s"']), max_size=8))
)
def test_no_macro_soup_is_too_much(definitions: dict[str, list[str]]):
    assert set(constants(definitions.items())) <= set(definitions)
