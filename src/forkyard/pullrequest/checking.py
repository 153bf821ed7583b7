"""Going through the checklist: pass and fail only where a program can tell, otherwise a person is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forkyard.pullrequest import text_style
from forkyard.pullrequest.branch import Prepared
from forkyard.pullrequest.change import Change
from forkyard.pullrequest.documents import Documents
from forkyard.pullrequest.duplicates import Search
from forkyard.pullrequest.evidence import (
    FAIL,
    NOT_APPLICABLE,
    PASS,
    UNDECIDED,
    Evidence,
    operators,
    quality,
    regression,
    speed,
)
from forkyard.pullrequest.evidence import builds as building
from forkyard.pullrequest.policy import MARKER
from forkyard.pullrequest.rules import RULES, Rule
from forkyard.pullrequest.size import COMFORTABLE_FILES, COMFORTABLE_LINES, MOST_FILES, MOST_LINES, Size

NEEDS_PERSON = "needs-a-person"
_MOST_SHOWN = 20


@dataclass(frozen=True)
class Facts:
    """What checks look at."""

    family: str
    prepared: Prepared
    change: Change
    size: Size
    evidence: Mapping[str, Evidence]
    documents: Documents
    searches: Sequence[Search]
    messages_to_write: Sequence[str]


@dataclass(frozen=True)
class Verdict:
    """What a check says."""

    status: str
    """``pass``, ``fail``, ``needs-a-person`` or ``not-applicable``."""
    reason: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """One line of the checklist."""

    rule: Rule
    verdict: Verdict
    stated: bool | None
    """Whether the rule's words are still in upstream's document; ``None`` if nobody wrote the rule down."""

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "name": self.rule.name,
            "title": self.rule.title,
            "status": self.verdict.status,
            "reason": self.verdict.reason,
            "details": list(self.verdict.details),
            "advice": self.rule.advice,
            "document": self.rule.document,
            "stated_there": self.stated,
        }


def check_rules(facts: Facts) -> list[Item]:
    """Every rule of an engine family, checked."""
    items = []
    for rule in RULES[facts.family]:
        verdict = Verdict(NEEDS_PERSON, rule.advice) if rule.check == "person" else CHECKS[rule.check](facts)
        stated = None if rule.document is None else bool(facts.documents.says(rule.document, rule.words))
        items.append(Item(rule, _short(verdict), stated))
    return items


def _short(verdict: Verdict) -> Verdict:
    more = len(verdict.details) - _MOST_SHOWN
    if more <= 0:
        return verdict
    return Verdict(verdict.status, verdict.reason, (*verdict.details[:_MOST_SHOWN], f"and {more} more"))


def _none_or(status: str, found: Sequence[str], none: str, some: str) -> Verdict:
    return Verdict(status, some, tuple(found)) if found else Verdict(PASS, none)


def _from_evidence(facts: Facts, name: str) -> Verdict:
    """A piece of evidence as a verdict: what was not run is a person's to run."""
    piece = facts.evidence.get(name)
    if piece is None:
        return Verdict(NEEDS_PERSON, "it was not run")
    if piece.state in (PASS, FAIL, NOT_APPLICABLE):
        return Verdict(piece.state, piece.reason)
    if piece.state == UNDECIDED:
        return Verdict(NEEDS_PERSON, piece.reason)
    return Verdict(NEEDS_PERSON, f"it was not run: {piece.reason}")


def _builds(facts: Facts) -> Verdict:
    for side in building.SIDES:
        verdict = _from_evidence(facts, f"build-{side}")
        if verdict.status != PASS:
            return verdict
    return Verdict(PASS, "both were built and passed the wheel's gates")


def _one_feature(facts: Facts) -> Verdict:
    prepared = facts.prepared
    if prepared.beneath:
        names = ", ".join(dict.fromkeys(commit.stack for commit in prepared.beneath))
        return Verdict(NEEDS_PERSON, f"it stands on {names}: have that merged first, then prepare the branch again")
    if len(prepared.commits) == 1:
        return Verdict(PASS, "the branch is one patch")
    modules: dict[str, list[str]] = {}
    for commit in prepared.commits:
        modules.setdefault(commit.subject.partition(":")[0].strip(), []).append(commit.patch)
    details = tuple(f"{module}: {', '.join(names)}" for module, names in modules.items())
    if len(modules) > 1:
        return Verdict(FAIL, "its patches belong to several modules: choose those of one fix with --patches", details)
    return Verdict(NEEDS_PERSON, f"its {len(prepared.commits)} patches may be several fixes: look", details)


def _needed(facts: Facts) -> Verdict:
    found = [f"{commit.patch}: {commit.retired}" for commit in facts.prepared.commits if commit.retired]
    found += [f"{name}: changes nothing at the target" for name in facts.prepared.empty]
    return _none_or(FAIL, found, "nothing says that upstream has it", "upstream seems to have some of it by now")


def _regression(facts: Facts) -> Verdict:
    verdict = _from_evidence(facts, regression.NAME)
    if verdict.status != PASS or facts.change.below("tests/"):
        return verdict
    return Verdict(NEEDS_PERSON, f"shown by our tests ({verdict.reason}), but the branch has no test of its own")


def _duplicates(facts: Facts) -> Verdict:
    return Verdict(NEEDS_PERSON, f"{len(facts.searches)} searches are ready to open")


def _new_tests(facts: Facts) -> Verdict:
    found = [path for path in facts.change.added_files() if path.startswith("tests/")]
    return _none_or(NEEDS_PERSON, found, "none is added", "have maintainers approve them first")


def _cpu_first(facts: Facts) -> Verdict:
    others = [name for name in facts.change.backends() if name != "cpu"]
    return _none_or(NEEDS_PERSON, others, "no other backend is touched", "other backends are touched")


def _size(facts: Facts) -> Verdict:
    size = facts.size
    low, high = size.review_hours
    told = (
        f"{size.added} lines added ({size.hooks_added} in upstream's files, {size.whole_added} in"
        f" {size.whole_files} files of ours), {size.removed} removed, {size.files} files;"
        f" {low:g} to {high:g} hours of review by upstream's figure"
    )
    if not size.reviewable:
        return Verdict(FAIL, f"{told}: beyond {MOST_LINES} lines or {MOST_FILES} files")
    if not size.comfortable:
        return Verdict(NEEDS_PERSON, f"{told}: beyond {COMFORTABLE_LINES} lines or {COMFORTABLE_FILES} files")
    return Verdict(PASS, told)


def _understood(facts: Facts) -> Verdict:
    low, high = facts.size.review_hours
    return Verdict(NEEDS_PERSON, f"take {low:g} to {high:g} hours at least for {facts.size.added} added lines")


def _backend_ops(facts: Facts) -> Verdict:
    touched = facts.change.below("ggml/")
    piece = facts.evidence.get(operators.NAME)
    if piece is not None and piece.state == FAIL:
        return Verdict(FAIL, piece.reason)
    if not touched:
        return Verdict(NOT_APPLICABLE, "nothing below ggml/ is touched")
    verdict = _from_evidence(facts, operators.NAME)
    if verdict.status != PASS or piece is None:
        return verdict
    backends = list(piece.data.get("backends", ()))
    if not piece.data.get("complete"):
        return Verdict(NEEDS_PERSON, f"{piece.reason}: run all of them")
    if len(backends) < 2:
        return Verdict(NEEDS_PERSON, f"{piece.reason}; this machine has no second backend")
    return Verdict(PASS, piece.reason)


def _operator(facts: Facts, wanted: Sequence[str], where: str) -> Verdict:
    new, touched = facts.change.new_operators, facts.change.operator_files()
    if not new and not touched:
        return Verdict(NOT_APPLICABLE, "no operator is added, and no file that implements one is touched")
    covered = facts.change.below(*wanted)
    if covered:
        return Verdict(PASS, f"{', '.join(covered)} is touched, too")
    if new:
        return Verdict(FAIL, f"{', '.join(new)} is new, but {where} is not touched")
    return Verdict(NEEDS_PERSON, f"operators may be changed, and {where} is not touched", tuple(touched))


def _operator_tests(facts: Facts) -> Verdict:
    return _operator(facts, ("tests/test-backend-ops.cpp",), "tests/test-backend-ops.cpp")


def _operator_docs(facts: Facts) -> Verdict:
    if not facts.change.new_operators and facts.change.operator_files():
        return Verdict(NEEDS_PERSON, "only needed if what a backend supports has changed")
    return _operator(facts, ("docs/ops.md", "docs/ops/"), "docs/ops")


def _new_type(facts: Facts) -> Verdict:
    if not facts.change.new_types:
        return Verdict(NOT_APPLICABLE, "no GGML_TYPE_ is added")
    piece = _from_evidence(facts, quality.DIVERGENCE)
    if piece.status == FAIL:
        return piece
    return Verdict(
        NEEDS_PERSON, f"KL divergence: {piece.reason}; model and upload are yours", tuple(facts.change.new_types)
    )


def _public_api(facts: Facts) -> Verdict:
    return _none_or(NEEDS_PERSON, facts.change.public(), "no public header and no option is touched", "look at these")


def _dependencies(facts: Facts) -> Verdict:
    return _none_or(FAIL, facts.change.dependencies(), "none was found", "these look like dependencies")


def _extra_files(facts: Facts) -> Verdict:
    return _none_or(NEEDS_PERSON, facts.change.added_files(), "no file is added", "files are added")


def _ascii(facts: Facts) -> Verdict:
    found = text_style.not_ascii(facts.change.files)
    return _none_or(FAIL, found, "every added line of code is", "these lines are not")


def _whitespace(facts: Facts) -> Verdict:
    found = text_style.untidy(facts.change.files)
    return _none_or(FAIL, found, "nothing was found on the added lines", "these lines are not as upstream wants them")


def _server(facts: Facts) -> Verdict:
    found = facts.change.below("tools/server/")
    if not found:
        return Verdict(NOT_APPLICABLE, "nothing below tools/server/ is touched")
    return Verdict(NEEDS_PERSON, "the server is touched", tuple(found))


def _code_owner(facts: Facts) -> Verdict:
    if facts.size.comfortable:
        return Verdict(NOT_APPLICABLE, "it is not a large piece of code")
    return Verdict(NEEDS_PERSON, f"{facts.size.added} added lines want an owner")


def _messages(facts: Facts) -> Verdict:
    left = tuple(facts.messages_to_write)
    if left:
        return Verdict(NEEDS_PERSON, f"{len(left)} messages begin with `{MARKER}`", left)
    return Verdict(NEEDS_PERSON, "no marker is left; the description is yours to write, too")


def _disclosure_line(facts: Facts) -> Verdict:
    if facts.documents.template is None:
        return Verdict(FAIL, "the tree at the target has no pull request template: find out where it went")
    if not facts.documents.has_disclosure:
        return Verdict(FAIL, "the template at the target has no such line any more: read upstream's policy again")
    return Verdict(PASS, "it is in the copy of the template; leave it there")


def _complexity(facts: Facts) -> Verdict:
    rating = "Low" if facts.size.added <= 50 else "Medium" if facts.size.comfortable else "High"
    return Verdict(NEEDS_PERSON, f"by its size alone it would be {rating} ({facts.size.added} added lines)")


CHECKS: dict[str, Callable[[Facts], Verdict]] = {
    "builds": _builds,
    "one_feature": _one_feature,
    "needed": _needed,
    "regression": _regression,
    "duplicates": _duplicates,
    "new_tests": _new_tests,
    "cpu_first": _cpu_first,
    "size": _size,
    "understood": _understood,
    "perplexity": lambda facts: _from_evidence(facts, quality.PERPLEXITY),
    "performance": lambda facts: _from_evidence(facts, speed.NAME),
    "backend_ops": _backend_ops,
    "operator_tests": _operator_tests,
    "operator_docs": _operator_docs,
    "new_type": _new_type,
    "public_api": _public_api,
    "dependencies": _dependencies,
    "extra_files": _extra_files,
    "ascii": _ascii,
    "whitespace": _whitespace,
    "server": _server,
    "code_owner": _code_owner,
    "messages": _messages,
    "disclosure_line": _disclosure_line,
    "complexity": _complexity,
}
"""What a rule's ``check`` means."""
