"""On which line of a TOML file each table, key and array element is written.

``tomllib`` gives values without positions, tree-sitter gives positions without values: both read the same
text, and this module maps key paths as ``tomllib`` would spell them to 1-based line numbers.
"""

from __future__ import annotations

import tomllib

import tree_sitter_toml
from tree_sitter import Language, Node, Parser

from forkyard.recipes.model import KeyPath

_LANGUAGE = Language(tree_sitter_toml.language())
_KEYS = ("bare_key", "quoted_key", "dotted_key")


def positions(text: str) -> dict[KeyPath, int]:
    """Return the line (from 1) of every table, key and array element of *text*, which must be valid TOML."""
    lines: dict[KeyPath, int] = {}
    root = Parser(_LANGUAGE).parse(text.encode("utf-8")).root_node
    counts: dict[KeyPath, int] = {}
    for node in root.named_children:
        if node.type == "pair":
            _pair(node, (), lines)
        elif node.type in ("table", "table_array_element"):
            _table(node, counts, lines)
    return lines


def _table(node: Node, counts: dict[KeyPath, int], lines: dict[KeyPath, int]) -> None:
    key_node = next((child for child in node.named_children if child.type in _KEYS), None)
    if key_node is None:
        return
    path: KeyPath = ()
    line = node.start_point[0] + 1
    parts = _key(key_node)
    for depth, part in enumerate(parts):
        path = (*path, part)
        lines.setdefault(path, line)
        last = depth == len(parts) - 1
        if last and node.type == "table_array_element":
            counts[path] = counts.get(path, 0) + 1
        # A header under an array of tables continues the array's newest element.
        if path in counts:
            path = (*path, counts[path] - 1)
            lines.setdefault(path, line)
    for child in node.named_children:
        if child.type == "pair":
            _pair(child, path, lines)


def _pair(node: Node, base: KeyPath, lines: dict[KeyPath, int]) -> None:
    key_node, *values = [child for child in node.named_children if child.type != "comment"]
    path = base
    for part in _key(key_node):
        path = (*path, part)
        lines.setdefault(path, key_node.start_point[0] + 1)
    for value in values:
        _value(value, path, lines)


def _value(node: Node, path: KeyPath, lines: dict[KeyPath, int]) -> None:
    if node.type == "inline_table":
        for child in node.named_children:
            if child.type == "pair":
                _pair(child, path, lines)
    elif node.type == "array":
        elements = [child for child in node.named_children if child.type != "comment"]
        for index, child in enumerate(elements):
            lines.setdefault((*path, index), child.start_point[0] + 1)
            _value(child, (*path, index), lines)


def _key(node: Node) -> list[str]:
    """Return the parts of a bare, quoted or dotted key; tomllib, which knows every escape, takes it apart."""
    text = (node.text or b"").decode("utf-8")
    try:
        value: object = tomllib.loads(f"{text} = 0")
    except tomllib.TOMLDecodeError:
        return [text]
    parts = []
    while isinstance(value, dict):
        (part, value), *_ = value.items()
        parts.append(part)
    return parts
