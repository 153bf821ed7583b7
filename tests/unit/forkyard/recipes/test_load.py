from __future__ import annotations

import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from forkyard.errors import RecipeError
from forkyard.recipes.load import load_absent, load_recipe, load_variants, recipe_names
from forkyard.recipes.model import RegistrySource


def load_both(project: Path) -> None:
    load_recipe("mine", project, stacks=["fixes", "numa-mirror"])
    load_variants(project)


def broken(project: Path, old: str, new: str, file: str = "mine.toml") -> tuple[RecipeError, int]:
    """Replace text in a file, load it, and return the error with the line the change is on."""
    path = project / "recipes" / file
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        load_both(project)
    return caught.value, text[: text.index(old)].count("\n") + 1


def test_a_recipe_is_loaded_by_name_and_by_path(project: Path) -> None:
    by_name = load_recipe("mine", project)
    by_path = load_recipe(project / "recipes" / "mine.toml", project)
    assert by_name == by_path
    assert by_name.path == project / "recipes" / "mine.toml"
    assert by_name.folder == project / "recipes"
    assert by_name.lock_path() == project / "recipes" / "mine.lock.toml"


def test_a_recipe_outside_the_project_may_have_any_file_name(project: Path, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.toml"
    path.write_text((project / "recipes" / "mine.toml").read_text())
    assert load_recipe(str(path), project).name == "mine"


def test_names_leave_out_what_is_no_recipe(project: Path) -> None:
    (project / "recipes" / "mine.lock.toml").write_text("")
    assert recipe_names(project) == ["mine"]


def test_a_mistyped_recipe_name_is_corrected(project: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'mine'") as caught:
        load_recipe("mien", project)
    assert "known recipes: mine" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("tree = ", "# tree = ", "`pin.tree` is needed"),
        (
            'stacks = ["fixes"]',
            'stacks = ["fixes"]\nessential = ["numa-mirror"]',
            "'numa-mirror', which is not in `stacks`",
        ),
    ],
)
def test_keys_that_do_not_go_together(project: Path, old: str, new: str, words: str) -> None:
    error, _ = broken(project, old, new)
    assert words in str(error)


def test_keys_are_located(project: Path) -> None:
    recipe = load_recipe("mine", project)
    text = recipe.path.read_text().splitlines()
    for key, expected in [
        (("pin", "commit"), 'commit = "1111'),
        (("sources", 1, "folder"), 'folder = "vendor/engine"'),
        (("sources", 2), "[[sources]]"),
        (("build", "options", "GGML_LIMIT"), "options = {"),
        (("build", "guarded", 0, "why"), 'why = "it'),
        (("stacks", 0), "stacks ="),
        (("pin", "nothing-here"), "[pin]"),
    ]:
        path, _, line = recipe.location_of(*key).rpartition(":")
        assert path == str(recipe.path)
        assert text[int(line) - 1].startswith(expected)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("build-number", "bild-number", ["unknown key `bild-number`", "did you mean 'build-number'?"]),
        (
            'family = "llama.cpp"',
            'family = "lama.cpp"',
            ["cannot be 'lama.cpp'", "did you mean 'llama.cpp'?"],
        ),
        (
            'stacks = ["fixes"]',
            'stacks = ["numa-miror"]',
            ["no stack 'numa-miror'", "did you mean 'numa-mirror'?"],
        ),
        ('kind = "git"', 'kind = "gti"', ["cannot be 'gti'", "did you mean 'git'?"]),
        ('drop = ["sub/module"]', 'dorp = ["sub/module"]', ["unknown key `dorp`", "did you mean 'drop'?"]),
        ('library = "mtmd"', 'librari = "mtmd"', ["unknown key `librari`", "did you mean 'library'?"]),
        ('date = "2026-01-31"', 'date = "2026-13-01"', ["`pin.date`", "day of the calendar"]),
        ("GGML_LIMIT = 4", "GGML_LIMIT = 4.5", ["`build.options.GGML_LIMIT` must be true, false"]),
        ('url = "https://example.org/engine"', "url = 3", ["`sources[0].url` = 3"]),
        ('name = "mine"', 'name = "yours"', ["the file is called mine.toml, the recipe 'yours'"]),
        ('tools = ["llama-server"]', "tools = []", ["`build.tools`", "must name at least one"]),
        ("schema = 1", "schema = = 1", ["not valid TOML"]),
        ("schema = 1", "schema = 9", ["cannot be '9'", "possible: 1"]),
        ('why = "it asks first"', 'why = "it', ["not valid TOML"]),
    ],
)
def test_a_mistake_is_named_with_its_line(project: Path, old: str, new: str, words: list[str]) -> None:
    error, line = broken(project, old, new)
    assert error.where == f"{project / 'recipes' / 'mine.toml'}:{line}"
    assert error.exit_code == 3
    for word in words:
        assert word in str(error)


def test_a_missing_key_is_named_with_its_table(project: Path) -> None:
    error, line = broken(project, 'commit = "1111111111111111111111111111111111111111"\n', "")
    assert "`pin` lacks the key `commit`" in str(error)
    assert error.where is not None
    assert error.where.endswith(f"mine.toml:{line - 1}")


def test_several_mistakes_are_told_at_once(project: Path) -> None:
    error, _ = broken(project, "build-number = 7", 'build-number = "7"\ncolour = "red"')
    assert "mine.toml has 2 mistakes" in str(error)
    assert "`pin.build-number` = '7'" in str(error)
    assert "unknown key `colour`" in str(error)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"a = " + b"[" * 20000,
        b"a = " + b"9" * 9000,
        b"x" * (1 << 20) + b"y",
        b"a = 1\na = 2\n",
        b"\0",
    ],
)
def test_what_is_no_text_of_a_person_is_refused(project: Path, content: bytes) -> None:
    (project / "recipes" / "mine.toml").write_bytes(content)
    with pytest.raises(RecipeError):
        load_recipe("mine", project)


@pytest.mark.parametrize("ref", ["recipes/none.toml", "a\0b.toml", "/"])
def test_a_path_that_leads_nowhere_is_refused(project: Path, ref: str) -> None:
    with pytest.raises(RecipeError):
        load_recipe(ref, project)


ENTRY = f"100644\tblob\t{'a' * 40}\tmodels/a.jinja\n"


def absent(project: Path, text: str) -> tuple[str, ...]:
    (project / "recipes" / "mine.absent.tsv").write_text(text)
    recipe = load_recipe("mine", project)
    source = recipe.sources[1]
    assert isinstance(source, RegistrySource)
    return tuple(entry.path for entry in load_absent(recipe, source))


def test_absent_entries_come_sorted(project: Path) -> None:
    text = "# why\n\n" + ENTRY.replace("models", "z") + ENTRY
    assert absent(project, text) == ("models/a.jinja", "z/a.jinja")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (ENTRY.replace("\t", " "), "1 fields"),
        (ENTRY.replace("100644", "100600"), "mode '100600'"),
        (ENTRY.replace("blob", "commit"), "type 'commit'"),
        (ENTRY.replace("aaaa", "zzzz"), "object id"),
        (ENTRY.replace("models/", "../"), "path in a tree"),
        (ENTRY + ENTRY, "listed twice"),
    ],
)
def test_a_line_that_is_no_tree_entry_is_refused(project: Path, line: str, why: str) -> None:
    with pytest.raises(RecipeError, match="does not describe an entry") as caught:
        absent(project, line)
    assert why in str(caught.value)
    assert "mine.absent.tsv:" in str(caught.value.where)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('extends = "avx2"', 'extends = "avx"', ["no variant 'avx' to extend", "did you mean 'avx2'?"]),
        ('extends = "avx2"', 'extends = "avx512"', ["in a loop: avx512 -> avx512"]),
        (
            'features = ["avx512f", "avx512dq"]',
            'features = ["avx512ff"]',
            ["no feature 'avx512ff' is defined"],
        ),
        ('proof = ["avx2"]', 'proof = ["avx512f"]', ["'avx512f' is no feature of the variant"]),
        ("rank = 30", "rang = 30", ["unknown key `rang`", "did you mean 'rank'?"]),
        (
            'GGML_BMI2 = ["bmi2"]',
            'GGML_BMI2 = ["bmi"]',
            ["no feature 'bmi' is defined", "did you mean 'bmi2'?"],
        ),
        ('engines."ik_llama.cpp"]\nunsup', 'engines."ik_lama.cpp"]\nunsup', ["did you mean 'ik_llama.cpp'?"]),
        (
            'unsupported = "it is not done yet"',
            "options = { GGML_AVX = true }",
            ["GGML_AVX follows from the features"],
        ),
    ],
)
def test_a_mistake_in_variants_is_named(project: Path, old: str, new: str, words: list[str]) -> None:
    error, line = broken(project, old, new, "variants.toml")
    assert error.where == f"{project / 'recipes' / 'variants.toml'}:{line}"
    for word in words:
        assert word in str(error)


def test_a_users_file_adds_variants(project: Path, tmp_path: Path) -> None:
    extra = tmp_path / "extra.toml"
    extra.write_text('schema = 1\n[variants.avx2-fast]\ntitle = "mine"\nkind = "isa"\nextends = "avx2"\nrank = 31\n')
    variants = load_variants(project, extra)
    assert variants.features_of("avx2-fast") == variants.features_of("avx2")
    assert variants.location_of("variants", "avx2-fast", "rank") == f"{extra}:6"
    assert variants.location_of("variants", "avx2", "rank").startswith(str(project))


def test_a_users_file_redefines_nothing(project: Path, tmp_path: Path) -> None:
    extra = tmp_path / "extra.toml"
    extra.write_text('schema = 1\n\n[variants.avx2]\ntitle = "mine"\nkind = "isa"\nrank = 31\n')
    with pytest.raises(RecipeError, match="'avx2' is defined in") as caught:
        load_variants(project, extra)
    assert caught.value.where == f"{extra}:3"


def test_the_projects_own_files_load(repository: Path) -> None:
    for name in recipe_names(repository):
        recipe = load_recipe(name, repository)
        for source in recipe.sources:
            if isinstance(source, RegistrySource):
                load_absent(recipe, source)
    assert load_variants(repository).variants


JUNK = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    [
        "[[sources]]",
        "[pin]",
        "= 1",
        '"',
        "'''",
        "[",
        "]",
        "{",
        "}",
        "=",
        "\n",
        "true",
        "nan",
        "1979-05-27",
        ".",
        "\\u",
    ]
)


def mutated(text: str, changes: list[tuple[int, int, str]]) -> str:
    for start, length, junk in changes:
        at = start % (len(text) + 1)
        text = text[:at] + junk + text[at + length :]
    return text


def refusal(load: Callable[[], object]) -> RecipeError | None:
    """Return the refusal *load* ends with; anything else it raises fails the test."""
    try:
        load()
    except RecipeError as error:
        return error
    return None


CHANGES = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 30), JUNK), min_size=1, max_size=4)


@settings(deadline=None, max_examples=300)
@given(changes=CHANGES)
def test_a_damaged_recipe_raises_nothing_but_recipe_errors(
    recipe_text: str, changes: list[tuple[int, int, str]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.toml"
        path.write_bytes(mutated(recipe_text, changes).encode("utf-8"))
        error = refusal(lambda: load_recipe(path, Path(folder), stacks=["fixes"]))
        assert error is None or str(path) in str(error.where)


@settings(deadline=None, max_examples=300)
@given(changes=CHANGES)
def test_a_damaged_variants_file_raises_nothing_but_recipe_errors(
    variants_text: str, changes: list[tuple[int, int, str]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipes" / "variants.toml"
        path.parent.mkdir()
        path.write_bytes(mutated(variants_text, changes).encode("utf-8"))
        error = refusal(lambda: load_variants(Path(folder)))
        assert error is None or error.where is not None


TOML_VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=300)
@given(section=st.sampled_from(["pin", "sources", "build", "stacks", "name", "new"]), value=TOML_VALUES)
def test_any_value_anywhere_is_taken_or_refused(recipe_text: str, section: str, value: object) -> None:
    data = {**tomllib.loads(recipe_text), section: value}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.toml"
        path.write_bytes(tomli_w.dumps(data).encode("utf-8"))
        error = refusal(lambda: load_recipe(path, Path(folder), stacks=["fixes"]))
        assert error is None or error.where is not None
