"""What a verification found, for machines and for people."""

from __future__ import annotations

from collections import Counter
from typing import Any

from forkyard.verifying.running import Outcome, OutcomeState, Verification, Verified
from forkyard.verifying.units import Role

SCHEMA = 1


def as_json(verification: Verification) -> dict[str, Any]:
    """The document of ``--json``; docs/verify.md describes it."""
    baseline = verification.baseline
    return {
        "schema": SCHEMA,
        "ok": verification.ok,
        "level": verification.level,
        "seconds": round(verification.seconds, 3),
        "base": baseline.commit if baseline else None,
        "changed": list(baseline.paths) if baseline else None,
        "recipes": [_recipe(verified) for verified in verification.recipes],
    }


def _recipe(verified: Verified) -> dict[str, Any]:
    counts = Counter(outcome.state for outcome in verified.outcomes)
    return {
        "recipe": verified.recipe.name,
        "engine": verified.recipe.family,
        "variant": verified.variant,
        "pin": verified.recipe.pin.commit,
        "ok": verified.ok,
        "counts": {state.replace(" ", "_"): counts[state] for state in _STATES},
        "units": [_unit(outcome) for outcome in verified.outcomes],
        "first_bad": [
            {
                "stack": bad.stack,
                "patch": bad.patch,
                "number": bad.number,
                "of": bad.of,
                "stage": bad.stage,
                "what": bad.problem.what,
                "where": bad.problem.where,
                "why": bad.problem.why,
                "next": bad.problem.next,
            }
            for bad in verified.first_bad
        ],
        "blocked": [{"stack": one.stack, "by": one.by} for one in verified.blocked],
        "left_out": [{"stacks": list(stacks), "why": why} for stacks, why in verified.planned.left_out],
    }


_STATES: tuple[OutcomeState, ...] = ("good", "bad", "no test", "not run", "not touched")


def _unit(outcome: Outcome) -> dict[str, Any]:
    unit = outcome.unit
    return {
        "name": unit.name,
        "roles": [
            {
                "kind": role.kind,
                "stacks": list(role.stacks),
                "patch": role.patch,
                "number": role.number or None,
                "of": role.of or None,
            }
            for role in unit.roles
        ],
        "stacks": [{"name": name, "patches": patches} for name, patches in unit.plan.patches],
        "complete": unit.complete,
        "key": outcome.key,
        "build_key": unit.plan.key,
        "state": outcome.state.replace(" ", "_"),
        "error": outcome.error,
        "cached": outcome.cached,
        "reason": outcome.reason,
        "result": outcome.result.as_json() if outcome.result else None,
    }


def as_text(verification: Verification) -> str:
    """The answer for people: a line for each unit, then what is wrong and what to do."""
    lines: list[str] = []
    for verified in verification.recipes:
        recipe = verified.recipe
        lines += [f"{recipe.name} {verified.variant}, pin {recipe.pin.commit[:12]}"]
        shown = [outcome for outcome in verified.outcomes if outcome.state != "not touched"]
        width = max((len(_title(outcome)) for outcome in shown), default=0)
        lines += [f"  {outcome.state.upper() if outcome.error else outcome.state:<8} "
                  f"{_title(outcome):<{width}}  {_detail(outcome)}".rstrip() for outcome in shown]  # fmt: skip
        lines += [f"  left out pair {'+'.join(stacks)}: {why}" for stacks, why in verified.planned.left_out]
        untouched = len(verified.outcomes) - len(shown)
        if untouched:
            lines.append(f"  {untouched} of {len(verified.outcomes)} are as they were at the base")
        lines.append("")
        lines += _wrong(verified)
    total = Counter(outcome.state for one in verification.recipes for outcome in one.outcomes)
    facts = ", ".join(f"{total[state]} {state}" for state in _STATES if total[state]) or "nothing to verify"
    lines.append(f"{'all is well' if verification.ok else 'something is bad'}: {facts}; {verification.seconds:.1f} s")
    return "\n".join(lines)


def _title(outcome: Outcome) -> str:
    first, *others = outcome.unit.roles
    return str(first) + (f" (= {', '.join(_short(role) for role in others)})" if others else "")


def _short(role: Role) -> str:
    return f"{role.stacks[0]} {role.number}/{role.of}" if role.kind == "prefix" else str(role)


def _detail(outcome: Outcome) -> str:
    result = outcome.result
    if result is None:
        return outcome.reason or ""
    words = []
    if result.tests is not None:
        words.append(
            f"{result.tests.passed} passed" + (f", {result.tests.failed} failed" if result.tests.failed else "")
        )
    elif outcome.reason:
        words.append(outcome.reason)
    if result.state == "bad" and result.stage != "test":
        words.append("does not apply" if result.stage == "apply" else "does not build")
    if result.tests is not None and outcome.reason:
        words.append(outcome.reason)
    if result.same_as:
        words.append(f"same tree as {result.same_as}")
    words.append("recorded" if outcome.cached else f"{sum(result.seconds.values()):.1f} s")
    return ", ".join(words)


def _wrong(verified: Verified) -> list[str]:
    lines: list[str] = []
    for bad in verified.first_bad:
        lines.append(f"first bad patch of {bad.stack}: {bad.patch} ({bad.number} of {bad.of})")
        lines += _facts(bad.problem.what, bad.problem.where, bad.problem.why, bad.problem.next)
    for one in verified.blocked:
        lines += [f"{one.stack} could not be judged: {one.by}, which it stands on, is bad", ""]
    named = {(bad.stack, bad.number) for bad in verified.first_bad}
    for outcome in verified.outcomes:
        series = outcome.unit.series
        if not outcome.error or (series is not None and (series.stacks[0], series.number) in named):
            continue
        problem = outcome.result.problem if outcome.result else None
        lines.append(f"{outcome.unit.name}: {outcome.state}")
        if problem is not None:
            lines += _facts(problem.what, problem.where, problem.why, problem.next)
        else:
            lines += [f"  why:   {outcome.reason}", ""]
    return lines


def _facts(what: str, where: str | None, why: str | None, step: str | None) -> list[str]:
    facts = [("what", what), ("where", where), ("why", why), ("next", step)]
    return [*(f"  {name + ':':<6} {value}" for name, value in facts if value), ""]
