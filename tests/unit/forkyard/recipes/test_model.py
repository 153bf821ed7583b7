from __future__ import annotations

import tomllib
from typing import Any

import pytest
from pydantic import ValidationError

from forkyard.recipes.model import Recipe, RegistrySource


def changed(text: str, *path: str | int, value: Any) -> dict[str, Any]:
    data: Any = tomllib.loads(text)
    place = data
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return dict(data)


def test_values_arrive_as_written(recipe_text: str) -> None:
    recipe = Recipe.model_validate(tomllib.loads(recipe_text))
    assert recipe.pin.build_number == 7
    assert [source.kind for source in recipe.sources] == ["git", "registry", "local"]
    assert isinstance(recipe.sources[1], RegistrySource)
    assert recipe.sources[1].drop == ("sub/module",)
    assert recipe.build.options == {"GGML_OPENMP": True, "GGML_LIMIT": 4, "GGML_LABEL": "fy"}
    assert recipe.build.options["GGML_OPENMP"] is True
    assert recipe.build.guarded[0].instruction_sets == ("LZCNT",)


def test_patches_are_held_under_the_familys_name_or_one_of_its_own(recipe_text: str) -> None:
    assert Recipe.model_validate(tomllib.loads(recipe_text)).series == "llama.cpp"
    named = Recipe.model_validate(changed(recipe_text, "series", value="llama.cpp-2026-05"))
    assert (named.series, named.family) == ("llama.cpp-2026-05", "llama.cpp")


def test_a_recipe_cannot_be_changed(recipe_text: str) -> None:
    recipe = Recipe.model_validate(tomllib.loads(recipe_text))
    with pytest.raises(ValidationError):
        recipe.name = "other"


def test_a_date_may_be_written_without_quotes(recipe_text: str) -> None:
    bare = recipe_text.replace('"2026-01-31"', "2026-01-31")
    assert Recipe.model_validate(tomllib.loads(bare)).pin.date == "2026-01-31"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), 2),
        (("name",), "no/slash"),
        (("name",), ""),
        (("family",), "whisper.cpp"),
        (("series",), "whisper.cpp-old"),
        (("series",), "ik_llama.cpp-old"),
        (("series",), "llama.cpp/old"),
        (("title",), "two\nlines"),
        (("stacks",), ["a", "a"]),
        (("stacks",), "fixes"),
        (("sources",), []),
        (("pin", "commit"), "1111"),
        (("pin", "commit"), "A" * 40),
        (("pin", "commit"), "1" * 40 + "\n"),
        (("pin", "date"), "2026-02-30"),
        (("pin", "date"), "yesterday"),
        (("pin", "build-number"), -1),
        (("pin", "build-number"), True),
        (("pin", "build-number"), "7"),
        (("sources", 0, "kind"), "svn"),
        (("sources", 0, "url"), "--upload-pack=x"),
        (("sources", 0, "url"), "ext::sh -c x"),
        (("sources", 0, "url"), "ftp://example.org/x"),
        (("sources", 1, "store"), ".git/modules/engine"),
        (("sources", 1, "folder"), "/vendor/engine"),
        (("sources", 1, "folder"), "vendor/../engine"),
        (("sources", 1, "folder"), "vendor/engine/"),
        (("sources", 1, "sha256"), "3" * 63),
        (("sources", 1, "version"), ">=1"),
        (("build", "tools"), []),
        (("build", "headers"), ["../llama.h"]),
        (("build", "defines"), ["1X"]),
        (("build", "options"), {"BAD NAME": True}),
        (("build", "options"), {"GGML_X": 1.5}),
        (("build", "options"), {"GGML_X": ["a"]}),
        (("build", "options"), {"GGML_X": "a\nb"}),
        (("build", "guarded"), [{"library": "mtmd", "instruction-sets": [], "why": "x"}]),
        (("build", "surprise"), 1),
        (("build", "cpu_target"), "ggml"),
    ],
)
def test_what_is_wrong_is_refused(recipe_text: str, path: tuple[str | int, ...], value: Any) -> None:
    with pytest.raises(ValidationError):
        Recipe.model_validate(changed(recipe_text, *path, value=value))


def test_a_folder_source_needs_the_tree_id(recipe_text: str) -> None:
    data = tomllib.loads(recipe_text)
    del data["pin"]["tree"]
    with pytest.raises(ValidationError, match=r"pin\.tree"):
        Recipe.model_validate(data)
    del data["sources"][1]
    assert Recipe.model_validate(data).pin.tree is None


def test_a_store_source_lists_nothing_absent(recipe_text: str) -> None:
    data = changed(recipe_text, "sources", 1, "store", value=".git/modules/engine")
    del data["sources"][1]["folder"]
    with pytest.raises(ValidationError, match="store"):
        Recipe.model_validate(data)
