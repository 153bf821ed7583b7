"""Forty patches over the six weeks between two pins of llama.cpp, no build: seconds, and memory of all processes together.

    nox -s bench -- tests/benchmarks/test_rebase.py -s

The patches are made here, on either pin, with a fixed seed: each changes a few lines in one to three files of upstream's
(often such as changed in those six weeks) and some add a file. Nothing here passes or fails by time.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from forkyard.cache import Cache
from forkyard.console import Console
from forkyard.gitstore import Author, Store
from forkyard.gitstore.formats import Entry
from forkyard.gitstore.history import changed_paths, commits
from forkyard.gitstore.merging import edit_tree
from forkyard.recipes import KnownPin, load_known_pins, load_recipe
from forkyard.sources.targets import obtain_target, with_pin
from forkyard.stacks.applying import base_commit
from forkyard.stacks.exporting import export_commits

ROOT = Path(__file__).resolve().parents[2]
PATCHES = 40
MANY = 177
SEED = 20261001
ROUNDS = int(os.environ.get("FORKYARD_BENCH_ROUNDS", "3"))
PINS = {pin.commit[:8]: pin for pin in load_known_pins(ROOT, "llama.cpp")}
NEW, OLD = "0c1e5709", "4df29be4"


@pytest.fixture(scope="module")
def store() -> Store:
    """The object store of llama.cpp with both pins in it."""
    recipe, cache = load_recipe("llama.cpp", ROOT), Cache.default()
    for name in (NEW, OLD):
        target = with_pin(recipe, PINS[name].commit, tuple(PINS.values()))
        obtain_target(target, cache, Console(quiet=True), source="registry")
    return Store(cache.store("llama.cpp"))


def make_series(
    store: Store, pin: KnownPin, other: KnownPin, folder: Path, *, calm: bool, count: int = PATCHES
) -> None:
    """Write a stack of ``count`` patches on a pin; ``calm`` ones keep to files that are the same on the other."""
    numbers = random.Random(SEED)
    wanted = re.compile(r"^(src|common|ggml/src|tools|include|tests)/.*\.(cpp|c|h|cu|cuh)$")
    entries = {entry.path: entry for entry in store.entries(pin.tree) if wanted.match(entry.path)}
    changed = [path for path in changed_paths(store, pin.tree, other.tree) if path in entries]
    others = sorted(set(entries) - set(changed))
    base = base_commit(store, "llama.cpp", pin.commit, pin.date, pin.tree)
    tip, tree = base, pin.tree
    for number in range(count):
        pool = others if calm or number % 4 == 0 else changed
        edits: list[tuple[str, Entry | None]] = []
        for path in numbers.sample(pool, numbers.choice([1, 1, 2, 3])):
            lines = (store.read_file(tree, path) or b"").splitlines(keepends=True)
            for _ in range(numbers.choice([1, 2, 4])):
                line = numbers.randrange(len(lines))
                lines.insert(line, f"    // patch {number} keeps an eye on line {line}\n".encode())
            edits.append((path, Entry(entries[path].mode, "blob", store.write_blob(b"".join(lines)), path)))
        if number % 8 == 0:
            text = "".join(f"int forkyard_{number}_{line}(void);\n" for line in range(300))
            path = f"src/forkyard-{number}.h"
            edits.append((path, Entry("100644", "blob", store.write_blob(text.encode()), path)))
        tree = edit_tree(store, tree, edits)
        author = Author(
            "Forkyard", "forkyard@users.noreply.invalid", f"2026-11-24T00:{number // 60:02}:{number % 60:02}+00:00"
        )
        message = f"bench : patch {number}\n\nSomething to carry over.\n\nUpstream-Status: Pending\n"
        tip = store.commit(tree, tip, author, message.encode())
    facts = commits(store, f"{base}..{tip}")
    exported = export_commits(store, base, facts, [f"patch-{number}.patch" for number in range(count)])
    (folder / "llama.cpp").mkdir(parents=True)
    (folder / "stack.toml").write_text(
        'title = "forty patches"\nintent = "to be measured"\nengines = ["llama.cpp"]\nsince = "2026-11-24"\n'
    )
    (folder / "llama.cpp" / "series").write_text("".join(f"{name}\n" for name in exported.names))
    for patch in exported.patches:
        (folder / "llama.cpp" / patch.name).write_bytes(patch.data)
    for path, (data, _) in exported.files.items():
        (folder / "src" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "src" / path).write_bytes(data)


def make_project(store: Store, root: Path, start: str, end: str, *, calm: bool, count: int = PATCHES) -> None:
    shutil.copytree(ROOT / "recipes", root / "recipes")
    make_series(store, PINS[start], PINS[end], root / "patches" / "forty", calm=calm, count=count)
    recipe = root / "recipes" / "llama.cpp.toml"
    text, now, then = recipe.read_text(), PINS[NEW], PINS[start]
    for was, will in (
        (now.commit, then.commit),
        (now.tree, then.tree),
        (now.date, then.date),
        (f'"{now.source.version}"', f'"{then.source.version}"'),
        (now.source.sha256, then.source.sha256),
    ):
        text = text.replace(was, will)
    recipe.write_text(re.sub(r"(?m)^stacks = .*$", 'stacks = ["forty"]', text))
    (root / "recipes" / "llama.cpp.lock.toml").unlink()


@dataclass
class Measured:
    """One run."""

    seconds: float
    cpu_s: float
    """Of all its processes: what it would take on an idle core."""
    memory_mb: float
    """The most that all its processes held together at once; shared pages counted once."""
    answer: dict[str, Any]


def memory_kib(group: int) -> int:
    """What the processes of a group hold now, shared pages shared out."""
    held = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[2]) == group:
                held += int(re.findall(r"(?m)^Pss:\s+(\d+)", (folder / "smaps_rollup").read_text())[0])
        except (OSError, ValueError, IndexError):
            continue
    return held


def measure(root: Path, *words: str) -> Measured:
    command = [sys.executable, "-m", "forkyard", "rebase", "llama.cpp", "--offline", *words, "--json"]
    env = {**os.environ, "FORKYARD_ROOT": str(root)}
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    child = subprocess.Popen(
        command, env=env, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    most, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.03):
            most = max(most, memory_kib(child.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    stdout, stderr = child.communicate(timeout=600)
    seconds = time.perf_counter() - started
    ended.set()
    watcher.join()
    assert child.returncode in (0, 13), stdout + stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(seconds, cpu_s, most / 1024, json.loads(stdout))


@pytest.mark.parametrize(("start", "end"), [(NEW, OLD), (OLD, NEW)])
@pytest.mark.parametrize(
    ("words", "calm"), [(["--dry-run"], False), ([], False), ([], True)], ids=["look", "conflicts", "calm"]
)
def test_forty_patches_over_six_weeks(
    benchmark: BenchmarkFixture, store: Store, tmp_path: Path, start: str, end: str, words: list[str], calm: bool
) -> None:
    found: list[Measured] = []
    kept = tmp_path / "kept"
    make_project(store, kept, start, end, calm=calm)

    def fresh() -> tuple[tuple[Path], dict[str, Any]]:
        root = tmp_path / f"project-{len(found)}"
        shutil.copytree(kept, root)
        return (root,), {}

    benchmark.pedantic(
        lambda root: found.append(measure(root, "--to", PINS[end].commit, *words)), setup=fresh, rounds=ROUNDS
    )
    answer = found[0].answer
    assert len(answer["patches"]) == PATCHES
    most = max(one.memory_mb for one in found)
    benchmark.extra_info.update(
        memory_mb=round(most),
        cpu_s=round(min(one.cpu_s for one in found), 1),
        counts=answer["counts"],
        state=answer["state"],
    )
    seconds = sorted(one.seconds for one in found)
    print(
        f"\n{PATCHES} patches {start} -> {end} {' '.join(words)}: {seconds[0]:.1f} to {seconds[-1]:.1f} s,"
        f" {min(one.cpu_s for one in found):.1f} s of CPU, {most:.0f} MB, {answer['counts']}, {answer['state']}"
    )


@pytest.mark.parametrize(("start", "end"), [(OLD, NEW)])
def test_one_resolution_of_many_patches(
    benchmark: BenchmarkFixture, store: Store, tmp_path: Path, start: str, end: str
) -> None:
    """What `--continue` takes when nearly all of 177 patches come after the conflict that was resolved."""
    root, found = tmp_path / "project", list[Measured]()
    make_project(store, root, start, end, calm=False, count=MANY)
    assert measure(root, "--to", PINS[end].commit).answer["state"] == "waiting"

    def resolve() -> tuple[tuple[()], dict[str, Any]]:
        tree = root / "work" / "rebase-llama.cpp"
        listing = subprocess.run(
            ["git", "diff", "--name-only", "--diff-filter=U"], cwd=tree, check=True, capture_output=True, text=True
        )
        for path in listing.stdout.split():
            lines = (tree / path).read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if line[:27] not in (b"<" * 27, b"|" * 27, b"=" * 27, b">" * 27)]
            (tree / path).write_bytes(b"".join(kept))
        subprocess.run(["git", "add", "--all"], cwd=tree, check=True)
        return (), {}

    benchmark.pedantic(lambda: found.append(measure(root, "--continue")), setup=resolve, rounds=ROUNDS)
    assert all(len(one.answer["patches"]) == MANY for one in found)
    seconds = sorted(one.seconds for one in found)
    cpu_s = min(one.cpu_s for one in found)
    benchmark.extra_info.update(cpu_s=round(cpu_s, 1), counts=found[0].answer["counts"])
    print(f"\none resolution of {MANY} patches: {seconds[0]:.1f} to {seconds[-1]:.1f} s, {cpu_s:.1f} s of CPU")
