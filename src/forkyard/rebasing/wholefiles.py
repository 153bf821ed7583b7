"""Whole files of ours across a rebase: what a patch says that it adds must still be new where it arrives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from forkyard.gitstore import Store
from forkyard.gitstore.history import CommitFacts
from forkyard.stacks import Stack
from forkyard.stacks.exporting import Exported
from forkyard.stacks.patchfile import added_file_sources, parse_trailers

_TRAILER = "Adds-Files: "


def with_true_trailers(
    store: Store, parent: str, kept: Sequence[tuple[str, CommitFacts]]
) -> tuple[list[tuple[str, CommitFacts]], list[str]]:
    """Commits without the ``Adds-Files`` trailers that are no longer so.

    Upstream may have a file of that name by now, or a person may have resolved a conflict by moving ours.

    Args:
        parent: the commit before the first one.
        kept: patch names and commits, in order.

    Returns:
        names and commits, and what a person should know.
    """
    done: list[tuple[str, CommitFacts]] = []
    notes: list[str] = []
    for name, facts in kept:
        declared = parse_trailers(facts.message, name).adds_files if _TRAILER in facts.message else ()
        gone = [
            file.target
            for file in declared
            if store.has(f"{parent}:{file.target}") or not store.has(f"{facts.commit}:{file.target}")
        ]
        lines = facts.message.split("\n")
        for target in gone:
            lines = [line for line in lines if not _adds(line, target)]
            notes.append(f"{name}: {target} is no whole file of the stack any more; what is left of it is in the patch")
        done.append((name, replace(facts, message="\n".join(lines)) if gone else facts))
        parent = facts.commit
    return done, notes


def _adds(line: str, target: str) -> bool:
    if not line.startswith(_TRAILER):
        return False
    source, arrow, other = line.removeprefix(_TRAILER).partition("->")
    return (other if arrow else source).strip() == target


def shared_notes(stack: Stack, engine: str, exported: Exported) -> list[str]:
    """What another engine has to do with whole files that are no longer what they were."""
    notes = []
    for other in stack.about.engines:
        if other == engine:
            continue
        used = {source for patch in stack.series(other).patches for source in added_file_sources(patch.data)}
        for path, (data, _) in sorted(exported.files.items()):
            place = stack.src / path
            if path in used and place.is_file() and place.read_bytes() != data:
                notes.append(
                    f"src/{path} of {stack.name} changed, which {other} has as well: "
                    f"look whether its series still applies, and lock it again"
                )
    return notes
