"""What turning a long series into commits and back costs. Nothing here passes or fails by time.

    nox -s bench -- tests/benchmarks/test_stacks.py -s

The series is made up on the real pin: a hundred patches over a hundred of its files, some of them in the same ones.
"""

from __future__ import annotations

import random
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from forkyard.cache import Cache
from forkyard.console import Silent
from forkyard.gitstore import Author, Entry, Store
from forkyard.gitstore.contents import read_blobs
from forkyard.gitstore.history import commits
from forkyard.gitstore.merging import edit_tree
from forkyard.journal import Changes, commit_changes
from forkyard.recipes import load_recipe
from forkyard.sources import obtain
from forkyard.stacks.applying import base_commit
from forkyard.stacks.exporting import export_commits
from forkyard.stacks.importing import Home, import_series
from forkyard.stacks.model import load_stack
from forkyard.stacks.rewriting import Ground, reexport
from forkyard.stacks.writing import series_changes

ROOT = Path(__file__).resolve().parents[2]
PATCHES = 100
SEED = 20260102
ABOUT = 'title = "t"\nintent = "i"\nengines = ["llama.cpp"]\nsince = "2026-01-01"\n'


@pytest.fixture(scope="module")
def long_series(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """A project whose one stack has a hundred patches, at home in an object store that borrows the cache's."""
    cache = Cache.default()
    recipe = load_recipe("llama.cpp", ROOT)
    obtained = obtain(recipe, cache, Silent())
    folder = tmp_path_factory.mktemp("long")
    store = Store(folder / "store.git")
    store.ensure()
    (store.path / "objects" / "info" / "alternates").write_text(f"{cache.store('llama.cpp') / 'objects'}\n")
    root = folder / "project"
    shutil.copytree(ROOT / "recipes", root / "recipes")
    place = root / "patches" / "long"
    (place / "llama.cpp").mkdir(parents=True)
    (place / "stack.toml").write_text(ABOUT)
    (place / "llama.cpp" / "series").write_text("")
    chance = random.Random(SEED)
    texts = [entry for entry in store.entries(obtained.tree) if entry.path.endswith((".cpp", ".h", ".c", ".py"))]
    chosen = chance.sample(texts, PATCHES)
    contents = {entry.path: data for entry in chosen for data in [read_blobs(store, [entry.oid])[entry.oid]]}
    base = base_commit(store, "llama.cpp", obtained.commit, obtained.date, obtained.tree)
    tree, tip = obtained.tree, base
    for number in range(PATCHES):
        changes = []
        for entry in chance.sample(chosen, 3):
            lines = contents[entry.path].split(b"\n")
            lines.insert(chance.randrange(len(lines)), b"// patch %d was here" % number)
            contents[entry.path] = b"\n".join(lines)
            oid = store._line("hash-object", "-w", "--no-filters", "--stdin", stdin=contents[entry.path])
            changes.append((entry.path, Entry(entry.mode, "blob", oid, entry.path)))
        tree = edit_tree(store, tree, changes)
        author = Author("A. Person", "a@example.org", f"2026-01-02T03:{number // 60:02}:{number % 60:02}+00:00")
        message = f"part {number} : be there\n\nBecause.\n\nUpstream-Status: Pending\n"
        tip = store.commit(tree, tip, author, message.encode())
    made = commits(store, f"{base}..{tip}")
    exported = export_commits(store, base, made, [f"part-{number}.patch" for number in range(PATCHES)])
    written = Changes()
    series_changes(written, root, load_stack(root, "long"), "llama.cpp", exported)
    commit_changes(root, written)
    return Ground(root, cache, store, Home(recipe, load_stack(root, "long"), (), ()), obtained)


def used_s() -> float:
    """Seconds of processor time this process and its children have used."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def test_import_and_export_of_a_hundred_patches(benchmark: BenchmarkFixture, long_series: Ground) -> None:
    processor: list[float] = []

    def there_and_back(ground: Ground) -> dict[str, bytes]:
        before = used_s()
        imported = import_series(ground.store, ground.place, ground.obtained)
        exported = reexport(ground, imported)
        processor.append(used_s() - before)
        return {patch.name: patch.data for patch in exported.patches}

    def anew() -> tuple[tuple[Ground], dict[str, object]]:
        # A store remembers what was done by the same object; a command begins with a new one.
        return (replace(long_series, store=Store(long_series.store.path)),), {}

    found = benchmark.pedantic(there_and_back, setup=anew, rounds=3, iterations=1)
    series = long_series.place.stack.series("llama.cpp")
    assert found == {patch.name: patch.data for patch in series.patches}
    assert len(found) == PATCHES
    benchmark.extra_info.update(processor_s=processor)
    print(f"\n{PATCHES} patches there and back: {min(processor):.2f} s of processor time at best")
