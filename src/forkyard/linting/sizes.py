"""How much a stack is: lines in upstream's files, which every rebase meets, and lines in whole files of ours."""

from __future__ import annotations

from forkyard.linting.model import Size
from forkyard.linting.subject import Case


def measure(case: Case) -> Size:
    """Count one stack for one engine. A new file inside a diff is a whole file of ours, wherever it is written."""
    touched: set[str] = set()
    brought: dict[str, int] = {own.target: _lines(own.data) for own in case.whole}
    added = removed = 0
    for patch in case.patches:
        for file in patch.text.files:
            counts = [sum(line.kind == kind for hunk in file.hunks for line in hunk.lines) for kind in "+-"]
            if file.new:
                brought[file.path] = counts[0]
            elif (patch.patch.name, file.path) in case.owners:
                if file.path in brought:
                    brought[file.path] += counts[0] - counts[1]
            else:
                touched.add(file.path)
                added, removed = added + counts[0], removed + counts[1]
    return Size(
        case.stack.name,
        case.engine,
        len(case.patches),
        len(touched),
        added,
        removed,
        len(brought),
        sum(brought.values()),
    )


def _lines(data: bytes) -> int:
    return data.count(b"\n") + (not data.endswith(b"\n") if data else 0)
