"""Forks turned into stacks by the real command: of the toy engine, and of llama.cpp's real trees."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from forkyard.cache import Cache
from forkyard.console import Silent
from forkyard.gitstore import Author, Entry, Store
from forkyard.gitstore.formats import COMMITTER
from forkyard.gitstore.merging import edit_tree
from forkyard.rebasing.carrying import carry
from forkyard.recipes import load_known_pins, load_recipe
from forkyard.sources.targets import obtain_target, target_recipe
from forkyard.stacks import apply_stacks, load_stacks

from ..toy import Answer, Toy, finish, git

ROOT = Path(__file__).resolve().parents[3]
SEED = int(os.environ.get("FORKYARD_TEST_SEED", "20260102"))


def ok(answer: Answer) -> dict[str, Any]:
    assert answer.status == 0, f"exit {answer.status}\n{answer.stdout}\n{answer.stderr}"
    return answer.json


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def commit(folder: Path, message: str) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", message)
    return git(folder, "rev-parse", "HEAD").strip()


# -- the toy engine -------------------------------------------------------------------------------------


@pytest.fixture
def fork(toy: Toy) -> Path:
    """A clone of the toy with a feature branch, a merge of upstream, a revert and a new file on branch ``topic``."""
    folder = toy.engine.with_name("fork")
    git(toy.engine, "clone", "--quiet", str(toy.engine), str(folder))
    git(folder, "checkout", "--quiet", "-b", "topic")
    rewrite(folder / "src/part1.cpp", "value) + 1", "value) + 11")
    commit(folder, "part 1 : another value")
    toy.change_engine("src/part4.cpp", "value + 4", "value + 44")
    git(folder, "checkout", "--quiet", "-b", "feature")
    rewrite(folder / "src/part2.cpp", "value) + 2", "value) + 22")
    commit(folder, "part 2 : another value")
    (folder / "src" / "mine.h").write_text("// mine\n")
    commit(folder, "mine : a file")
    git(folder, "checkout", "--quiet", "topic")
    rewrite(folder / "src/part3.cpp", "value + 3", "value + 33")
    commit(folder, "part 3 : a mistake")
    git(folder, "revert", "--no-edit", "HEAD")
    git(folder, "merge", "--quiet", "--no-edit", "feature")
    git(folder, "pull", "--quiet", "--no-edit", "--no-rebase", "origin", "main")
    return folder


def adopt(toy: Toy, fork: Path, *options: str, branch: str = "topic") -> Answer:
    return toy.run("stack", "from-branch", str(fork), branch, "--engine", "llama.cpp", "--offline", *options)


def files(root: Path) -> dict[str, bytes]:
    folders = [root / "patches", root / "recipes"]
    return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_a_fork_becomes_a_stack_that_builds(toy: Toy, fork: Path) -> None:
    facts = ok(adopt(toy, fork, "--add-to-recipe"))
    assert facts["state"] == "written"
    assert (facts["base"]["commit"], facts["base"]["pin_is"]) == (toy.commit, "same")
    assert sorted(one["patch"] for one in facts["patches"]) == [
        "mine-a-file.patch",
        "part-1-another-value.patch",
        "part-2-another-value.patch",
    ]
    assert len(facts["dropped"]) == 2
    assert len(facts["merges"]) == 2
    assert (toy.root / "patches/topic/src/src/mine.h").read_text() == "// mine\n"
    assert ok(toy.run("stack", "export", "topic", "--engine", "llama.cpp", "--check"))["same"]
    ok(toy.run("lock", "toy"))
    toy.build().built  # noqa: B018 - asserts that it was built


def test_it_explains_itself_to_people(toy: Toy, fork: Path) -> None:
    words = [sys.executable, "-m", "forkyard", "stack", "from-branch", str(fork), "topic", "--engine", "llama.cpp"]
    done = subprocess.run(words, cwd=toy.home, env=toy.env(), capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    for line in ("clean     part-1-another-value.patch", "taken back by", "to do:", "Retire-When"):
        assert line in done.stdout
    assert "5 commits and 2 merges of its own: 3 patches, 2 dropped" in done.stdout


@pytest.mark.parametrize(
    ("words", "status", "what"),
    [
        (["{fork}", "tpoic"], 2, "there is no branch 'tpoic'"),
        (["{fork}", "main"], 2, "main has nothing of its own"),
        (["{fork}-none", "topic"], 2, "there is no repository"),
        (["{fork}", "topic", "--name", "A b"], 2, "'A b' is no name for a stack"),
        (["{fork}", "topic", "--base", "0123456"], 2, "--base names no commit of the fork's repository"),
        (["{fork}", "other"], 4, "it cannot be told which toy other is made on"),
        (["{fork}", "topic", "--recipe", "none"], 3, "there is no recipe 'none'"),
    ],
)
def test_errors(toy: Toy, fork: Path, words: list[str], status: int, what: str) -> None:
    git(fork, "checkout", "--quiet", "--orphan", "other")
    git(fork, "rm", "--quiet", "-r", "-f", ".")
    commit(fork, "unrelated")
    before = files(toy.root)
    place, branch, *options = (word.format(fork=fork) for word in words)
    answer = toy.run("stack", "from-branch", place, branch, "--engine", "llama.cpp", "--offline", *options)
    assert (answer.status, answer.json["what"]) == (status, what)
    assert answer.json["next"] or status == 3
    assert files(toy.root) == before


def test_conflicts_end_with_their_own_code(toy: Toy, fork: Path) -> None:
    toy.change_engine("src/part1.cpp", "value) + 1", "value) + 111")
    git(fork, "fetch", "--quiet", "origin")
    answer = adopt(toy, fork)
    assert answer.status == 13
    facts = answer.json
    assert facts["state"] == "conflicts"
    clashing = next(one for one in facts["patches"] if one["status"] == "conflict")
    assert clashing["patch"] == "part-1-another-value.patch"
    assert clashing["conflicts"][0]["path"] == "src/part1.cpp"
    assert clashing["conflicts"][0]["lines"]
    assert not (toy.root / "patches" / "topic").exists()
    assert (toy.root / "work" / "from-branch-topic" / "report.md").is_file()


def test_a_kill_at_any_instant_loses_nothing(toy: Toy, fork: Path) -> None:
    chance = random.Random(SEED)
    before = files(toy.root)
    started = time.monotonic()
    ok(adopt(toy, fork, "--name", "undisturbed"))
    length = time.monotonic() - started
    undisturbed = {path.replace("undisturbed", "topic"): data for path, data in files(toy.root).items()}
    shutil.rmtree(toy.root / "patches" / "undisturbed")
    (toy.root / "patches" / ".gitattributes").unlink()
    for _ in range(8):
        child = toy.start("stack", "from-branch", str(fork), "topic", "--engine", "llama.cpp", "--offline")
        time.sleep(chance.uniform(0.3, 1.05) * length)
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        assert toy.wait_until_alone() == {}
        # Whoever opens the project next finishes a change that was cut off.
        toy.run("stack", "export", "none", "--engine", "llama.cpp", "--check")
        left = files(toy.root)
        if left != before:
            assert (toy.root / "patches" / "topic" / "stack.toml").is_file()
            assert {path: data for path, data in left.items() if not path.endswith("stack.toml")} == {
                path: data for path, data in undisturbed.items() if not path.endswith("stack.toml")
            }
            shutil.rmtree(toy.root / "patches" / "topic")
            (toy.root / "patches" / ".gitattributes").unlink()
    ok(adopt(toy, fork))
    toy.assert_sound()


def test_two_at_once(toy: Toy, fork: Path) -> None:
    words = ("stack", "from-branch", str(fork), "topic", "--engine", "llama.cpp", "--offline")
    children = [toy.start(*words), toy.start(*words, "--name", "other"), toy.start(*words)]
    answers = [finish(child) for child in children]
    assert sorted(answer.status for answer in answers) == [0, 0, 2]
    assert ok(toy.run("stack", "export", "topic", "--engine", "llama.cpp", "--check"))["same"]
    assert ok(toy.run("stack", "export", "other", "--engine", "llama.cpp", "--check"))["same"]
    toy.assert_sound()


def test_ctrl_c_says_so(toy: Toy, fork: Path) -> None:
    child = toy.start("stack", "from-branch", str(fork), "topic", "--engine", "llama.cpp", "--offline")
    store = toy.cache / "store" / "llama.cpp.forks.git" / "forkyard-ready"
    while not store.exists() and child.poll() is None:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGINT)
    answer = finish(child)
    assert answer.status == 130
    assert toy.wait_until_alone() == {}
    ok(adopt(toy, fork))


# -- llama.cpp's real trees -----------------------------------------------------------------------------

HUMAN = Author("A. Human", "human@example.org", "")


@dataclass
class Line:
    """Commits made from trees, in a repository that borrows the engine store's objects."""

    store: Store
    made: int = 0

    def commit(self, tree: str, parents: Sequence[str], message: str, author: str = "A. Human") -> str:
        self.made += 1
        day = f"2026-{1 + self.made // 28 % 12:02}-{1 + self.made % 28:02}T10:00:00+02:00"
        env = {
            "GIT_AUTHOR_NAME": author, "GIT_AUTHOR_EMAIL": "human@example.org", "GIT_AUTHOR_DATE": day,
            "GIT_COMMITTER_NAME": COMMITTER[0], "GIT_COMMITTER_EMAIL": COMMITTER[1], "GIT_COMMITTER_DATE": day,
        }  # fmt: skip
        words = [word for parent in parents for word in ("-p", parent)]
        return self.store._git("commit-tree", tree, *words, stdin=message.encode(), env=env).decode().strip()

    def set_ref(self, name: str, commit: str) -> None:
        self.store._git("update-ref", name, commit)


@dataclass
class Real:
    """A project with llama.cpp's recipe, an upstream of its three known trees, and a fork of that."""

    root: Path
    cache: Path
    upstream: list[str]
    """Commits: 7d442abf's tree, half of the way, 4df29be4's tree, half of the way, 0c1e5709's tree."""
    line: Line
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))
    touched: set[str] = field(default_factory=set)

    @property
    def repository(self) -> Path:
        return self.line.store.path

    def tree(self, commit: str) -> str:
        return self.line.store.tree_of(commit)

    def edit(self, tip: str, paths: Sequence[str], message: str, **options: str) -> str:
        """A commit that puts a line of its own into each of some files."""
        store, changes = self.line.store, list[tuple[str, Entry | None]]()
        entries = {entry.path: entry for entry in store.entries(self.tree(tip))}
        for path in paths:
            lines = store._git("cat-file", "blob", entries[path].oid).split(b"\n")
            lines.insert(self.chance.randrange(1, len(lines)), f"// fork: {message}".encode())
            oid = store.write_blob(b"\n".join(lines))
            changes.append((path, Entry(entries[path].mode, "blob", oid, path)))
            self.touched.add(path)
        return self.line.commit(edit_tree(store, self.tree(tip), changes), [tip], message, **options)

    def add(self, tip: str, files: Mapping[str, bytes | None], message: str) -> str:
        store = self.line.store
        changes = [
            (path, Entry("100644", "blob", store.write_blob(data), path) if data is not None else None)
            for path, data in files.items()
        ]
        return self.line.commit(edit_tree(store, self.tree(tip), changes), [tip], message)

    def merge(self, tip: str, other: str, base: str, message: str, evil: Mapping[str, bytes] | None = None) -> str:
        """A merge that takes the fork's side where git cannot decide, and does what nobody asked for besides."""
        store = self.line.store
        tree = carry(store, self.tree(base), self.tree(other), self.tree(tip)).tree
        changes = [(path, Entry("100644", "blob", store.write_blob(data), path)) for path, data in (evil or {}).items()]
        return self.line.commit(edit_tree(store, tree, changes), [tip, other], message)

    def sources(self, *commits: str) -> list[str]:
        """Files of code that are in all of some commits."""
        sets = [
            {entry.path for entry in self.line.store.entries(self.tree(one)) if entry.mode == "100644"}
            for one in commits
        ]
        return sorted(path for path in set.intersection(*sets) if path.endswith((".cpp", ".h", ".c")))

    def run(self, *words: str) -> Answer:
        env = {**os.environ, "FORKYARD_ROOT": str(self.root), "FORKYARD_CACHE": str(self.cache)}
        done = subprocess.run(
            [sys.executable, "-m", "forkyard", "stack", "from-branch", *words, "--engine", "llama.cpp", "--offline", "--json"],
            env=env, capture_output=True, text=True, timeout=1800,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return Answer(done.returncode, done.stdout, done.stderr)

    def pin_at(self, number: int) -> None:
        """Pin one of the known commits, newest first."""
        path = self.root / "recipes" / "llama.cpp.toml"
        shutil.copy(ROOT / "recipes" / "llama.cpp.toml", path)
        new, old = load_known_pins(ROOT, "llama.cpp")[number], load_known_pins(ROOT, "llama.cpp")[0]
        text = path.read_text()
        for before, after in ((old.commit, new.commit), (old.tree, new.tree), (old.date, new.date)):
            assert before in text
            text = text.replace(before, after)
        path.write_text(text)

    def patched(self, name: str) -> str:
        """Tree of the pin with a stack applied exactly."""
        recipe = load_recipe("llama.cpp", self.root)
        assert recipe.pin.tree is not None
        assert recipe.pin.date is not None
        store = Store(self.cache / "store" / "llama.cpp.git")
        stacks = load_stacks(self.root, [name], "llama.cpp")
        return apply_stacks(store, "llama.cpp", recipe.pin.commit, recipe.pin.date, recipe.pin.tree, stacks).tree


@pytest.fixture
def real(tmp_path: Path) -> Real:
    """See :class:`Real`."""
    cache, recipe = Cache.default(), load_recipe("llama.cpp", ROOT)
    pins = load_known_pins(ROOT, "llama.cpp")
    for pin in pins:
        obtain_target(target_recipe(recipe, pin.commit, ROOT, cache, Silent()), cache, Silent())
    root, mine = tmp_path / "project", Cache(tmp_path / "cache")
    mine.prepare()
    for name in ("recipes", "patches"):
        shutil.copytree(ROOT / name, root / name)
    shared, store = Store(cache.store("llama.cpp")), Store(mine.store("llama.cpp"))
    store.ensure()
    (store.path / "objects" / "info" / "alternates").write_text(f"{shared.path / 'objects'}\n")
    shutil.copytree(shared.path / "forkyard-pins", store.path / "forkyard-pins")
    shutil.copy(shared.path / "shallow", store.path / "shallow")
    fork = Store(tmp_path / "fork.git")
    fork.ensure()
    (fork.path / "objects" / "info" / "alternates").write_text(f"{shared.path / 'objects'}\n")
    line = Line(fork)
    trees = [pins[2].tree, "", pins[1].tree, "", pins[0].tree]
    for number in (1, 3):
        # Half of the files are there already: what upstream looked like in between, near enough.
        old, new = ({e.path: e for e in fork.entries(trees[number + step])} for step in (-1, 1))
        changed = sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))
        trees[number] = edit_tree(fork, trees[number - 1], [(path, new.get(path)) for path in changed[::2]])
    upstream: list[str] = []
    for number, tree in enumerate(trees):
        upstream.append(line.commit(tree, upstream[-1:], f"upstream : state {number}"))
    line.set_ref("refs/remotes/up/master", upstream[-1])
    return Real(root, mine.root, upstream, line)


def forty_commits(real: Real, stay_at: int = 4) -> tuple[str, dict[str, Any]]:
    """A fork of forty commits from the oldest tree on, with three merges of upstream up to a state, and more."""
    up, chance = real.upstream, real.chance
    steps = {4: (1, 2, 4), 2: (1, 1, 2)}[stay_at]
    common = real.sources(*up)
    quiet = [path for path in common if len({_oid(real, one, path) for one in up}) == 1]
    busy = [path for path in common if path not in quiet]
    tip, at, made = up[0], 0, 0
    facts: dict[str, Any] = {"dropped": []}

    def some(count: int) -> list[str]:
        return chance.sample(quiet, count - 1) + chance.sample(busy, 1)

    for number, step in enumerate(steps):
        for _ in range(4):
            tip, made = real.edit(tip, some(3), f"part {made} : a change"), made + 1
        # A feature branch, merged back.
        side = tip
        for _ in range(3):
            side, made = real.edit(side, some(2), f"side {made} : a change"), made + 1
        tip, made = real.edit(tip, some(1), f"part {made} : beside it"), made + 1
        before = facts_base = real.line.store._line("merge-base", tip, side)
        tip = real.merge(tip, side, before, f"Merge branch side-{number}")
        assert facts_base
        # A second thought.
        bad = real.edit(tip, some(2), f"oops {made} : a mistake")
        again = real.line.commit(real.tree(tip), [bad], f'Revert "oops"\n\nThis reverts commit {bad}.\n')
        facts["dropped"] += [bad, again]
        tip, made = again, made + 2
        evil = {f"fork/evil-{number}.txt": b"nobody asked\n"} if number == 1 else None
        if step > at:
            tip, at = real.merge(tip, up[step], up[at], f"Merge upstream {step}", evil), step
    while made < 38:
        tip, made = real.edit(tip, some(2), f"late {made} : a change"), made + 1
    tip = real.add(tip, {"fork/new.cpp": b"int fork;\n", "fork/data.bin": bytes(range(256))}, "fork : new files")
    moved = quiet[0]
    data = real.line.store._git("cat-file", "blob", f"{tip}:{moved}")
    tip = real.add(tip, {moved: None, f"fork/{Path(moved).name}": data}, "fork : move a file")
    real.line.set_ref("refs/heads/topic", tip)
    return tip, facts


def _oid(real: Real, commit: str, path: str) -> str:
    status, output, _ = real.line.store._attempt("rev-parse", f"{commit}:{path}")
    return output.decode().strip() if status == 0 else ""


def test_forty_commits_and_three_merges_on_the_real_trees(real: Real) -> None:
    tip, facts = forty_commits(real)
    started = time.monotonic()
    answer = real.run(str(real.repository), "topic", "--upstream", "up/master")
    seconds = time.monotonic() - started
    found = ok(answer)
    assert found["base"]["tree"] == found["pin"]["tree"]
    assert found["base"]["pin_is"] == "same"
    assert len(found["merges"]) == 6
    dropped = {one["commit"] for one in found["dropped"]}
    assert set(facts["dropped"]) <= dropped
    assert real.patched("topic") == real.tree(tip)
    last = found["patches"][-1]
    assert last["made_of"] == "merges"
    assert "Adds-Files: fork/evil-1.txt" in (real.root / "patches/topic/llama.cpp" / last["patch"]).read_text()
    print(f"\n{len(found['patches'])} patches of 40 commits and 6 merges: {seconds:.1f} s")


def test_the_base_is_known_by_its_files_alone(real: Real) -> None:
    tip = real.edit(real.upstream[4], real.sources(real.upstream[4])[:3], "one : a change")
    real.line.set_ref("refs/heads/topic", tip)
    found = ok(real.run(str(real.repository), "topic"))
    assert "it has the files of the recipe's pin" in found["base"]["found_by"]
    assert real.patched("topic") == real.tree(tip)


def test_a_fork_six_weeks_behind_is_carried_to_the_pin(real: Real) -> None:
    tip, _ = forty_commits(real, stay_at=2)
    answer = real.run(str(real.repository), "topic")
    found = answer.json
    assert found["base"]["tree"] == real.tree(real.upstream[2])
    if answer.status == 0:
        assert real.patched("topic")
    else:
        assert answer.status == 13
        folder = real.root / "work" / "from-branch-topic"
        assert git(folder / "repo", "rev-parse", "topic^{tree}").strip() == real.tree(tip)
        assert git(folder / "repo", "rev-parse", "pin^{tree}").strip() == found["pin"]["tree"]
        git(folder / "repo", "checkout", "--quiet", "-b", "again", "fork-base")
        git(folder / "repo", "am", "--quiet", "-k", "--keep-cr", *map(str, sorted((folder / "mails").iterdir())))
        assert git(folder / "repo", "rev-parse", "again^{tree}").strip() == real.tree(tip)


def test_a_real_conflict_with_the_pin_is_finished_by_a_person(real: Real) -> None:
    """The guard that upstream lifted between the two pins, changed by the fork as well."""
    up, path, store = real.upstream, "src/llama-context.cpp", real.line.store
    old, new = (store._git("cat-file", "blob", f"{up[number]}:{path}").split(b"\n") for number in (2, 4))
    gone = next(number for number, line in enumerate(old) if line.strip() and line not in new)
    mine = [*old[:gone], old[gone] + b" // fork", *old[gone + 1 :]]
    tip = real.add(up[2], {path: b"\n".join(mine)}, "context : mine")
    real.line.set_ref("refs/heads/topic", tip)
    answer = real.run(str(real.repository), "topic")
    assert answer.status == 13
    conflict = answer.json["patches"][0]["conflicts"][0]
    assert (conflict["path"], conflict["kind"]) == (path, "contents")
    repo = real.root / "work" / "from-branch-topic" / "repo"
    subprocess.run(["git", "rebase", "--onto", "pin", "fork-base", "topic"], cwd=repo, capture_output=True)
    (repo / path).write_bytes(b"\n".join([*new, b"// fork, resolved"]))
    git(repo, "add", "--all")
    git(repo, "-c", "core.editor=true", "rebase", "--continue")
    words = answer.json["next"][-1].split()
    base = words[words.index("--base") + 1]
    ok(real.run(str(repo), "topic", "--base", base, "--name", "topic"))
    assert real.patched("topic") == git(repo, "rev-parse", "topic^{tree}").strip()


def test_a_fork_of_the_pin_after_ours_is_carried_back(real: Real) -> None:
    real.pin_at(1)
    up = real.upstream
    quiet = [path for path in real.sources(*up) if len({_oid(real, one, path) for one in up}) == 1]
    tip = real.edit(up[4], quiet[:3], "one : a change")
    real.line.set_ref("refs/heads/topic", tip)
    found = ok(real.run(str(real.repository), "topic"))
    assert found["base"]["tree"] == real.tree(up[4])
    store = Store(real.cache / "store" / "llama.cpp.git")
    patched = real.patched("topic")
    for path in quiet[:3]:
        assert store.read_file(patched, path) == real.line.store.read_file(real.tree(tip), path)


def test_a_shallow_clone_of_a_real_fork(real: Real, tmp_path: Path) -> None:
    tip = real.edit(real.upstream[4], real.sources(real.upstream[4])[:2], "one : a change")
    real.line.set_ref("refs/heads/topic", tip)
    url = f"file://{real.repository}"
    git(tmp_path, "clone", "--quiet", "--depth=2", "--no-checkout", "--branch=topic", url, "shallow")
    found = ok(real.run(str(tmp_path / "shallow"), "topic"))
    assert found["fork"]["shallow"]
    assert real.patched("topic") == real.tree(tip)
    assert json.dumps(found)
