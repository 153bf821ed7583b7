"""Rules about changes that do nothing, or that lie in another place than the project's own conventions want them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from forkyard.linting.model import Finding
from forkyard.linting.reading import DiffLine, FileDiff, Hunk
from forkyard.linting.subject import Case, LintedPatch, shown
from forkyard.stacks import Stack

# White space means something in these, so a change of nothing else can be needed.
_BLANKS_MEAN = (".py", ".pyi", ".yml", ".yaml", ".mk", ".md", "Makefile", ".json", ".txt", ".patch", ".diff")


def check(case: Case) -> Iterator[Finding]:
    """All findings that the patches alone show."""
    for patch in case.patches:
        for file in patch.text.files:
            yield from _modes(patch, file)
            yield from _place(case, patch, file)
            for hunk in file.hunks:
                for start, end in hunk.groups():
                    yield from _group(patch, file, hunk, start, end)
    for lost_patch, name in case.lost:
        yield lost_patch.finding(
            "adds-files",
            "error",
            lost_patch.text.line_of("Adds-Files"),
            f"the patch adds {name}, which is not under src",
            "the commit cannot be made without it",
            f"add {case.stack.folder.name}/src/{name}, or correct the trailer",
        )


def check_result(case: Case, changed: Collection[str]) -> Iterator[Finding]:
    """Files the series touches in vain.

    Args:
        changed: paths that differ between the trees before and after the series.
    """
    told: set[str] = set()
    for patch in case.patches:
        for file in patch.text.files:
            if file.path not in changed and file.path not in told:
                told.add(file.path)
                yield patch.finding(
                    "no-change",
                    "error",
                    file.number,
                    f"the series touches {file.path} and leaves it as it was",
                    "a later patch takes back what an earlier one does",
                    "take the file out of those patches",
                )


def check_unused(stack: Stack, cases: Sequence[Case]) -> Iterator[Finding]:
    """Files under ``src`` that no patch of any engine adds.

    Args:
        cases: the stack's cases for every engine it names.
    """
    if not cases or not stack.src.is_dir():
        return
    used = {own.source for case in cases for own in case.whole}
    for path in sorted(path for path in stack.src.rglob("*") if not path.is_dir()):
        if path.relative_to(stack.src).as_posix() not in used:
            yield Finding(
                "unused-file",
                "error",
                stack.name,
                None,
                None,
                shown(cases[0].root, path),
                None,
                "no patch adds this file",
                "a whole file gets into a tree only by an Adds-Files trailer; this one is in no build",
                "add the trailer to the patch that needs it, or delete the file",
            )


def _modes(patch: LintedPatch, file: FileDiff) -> Iterator[Finding]:
    if file.modes and not file.hunks and not file.binary:
        yield patch.finding(
            "only-mode",
            "warning",
            file.number,
            f"only the mode of {file.path} changes",
            "that is usually the accident of a file system",
            "take the file out of the patch, or say in the message why it is needed",
        )


def _place(case: Case, patch: LintedPatch, file: FileDiff) -> Iterator[Finding]:
    owner = case.owners.get((patch.patch.name, file.path))
    if owner is not None and owner.stack == patch.stack:
        yield patch.finding(
            "fold",
            "warning",
            file.number,
            f"the patch edits {file.path}, which {owner.patch.name} of the same stack brings",
            "one file of ours in two places is harder to review than one",
            f"fold the change into the file that {owner.patch.name} adds",
        )
    elif file.new:
        yield patch.finding(
            "whole-file-in-diff",
            "warning",
            file.number,
            f"{file.path} is a whole new file inside the diff",
            "as an ordinary file it can be reviewed, linted and shared between engines",
            f"move it to {case.stack.folder.name}/src and name it in an Adds-Files trailer",
        )


def _group(patch: LintedPatch, file: FileDiff, hunk: Hunk, start: int, end: int) -> Iterator[Finding]:
    group = hunk.lines[start:end]
    removed = [line for line in group if line.kind == "-"]
    added = [line for line in group if line.kind == "+"]
    # Blanks inside a string are content.
    quoted = any(b'"' in line.text for line in removed)
    if removed and _solid(removed) == _solid(added) and not quoted and not file.path.endswith(_BLANKS_MEAN):
        if [line.text for line in removed] == [line.text for line in added]:
            return  # only whether the last line ends
        yield patch.finding(
            "only-white-space",
            "error",
            group[0].number,
            f"these lines of {file.path} differ from upstream's in white space alone",
            "it does nothing, and it conflicts with the next change upstream makes there",
            "leave upstream's lines as they are",
        )
    elif not removed and not file.new:
        yield from _edges(patch, file, hunk, start, end)


def _edges(patch: LintedPatch, file: FileDiff, hunk: Hunk, start: int, end: int) -> Iterator[Finding]:
    """Blank lines at an edge of an addition, next to a blank line that is there already, or nothing but blank lines."""
    group = hunk.lines[start:end]
    if not _solid(group):
        where: DiffLine | None = group[0]
        what = "only blank lines are added here"
    else:
        before = hunk.lines[start - 1].text if start else b"x"
        after = hunk.lines[end].text if end < len(hunk.lines) else b"x"
        first = group[0] if not group[0].text.strip() and not before.strip() else None
        last = group[-1] if not group[-1].text.strip() and not after.strip() else None
        where = first or last
        what = "a blank line is added next to one"
    # An addition that ends in a blank line before a blank line is how git shows a block put in between two others
    # only when the block brings one of its own too many.
    if where is not None:
        yield patch.finding(
            "blank-lines",
            "warning",
            where.number,
            f"{what} in {file.path}",
            "upstream keeps one blank line between things; a reviewer will ask for it",
            "delete it",
        )


def _solid(lines: Sequence[DiffLine]) -> bytes:
    return b"".join(b"".join(line.text.split()) for line in lines)
