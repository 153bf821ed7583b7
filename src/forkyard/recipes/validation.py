"""Turn pydantic's validation errors into sentences about the keys a person wrote.

Pydantic names the model's view of an error (union branches, discriminator tags); what is wanted is the key
path in the file, a plain sentence, and the valid name nearest to a mistyped one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from forkyard.recipes.model import KeyPath
from forkyard.recipes.suggest import did_you_mean, nearest


@dataclass(frozen=True)
class Problem:
    """One mistake in a file."""

    key: KeyPath
    message: str
    hint: str | None


def problems(error: ValidationError, data: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Problem]:
    """Return the mistakes in *error*, one for each key of *data*.

    *schema* is the model's JSON schema: the valid names come from it. A missing key that is there mistyped is
    one mistake, not two.
    """
    found: dict[tuple[KeyPath, str], Problem] = {}
    details = error.errors(include_url=False)
    mistyped = set()
    for detail in details:
        key = _written_key(detail["loc"], data)
        if detail["type"] == "extra_forbidden":
            meant = nearest(str(detail["loc"][-1]), _keys_at(schema, detail["loc"][:-1]))
            mistyped.add((key[:-1], meant))
        if detail["type"] != "missing":
            # Of several complaints about one value (one for each branch of a union) the first says enough.
            found.setdefault((key, ""), _sentence(detail, key, schema))
    for detail in details:
        if detail["type"] != "missing":
            # Its place may be the file as a whole, which has no last key.
            continue
        key, missing = _written_key(detail["loc"], data), str(detail["loc"][-1])
        if (key, missing) not in mistyped:
            found[key, missing] = Problem(key, f"{_called(key)} lacks the key `{missing}`", None)
    return list(found.values())


def _written_key(loc: tuple[int | str, ...], data: object) -> KeyPath:
    """Return the part of *loc* that leads to something written in *data*; union branches fall out."""
    key: KeyPath = ()
    for part in loc:
        inner = _element(data, part)
        if inner is not None:
            key, data = (*key, part), inner
    return key


def _element(data: object, part: int | str) -> object:
    inner: object = None
    if isinstance(data, dict):
        inner = data.get(part)
    elif isinstance(data, list) and isinstance(part, int) and part < len(data):
        inner = data[part]
    return inner


def _sentence(detail: ErrorDetails, key: KeyPath, schema: Mapping[str, Any]) -> Problem:
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    name = _called(key)
    if kind == "extra_forbidden":
        known = _keys_at(schema, detail["loc"][:-1])
        unknown = str(detail["loc"][-1])
        hint = did_you_mean(unknown, known) or f"known keys here: {', '.join(sorted(known)) or 'none'}"
        return Problem(key, f"unknown key `{unknown}`", hint)
    if kind in ("literal_error", "union_tag_invalid"):
        expected = re.findall(r"'([^']*)'", str(context.get("expected", context.get("expected_tags", ""))))
        wrong = str(context.get("tag", value))
        if "discriminator" in context:
            key = (*key, str(context["discriminator"]).strip("'"))
            name = _called(key)
        return Problem(key, f"{name} cannot be {wrong!r}", _choice(wrong, expected, str(context.get("expected", ""))))
    if kind == "union_tag_not_found":
        return Problem(key, f"{name} lacks the key `kind`", None)
    if kind == "value_error":
        return Problem(key, f"{name}: {context.get('error', detail['msg'])}", None)
    if kind == "string_pattern_mismatch":
        return Problem(key, f"{name} = {_short(value)} is not of the form it must have", f"form: {context['pattern']}")
    if kind.startswith("bool_") and detail["loc"][-1] == "bool":
        return Problem(key, f"{name} must be true, false, a whole number or a string, not {_short(value)}", None)
    message = detail["msg"][:1].lower() + detail["msg"][1:]
    return Problem(key, f"{name} = {_short(value)}: {message}", None)


def _choice(wrong: str, expected: list[str], fallback: str) -> str:
    listed = ", ".join(expected) or fallback
    meant = did_you_mean(wrong, expected)
    return f"{meant} (possible: {listed})" if meant else f"possible: {listed}"


def _called(key: KeyPath) -> str:
    if not key:
        return "the file"
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        bare = re.fullmatch(r"[A-Za-z0-9_-]+", part)
        text += ("." if text else "") + (part if bare else f'"{part}"')
    return f"`{text}`"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _keys_at(schema: Mapping[str, Any], loc: tuple[int | str, ...]) -> set[str]:
    """Return the keys the table at *loc* may have; *loc* is pydantic's, with the tags of unions."""
    definitions = schema.get("$defs", {})

    def follow(node: Mapping[str, Any]) -> Mapping[str, Any]:
        while "$ref" in node:
            node = definitions[node["$ref"].rsplit("/", 1)[-1]]
        return node

    node = follow(schema)
    for part in loc:
        if isinstance(part, int):
            node = follow(node.get("items", {}))
        elif "oneOf" in node:
            mapping = node.get("discriminator", {}).get("mapping", {})
            node = follow({"$ref": mapping[part]}) if part in mapping else {}
        elif part in node.get("properties", {}):
            node = follow(node["properties"][part])
        else:
            entries = node.get("additionalProperties", node.get("patternProperties", {}))
            if "patternProperties" in node:
                entries = next(iter(node["patternProperties"].values()))
            node = follow(entries) if isinstance(entries, Mapping) else {}
    return set(node.get("properties", {}))
