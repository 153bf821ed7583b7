"""What the patches say of their pull requests, what upstream says, and writing the difference back into a patch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forkyard.cache import Cache
from forkyard.console import Reporter
from forkyard.errors import EXIT_FINDINGS, PatchError, RecipeError
from forkyard.gitstore import Store
from forkyard.gitstore.history import CommitFacts
from forkyard.journal import Changes, commit_changes, finish_changes, project_lock, recover
from forkyard.locks import hold
from forkyard.nextsteps import command
from forkyard.pullrequest.states import DEFAULT_API, Reader, State, Unreadable
from forkyard.recipes import Recipe, load_recipe, recipe_names
from forkyard.sources import obtain
from forkyard.stacks import load_stacks, stack_names
from forkyard.stacks.applying import apply_stacks, base_commit
from forkyard.stacks.combining import home_of
from forkyard.stacks.exporting import export_commits
from forkyard.stacks.importing import recipe_option
from forkyard.stacks.model import Stack, load_stack

_STATUS = re.compile(rb"^Upstream-Status: (.*)$", re.MULTILINE)
_SUBMITTED = re.compile(r"^Submitted (\S+)$")


@dataclass(frozen=True)
class _Submitted:
    stack: Stack
    engine: str
    patch: str
    url: str


def upstream_status(data: bytes) -> str | None:
    """The Upstream-Status of a patch file, read without git; ``None`` if it has none."""
    message = re.split(rb"^(?:---$|diff --git )", data, maxsplit=1, flags=re.MULTILINE)[0]
    found = _STATUS.findall(message)
    return found[-1].decode("utf-8", "replace").strip() if found else None


def becomes(state: State) -> str:
    """What the trailer of a submitted patch should say."""
    if state.state == "merged":
        return f"Accepted {state.merge_commit}"
    return f"Denied {state.url}" if state.state == "closed" else f"Submitted {state.url}"


def read_statuses(
    root: Path, name: str | None, api: str, reporter: Reporter, *, write: bool = False
) -> tuple[dict[str, Any], int]:
    """Ask for every pull request that patches name as theirs, and for what the stacks answer.

    Args:
        name: of one stack; ``None`` for all.
        api: see :class:`forkyard.pullrequest.states.Reader`.
        write: put what has changed into the patches.

    Returns:
        the answer as a document, and the exit code.

    Raises:
        NetworkError: the API cannot be reached, refuses, or answers something useless. Nothing is written then.
        RecipeError: there is no such stack.
    """
    recover(root, reporter)
    stacks = [load_stack(root, one) for one in ([name] if name else stack_names(root))]
    submitted = _submitted(stacks)
    links = [(stack, url) for stack in stacks for url in stack.about.answers]
    reader = Reader(api)
    known: dict[str, State | str] = {}
    urls = list(dict.fromkeys([*(one.url for one in submitted), *(url for _, url in links)]))
    with reporter.step("reading states", "pages") as step:
        for number, url in enumerate(urls):
            step.update(number, len(urls), url)
            try:
                known[url] = reader.read(url)
            except Unreadable as problem:
                known[url] = str(problem)
    rows = [_row(one, known[one.url]) for one in submitted]
    if write:
        _write(root, submitted, rows, reporter)
    answered = [{"stack": stack.name, **_facts(url, known[url])} for stack, url in links]
    unread = any(row["problem"] for row in rows)
    document = {
        "patches": rows,
        "answers": answered,
        "api": DEFAULT_API if api == DEFAULT_API else "another",
        "written": sorted({f"{row['stack']}/{row['engine']}/{row['patch']}" for row in rows if row["written"]}),
    }
    return document, EXIT_FINDINGS if unread else 0


def _submitted(stacks: list[Stack]) -> list[_Submitted]:
    found = []
    for stack in stacks:
        for engine in stack.about.engines:
            for patch in stack.series(engine).patches:
                match = _SUBMITTED.match(upstream_status(patch.data) or "")
                if match is not None:
                    found.append(_Submitted(stack, engine, patch.name, match[1]))
    return found


def _facts(url: str, state: State | str) -> dict[str, Any]:
    if isinstance(state, str):
        return {"url": url, "state": None, "problem": state}
    return {"url": url, "state": state.state, "problem": None}


def _row(one: _Submitted, state: State | str) -> dict[str, Any]:
    now = f"Submitted {one.url}"
    suggested = becomes(state) if isinstance(state, State) else None
    return {
        "stack": one.stack.name,
        "engine": one.engine,
        "patch": one.patch,
        **_facts(one.url, state),
        "merge_commit": state.merge_commit if isinstance(state, State) else None,
        "status": now,
        "should_be": suggested,
        "changes": suggested is not None and suggested != now,
        "written": False,
    }


def _write(root: Path, submitted: list[_Submitted], rows: list[dict[str, Any]], reporter: Reporter) -> None:
    cache = Cache.default()
    with project_lock(root, waiting=lambda who: reporter.note(f"waiting for another change of the project ({who})")):
        finish_changes(root, reporter)
        changes = Changes()
        for stack, engine in dict.fromkeys((one.stack, one.engine) for one in submitted):
            new = {
                row["patch"]: (row["status"], row["should_be"])
                for row in rows
                if (row["stack"], row["engine"]) == (stack.name, engine) and row["changes"]
            }
            if not new:
                continue
            for name, data in _rewritten(root, cache, stack, engine, new, reporter).items():
                changes.write(f"patches/{stack.name}/{engine}/{name}", data)
        commit_changes(root, changes)
    for row in rows:
        row["written"] = row["changes"]


def _rewritten(
    root: Path, cache: Cache, stack: Stack, engine: str, new: Mapping[str, tuple[str, str]], reporter: Reporter
) -> dict[str, bytes]:
    """The patches with another trailer, exported again from their place; nothing else of them may differ.

    Args:
        new: patch name -> the status it has, and the one it gets.

    Raises:
        PatchError: the series is not exact, has changed meanwhile, or more than a trailer would change.
    """
    recipe = _recipe_of(root, engine)
    home = obtain(recipe, cache, reporter)
    store = Store(cache.store(recipe.family))
    usual = load_stacks(root, recipe.stacks, engine)
    known = [load_stack(root, name) for name in stack_names(root)]
    known.sort(key=lambda one: (one.about.order, one.name))
    with hold(cache.locks / f"store-{recipe.family}.lock"):
        before = home_of(stack, usual, known)
        patched = apply_stacks(store, engine, home.commit, home.date, home.tree, [*before, stack])
        first = next(number for number, one in enumerate(patched.patches) if one.stack == stack.name)
        base = base_commit(store, engine, home.commit, home.date, home.tree)
        parent = patched.patches[first - 1].commit if first else base
        commits, names, start = [], [], parent
        data = {patch.name: patch.data for patch in stack.series(engine).patches}
        for one in patched.patches[first:]:
            author, raw, _ = store.mail_info(data[one.name])
            message = raw.decode("utf-8", "surrogateescape")
            if one.name in new:
                message = _with_status(message, *new[one.name], f"{stack.name}/{one.name}")
            commits.append(CommitFacts(one.commit, one.tree, (start,), author, message))
            names.append(one.name)
            start = one.commit
        exported = export_commits(store, parent, commits, names, whole_files=False)
    found = {}
    for patch in exported.patches:
        old, status = new.get(patch.name, ("", ""))
        wanted = data[patch.name].replace(_line(old), _line(status)) if old else data[patch.name]
        if patch.data != wanted:
            msg = f"{stack.name}/{patch.name} would change by more than its trailer"
            named = {"engine": recipe.family, "recipe": recipe_option(root, recipe)}
            again = command("stack", "export", stack.name, **named)
            raise PatchError(msg, next_step=f"write the stack anew first: `{again}`")
        if patch.data != data[patch.name]:
            found[patch.name] = patch.data
    return found


def _with_status(message: str, old: str, new: str, where: str) -> str:
    before, after = _line(old).decode(), _line(new).decode()
    if message.count(before) != 1:
        msg = f"{where} does not say `Upstream-Status: {old}` any more"
        raise PatchError(msg, next_step="run it again")
    return message.replace(before, after)


def _line(status: str) -> bytes:
    return f"\nUpstream-Status: {status}\n".encode()


def _recipe_of(root: Path, engine: str) -> Recipe:
    for name in recipe_names(root):
        recipe = load_recipe(name, root, stacks=stack_names(root))
        if recipe.series == engine:
            return recipe
    msg = f"no recipe of the project builds {engine}"
    raise RecipeError(msg, where=str(root / "recipes"))


def status_text(document: dict[str, Any]) -> str:
    """The answer for the terminal."""
    lines = []
    for row in document["patches"]:
        where = f"{row['stack']}/{row['engine']}/{row['patch']}"
        if row["problem"]:
            lines.append(f"{where}: {row['url']}: {row['problem']}")
        elif row["written"]:
            lines.append(f"{where}: {row['state']}; now says `Upstream-Status: {row['should_be']}`")
        elif row["changes"]:
            lines.append(f"{where}: {row['state']}; should say `Upstream-Status: {row['should_be']}` (--write does it)")
        else:
            lines.append(f"{where}: {row['state']}, as its patch says")
    if not document["patches"]:
        lines.append("no patch says `Upstream-Status: Submitted URL`")
    if document["answers"]:
        lines += ["", "what the stacks answer"]
        lines += [f"  {one['stack']}: {one['url']}: {one['problem'] or one['state']}" for one in document["answers"]]
    if document["written"]:
        lines += ["", "patches have changed: run `forkyard lock`"]
    return "\n".join(lines)
