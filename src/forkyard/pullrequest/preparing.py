"""``forkyard pr``: from a stack to a branch, evidence, a checklist and an empty template. Nothing is sent."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forkyard.building import default_jobs
from forkyard.cache import Cache, explained, write_atomic
from forkyard.console import Reporter
from forkyard.errors import EXIT_FINDINGS, UsageError
from forkyard.gitstore import Store
from forkyard.locking import warn_changed
from forkyard.locks import hold
from forkyard.nextsteps import command
from forkyard.plan import origin_of
from forkyard.pullrequest.branch import Prepared, exported_series, prepare_branch
from forkyard.pullrequest.change import Change, read_change
from forkyard.pullrequest.checking import Facts, Item, check_rules
from forkyard.pullrequest.documents import Documents, read_documents
from forkyard.pullrequest.duplicates import searches
from forkyard.pullrequest.evidence import FAIL, Evidence, Ledger, operators, quality, regression, speed
from forkyard.pullrequest.evidence.builds import (
    BACKEND_OPS,
    SIDES,
    TITLES,
    BuildSetting,
    derived_project,
    derived_recipe,
    gather_builds,
)
from forkyard.pullrequest.evidence.inputs import get_inputs
from forkyard.pullrequest.evidence.model import not_run
from forkyard.pullrequest.policy import POLICIES, refuse_prose, without_own_trailers
from forkyard.pullrequest.report import counts, write_facts, write_report
from forkyard.pullrequest.size import measure
from forkyard.pullrequest.workplace import Workplace, place_branch, workplace_path
from forkyard.recipes import Recipe
from forkyard.sources import Obtained, obtain
from forkyard.sources.targets import LATEST, obtain_target, target_recipe
from forkyard.stacks import load_stacks, stack_names
from forkyard.stacks.model import Stack, load_stack
from forkyard.verifying import default_variant
from forkyard.workshop import Workshop


@dataclass(frozen=True)
class Wish:
    """What is to be prepared, and how."""

    stack: str
    engine: str
    patches: tuple[str, ...] = ()
    to: str = LATEST
    source: str | None = None
    offline: bool = False
    quick: bool = False
    build: bool = True
    describe: bool = False
    on_top_of: tuple[str, ...] = ()
    variant: str | None = None
    model: Path | None = None
    out: Path | None = None
    jobs: int | None = None
    use_ccache: bool = True


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    perplexity_chunks: int
    perplexity_rounds: int
    bench_rounds: int
    threads: int = field(default_factory=default_jobs)


# Fewer than 6 pairs give no interval of 95 %, and so could decide nothing.
FULL, QUICK = Effort(32, 2, 9), Effort(4, 1, 6)


def prepare(wish: Wish, shop: Workshop, reporter: Reporter) -> tuple[dict[str, Any], int]:
    """Prepare a pull request.

    Returns:
        the report as a document, and the exit code.

    Raises:
        UsageError: a wish that upstream's policy or the stack forbids.
        PatchError: a patch conflicts at the target.
        ForkyardError: others of its kinds; what was finished before is used again by the next run.
    """
    root, cache = shop.root, shop.cache
    recipe = shop.recipe(wish.engine)
    if recipe.series != recipe.family:
        msg = f"recipe {recipe.name} keeps its patches for another pin than {recipe.family}'s own"
        step = f"name the engine: `{command('pr', wish.stack, recipe.family)}`"
        raise UsageError(msg, why="a pull request is made on what upstream has now", next_step=step)
    warn_changed([recipe], root, reporter)
    if wish.describe:
        refuse_prose(recipe.family)
    stack = load_stack(root, wish.stack)
    out = (wish.out or Path(f"{workplace_path(root, stack.name, recipe.name)}-evidence")).absolute()
    with explained("make the evidence folder"):
        out.mkdir(parents=True, exist_ok=True)
    with hold(
        out / ".lock", waiting=lambda who: reporter.note(f"waiting for another run with this evidence folder ({who})")
    ):
        made = _branch(wish, stack, recipe, shop, reporter)
        place = place_branch(root, recipe.name, made.store, made.prepared)
        evidence = _evidence(wish, stack, made, shop, out, reporter)
        document = _document(wish, made, place, evidence, out, cache)
        if made.documents.template is not None:
            write_atomic(out / Path(made.documents.policy.template).name, made.documents.template)
        if wish.describe:
            own = [without_own_trailers(commit.facts.message) for commit in made.prepared.commits]
            write_facts(out, own, document)
        write_report(out, document)
    failed = any(piece.state == FAIL for piece in evidence)
    failed = failed or any(item["status"] == FAIL for item in document["checklist"])
    return document, EXIT_FINDINGS if failed else 0


@dataclass(frozen=True)
class _Made:
    store: Store
    recipe: Recipe
    target_recipe: Recipe
    target: Obtained
    prepared: Prepared
    tried: Prepared
    """What the evidence is gathered from: the branch, on what its engine cannot be built without."""
    change: Change
    documents: Documents
    known: dict[str, Stack]


def _branch(wish: Wish, stack: Stack, recipe: Recipe, shop: Workshop, reporter: Reporter) -> _Made:
    root, cache = shop.root, shop.cache
    home = obtain(recipe, cache, reporter, offline=wish.offline)
    options: dict[str, Any] = {"source": wish.source, "offline": wish.offline}
    aim = target_recipe(recipe, wish.to, root, cache, reporter, **options)
    target = obtain_target(aim, cache, reporter, **options)
    store = Store(cache.store(recipe.family))
    known = {name: load_stack(root, name) for name in stack_names(root)}
    usual = load_stacks(root, recipe.stacks, recipe.family)
    with (
        hold(cache.locks / f"store-{recipe.family}.lock", waiting=lambda who: reporter.note(f"waiting for {who}")),
        reporter.step(f"carrying {stack.name} over to {target.commit[:12]}"),
    ):
        carry = functools.partial(
            prepare_branch,
            store,
            recipe.family,
            home,
            target,
            stack,
            patches=wish.patches,
            usual=usual,
            known=known,
            on_top_of=wish.on_top_of,
        )
        tried = prepared = carry()
        support = [name for name in recipe.essential if name != stack.name]
        if support and wish.build:
            tried = carry(support=support)
            store.pin_object(tried.tip, f"pr/{tried.tip}")
        store.pin_object(prepared.tip, f"pr/{prepared.tip}")
        change = read_change(store, prepared.below, prepared.tip)
        documents = read_documents(store, target.tree, recipe.family)
    return _Made(store, recipe, aim, target, prepared, tried, change, documents, known)


def _evidence(wish: Wish, stack: Stack, made: _Made, shop: Workshop, out: Path, reporter: Reporter) -> list[Evidence]:
    family = made.recipe.family
    operators_built = (
        POLICIES[family].backend_ops
        and made.store.read_file(made.tried.base_tree, f"tests/{BACKEND_OPS}.cpp") is not None
        and made.store.read_file(made.tried.tree, f"tests/{BACKEND_OPS}.cpp") is not None
    )
    ledger = Ledger(out / "evidence")
    if not wish.build:
        why = "builds were left out (--no-build)"
        titles = {f"build-{side}": TITLES[side] for side in SIDES} | {
            regression.NAME: regression.TITLE,
            operators.NAME: operators.TITLE,
            quality.PERPLEXITY: quality.PERPLEXITY_TITLE,
            speed.NAME: speed.TITLE,
        }
        pieces = [not_run(name, title, why) for name, title in titles.items()]
        if made.change.new_types:
            return [*pieces, not_run(quality.DIVERGENCE, quality.DIVERGENCE_TITLE, why)]
        return [*pieces, quality.gather_divergence({}, why, ledger, reporter, types=(), chunks=0, threads=0)]
    effort = QUICK if wish.quick else FULL
    variant = wish.variant or default_variant(shop.variants, family, shop.toolchain)
    with hold(shop.cache.locks / f"store-{family}.lock"):
        exported = exported_series(made.store, made.tried, made.target)
    series = {name: (made.known[name], one) for name, one in exported.items()}
    beneath = tuple(name for name in series if name != stack.name)
    with derived_project(shop.root, shop.cache, family, series) as project:
        setting = BuildSetting(
            recipe=derived_recipe(made.target_recipe, backend_ops=operators_built, source=wish.source),
            variants=shop.variants,
            variant=variant,
            toolchain=shop.toolchain,
            cache=shop.cache,
            out=out,
            beneath=beneath,
            stacks=tuple(series),
            offline=wish.offline,
            jobs=wish.jobs,
            use_ccache=wish.use_ccache,
        )
        pieces, engines = gather_builds(setting, project, ledger, reporter)
    names = [commit.patch for commit in made.tried.commits]
    pieces.append(
        regression.gather_regression(
            shop.root,
            family,
            stack.about.test,
            names,
            engines,
            ledger,
            reporter,
            whole_stack=len(names) == len(stack.series(family).patches),
        )
    )
    pieces.append(operators.gather_operators(engines, ledger, reporter, wanted=operators_built, quick=wish.quick))
    inputs = get_inputs(shop.root, out, wish.model, offline=wish.offline)
    pieces.append(
        quality.gather_perplexity(
            engines,
            inputs,
            ledger,
            reporter,
            chunks=effort.perplexity_chunks,
            rounds=effort.perplexity_rounds,
            threads=effort.threads,
        )
    )
    pieces.append(
        speed.gather_speed(engines, inputs, ledger, reporter, rounds=effort.bench_rounds, threads=effort.threads)
    )
    pieces.append(
        quality.gather_divergence(
            engines,
            inputs,
            ledger,
            reporter,
            types=made.change.new_types,
            chunks=effort.perplexity_chunks,
            threads=effort.threads,
        )
    )
    return pieces


def _document(
    wish: Wish, made: _Made, place: Workplace, evidence: Sequence[Evidence], out: Path, cache: Cache
) -> dict[str, Any]:
    prepared, policy = made.prepared, POLICIES[made.recipe.family]
    size = measure(made.change, prepared.whole_files)
    found = searches(policy.site, made.change)
    items = check_rules(
        Facts(
            made.recipe.family,
            prepared,
            made.change,
            size,
            {piece.name: piece for piece in evidence},
            made.documents,
            found,
            place.markers,
        )
    )
    document: dict[str, Any] = {
        "stack": prepared.stack,
        "engine": made.recipe.name,
        "submitted": False,
        "prose": policy.prose_why,
        "quick": wish.quick,
        "target": {
            "commit": made.target.commit,
            "tree": made.target.tree,
            "date": made.target.date,
            "asked_for": wish.to,
            "how": f"from {made.target.kind}: {made.target.location}",
            "upstream": origin_of(made.recipe)["location"],
        },
        "branch": {
            **place.as_json(),
            "base": prepared.base,
            "below": prepared.below,
            "tip": prepared.tip,
            "tree": prepared.tree,
            "upstream_commit": not prepared.adrift,
            "commits": [commit.as_json() for commit in prepared.commits],
            "beneath": [commit.as_json() for commit in prepared.beneath],
            "already_upstream": list(prepared.empty),
            "requires": [one.as_json() for one in prepared.requirements],
        },
        "size": size.as_json(),
        "new_types": list(made.change.new_types),
        "new_operators": list(made.change.new_operators),
        "files": [
            {"path": file.path, "status": file.status, "added": len(file.added), "removed": file.removed}
            for file in made.change.files
        ],
        "evidence": [piece.as_json() for piece in evidence],
        "checklist": [item.as_json() for item in items],
        "duplicates": [search.as_json() for search in found],
        "documents": made.documents.as_json(),
        "template": Path(policy.template).name if made.documents.template is not None else None,
        "out": str(out),
        "warnings": _warnings(wish, made, place, items),
        "steps": _steps(made, place),
    }
    return {**document, "counts": counts(document)}


def _warnings(wish: Wish, made: _Made, place: Workplace, items: Sequence[Item]) -> list[str]:
    prepared = made.prepared
    found = []
    if wish.quick:
        found.append("--quick: the measurements are short; what goes upstream is measured without it.")
    if prepared.adrift:
        found.append(
            "The source carried upstream's files but not its commit, so the branch begins at a commit of ours with the"
            " same tree: fetch upstream and `git rebase --onto` its commit before anything else."
        )
    if not place.same_tree:
        found.append("The branch was changed after it was prepared; the evidence is about what was prepared.")
    own = {commit.stack for commit in prepared.beneath}
    if support := dict.fromkeys(commit.stack for commit in made.tried.beneath if commit.stack not in own):
        found.append(
            f"Here the engine cannot be built without {', '.join(support)}: both builds of the evidence have it, the"
            " branch does not."
        )
    if prepared.empty:
        found.append(f"Left out, because upstream has them: {', '.join(prepared.empty)}.")
    stale = [item.rule for item in items if item.stated is False]
    for rule in stale:
        found.append(
            f"The rule {rule.title!r} is no longer stated in these words in {rule.document} of the target:"
            " read that document again."
        )
    return found


def _steps(made: _Made, place: Workplace) -> list[str]:
    prepared, policy = made.prepared, POLICIES[made.recipe.family]
    write = (
        f"Write the message of each commit yourself: `git rebase -i {prepared.stack}-base` with `reword`."
        if not policy.prose
        else f"Read the message of each commit, and reword what is not yours: `git rebase -i {prepared.stack}-base`."
    )
    return [
        "Go through the checklist below: what says FAIL is mended in the stack first, then this command is run again.",
        "Open the searches for duplicates and read what is there.",
        f"In {place.folder}: review every line (`git log -p {prepared.stack}-base..{prepared.stack}`).",
        write + " Take the authorship where it is yours (`git commit --amend --reset-author`).",
        "Run upstream's own CI on your machine: `mkdir -p tmp && bash ci/run.sh ./tmp/results ./tmp/mnt`.",
        f"Fill in the template ({Path(policy.template).name}) in your own words, truthfully about AI usage.",
        "Push the branch to your fork and open the pull request yourself.",
        f"Then set `Upstream-Status: Submitted URL` in the patches of {prepared.stack};"
        " `forkyard pr-status` follows it from there.",
    ]
