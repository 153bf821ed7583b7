"""Evaluate the object-like macros of a header that are plain constants, and only those."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

_INTEGER = re.compile(r"(?P<digits>0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)(?P<suffix>[uUlL]{0,3})\Z")
_STRING = re.compile(r'"(?P<text>[^"\\]*)"\Z')
_MAX_ALIASES = 32
# ((enum name) 5): a value of an enum that its own header does not list.
_ENUM_CAST = 4


def parse_integer(token: str) -> int | None:
    """The value of a C integer literal (decimal, octal, hexadecimal, binary; any suffix), or None."""
    match = _INTEGER.match(token)
    if match is None:
        return None
    digits = match["digits"]
    if len(digits) > 1 and digits[0] == "0" and digits.isdigit():
        return int(digits, 8) if re.fullmatch("[0-7]+", digits) else None
    return int(digits, 0)


def _evaluate(tokens: Sequence[str], known: Mapping[str, Sequence[str]], depth: int) -> int | str | None:
    if depth > _MAX_ALIASES:
        return None
    if len(tokens) > _ENUM_CAST and (*tokens[:2], tokens[3]) == ("(", "enum", ")"):
        value = _evaluate(tokens[_ENUM_CAST:], known, depth + 1)
        return value if isinstance(value, int) else None
    if len(tokens) >= 2 and tokens[0] == "(" and tokens[-1] == ")":
        return _evaluate(tokens[1:-1], known, depth + 1)
    if len(tokens) == 2 and tokens[0] in {"-", "+"}:
        value = _evaluate(tokens[1:], known, depth + 1)
        if not isinstance(value, int):
            return None
        return -value if tokens[0] == "-" else value
    if len(tokens) != 1:
        return None
    token = tokens[0]
    string = _STRING.match(token)
    if string is not None:
        return string["text"]
    if token in known:
        return _evaluate(known[token], known, depth + 1)
    return parse_integer(token)


def constants(definitions: Iterable[tuple[str, Sequence[str]]]) -> dict[str, int | str]:
    """The macros among ``definitions`` (name, body tokens) that are an integer, a string, or an alias of one.

    An integer may be cast to an enum, which leaves its value as it is. A macro of any other shape has no meaning
    outside C and is left out; a chain of aliases that never ends is too.
    """
    known = dict(definitions)
    found = {name: _evaluate(tokens, known, 0) for name, tokens in known.items()}
    return {name: value for name, value in sorted(found.items()) if value is not None}
