"""Rules about what a patch says of itself: its name, subject, message, trailers and condition of retirement."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from forkyard.errors import PatchError
from forkyard.linting.model import Finding
from forkyard.linting.pin import PinTree
from forkyard.linting.subject import Case, LintedPatch
from forkyard.stacks.retiring import Condition, parse_condition

_SUBJECT = re.compile(r"^\S[^:]{0,48} : \S")
_NUMBERED = re.compile(r"^\d+[-_.]")
_TRAILER = re.compile(r"^[A-Za-z][A-Za-z-]*: ")

Reachable = Callable[[str], bool | None]


def check(case: Case, pin: PinTree | None, reachable: Reachable) -> Iterator[Finding]:
    """All findings about what the patches of a case say.

    Args:
        reachable: whether upstream's history up to the pin contains a commit; ``None`` if that is not known.
    """
    for patch in case.patches:
        yield from _name(patch)
        yield from _message(patch)
        if patch.fault is not None:
            line = patch.text.line_of("Upstream-Status" if "upstream" in patch.fault.what else "Adds-Files")
            yield patch.finding(
                "trailers", "error", line, patch.fault.what, patch.fault.why or "", patch.fault.next_step or ""
            )
        yield from _retirement(patch, pin, reachable)


def conditions(patch: LintedPatch) -> list[Condition]:
    """The conditions of a patch that can be read."""
    found = []
    for value in patch.trailers.retire_when if patch.trailers is not None else ():
        try:
            found.append(parse_condition(value))
        except PatchError:
            continue
    return found


def _name(patch: LintedPatch) -> Iterator[Finding]:
    name = patch.patch.name
    if not name.endswith(".patch"):
        why = "a file that is not called .patch is not found when it is missing from the series"
        yield patch.finding("patch-name", "error", None, "the name does not end in .patch", why, "rename it")
    if not name.isascii() or not name.isprintable() or " " in name:
        why = "the name appears in locks, manifests and commands"
        what = "the name holds more than plain ASCII characters without blanks"
        yield patch.finding("patch-name", "error", None, what, why, "rename it")
    if _NUMBERED.match(name):
        why = "the order is the series' to say; numbers make every two changes of it collide"
        yield patch.finding("patch-name", "error", None, "the name starts with a number", why, "rename it without")


def _message(patch: LintedPatch) -> Iterator[Finding]:
    text = patch.text
    if not text.subject.strip():
        yield patch.finding(
            "subject", "error", text.subject_line, "the patch has no subject", "nobody can tell what it is", "give one"
        )
    elif patch.engine == "llama.cpp" and not _SUBJECT.match(text.subject):
        yield patch.finding(
            "subject",
            "error",
            text.subject_line,
            "the subject is not `<module> : <title>`",
            f"upstream titles its commits so; this one is {text.subject[:80]!r}",
            "write the module, a blank, a colon, a blank and the title",
        )
    if not _why(text.message):
        yield patch.finding(
            "message",
            "error",
            text.subject_line,
            "the message does not say why the patch exists",
            "between subject and trailers there is nothing",
            "say what is wrong without it, and for whom",
        )


def _why(message: str) -> bool:
    lines = [line.strip() for line in message.split("\n")[1:]]
    return any(line and not _TRAILER.match(line) for line in lines)


def _retirement(patch: LintedPatch, pin: PinTree | None, reachable: Reachable) -> Iterator[Finding]:
    if patch.trailers is None:
        return
    line = patch.text.line_of("Retire-When:")
    if not patch.trailers.retire_when:
        yield patch.finding(
            "retire-when",
            "error",
            line,
            "the patch does not say when it can go",
            "it has no Retire-When trailer among the last lines of its message",
            "name what upstream will have then, as `Retire-When: symbol-present src/llama.cpp new_name`",
        )
    for value in patch.trailers.retire_when:
        line = patch.text.line_of(f"Retire-When: {value}")
        try:
            condition = parse_condition(value)
        except PatchError as error:
            yield patch.finding("retire-when", "error", line, error.what, error.why or "", error.next_step or "")
            continue
        if pin is None:
            continue
        holds = condition.holds(pin.read, reachable)
        if holds:
            yield patch.finding(
                "retire-when-holds",
                "error",
                line,
                "the condition already holds on the unpatched pin, so the patch would be retired at once",
                f"{condition.describe()}",
                "name something the pin does not have; or, if upstream really has it, retire the patch",
            )
        elif holds is None and condition.kind == "symbol-absent" and condition.subject not in pin.entries:
            yield patch.finding(
                "retire-when",
                "error",
                line,
                f"the pin has no file {condition.subject}",
                "whether a file that is gone lacks a symbol cannot be known: it may have moved",
                "correct the path, or write `file-absent`",
            )
