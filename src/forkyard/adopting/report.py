"""What became of a fork, as a document, as Markdown, and as text for a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from forkyard.adopting.keeping import FORK_BASE, PIN, fork_behind, mail_width
from forkyard.adopting.linearising import Clash
from forkyard.adopting.outcome import CONFLICTS, DRY, NOTHING, PARTLY, WRITTEN, Adoption
from forkyard.adopting.series import MERGES, Settled, patch_names
from forkyard.gitstore.history import CommitFacts
from forkyard.nextsteps import command
from forkyard.stacks.editing import place_of
from forkyard.stacks.importing import recipe_option


def document(done: Adoption) -> dict[str, Any]:
    """The whole result for machines."""
    base, pin = done.base, done.pin
    return {
        "state": done.state,
        "stack": done.name,
        "engine": done.recipe.family,
        "recipe": done.recipe.name,
        "fork": {
            "repository": done.location.shown,
            "branch": done.wish.branch,
            "commit": done.tip.commit,
            "tree": done.tip.tree,
            "shallow": done.shallow,
            "behind": fork_behind(done.location.folder),
        },
        "base": {
            "commit": base.commit,
            "tree": base.tree,
            "date": base.date,
            "found_by": base.how,
            "pin_is": {"newer": "older", "older": "newer"}.get(base.pin, base.pin),
            "upstream_commits_between": base.distance,
            "other_upstream_commits": list(base.others),
        },
        "pin": {"commit": pin.commit, "tree": pin.tree, "date": pin.date},
        "patches": _patches(done),
        "dropped": _dropped(done),
        "merges": [_commit(one) for one in done.own.merges],
        "ready": done.ready,
        "written": list(done.written),
        "folder": str(done.folder) if done.folder else None,
        "notes": notes(done),
        "to_do": to_do(done),
        "next": next_steps(done),
    }


def _commit(one: CommitFacts) -> dict[str, Any]:
    author = one.author
    return {
        "commit": one.commit,
        "subject": _shown(one.subject),
        "author": _shown(f"{author.name} <{author.email}>"),
        "date": author.date,
    }


def _shown(text: str) -> str:
    """Text that can be printed and written as UTF-8, whatever bytes it was made of."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _patches(done: Adoption) -> list[dict[str, Any]]:
    names = iter(done.patches)
    mails = patch_names([draft.letter for draft in done.drafts])
    width = mail_width(len(mails))
    kept_pairs = {commit for pair in done.reduced.kept_pairs for commit in pair}
    found = []
    for number, one in enumerate(done.settled, start=1):
        if one.gone:
            continue
        draft, name = one.draft, next(names)
        found.append(
            {
                "patch": name,
                "mail": f"mails/{number:0{width}}-{mails[number - 1]}" if done.folder else None,
                "subject": _shown(draft.letter.message.split("\n", 1)[0]),
                "author": f"{draft.letter.author.name} <{draft.letter.author.email}>",
                "date": draft.letter.author.date,
                "origin": draft.origin.commit if draft.origin else None,
                "made_of": draft.made_of or "commit",
                "status": "clean" if one.clean else "conflict",
                "conflicts": [_clash(clash) for clash in one.clashes],
                "merged_with_conflicts": [_clash(clash) for clash in draft.clashes],
                "same_as_upstream": draft.upstream,
                "takes_back_upstream": draft.against,
                "taken_back_later_or_earlier": bool(draft.origin and draft.origin.commit in kept_pairs),
                "notes": list(draft.letter.notes),
            }
        )
    return found


def _clash(clash: Clash) -> dict[str, Any]:
    return {
        "path": _shown(clash.path),
        "kind": clash.kind,
        "lines": list(clash.hunks),
        "message": _shown(clash.message),
    }


def _dropped(done: Adoption) -> list[dict[str, Any]]:
    """The fork's commits of which no patch was made, in the order they are in the fork."""
    reduced = done.reduced
    why: dict[str, str] = {one: f"upstream as {theirs}" for one, theirs in reduced.upstream.items()}
    for first, second in reduced.pairs:
        why[first], why[second] = f"taken back by {second}", f"takes back {first}"
    for link in reduced.line.empty:
        lost = f"; it disagrees with what it was merged into in {link.clashes[0].path}" if link.clashes else ""
        why[link.commit.commit] = f"nothing of it is left on the base: upstream has it, or it changes nothing{lost}"
    for one in done.settled:
        if one.gone and one.draft.origin is not None:
            why[one.draft.origin.commit] = one.gone
    return [{**_commit(one), "why": why[one.commit]} for one in done.own.plain if one.commit in why]


def notes(done: Adoption) -> list[str]:
    """What a person should know beyond the single patches."""
    base, found = done.base, list[str]()
    if base.pin == "newer":
        found.append(
            f"the fork contains {base.distance} upstream commits that are newer than the pin: "
            "its patches were carried back"
        )
    elif base.pin == "older":
        found.append(f"the fork is {base.distance} upstream commits behind the pin")
    elif base.pin == "unknown":
        found.append(
            f"how the fork's base {base.commit[:12]} of {base.date} lies to the pin of {done.pin.date}"
            " is not known here"
        )
    if base.others:
        others = ", ".join(one[:12] for one in base.others)
        found.append(
            f"the fork also contains upstream commits its base does not ({others}): they are among the patches"
        )
    if base.hint is not None:
        found.append(base.hint)
    if done.shallow:
        found.append("the fork's history is cut off (a shallow clone): commits before the cut are not known")
    for first, second in done.reduced.kept_pairs:
        found.append(f"{second[:12]} takes back {first[:12]}, but what is between them builds on it: both were kept")
    rest = next((one for one in done.settled if one.gone and one.draft.made_of == MERGES), None)
    if rest is not None:
        found.append("what the fork's merges decided is what the pin has")
    return [*found, *done.notes]


def to_do(done: Adoption) -> list[str]:
    """What only a person can do."""
    if not done.staying:
        return []
    found = [
        f"patches/{done.name}/stack.toml: write title, intent, capability, test and measure",
        "every patch: end its message with `Retire-When:` and the condition under which upstream makes it needless",
        "make sure that you may publish every patch: it is yours, or its author's licence allows it",
    ]
    for one, name in zip(done.staying, done.patches, strict=True):
        if one.draft.made_of == MERGES:
            found.append(f"{name}: distribute over the patches it belongs to, it holds what merges decided")
        elif one.draft.clashes:
            paths = ", ".join(sorted({_shown(clash.path) for clash in one.draft.clashes}))
            found.append(
                f"{name}: it was merged with conflicts in {paths}; between it and the merges' patch "
                "the series may not build"
            )
        found += [f"{name}: {note}" for note in one.draft.letter.notes]
    return found


def next_steps(done: Adoption) -> list[str]:
    """Lines to paste, in order; those that begin with ``#`` are for the person."""
    name, wish = done.name, done.wish
    chosen = {"engine": done.recipe.family, "recipe": recipe_option(done.root, done.recipe)}
    lock = [command("lock", done.recipe.word)] if wish.add_to_recipe and done.written else []
    edit = command("stack", "edit", name, **chosen)
    if done.state == WRITTEN:
        return [edit, command("stack", "lint", name), *lock]
    if done.state == DRY:
        return [_without_dry_run(done, chosen)]
    if done.folder is None:
        return [_without_dry_run(done, chosen)] if wish.dry_run and done.conflicts else []
    place = done.folder / "repo"
    if done.state == CONFLICTS:
        again = {**chosen, "name": name, "add_to_recipe": wish.add_to_recipe, "offline": wish.offline}
        return [
            f"cd {shlex.quote(str(place))} && git rebase --onto {PIN} {FORK_BASE} {name}",
            "# resolve each conflict, git add the files, git rebase --continue",
            command("stack", "from-branch", place, name, base=done.home, **again),
        ]
    if done.state == PARTLY:
        left = len(done.settled) - _position(done)
        folder = place_of(done.root, name, done.recipe.series)
        return [
            edit,
            f"cd {shlex.quote(str(folder))} && git fetch {shlex.quote(str(place))} {name}"
            f" && git cherry-pick FETCH_HEAD~{left}..FETCH_HEAD",
            "# resolve each conflict, git add the files, git cherry-pick --continue",
            command("stack", "refresh", name, **chosen),
            *lock,
        ]
    return []


def _without_dry_run(done: Adoption, chosen: dict[str, str | None]) -> str:
    wish, place = done.wish, done.location
    upstream = wish.upstream
    if upstream is not None and Path(upstream).expanduser().exists():
        upstream = str(Path(upstream).expanduser().absolute())
    return command(
        "stack",
        "from-branch",
        place.shown,
        wish.branch,
        **chosen,
        name=done.name,
        base=wish.base,
        upstream=upstream,
        squash=wish.squash,
        partial=wish.partial,
        note_origin=wish.note_origin,
        add_to_recipe=wish.add_to_recipe,
        offline=wish.offline,
    )


def _position(done: Adoption) -> int:
    """How many drafts come before the first one that clashes."""
    return next(number for number, one in enumerate(done.settled) if not one.clean)


def markdown(done: Adoption) -> str:
    """The report for people to keep."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("forkyard.adopting"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - the output is Markdown
    )
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    return environment.get_template("report.md.j2").render(document(done))


def text(done: Adoption) -> str:
    """The report for a terminal."""
    base = done.base
    lines = [
        f"{done.wish.branch} at {done.tip.commit[:12]}, on {done.recipe.name} {base.commit[:12]} of {base.date}"
        f" ({base.how})",
        f"{len(done.own.plain)} commits and {len(done.own.merges)} merges of its own:"
        f" {len(done.staying)} patches, {len(_dropped(done))} dropped",
        "",
    ]
    for one, name in sorted(zip(done.staying, done.patches, strict=True), key=lambda pair: pair[0].clean):
        lines.append(f"  {'clean' if one.clean else 'CONFLICT':<9} {name}{_flags(one)}")
        lines += [f"            {_clash_text(clash)}" for clash in one.clashes]
    lines += [f"  dropped   {one['commit'][:12]} {one['subject']}: {one['why']}" for one in _dropped(done)]
    lines += _section("notes", notes(done))
    if done.state == NOTHING:
        lines += ["", "nothing of the branch is left to make a stack of"]
    elif done.written:
        lines += ["", f"written: patches/{done.name} ({done.ready} patches)"]
    else:
        lines += ["", "nothing was written to patches/"]
    if done.folder is not None:
        lines.append(f"kept:    {done.folder} (the series on its base, a repository, report.md)")
    if done.state in (WRITTEN, PARTLY):
        lines += _section("to do", to_do(done))
    lines += _section("next", next_steps(done))
    return "\n".join(lines)


def _flags(one: Settled) -> str:
    words = []
    if one.draft.made_of == MERGES:
        words.append("what merges decided, distribute it")
    if one.draft.clashes:
        words.append("merged with conflicts in the fork")
    if one.draft.upstream:
        words.append(f"upstream has it as {one.draft.upstream[:12]}, after the pin")
    if one.draft.against:
        words.append(f"takes back upstream's {one.draft.against[:12]}")
    return f"  ({'; '.join(words)})" if words else ""


def _clash_text(clash: Clash) -> str:
    where = f" line {', '.join(clash.hunks)}" if clash.hunks else ""
    return f"{_shown(clash.path)}{where}: {clash.kind}"


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", f"{title}:", *(f"  {line}" for line in lines)] if lines else []
