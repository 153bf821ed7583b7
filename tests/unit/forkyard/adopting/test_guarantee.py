"""The series, applied to what the fork is made on, is the fork's branch byte for byte, whatever its history is."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forkyard.adopting.dropping import find_twins, reduce_line
from forkyard.adopting.linearising import Lineariser, own_commits
from forkyard.adopting.series import drafts_of, export_series, make_chain, rest_of
from forkyard.gitstore import Store
from forkyard.gitstore.forks import common_ancestors
from forkyard.gitstore.history import commits, is_ancestor
from forkyard.stacks.applying import Chain, apply_stacks, base_commit
from forkyard.stacks.model import load_stacks

PIN, DATE = "1" * 40, "2026-01-05"
STACK = 'title = "t"\nintent = "i"\nengines = ["llama.cpp"]\nsince = "2026-01-01"\n'
Files = dict[str, tuple[str, bytes]]

# Files whose names get in each other's way are among them.
PATHS = ["a.txt", "b.txt", "d/x.txt", "d", "d/x.txt/y", "sp ace.txt", "ünï.txt", "link", "bin"]
TEXT = [f"line {number}\n" for number in range(12)]


def content(kind: int, number: int) -> tuple[str, bytes]:
    """A file: text with a changed line, with other line ends, without a last one, binary, executable, a link."""
    lines = list(TEXT)
    lines[number % 12] = f"changed {number}\n"
    text = "".join(lines).encode()
    return [
        ("100644", text),
        ("100644", text.replace(b"\n", b"\r\n")),
        ("100644", text.rstrip(b"\n")),
        ("100644", bytes(range(number % 7, 200)) * 2),
        ("100755", text),
        ("120000", b"a.txt" if number % 2 else b"nowhere"),
        ("100644", b""),
    ][kind % 7]


def put(files: Files, path: str, entry: tuple[str, bytes] | None) -> Files:
    """The files with one set or gone, and whatever cannot stand beside it gone."""
    clear = {
        name: value
        for name, value in files.items()
        if name != path and not name.startswith(f"{path}/") and not path.startswith(f"{name}/")
    }
    return {
        **(clear if entry is not None else {n: v for n, v in files.items() if n != path}),
        **({path: entry} if entry else {}),
    }


@dataclass
class Node:
    files: Files
    parents: tuple[int, ...]
    message: str


@dataclass
class History:
    """A random history; upstream is one line, of which the fork takes now and then."""

    nodes: list[Node] = field(default_factory=list)
    upstream: list[int] = field(default_factory=list)

    def add(self, files: Files, parents: tuple[int, ...], message: str) -> int:
        self.nodes.append(Node(files, parents, message))
        return len(self.nodes) - 1

    def stream(self) -> bytes:
        """As ``git fast-import`` reads it."""
        out = bytearray()
        for number, node in enumerate(self.nodes):
            who = f"A Person <a@example.org> {1767225600 + number * 60} +0100\n"
            message = node.message.encode()
            out += f"commit refs/heads/n{number}\nmark :{number + 1}\nauthor {who}committer {who}".encode()
            out += f"data {len(message)}\n".encode() + message + b"\n"
            for place, parent in enumerate(node.parents):
                out += f"{'merge' if place else 'from'} :{parent + 1}\n".encode()
            out += b"deleteall\n"
            for path, (mode, data) in node.files.items():
                out += f'M {mode} inline "{path}"\n'.encode() + f"data {len(data)}\n".encode() + data + b"\n"
        return bytes(out) + b"done\n"


STEP = st.tuples(st.integers(0, 9), st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))


@st.composite
def histories(draw: st.DrawFn) -> tuple[History, int]:
    """A history and the number of the fork's tip."""
    history = History()
    files: Files = {"a.txt": content(0, 0), "b.txt": content(0, 1), "d/x.txt": content(0, 2)}
    history.upstream.append(history.add(files, (), "upstream 0"))
    for number in range(draw(st.integers(0, 3))):
        where, kind, value = draw(st.tuples(st.integers(0, 40), st.integers(0, 6), st.integers(0, 40)))
        files = put(files, PATHS[where % len(PATHS)], content(kind, value))
        history.upstream.append(history.add(files, (history.upstream[-1],), f"upstream {number + 1}"))
    tips = [history.upstream[0]]
    for kind, one, two, three in draw(st.lists(STEP, max_size=9)):
        tip = tips[one % len(tips)]
        mine = history.nodes[tip].files
        path = PATHS[two % len(PATHS)]
        if kind <= 3:
            tips[one % len(tips)] = history.add(put(mine, path, content(three, two)), (tip,), f"{path} : change")
        elif kind == 4:
            tips[one % len(tips)] = history.add(put(mine, path, None), (tip,), f"{path} : delete")
        elif kind == 5:
            tips.append(tip)
        elif kind == 6:
            # Take the tip's own change back.
            parents = history.nodes[tip].parents
            before = history.nodes[parents[0]].files if parents else mine
            tips[one % len(tips)] = history.add(before, (tip,), "take it back")
        elif kind == 7:
            # A change of upstream's, by way of its files.
            node = history.nodes[history.upstream[two % len(history.upstream)]]
            older = history.nodes[node.parents[0]].files if node.parents else {}
            for name in sorted({*node.files, *older}):
                if node.files.get(name) != older.get(name):
                    mine = put(mine, name, node.files.get(name))
            tips[one % len(tips)] = history.add(mine, (tip,), node.message)
        else:
            other = tips[two % len(tips)] if kind == 8 else history.upstream[two % len(history.upstream)]
            if other == tip:
                continue
            theirs = history.nodes[other].files
            merged = {0: mine, 1: theirs, 2: put(mine, path, content(three, one))}.get(three % 4, {})
            if three % 4 == 3:
                merged = mine
                for name, entry in theirs.items():
                    merged = put(merged, name, entry)
            tips[one % len(tips)] = history.add(merged, (tip, other), "merge")
    return history, tips[0]


@settings(
    max_examples=int(os.environ.get("FORKYARD_EXAMPLES", "10")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(histories())
def test_the_series_is_the_branch(drawn: tuple[History, int]) -> None:
    history, number = drawn
    with tempfile.TemporaryDirectory() as folder:
        check(history, number, Path(folder))


def check(history: History, number: int, folder: Path) -> None:
    store = Store(folder / "forks.git")
    store.ensure()
    store._git("fast-import", "--quiet", "--done", stdin=history.stream())
    names = {one: store._line("rev-parse", f"refs/heads/n{one}") for one in (*history.upstream, number)}
    upstream, tip_name = names[history.upstream[-1]], names[number]
    base = common_ancestors(store, tip_name, [upstream])[0]
    tip = commits(store, "--no-walk", tip_name)[0]
    own = own_commits(store, tip_name, base)
    twins = find_twins(store, own.plain, [*own.plain, *own.merges], [upstream])
    in_base = {one: theirs for one, theirs in twins.upstream.items() if is_ancestor(store, theirs, base)}
    base_tree = store.tree_of(base)
    reduced = reduce_line(store, Lineariser(store, base_tree, own), twins, in_base, tip.tree)
    drafts = drafts_of(
        store, reduced.line, upstream={}, against=twins.against, note_origin=False, progress=lambda done, total: None
    )
    rest = rest_of(store, "mine", reduced.line, tip, own.merges)
    drafts += [rest] if rest is not None else []
    start = base_commit(store, "llama.cpp", PIN, DATE, base_tree)
    chain = make_chain(store, start, drafts)
    assert (chain[-1].tree if chain else base_tree) == tip.tree
    items = [(draft.letter, draft.tree) for draft in drafts]

    # As mails that hold everything.
    mails = export_series(store, start, items, whole_files=False)
    assert not mails.files
    with Chain.on(store, start, base_tree) as applied:
        for patch in mails.patches:
            applied.add(patch.data, label=patch.name, where=patch.name, whole_file=lambda source: (b"", False))
        applied.check_exports()
        assert applied.tree == tip.tree

    # As a stack that lies on disk.
    done = export_series(store, start, items, whole_files=True)
    stack = folder / "patches" / "mine"
    (stack / "llama.cpp").mkdir(parents=True)
    (stack / "stack.toml").write_text(STACK)
    (stack / "llama.cpp" / "series").write_text("".join(f"{name}\n" for name in done.names))
    for patch in done.patches:
        (stack / "llama.cpp" / patch.name).write_bytes(patch.data)
    for path, (data, executable) in done.files.items():
        target = stack / "src" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        target.chmod(0o755 if executable else 0o644)
    again = apply_stacks(store, "llama.cpp", PIN, DATE, base_tree, load_stacks(folder, ["mine"], "llama.cpp"))
    assert again.tree == tip.tree
