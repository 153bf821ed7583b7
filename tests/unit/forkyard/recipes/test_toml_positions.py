from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from forkyard.recipes.model import KeyPath
from forkyard.recipes.toml_positions import positions

TEXT = """\
# a comment
top = 1
"quoted key" = 2
dotted.inner."very inner" = 3

[table] # why
array = [
    1,
    { x = 1, y.z = 2 },  # two
]

[table.sub]
k = '''
many
lines'''

[[list]]
a = 1
[list.own]
b = 1
[[list]]
a = 2
[list.own]
b = 2
"""


def test_every_kind_of_key_has_its_line() -> None:
    found = positions(TEXT)
    expected: dict[KeyPath, int] = {
        ("top",): 2,
        ("quoted key",): 3,
        ("dotted", "inner", "very inner"): 4,
        ("table",): 6,
        ("table", "array"): 7,
        ("table", "array", 0): 8,
        ("table", "array", 1): 9,
        ("table", "array", 1, "y", "z"): 9,
        ("table", "sub", "k"): 13,
        ("list", 0): 17,
        ("list", 0, "own", "b"): 20,
        ("list", 1): 21,
        ("list", 1, "own", "b"): 24,
    }
    assert {key: found.get(key) for key in expected} == expected


def keys(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield (*path, key)
        yield from keys(below, (*path, key))


VALUES = st.recursive(
    st.booleans() | st.integers(-9, 9) | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(data=st.dictionaries(st.text(max_size=5), VALUES, max_size=4))
def test_every_key_of_any_document_is_found_and_no_other(data: dict[str, Any]) -> None:
    text = tomli_w.dumps(data)
    found = positions(text)
    assert set(found) == set(keys(tomllib.loads(text)))
    assert all(1 <= line <= text.count("\n") + 1 for line in found.values())
