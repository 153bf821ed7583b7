"""``forkyard numa-guest``: the stack numa-mirror on machines with several NUMA nodes, which QEMU pretends to be."""

from __future__ import annotations

from pathlib import Path

import click

from forkyard.commands.answering import answers, sources
from forkyard.console import Console
from forkyard.errors import EXIT_FINDINGS, NetworkError, UsageError
from forkyard.guest.answer import as_json, as_text, table, write_reports
from forkyard.guest.cases import SERVERS
from forkyard.guest.image import Parts
from forkyard.guest.machine import qemu_version
from forkyard.guest.packages import get_packages, unpack
from forkyard.guest.proving import Proof, chosen_cases, prove, unpack_payload
from forkyard.network import sha256_of
from forkyard.pullrequest.evidence.inputs import Inputs, get_inputs
from forkyard.recipes import FAMILIES
from forkyard.scratch import owned_folder
from forkyard.workshop import Workshop

VARIANT = "avx2"
"""The best that QEMU's own translation of x86 has (7.2: AVX2, no AVX-512)."""


@click.command()
@click.argument("cases", nargs=-1)
@click.option("--engine", type=click.Choice(FAMILIES), help="Only this engine (default: both).")
@click.option("--list", "listing", is_flag=True, help="List the cases and run none.")
@click.option(
    "--wheel",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help=f"This payload of --engine instead of building {VARIANT}; of a variant without AVX-512.",
)
@click.option("--model", type=click.Path(path_type=Path), help="Another model file than SmolLM2-135M.")
@click.option("--report-dir", type=click.Path(path_type=Path), help="Write report.json and all logs there.")
@click.option("--refresh", is_flag=True, help="Ask apt for newer packages for the guest.")
@sources
@click.option("-j", "--jobs", type=click.IntRange(1), help="Parallel compiles.")
@answers
def numa_guest(
    console: Console,
    cases: tuple[str, ...],
    engine: str | None,
    listing: bool,
    wheel: Path | None,
    model: Path | None,
    report_dir: Path | None,
    refresh: bool,
    source: str | None,
    offline: bool,
    jobs: int | None,
) -> int:
    """Run `--numa mirror` and `--numa split` in QEMU guests with several nodes, and ask their kernel where pages are.

    CASES are names of cases or topologies; none means all. Ends with 12 if something does not hold.
    """
    chosen = chosen_cases(cases)
    if listing:
        rows = [{"case": case.name, "topology": case.topology.name, "title": case.title} for case in chosen]
        console.result({"cases": rows}, table(chosen))
        return 0
    if wheel is not None and engine is None:
        msg = "--wheel is the payload of one engine"
        raise UsageError(msg, next_step="name it with --engine")
    qemu = qemu_version()
    shop = Workshop.open()
    shop.cache.prepare()
    engines = [engine] if engine else [name for name in FAMILIES if name in SERVERS]
    wheels = {engine: wheel} if wheel and engine else _build(shop, engines, console, source, offline, jobs)
    packages = get_packages(shop.cache, console, offline=offline, refresh=refresh)
    proofs = []
    with owned_folder(shop.cache.scratch, "guest-") as scratch:
        inputs = get_inputs(shop.root, scratch, model, offline=offline)
        if not isinstance(inputs, Inputs):
            raise NetworkError(inputs, next_step="name a model file with --model")
        unpack(packages, shop.cache, scratch / "system")
        for name, payload in wheels.items():
            parts = Parts(
                scratch / "system",
                unpack_payload(payload, scratch / name),
                (SERVERS[name].program,),
                scratch / inputs.model,
            )
            proofs.append(
                Proof(name, payload.name, sha256_of(payload), tuple(prove(name, chosen, parts, scratch, console)))
            )
    facts = {
        "qemu": qemu,
        "packages": {package.name: package.version for package in packages},
        "model_sha256": inputs.model_sha256,
    }
    document = as_json(proofs, facts)
    if report_dir is not None:
        write_reports(document, proofs, report_dir)
    console.result(document, as_text(proofs))
    return 0 if document["ok"] else EXIT_FINDINGS


def _build(
    shop: Workshop, engines: list[str], console: Console, source: str | None, offline: bool, jobs: int | None
) -> dict[str, Path]:
    plans, _ = shop.plans(VARIANT, engines)
    built = shop.build(plans, console, source=source, offline=offline, jobs=jobs)
    return {plan.recipe.family: one.wheel for plan, one in zip(plans, built, strict=True)}
