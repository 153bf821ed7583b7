from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

from forkyard.recipes.load import recipe_names
from forkyard.recipes.schema import SCHEMAS, schema, schema_path, stale_schemas, write_schemas


def test_the_committed_schemas_are_current(repository: Path) -> None:
    assert stale_schemas(repository) == []


def test_schemas_are_written_once(tmp_path: Path) -> None:
    assert write_schemas(tmp_path) == [schema_path(tmp_path, name) for name in SCHEMAS]
    assert write_schemas(tmp_path) == []


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_one(repository: Path, name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(schema_path(repository, name).read_text()))


def test_the_projects_files_are_valid_by_the_schemas(repository: Path) -> None:
    for name in recipe_names(repository):
        data = tomllib.loads((repository / "recipes" / f"{name}.toml").read_text())
        jsonschema.validate(data, schema("recipe"), cls=jsonschema.Draft202012Validator)
    data = tomllib.loads((repository / "recipes" / "variants.toml").read_text())
    jsonschema.validate(data, schema("variants"), cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("build-number", "bild-number"),
        ('kind = "git"', 'kind = "gti"'),
        ('commit = "1111', 'commit = "X111'),
        ("schema = 1", "schema = 2"),
    ],
)
def test_the_schema_refuses_what_the_models_refuse(recipe_text: str, old: str, new: str) -> None:
    jsonschema.validate(tomllib.loads(recipe_text), schema("recipe"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tomllib.loads(recipe_text.replace(old, new)), schema("recipe"))
