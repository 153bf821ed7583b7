"""Rules about patch files and their hunks: their form, what headers count, and that series apply where they say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from forkyard.cache import Cache, storage_error
from forkyard.errors import PatchError
from forkyard.gitstore import GitFailure
from forkyard.linting.model import Finding
from forkyard.linting.pin import PinTree
from forkyard.linting.subject import Case, LintedPatch
from forkyard.locks import hold
from forkyard.stacks import PatchedTree, Stack, apply_stacks
from forkyard.stacks.applying import Chain, base_commit
from forkyard.stacks.patchfile import check_form, check_hunks

# What applying a patch raises, the faults of hostile ones among them: bytes git or the system cannot take.
_REFUSALS = (PatchError, GitFailure, ValueError, IndexError, OSError)
_DIFF_LINE = re.compile(r"diff line (\d+)")


def check_files(case: Case) -> Iterator[Finding]:
    """Patch files that were converted or cut, and hunks that hold more or fewer lines than their headers count."""
    for patch in case.patches:
        try:
            check_form(patch.patch.data, patch.file)
        except PatchError as error:
            yield patch.finding("patch-file", "error", 1, error.what, error.why or "", error.next_step or "")
            continue
        try:
            check_hunks(patch.text.diff, patch.patch.name)
        except PatchError as error:
            place = _DIFF_LINE.search(error.where or "")
            line = patch.text.diff_line + int(place[1]) - 1 if place else patch.text.diff_line
            yield patch.finding(
                "hunk-counts",
                "error",
                line,
                error.what,
                error.why or "",
                error.next_step or "export the patch again; do not edit hunks by hand",
            )


def apply(
    pin: PinTree, cache: Cache, stacks: Sequence[Stack], cases: Mapping[str, Case]
) -> tuple[PatchedTree | None, list[Finding]]:
    """Apply a combination of stacks to the pin, strictly.

    Returns:
        the result, or every patch that does not apply: what fails is left out, and the next one is tried.
    """
    recipe, obtained = pin.recipe, pin.obtained
    with hold(cache.locks / f"store-{recipe.family}.lock"):
        try:
            return apply_stacks(pin.store, recipe.series, obtained.commit, obtained.date, obtained.tree, stacks), []
        except _REFUSALS as error:
            _let_storage_pass(error)
            problem = error
        found = list(_each(pin, stacks, cases))
        if not found:
            # Together they are refused, one by one they are not: say it of the first, and never say nothing.
            first = next(case.patches[0] for case in cases.values() if case.patches)
            found = [_failed(first, pin, problem)]
        return None, found


def _each(pin: PinTree, stacks: Sequence[Stack], cases: Mapping[str, Case]) -> Iterator[Finding]:
    recipe, obtained = pin.recipe, pin.obtained
    base = base_commit(pin.store, recipe.series, obtained.commit, obtained.date, obtained.tree)
    first: LintedPatch | None = None
    with Chain.on(pin.store, base, obtained.tree) as chain:
        for stack in stacks:
            for patch in cases[stack.name].patches:
                try:
                    chain.add_patch(stack, patch.patch)
                    chain.check_exports()
                except _REFUSALS as error:
                    _let_storage_pass(error)
                    yield _failed(patch, pin, error, first)
                    first = first or patch


def _let_storage_pass(error: Exception) -> None:
    if isinstance(error, OSError) and storage_error(error, "apply patches") is not None:
        raise error


def _failed(patch: LintedPatch, pin: PinTree, error: Exception, first: LintedPatch | None = None) -> Finding:
    known = error if isinstance(error, PatchError) else PatchError(f"{patch.label} cannot be read", why=str(error))
    why = (known.why or "git does not say").replace("\n         ", "\n")
    files = patch.text.files
    named = next((file for file in files if f"{file.path}:" in why), None)
    line = named.number if named is not None else files[0].number if files else 1
    step = known.next_step or "export the patch again on this pin"
    if first is not None:
        why += f"\n{first.label}, which comes before it, was left out: this may only follow from that"
        step = f"mend {first.label} first"
    return patch.finding("apply", "error", line, f"{known.what} (pin {pin.obtained.commit[:12]})", why, step)
