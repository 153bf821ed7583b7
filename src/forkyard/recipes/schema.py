"""The JSON schemas of recipe, variants and pins files, for editors and for checking files without forkyard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from forkyard.recipes.known import KnownPins
from forkyard.recipes.model import Recipe, Table
from forkyard.recipes.variants import Variants

_MODELS: dict[str, tuple[type[Table], str]] = {
    "recipe": (Recipe, "forkyard recipe"),
    "variants": (Variants, "forkyard variants"),
    "pins": (KnownPins, "forkyard known pins"),
}
SCHEMAS: tuple[str, ...] = tuple(_MODELS)
"""The names of the schemas there are."""


def schema(name: str) -> dict[str, Any]:
    """Return the JSON schema called *name*, one of :data:`SCHEMAS`; raises KeyError for another name."""
    model, title = _MODELS[name]
    body = model.model_json_schema()
    body.pop("title", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **body}


def schema_text(name: str) -> str:
    """Return the schema called *name* as the text that is committed: sorted keys, indented by two spaces."""
    return json.dumps(schema(name), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def schema_path(root: Path, name: str) -> Path:
    """Return where the schema called *name* is committed in the project folder *root*."""
    return root / "recipes" / "schema" / f"{name}.schema.json"


def stale_schemas(root: Path) -> list[Path]:
    """Return the committed schemas that are missing or not what the models say now."""
    stale = []
    for name in SCHEMAS:
        path = schema_path(root, name)
        if not path.is_file() or path.read_text(encoding="utf-8") != schema_text(name):
            stale.append(path)
    return stale


def write_schemas(root: Path) -> list[Path]:
    """Write every stale schema; return the paths written."""
    stale = stale_schemas(root)
    for name in SCHEMAS:
        path = schema_path(root, name)
        if path in stale:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(schema_text(name), encoding="utf-8")
    return stale
