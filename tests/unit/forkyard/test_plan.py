from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name
from packaging.version import Version

from forkyard import plan as plan_module
from forkyard.cache import Cache
from forkyard.errors import RecipeError, ToolchainError
from forkyard.plan import Plan, added_sources, check_obtained, check_tools, logic_digest, origin_of, workspace_of
from forkyard.recipes import load_recipe, load_variants
from forkyard.recipes.load import recipe_names
from forkyard.sources import Obtained
from forkyard.stacks import load_stacks

PlanOf = Callable[..., Any]


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


RECIPE_CHANGES = {
    "commit": ("1111111111111111111111111111111111111111", "3" * 40),
    "tree": ("2222222222222222222222222222222222222222", "3" * 40),
    "date": ("2026-01-05", "2026-01-06"),
    "build number": ("build-number = 7", "build-number = 8"),
    "title": ("my engine", "your engine"),
    "tools": ('tools = ["llama-server"]', 'tools = ["llama-cli"]'),
    "names of tools": ('tools = ["llama-server"]', 'tools = ["llama-server"]\ntool-names = { a = "b" }'),
    "libraries": ('libraries = ["llama"]', 'libraries = ["llama", "mtmd"]'),
    "headers": ("include/llama.h", "include/other.h"),
    "include folders": ('include-dirs = ["include"]', 'include-dirs = ["inc"]'),
    "defines": ('defines = ["SHARED"]', 'defines = ["STATIC"]'),
    "cpu target": ('cpu-target = "ggml-cpu"', 'cpu-target = "ggml"\nc-flags = []'),
    "an option": ("GGML_OPENMP = false", "GGML_OPENMP = true"),
    "another option": ("GGML_OPENMP = false", "GGML_OPENMP = false, GGML_X = 1"),
    "C flags": ('cpu-target = "ggml-cpu"', 'cpu-target = "ggml-cpu"\nc-flags = ["-w"]'),
    "C++ flags": ('cpu-target = "ggml-cpu"', 'cpu-target = "ggml-cpu"\ncxx-flags = ["-w"]'),
    "licences": ('licenses = ["LICENSE", "vendor/x/LICENSE"]', 'licenses = ["LICENSE"]'),
    "the place the manifest names": (
        'path = "clone"',
        'path = "clone"\n[[sources]]\nkind = "git"\nurl = "https://a.example/b"',
    ),
}


@pytest.mark.parametrize("what", RECIPE_CHANGES)
def test_the_key_changes_with_the_recipes(project_root: Path, plan_of: PlanOf, what: str) -> None:
    before = plan_of().key
    assert plan_of().key == before
    change(project_root / "recipes" / "mine.toml", *RECIPE_CHANGES[what])
    assert plan_of().key != before


@pytest.mark.parametrize(
    "changed",
    [
        {"version": "gcc 14"},
        {"sha256": "8" * 64},
        {"target": "x"},
        {"libc": "musl"},
        {"openmp": None},
        {"family": "clang"},
    ],
)
def test_the_key_changes_with_the_toolchain(plan_of: PlanOf, changed: dict[str, Any]) -> None:
    assert plan_of(**changed).key != plan_of().key


def test_the_key_does_not_change_with_what_changes_no_byte(project_root: Path, plan_of: PlanOf, tmp_path: Path) -> None:
    before = plan_of().key
    with (project_root / "recipes" / "mine.toml").open("a") as recipe:
        recipe.write("\n# a comment\n")
    change(project_root / "recipes" / "mine.toml", 'path = "clone"', 'path = "another/clone"')
    (project_root / "recipes" / "other.toml").write_text("broken")
    (project_root / "patches" / "notes.md").write_text("x")
    assert plan_of(c=Path("/opt/bin/cc"), cxx=Path("/opt/bin/c++")).key == before
    assert plan_of(openmp=tmp_path / "elsewhere" / "libgomp.so.1").key == before


def test_the_key_changes_with_the_variant_and_its_text(project_root: Path, plan_of: PlanOf) -> None:
    keys = {plan_of(variant).key for variant in ("avx2", "avx512", "sse42")}
    assert len(keys) == 3
    text = (project_root / "recipes" / "variants.toml").read_text()
    before = plan_of("avx2").key
    for old in ("rank = 30", '[variants.avx2]\ntitle = "'):
        assert old in text
    change(project_root / "recipes" / "variants.toml", "rank = 30", "rank = 31")
    assert plan_of("avx2").key != before


def test_the_key_changes_with_every_part_of_a_stack(project_root: Path, plan_of: PlanOf, add_stack: Any) -> None:
    folder = add_stack(project_root, "part", patches={"a.patch": b"A", "b.patch": b"B"}, files={"d/x.c": b"x"})
    keys = [plan_of().key, plan_of(stacks=["part"]).key]

    def note() -> None:
        keys.append(plan_of(stacks=["part"]).key)

    (folder / "llama.cpp" / "a.patch").write_bytes(b"A2")
    note()
    (folder / "llama.cpp" / "series").write_text("b.patch\na.patch\n")
    note()
    (folder / "src" / "d" / "x.c").write_bytes(b"y")
    note()
    (folder / "src" / "d" / "x.c").rename(folder / "src" / "d" / "y.c")
    note()
    (folder / "src" / "d" / "y.c").chmod(0o755)
    note()
    change(folder / "stack.toml", "a stack", "the stack")
    note()
    with (folder / "stack.toml").open("a") as about:
        about.write('capability = "x"\n')
    note()
    with (folder / "stack.toml").open("a") as about:
        about.write('headers = ["d/y.h"]\n')
    note()
    assert len(set(keys)) == len(keys)
    change(folder / "stack.toml", "to be tested", "to be read")
    assert plan_of(stacks=["part"]).key == keys[-1], "why a stack exists changes no byte"


def test_the_key_changes_with_the_templates(project_root: Path, plan_of: PlanOf) -> None:
    before = plan_of().key
    for path in sorted((project_root / "wheels").glob("*.j2")):
        path.write_text(path.read_text() + "\n")
        after = plan_of().key
        assert after != before, path.name
        before = after


def test_the_key_does_not_depend_on_where_the_project_lies(
    project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before or after forkyard's own folder by name: as `stack verify --changed` compares a copy with the original."""
    package = tmp_path / "middle"
    shutil.copytree(Path(plan_module.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(plan_module, "__file__", str(package / "plan.py"))
    digests = set()
    for name in ("a", "z"):
        shutil.copytree(project_root / "wheels", tmp_path / name / "wheels")
        logic_digest.cache_clear()
        digests.add(logic_digest(tmp_path / name))
    logic_digest.cache_clear()
    assert len(digests) == 1


def test_the_key_changes_with_what_a_source_lacks(project_root: Path, plan_of: PlanOf) -> None:
    registry = (
        'kind = "registry"\nproject = "p"\nversion = "1"\nsha256 = "'
        + "4" * 64
        + '"\nfolder = "v"\nabsent = "mine.tsv"'
    )
    change(project_root / "recipes" / "mine.toml", 'kind = "local"\npath = "clone"', registry)
    listing = project_root / "recipes" / "mine.tsv"
    listing.write_text(f"100644\tblob\t{'5' * 40}\ta\n")
    before = plan_of().key
    listing.write_text(f"100644\tblob\t{'6' * 40}\ta\n")
    assert plan_of().key != before


def test_native_depends_on_the_machine(plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    for features in (("avx2", "fma"), ("avx2", "fma", "avx512f")):
        monkeypatch.setattr("forkyard.plan.native_features", lambda _, found=features: found)
        keys.append(plan_of("native").key)
    assert keys[0] != keys[1]


# -- names ---------------------------------------------------------------------------------------------


def test_the_version_is_normalised(plan_of: PlanOf) -> None:
    plan = plan_of()
    version = plan.version("2026-01-05")
    assert str(Version(version)) == version
    assert version.startswith(f"2026.1.5+g{'1' * 9}.k{plan.key[:12]}")
    assert Version(plan.version("2026-02-01")) > Version(version)


@pytest.mark.parametrize("name", ["mine", "ik_llama.cpp", "My.Engine", "a--b", "a._b", "x-1"])
def test_the_distribution_has_a_normalised_name(project_root: Path, plan_of: PlanOf, name: str) -> None:
    text = (project_root / "recipes" / "mine.toml").read_text()
    (project_root / "recipes" / f"{name}.toml").write_text(text.replace('name = "mine"', f'name = "{name}"'))
    plan = plan_of(recipe=name)
    assert plan.distribution == canonicalize_name(plan.distribution)
    assert plan.package == plan.distribution.replace("-", "_")
    assert plan.package.isidentifier()


def test_a_variant_of_ones_own_has_a_normalised_distribution(project_root: Path, plan_of: PlanOf) -> None:
    with (project_root / "recipes" / "variants.toml").open("a") as file:
        file.write('\n[variants.Zen_4]\ntitle = "x"\nkind = "isa"\nextends = "avx2"\nrank = 31\n')
    plan = plan_of("Zen_4")
    assert plan.distribution == canonicalize_name(plan.distribution) == "forkyard-mine-zen-4"


def test_workspaces_of_recipes_elsewhere_do_not_collide(project_root: Path, tmp_path: Path) -> None:
    text = (project_root / "recipes" / "mine.toml").read_text()
    found = {workspace_of(load_recipe("mine", project_root), project_root)}
    assert found == {"mine"}
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.toml").write_text(text)
        (tmp_path / folder / "copy.toml").write_text(text)
        for file in ("mine.toml", "copy.toml"):
            found.add(workspace_of(load_recipe(str(tmp_path / folder / file), project_root), project_root))
    assert len(found) == 5
    assert all(len(Path(name).parts) == 1 for name in found)


# -- decisions -----------------------------------------------------------------------------------------


def test_openmp_without_its_library(project_root: Path, plan_of: PlanOf) -> None:
    change(project_root / "recipes" / "mine.toml", "GGML_OPENMP = false", "GGML_OPENMP = true")
    with pytest.raises(RecipeError, match="OpenMP") as caught:
        plan_of(openmp=None)
    assert str(caught.value.where).startswith(str(project_root / "recipes" / "mine.toml"))


def test_a_tool_that_a_variant_adds_has_the_pin_s_name(project_root: Path, plan_of: PlanOf) -> None:
    own = plan_of().tools
    assert plan_of("rpc").tools == (*own, "ggml-rpc-server")
    names = 'tool-names = { ggml-rpc-server = "rpc-server" }'
    change(project_root / "recipes" / "mine.toml", "libraries = [", f"{names}\nlibraries = [")
    assert plan_of("rpc").tools == (*own, "rpc-server")
    assert plan_of().tools == own


def test_every_name_of_a_tool_is_for_one_that_a_variant_adds(repository: Path) -> None:
    variants = load_variants(repository)
    for name in recipe_names(repository):
        recipe = load_recipe(name, repository)
        added = {
            tool
            for own in variants.variants.values()
            if recipe.family in own.engines
            for tool in own.engines[recipe.family].tools
        }
        assert set(recipe.build.tool_names) <= added, name


def test_unknown_names(plan_of: PlanOf) -> None:
    with pytest.raises(RecipeError, match="no variant"):
        plan_of("avx3")
    with pytest.raises(RecipeError, match="no stack"):
        plan_of(stacks=["none"])


def test_gcc_alone_has_unique_symbols_to_turn_off(plan_of: PlanOf) -> None:
    assert "-fno-gnu-unique" in plan_of().cxx_flags
    assert "-fno-gnu-unique" not in plan_of(family="clang", version="clang 14").cxx_flags


def test_the_plan_for_machines(plan_of: PlanOf, cache: Cache) -> None:
    import json

    plan = plan_of()
    facts = json.loads(json.dumps(plan.as_json(cache)))
    assert facts["key"] == plan.key
    assert facts["distribution"] == "forkyard-mine-avx2"
    assert facts["source"] == "to be fetched"
    assert "/usr/bin" not in json.dumps(facts["toolchain"])


def test_another_pin_is_refused(plan_of: PlanOf) -> None:
    plan = plan_of()
    check_obtained(plan, Obtained("1" * 40, "2" * 40, "2026-01-05", 7, "local", "x", ()))
    with pytest.raises(RecipeError):
        check_obtained(plan, Obtained("3" * 40, "2" * 40, "2026-01-05", 7, "local", "x", ()))


def test_a_secret_in_a_source_is_not_in_what_goes_into_the_wheel(project_root: Path) -> None:
    secret = 'kind = "git"\nurl = "https://me:hunter2@a.example/b"'
    change(project_root / "recipes" / "mine.toml", 'kind = "local"\npath = "clone"', secret)
    assert origin_of(load_recipe("mine", project_root)) == {"kind": "git", "location": "https://***@a.example/b"}


# -- parts of stacks, and others than the recipe's ----------------------------------------------------------


def message(adds: str = "", encoding: str = "") -> bytes:
    return f"Subject: x\n{encoding}\nWhy.\n\nUpstream-Status: Pending\n{adds}\ndiff --git a/x b/x\n".encode()


def test_the_beginning_of_a_series_has_a_key_of_its_own(project_root: Path, plan_of: PlanOf, add_stack: Any) -> None:
    patches = {"a.patch": message("Adds-Files: one.c\n"), "b.patch": message("Adds-Files: two.c -> t.c\n")}
    folder = add_stack(project_root, "part", patches=patches, files={"one.c": b"1", "two.c": b"2"})
    (stack,) = load_stacks(project_root, ["part"], "llama.cpp")

    def keys() -> list[str]:
        return [plan_of(stacks=[stack.first(count)]).key for count in (1, 2)] + [plan_of(stacks=["part"]).key]

    first, second, whole = before = keys()
    assert first != second == whole
    (folder / "src" / "two.c").write_bytes(b"22")
    after = keys()
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, False]
    (folder / "llama.cpp" / "b.patch").write_bytes(patches["b.patch"] + b" ")
    assert keys()[0] == first
    (folder / "src" / "one.c").write_bytes(b"11")
    assert keys()[0] != first


def test_files_a_patch_adds_are_read_from_its_message_alone() -> None:
    assert added_sources(message("Adds-Files: a b.c -> x/a b.c\nAdds-Files: c.c\n")) == ["a b.c", "c.c"]
    assert added_sources(message() + b"+Adds-Files: no.c\n Adds-Files: no.c\n") == []
    assert added_sources(message("Adds-Files: c.c\n", "Content-Transfer-Encoding: 8bit\n")) == ["c.c"]
    assert added_sources(message("", "Content-Transfer-Encoding: base64\n")) is None


def test_what_a_patch_is_carried_over_from_is_part_of_the_key(
    project_root: Path, plan_of: PlanOf, add_stack: Any
) -> None:
    for name in "abc":
        add_stack(project_root, name, patches={f"{name}.patch": message()})
    change(project_root / "recipes" / "mine.toml", "stacks = []", 'stacks = ["a", "b", "c"]')
    assert plan_of().usual is None
    assert plan_of(stacks=["a", "b", "c"]).key == plan_of().key
    assert plan_of(stacks=["a", "b"]).usual is None
    assert plan_of(stacks=[]).usual is None
    apart = plan_of(stacks=["a", "c"])
    assert [stack.name for stack in apart.usual] == ["a", "b", "c"]
    beginning = plan_of(stacks=["a"]).key
    (project_root / "patches" / "b" / "llama.cpp" / "b.patch").write_bytes(message() + b"more\n")
    assert plan_of(stacks=["a", "c"]).key != apart.key
    assert plan_of(stacks=["a"]).key == beginning


@pytest.mark.parametrize(
    ("family", "version", "variant", "needed"),
    [
        ("gcc", "gcc (Ubuntu 9.4.0-1ubuntu1~20.04.1) 9.4.0", "avx512-bf16", "gcc 10"),
        ("gcc", "g++ (GCC) 10.2.1 20210110", "amx", "gcc 11"),
        ("clang", "Debian clang version 11.0.1-2", "amx", "clang 12"),
        ("gcc", "gcc (Ubuntu 9.4.0-1ubuntu1~20.04.1) 9.4.0", "avx512-vnni", None),
        ("gcc", "gcc (Debian 12.2.0-14) 12.2.0", "amx", None),
        ("gcc", "a compiler that does not say", "amx", None),
    ],
)
def test_a_compiler_too_old_for_the_variant(
    plan_of: Callable[..., Plan], family: str, version: str, variant: str, needed: str | None
) -> None:
    plan = plan_of(variant, family=family, version=version)
    if needed is None:
        check_tools(plan)
        return
    with pytest.raises(ToolchainError) as caught:
        check_tools(plan)
    assert f"it takes {needed} or newer" in caught.value.what
    assert version in (caught.value.where or "")


def test_another_machine_s_code_is_compiled_by_its_toolkit(plan_of: Callable[..., Plan], project_root: Path) -> None:
    plan = plan_of("dotprod")
    assert plan.toolchain.as_json() == {
        "c": "zig-cc",
        "cxx": "zig-c++",
        "version": "Zig 0.17.1 (clang 22.1.8)",
        "target": "aarch64-linux-gnu",
        "libc": "glibc 2.28",
        "sha256": plan.toolkit.digest if plan.toolkit else "",
    }
    assert plan.options["GGML_OPENMP"] == "OFF"
    assert plan.cxx_flags == ()
    # The build machine's own compiler is no part of it.
    assert plan_of("dotprod", sha256="8" * 64).key == plan.key
    assert "target" not in plan_of("avx2").inputs
    variants = project_root / "recipes" / "variants.toml"
    variants.write_text(variants.read_text().replace('GGML_USE_SVE2 = ["sve2"]', 'GGML_USE_SVE2 = ["sve"]'))
    assert plan_of("dotprod").key != plan.key
