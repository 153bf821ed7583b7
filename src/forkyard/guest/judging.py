"""Holding what came of a case against what its row says. Every sentence returned is something that does not hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from forkyard.guest.cases import Case, Expect, Outcome
from forkyard.guest.enginereport import PAGE, Buffer, EngineReport, fullest
from forkyard.guest.intake import Observation

SPLIT_SHARE = 0.9
"""Huge pages, and pages in which two nodes' rows meet, cannot be where all their rows are wanted."""
_LACKS = re.compile(r"\bnode (\d+)\b.*\b(\d+) bytes\b")
_NOTHING = re.compile(r"there is nothing to (?:mirror|split)")
_SIGNAL = 128


@dataclass(frozen=True)
class Verdict:
    """What was found about a case."""

    outcome: Outcome | None
    """The one that was seen, of those that are allowed; ``None`` if none fits."""
    findings: tuple[str, ...]
    report: EngineReport | None
    mapped: Mapping[int, int]
    """Bytes of the process on each node, as the kernel said while it ran."""


def judge(case: Case, seen: Observation | None, twin: Observation | None) -> Verdict:
    """Judge a case.

    Args:
        seen: what came of it; ``None`` if the guest never began it.
        twin: what came of the same run without NUMA.
    """
    if seen is None or not seen.finished:
        return Verdict(None, ("it was not run to its end",), None, {})
    try:
        report = fullest(seen.reports())
    except ValueError as error:
        return Verdict(None, (str(error),), None, seen.mapped())
    general = tuple(_general(case, seen))
    tried = [(expect.outcome, tuple(_findings(expect, seen, twin, report))) for expect in case.expect]
    outcome, findings = min(tried, key=lambda pair: len(pair[1]))
    found = general + findings
    return Verdict(None if found else outcome, found, report, seen.mapped())


def _general(case: Case, seen: Observation) -> Iterator[str]:
    known = seen.nodes()
    wanted = {node: tuple(cpu for cpu in cpus if cpu not in case.gone) for node, cpus in case.topology.cpus().items()}
    if known != wanted:
        yield f"the guest is not the machine of this case: nodes and CPUs are {known}, not {wanted}"
    if seen.state == "hangs":
        yield f"the server did not end within its time and was killed{_last_words(seen)}"
    elif seen.status >= _SIGNAL:
        yield f"the server ended by signal {seen.status - _SIGNAL}{_last_words(seen)}"


def _findings(
    expect: Expect, seen: Observation, twin: Observation | None, report: EngineReport | None
) -> Iterator[str]:
    if expect.outcome is Outcome.REFUSED:
        if seen.status == 0 or seen.state != "refused":
            yield "it should have refused to start, and did not"
        yield from _lacking(expect, seen)
        return
    yield from _works(seen, twin)
    if expect.outcome is Outcome.OFF:
        if report is not None and any(buffer.mirrored or buffer.slices_pages for buffer in report.buffers):
            yield "copies or slices were made, which should have been none"
        if not _NOTHING.search(seen.text("log")):
            yield "the log does not say that there is nothing to mirror or split"
        return
    if report is None:
        yield f"the engine reported nothing{_last_words(seen)}"
    elif expect.outcome is Outcome.PARTLY:
        yield from _lacking(expect, seen)
        if all(buffer.mirrored for buffer in report.buffers):
            yield "every buffer was mirrored, though there is no room"
        yield from _copies(report, seen, kinds=())
    elif expect.outcome is Outcome.MIRROR:
        yield from _mode(report, "mirror", expect)
        yield from _copies(report, seen, kinds=expect.kinds, alias=expect.alias)
        if set(expect.kinds) >= {"weights", "kv"}:
            yield from _only_local(report)
    else:
        yield from _mode(report, "split", expect)
        yield from _slices(report, seen)


def _works(seen: Observation, twin: Observation | None) -> Iterator[str]:
    if seen.state == "refused" or seen.status != 0:
        yield f"the server ended with {seen.status}{_last_words(seen)}"
    answer = seen.answer()
    if answer is None:
        yield f"there is no answer: {seen.text('answer')[:200] or seen.text('wget').strip() or 'nothing came'}"
        return
    other = twin.answer() if twin is not None and twin.finished else None
    if other is None:
        yield f"without NUMA there was no answer to compare with{_last_words(twin) if twin else ''}"
    elif (answer["content"], answer["tokens"]) != (other["content"], other["tokens"]):
        yield f"it says {answer['content']!r}, and without NUMA {other['content']!r}"
    elif answer["probabilities"] != other["probabilities"]:
        yield "the same text, but the probabilities of its tokens differ from those without NUMA"
    elif not answer["probabilities"]:
        yield "the answer has no probabilities to compare"


def _lacking(expect: Expect, seen: Observation) -> Iterator[str]:
    said = [found for line in seen.text("log").splitlines() if (found := _LACKS.search(line))]
    if not any(int(found[1]) in expect.nodes and int(found[2]) > 0 for found in said):
        where = " or ".join(map(str, expect.nodes))
        yield f"the log does not say in one line that node {where} lacks so many bytes{_last_words(seen)}"


def _mode(report: EngineReport, mode: str, expect: Expect) -> Iterator[str]:
    if report.mode != mode:
        yield f"the mode is {report.mode}, not {mode}"
    used = tuple(node.id for node in report.nodes)
    if used != expect.nodes:
        yield f"the nodes in use are {used}, not {expect.nodes}"


def _copies(
    report: EngineReport, seen: Observation, *, kinds: tuple[str, ...], alias: bool | None = None
) -> Iterator[str]:
    used = tuple(node.id for node in report.nodes)
    for kind in kinds:
        if kind not in report.kinds:
            yield f"there is no buffer of {kind} in the report"
    there: dict[int, int] = {}
    for buffer in report.buffers:
        if kinds and (buffer.kind in kinds) != buffer.mirrored:
            yield f"{_name(buffer)} {'is' if buffer.mirrored else 'is not'} mirrored"
        if not buffer.mirrored:
            continue
        if tuple(copy.node for copy in buffer.copies) != used:
            yield f"{_name(buffer)} has copies for nodes {[copy.node for copy in buffer.copies]}, not {list(used)}"
        if buffer.differs:
            yield f"{_name(buffer)}: {buffer.differs} bytes of its copies differ from it"
        for copy in buffer.copies:
            there[copy.node] = there.get(copy.node, 0) + copy.here * PAGE
            if copy.here != copy.pages or copy.pages * PAGE < buffer.bytes:
                yield (
                    f"{_name(buffer)} for node {copy.node}: {copy.here} of {copy.pages} pages are there"
                    f" ({-(-buffer.bytes // PAGE)} are needed)"
                )
            if alias is False and copy.alias:
                yield f"{_name(buffer)} serves node {copy.node} itself"
    yield from _in_kernel(there, seen)


def _in_kernel(there: Mapping[int, int], seen: Observation) -> Iterator[str]:
    mapped = seen.mapped()
    for node, size in sorted(there.items()):
        if mapped.get(node, 0) < size:
            yield f"numa_maps has {mapped.get(node, 0)} bytes on node {node}, the report {size}"


def _only_local(report: EngineReport) -> Iterator[str]:
    for node in report.nodes:
        if node.remote:
            yield f"node {node.id} read {node.remote} bytes from other nodes, and {node.local} from its own"
    # Each of several tokens reads the weights once, whatever the threads.
    weights = sum(buffer.bytes for buffer in report.buffers if buffer.kind == "weights")
    read = sum(node.local for node in report.nodes)
    if read < weights:
        yield f"the counters know of {read} bytes read, fewer than the weights' {weights}"


def _slices(report: EngineReport, seen: Observation) -> Iterator[str]:
    weights = [buffer for buffer in report.buffers if buffer.kind == "weights"]
    if not weights:
        yield "there is no buffer of weights in the report"
    wanted = placed = 0
    for buffer in weights:
        wanted, placed = wanted + buffer.slices_pages, placed + buffer.slices_here
        if buffer.slices_pages * PAGE < buffer.bytes:
            yield f"{_name(buffer)}: only {buffer.slices_pages} pages were to be placed"
        if buffer.slices_here < SPLIT_SHARE * buffer.slices_pages:
            yield f"{_name(buffer)}: {buffer.slices_here} of {buffer.slices_pages} pages are on their node"
    # The kernel's own view: no node may have much less than its share of what is placed.
    least = SPLIT_SHARE * placed * PAGE / max(1, len(report.nodes))
    yield from _in_kernel({node.id: int(least) for node in report.nodes}, seen)
    local, remote = sum(node.local for node in report.nodes), sum(node.remote for node in report.nodes)
    if wanted and local <= remote:
        yield f"{local} bytes were read locally, {remote} from other nodes"


def _name(buffer: Buffer) -> str:
    return f"the buffer of {buffer.bytes} bytes of {buffer.kind}"


def _last_words(seen: Observation) -> str:
    lines = [line for line in seen.text("log").splitlines() if line.strip()]
    return f"; its last words: {' / '.join(lines[-3:])[-400:]}" if lines else ""
