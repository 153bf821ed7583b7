from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkyard.cache import Cache
from forkyard.console import Silent
from forkyard.errors import BusyError, RecipeError, UsageError
from forkyard.locks import hold
from forkyard.recipes import load_variants
from forkyard.scratch import owned_folder
from forkyard.workshop import Workshop, clean, find_root


@pytest.fixture
def shop(project_root: Path, cache: Cache, toolchain: Any, tmp_path: Path) -> Workshop:
    return Workshop(project_root, cache, tmp_path / "out", load_variants(project_root), toolchain)


# -- the project folder --------------------------------------------------------------------------------


def test_the_root_is_found_from_below(project_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORKYARD_ROOT", raising=False)
    assert find_root(project_root / "recipes") == project_root
    deep = project_root / "patches" / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert find_root() == project_root


def test_the_root_can_be_chosen(project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORKYARD_ROOT", str(project_root))
    assert find_root(tmp_path) == project_root
    monkeypatch.setenv("FORKYARD_ROOT", str(tmp_path / "wrong"))
    with pytest.raises(UsageError) as caught:
        find_root(project_root)
    assert "FORKYARD_ROOT" in str(caught.value.next_step)


def test_elsewhere_it_is_the_one_forkyard_runs_from(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORKYARD_ROOT", raising=False)
    assert find_root(tmp_path) == repository


# -- plans ---------------------------------------------------------------------------------------------


def add_recipe(root: Path, name: str, family: str) -> None:
    text = (root / "recipes" / "mine.toml").read_text()
    text = text.replace('name = "mine"', f'name = "{name}"').replace('family = "llama.cpp"', f'family = "{family}"')
    (root / "recipes" / f"{name}.toml").write_text(text)


def unsupported(shop: Workshop) -> tuple[str, str]:
    """A variant and the engine family that does not have it."""
    for name, variant in shop.variants.variants.items():
        for family, own in variant.engines.items():
            if own.unsupported is not None:
                return name, family
    pytest.fail("every engine has every variant: this test needs another one")


def test_another_pin_of_an_engine_is_planned_where_it_is_named(shop: Workshop) -> None:
    add_recipe(shop.root, "llama.cpp-2026-05", "llama.cpp")
    path = shop.root / "recipes" / "llama.cpp-2026-05.toml"
    path.write_text(path.read_text().replace("title = ", 'series = "llama.cpp-2026-05"\ntitle = ', 1))
    plans, left_out = shop.plans("avx2", [])
    assert ([plan.recipe.name for plan in plans], left_out) == (["mine"], [])
    ((plan,), _) = shop.plans("avx2", ["llama.cpp-2026-05"])
    assert plan.distribution == "forkyard-llama-cpp-2026-05-avx2"
    assert plan.as_json(shop.cache)["family"] == "llama.cpp"


def test_without_names_every_recipe_is_planned_and_what_cannot_be_is_said(shop: Workshop) -> None:
    variant, family = unsupported(shop)
    other = "llama.cpp" if family == "ik_llama.cpp" else "ik_llama.cpp"
    add_recipe(shop.root, "mine", other)
    add_recipe(shop.root, "lacking", family)
    plans, left_out = shop.plans(variant, [])
    assert [plan.recipe.name for plan in plans] == ["mine"]
    assert len(left_out) == 1
    assert left_out[0].startswith(f"lacking has no {variant}: ")
    with pytest.raises(RecipeError):
        shop.plans(variant, ["lacking"])


def test_names_that_lead_nowhere(shop: Workshop) -> None:
    with pytest.raises(RecipeError):
        shop.plans("avx2", ["your"])
    with pytest.raises(RecipeError, match="no variant"):
        shop.plans("avx3", [])
    with pytest.raises(RecipeError, match="no stack"):
        shop.plans("avx2", ["mine"], ["nothing"])


def test_the_best_for_this_machine(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    add_recipe(shop.root, "other", "ik_llama.cpp")
    amx = shop.variants.features_of("amx")
    monkeypatch.setattr("forkyard.workshop.native_features", lambda _: tuple(sorted(amx)))
    plans, left_out = shop.plans("best", [])
    assert [(plan.recipe.name, plan.variant.name) for plan in plans] == [("mine", "amx"), ("other", "avx512-bf16")]
    assert left_out == []
    assert [plan.variant.name for plan in shop.plans("best", ["other"])[0]] == ["avx512-bf16"]
    # The same wheel as by its name.
    assert plans[0].key == shop.plans("amx", ["mine"])[0][0].key


def test_a_machine_that_runs_only_one_engine(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    add_recipe(shop.root, "other", "ik_llama.cpp")
    monkeypatch.setattr("forkyard.workshop.native_features", lambda _: tuple(shop.variants.features_of("sse42")))
    plans, left_out = shop.plans("best", [])
    assert [(plan.recipe.name, plan.variant.name) for plan in plans] == [("mine", "sse42")]
    assert "no variant of ik_llama.cpp" in left_out[0]
    with pytest.raises(RecipeError, match="other cannot be built for this machine"):
        shop.plans("best", ["other"])


def test_a_machine_that_runs_nothing(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    add_recipe(shop.root, "other", "ik_llama.cpp")
    (shop.root / "recipes" / "mine.toml").unlink()
    monkeypatch.setattr("forkyard.workshop.native_features", lambda _: ())
    with pytest.raises(RecipeError, match="no engine can be built for this machine"):
        shop.plans("best", [])


def test_a_recipe_in_the_variants_place(shop: Workshop) -> None:
    with pytest.raises(UsageError) as caught:
        shop.plans("mine", [])
    assert "`best mine`" in (caught.value.next_step or "")


def test_the_status_of_a_fresh_project(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forkyard.plan.native_features", lambda _: ("avx2",))
    facts = shop.status()
    assert {row["state"] for row in facts["payloads"]} == {"not built"}
    assert facts["sources"] == [{"recipe": "mine", "pin": "1" * 40, "have": False, "from": None}]
    assert not shop.out.exists()


# -- cleaning ------------------------------------------------------------------------------------------

PARTS = {"build": 10, "wheels": 20, "store": 30, "trees": 40, "downloads": 50, "ccache": 60, "logs": 70, "scratch": 0}


@pytest.fixture
def filled(cache: Cache) -> Cache:
    for name, size in PARTS.items():
        (cache.root / name / "d").mkdir(parents=True)
        (cache.root / name / "d" / "f").write_bytes(bytes(size))
    (cache.root / "locks" / "x.lock").write_text("")
    return cache


def left(cache: Cache) -> set[str]:
    return {path.name for path in cache.root.iterdir()}


def test_a_dry_run_says_what_would_go_and_deletes_nothing(filled: Cache) -> None:
    before = left(filled)
    rows = clean(filled, [], dry_run=True, reporter=Silent())
    assert {row["part"]: row["bytes"] for row in rows} == {"builds": 10, "wheels": 20, "logs": 70}
    assert all(row["costs"] for row in rows)
    assert left(filled) == before


@pytest.mark.parametrize(
    ("parts", "gone"),
    [
        ([], {"build", "wheels", "logs"}),
        (["builds"], {"build"}),
        (["sources", "ccache"], {"store", "trees", "downloads", "ccache"}),
    ],
)
def test_only_the_named_parts_go(filled: Cache, parts: list[str], gone: set[str]) -> None:
    before = left(filled)
    clean(filled, parts, dry_run=False, reporter=Silent())
    assert left(filled) == before - gone
    assert "locks" in left(filled)


def test_an_unknown_part(filled: Cache) -> None:
    with pytest.raises(UsageError) as caught:
        clean(filled, ["wheels", "everything"], dry_run=False, reporter=Silent())
    assert "'everything'" in caught.value.what
    assert "sources" in str(caught.value.next_step)
    assert (filled.root / "wheels").exists()


def test_what_a_killed_clean_left_goes_with_the_next(filled: Cache) -> None:
    (filled.root / "build").rename(filled.root / ".build.deleted")
    clean(filled, ["builds"], dry_run=False, reporter=Silent())
    assert not (filled.root / ".build.deleted").exists()
    (filled.root / ".wheels.deleted").mkdir()
    clean(filled, ["wheels"], dry_run=False, reporter=Silent())
    assert not left(filled) & {".wheels.deleted", "wheels"}


def test_a_cache_that_does_not_exist(tmp_path: Path) -> None:
    rows = clean(Cache(tmp_path / "none"), [], dry_run=False, reporter=Silent())
    assert all(row["bytes"] == 0 for row in rows)
    assert not (tmp_path / "none").exists()


class Noting(Silent):
    def __init__(self, release: Callable[[], None]) -> None:
        self.release = release

    def note(self, text: str) -> None:
        self.release()


def test_cleaning_waits_for_a_build_that_is_under_way(filled: Cache) -> None:
    done = threading.Event()
    started = threading.Event()

    def work() -> None:
        with hold(filled.locks / "build-x.lock"):
            started.set()
            done.wait(30)
            assert (filled.root / "build" / "d" / "f").exists()

    thread = threading.Thread(target=work)
    thread.start()
    started.wait(30)
    clean(filled, ["builds"], dry_run=False, reporter=Noting(done.set))
    thread.join(30)
    assert done.is_set()
    assert not (filled.root / "build").exists()


def test_nobody_starts_while_it_is_being_cleaned(filled: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one whose lock nobody had made when cleaning began."""
    real = shutil.rmtree
    tried: list[Path] = []

    def rmtree(path: Path) -> None:
        tried.append(path)
        with pytest.raises(BusyError), hold(filled.locks / "new.lock", timeout_s=0):
            pass
        real(path)

    monkeypatch.setattr("forkyard.workshop.shutil.rmtree", rmtree)
    clean(filled, ["builds"], dry_run=False, reporter=Silent())
    assert tried


def test_cleaning_leaves_what_a_living_process_owns(filled: Cache) -> None:
    dead = filled.scratch / "dead"
    with owned_folder(filled.scratch, "alive-") as alive:
        dead.mkdir()
        clean(filled, ["logs"], dry_run=False, reporter=Silent())
        assert alive.is_dir()
        assert not dead.exists()
