"""Random histories and random series: without conflicts what `git rebase` gives; with them, an end is always reached."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from forkyard.cache import Cache
from forkyard.rebasing.carrying import resolution_of
from forkyard.rebasing.replaying import Outcome, Replay
from forkyard.rebasing.resolutions import Resolutions, parse
from forkyard.stacks.exporting import export_commits

from .lab import Lab, make_lab, text

Content = tuple[str, bytes]
"""Mode and data."""
Step = tuple[str, int, int, str]
"""What to do, to which file, at which line, with which word."""

START: dict[str, Content] = {
    "a.c": ("100644", text(*(f"a {number}" for number in range(12)))),
    "b.c": ("100644", text(*(f"b {number}" for number in range(12)))),
    "lib/c.c": ("100644", b"one\r\ntwo\r\nthree\r\nfour\r\nfive\r\nsix"),
    "d.bin": ("100644", bytes(range(64))),
}
NAMES = ("a.c", "b.c", "lib/c.c", "d.bin", "new.c", "lib", "moved.c")
DOING = ("edit", "edit", "edit", "insert", "drop", "write", "delete", "rename", "mode", "link")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(DOING), st.integers(0, len(NAMES) - 1), st.integers(0, 11), st.sampled_from(["x", "y", "z\0"])
    ),
    min_size=1,
    max_size=3,
)


def lines_of(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


def done_to(files: dict[str, Content], step: Step) -> dict[str, Content]:
    """The files after a step; the same where it means nothing."""
    what, number, line, word = step
    path, made = NAMES[number], dict(files)
    if what == "write":
        for other in list(made):
            if other.startswith(f"{path}/") or path.startswith(f"{other}/"):
                del made[other]
        made[path] = ("100644", text(word, word, line))
        return made
    if path not in made:
        return made
    mode, data = made[path]
    lines = lines_of(data)
    if what == "delete":
        del made[path]
    elif what == "rename":
        target = NAMES[(number + 1 + line) % len(NAMES)]
        if target not in made and not any(
            other.startswith(f"{target}/") or target.startswith(f"{other}/") for other in made
        ):
            made[target] = made.pop(path)
    elif what == "mode" and mode != "120000":
        made[path] = ("100755" if mode == "100644" else "100644", data)
    elif what == "link":
        made[path] = ("120000", word.replace("\0", "").encode())
    elif mode != "120000" and line < len(lines):
        changed = {"edit": [f"{word} {line}\n".encode()], "drop": [], "insert": [f"{word}\n".encode(), lines[line]]}
        lines[line : line + 1] = changed.get(what, [lines[line]])
        made[path] = (mode, b"".join(lines))
    return made


def versions(start: dict[str, Content], groups: list[list[Step]]) -> list[dict[str, Content]]:
    """States after each group of steps, those without effect left out."""
    found: list[dict[str, Content]] = []
    now = start
    for group in groups:
        after = now
        for step in group:
            after = done_to(after, step)
        if after != now and after:
            found.append(after)
            now = after
    return found


def git_rebase(lab: Lab, done: Replay, folder: Path) -> str | None:
    """The tree real git comes to; ``None`` where it stops at a conflict."""
    env = {
        **os.environ,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{who}_{what}": "me@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }

    def git(*words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["git", *words], cwd=folder, env=env, capture_output=True, timeout=1800, check=False)

    for name, commit in (("old", done.old.commit), ("new", done.base), ("root", done.old.base)):
        lab.upstream._git("update-ref", f"refs/heads/{name}", commit)
    assert git("clone", "--quiet", "--no-checkout", "--shared", str(lab.upstream.path), ".").returncode == 0
    assert git("-c", "core.autocrlf=false", "checkout", "--quiet", "--detach", "origin/old").returncode == 0
    words = ["-c", "merge.directoryRenames=false", "-c", "core.autocrlf=false", "rebase", "--quiet", "--no-fork-point"]
    status = git(*words, "--onto", "origin/new", "origin/root").returncode
    return git("rev-parse", "HEAD^{tree}").stdout.decode().strip() if status == 0 else None


def resolved(lab: Lab, outcome: Outcome, choices: Any) -> list[bytes]:
    """Records of a person who writes anything at all over each conflict, or deletes it."""
    carried = outcome.carried
    assert carried is not None
    files = {entry.path: (entry.mode, lab.content(entry)) for entry in lab.upstream.entries(carried.marked)}
    for one in carried.open:
        word = choices.draw(st.sampled_from([None, "kept\n", "other\r\n", "no end", "\0\x01", ""]))
        files.pop(one.path, None)
        inside = any(path.startswith(f"{one.path}/") or one.path.startswith(f"{path}/") for path in files)
        if word is not None and not inside:
            files[one.path] = ("100644", word.encode())
    if choices.draw(st.booleans()):
        files["elsewhere.c"] = ("100644", b"had to change as well\n")
    records, left = resolution_of(lab.upstream, carried, lab.tree(files), outcome.name, "1" * 12, "2" * 12)
    assert left == []
    return [record.render() for record in records]


EXAMPLES = int(os.environ.get("FORKYARD_TEST_EXAMPLES", "10"))


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(
    upstream=st.lists(STEPS, min_size=1, max_size=3), ours=st.lists(STEPS, min_size=1, max_size=4), choices=st.data()
)
def test_random_rebases(upstream: list[list[Step]], ours: list[list[Step]], choices: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "project" / "recipes").mkdir(parents=True)
        (folder / "clone").mkdir()
        lab = make_lab(folder, folder / "project", Cache(folder / "cache"))
        commits = lab.history(START, *versions(START, upstream))
        patches = versions(START, ours)
        if len(commits) < 2 or not patches:
            return
        lab.series(commits[0], *((f"p{number}", files) for number, files in enumerate(patches)))
        done = lab.replay(commits[0], commits[-1], blame=False)
        taken = [one for one in done.outcomes if one.status == "dropped" and one.carried and not one.carried.empty]
        if not taken:
            # What upstream has under its own commit is left out here even where git would ask.
            assert git_rebase(lab, done, folder / "clone") == (None if done.conflicts else done.tree)
        event("conflicts" if done.conflicts else "clean")
        kept: list[bytes] = []
        # Each round settles a whole patch, and what is settled stays settled.
        for _ in range(len(patches) + 1):
            known = Resolutions()
            for data in kept:
                known.add(parse(data, "kept"))
            done = lab.replay(commits[0], commits[-1], {"part": known}, blame=False)
            if not done.conflicts:
                break
            kept += resolved(lab, done.conflicts[0], choices)
        assert not done.conflicts
        facts = [made for _, _, made in done.chain]
        exported = export_commits(
            lab.upstream, done.base, facts, [name for _, name, _ in done.chain], whole_files=False
        )
        assert (exported.patches[-1].tree if exported.patches else lab.upstream.tree_of(commits[-1])) == done.tree
