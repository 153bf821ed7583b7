"""The answer of ``forkyard numa-guest``, for machines, for people, and as files to look into."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from forkyard.cache import write_atomic
from forkyard.guest.cases import Case
from forkyard.guest.enginereport import EngineReport
from forkyard.guest.proving import Guest, Proof, Proved

SCHEMA = 1


def as_json(proofs: Sequence[Proof], facts: dict[str, Any]) -> dict[str, Any]:
    """The document of ``--json``; docs/numa-guest.md describes it.

    Args:
        facts: versions of what it ran on.
    """
    return {
        "schema": SCHEMA,
        "ok": all(proof.ok for proof in proofs),
        **facts,
        "engines": [
            {
                "engine": proof.engine,
                "wheel": proof.wheel,
                "wheel_sha256": proof.wheel_sha256,
                "ok": proof.ok,
                "guests": [_guest(guest) for guest in proof.guests],
            }
            for proof in proofs
        ],
    }


def _guest(guest: Guest) -> dict[str, Any]:
    return {
        "topology": guest.topology.name,
        "nodes": [asdict(node) for node in guest.topology.nodes],
        "kernel": guest.boot.intake.kernel,
        "problem": guest.boot.problem,
        "seconds": round(guest.seconds, 1),
        "cases": [_case(one) for one in guest.cases],
    }


def _case(one: Proved) -> dict[str, Any]:
    seen, verdict = one.seen, one.verdict
    answer = seen.answer() if seen else None
    return {
        "case": one.case.name,
        "expected": [expect.outcome.value for expect in one.case.expect],
        "outcome": verdict.outcome.value if verdict.outcome else None,
        "findings": list(verdict.findings),
        "command": shlex.join(one.command),
        "status": seen.status if seen and seen.finished else None,
        "guest_seconds": seen.seconds if seen and seen.finished else None,
        "content": answer["content"] if answer else None,
        "report": asdict(verdict.report) if verdict.report else None,
        "numa_maps": {str(node): size for node, size in sorted(verdict.mapped.items())},
    }


def as_text(proofs: Sequence[Proof]) -> str:
    """The answer for people: a line for each case, then what does not hold."""
    lines: list[str] = []
    for proof in proofs:
        for guest in proof.guests:
            lines.append(
                f"{proof.engine}, {guest.topology.title} (Linux {guest.boot.intake.kernel}, {guest.seconds:.0f} s)"
            )
            for one in guest.cases:
                outcome = one.verdict.outcome.value if one.verdict.outcome else "BAD"
                lines.append(f"  {outcome:<8} {one.case.name:<22} {_figures(one.verdict.report)}".rstrip())
                lines += [f"           {finding}" for finding in one.verdict.findings]
            if guest.boot.problem:
                lines += [f"  {guest.boot.problem}", *(f"    {line}" for line in _end_of(guest.boot.console))]
    cases = [one for proof in proofs for guest in proof.guests for one in guest.cases]
    bad = sum(bool(one.verdict.findings) for one in cases)
    lines.append(f"{len(cases) - bad} of {len(cases)} cases hold")
    return "\n".join(lines)


def _figures(report: EngineReport | None) -> str:
    if report is None:
        return ""
    words = []
    for kind in ("weights", "kv"):
        copies = [copy for buffer in report.buffers if buffer.kind == kind for copy in buffer.copies]
        slices = [buffer for buffer in report.buffers if buffer.kind == kind and buffer.slices_pages]
        pages, here = sum(copy.pages for copy in copies), sum(copy.here for copy in copies)
        if slices:
            pages, here = sum(one.slices_pages for one in slices), sum(one.slices_here for one in slices)
        if pages:
            own = sum(copy.alias for copy in copies)
            words.append(
                f"{kind} {here} of {pages} pages" + (f" ({len(copies)} copies, {own} the original)" if copies else "")
            )
    local, remote = sum(node.local for node in report.nodes), sum(node.remote for node in report.nodes)
    words.append(f"read {local / 2**20:.0f} MiB local, {remote / 2**20:.0f} MiB remote")
    return "; ".join(words)


def _end_of(console: str) -> list[str]:
    return [line for line in console.splitlines() if line.strip()][-8:]


def table(cases: Sequence[Case]) -> str:
    """The cases, for ``--list``."""
    rows = [(case, " or ".join(one.outcome.value for one in case.expect)) for case in cases]
    return "\n".join(f"{case.name:<22} {case.topology.name:<12} {ends:<18} {case.title}" for case, ends in rows)


def write_reports(document: dict[str, Any], proofs: Sequence[Proof], folder: Path) -> None:
    """Write the document, and all that every case sent, into a folder.

    Raises:
        StorageError: no space or permission.
    """
    write_atomic(folder / "report.json", (json.dumps(document, indent=1, sort_keys=True) + "\n").encode())
    for proof in proofs:
        for guest in proof.guests:
            for name, seen in guest.boot.intake.observations.items():
                for kind, data in seen.parts.items():
                    write_atomic(folder / proof.engine / guest.topology.name / name / kind, data)
            console = guest.boot.console.encode("utf-8", "replace")
            write_atomic(folder / proof.engine / guest.topology.name / "console", console)
