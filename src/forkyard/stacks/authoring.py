"""A new stack: its description with what a person has to finish marked, and an empty series for each engine."""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tree_sitter_toml
from pydantic import ValidationError
from tree_sitter import Language, Node, Parser

from forkyard.errors import RecipeError, UsageError
from forkyard.journal import Changes
from forkyard.recipes import Recipe, load_recipe, recipe_names
from forkyard.recipes.suggest import did_you_mean
from forkyard.recipes.validation import problems
from forkyard.stacks.model import StackFile, stack_names

NAME = re.compile(r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$")
LONGEST_NAME = 40
ATTRIBUTES = "patches/.gitattributes"
"""Keeps git from converting what lies beside it, whatever ``core.autocrlf`` says."""
# Words that mean something else where a stack may be named.
_RESERVED = ("all", "latest", "none", "worktree")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


@dataclass(frozen=True)
class NewStack:
    """A stack as its author begins it."""

    name: str
    engines: tuple[str, ...]
    title: str
    intent: str
    requires: tuple[str, ...] = ()
    order: int | None = None
    answers: tuple[str, ...] = ()

    def render(self, since: str) -> str:
        """Its stack.toml.

        Args:
            since: the day, ``YYYY-MM-DD``.
        """
        lines = [
            f"title = {_quoted(self.title)}",
            "# To finish: one paragraph. Why does the stack exist, and who misses what without it?",
            f'intent = """\n{_paragraph(self.intent)}\n"""',
            f"engines = {_array(self.engines)}",
            f"requires = {_array(self.requires)}",
            "conflicts = []",
            "# To finish: what the bindings report of a payload with the stack; leave out if nobody would ask.",
            '# capability = "..."',
            "# To finish: headers that declare its own C API, by path in the tree; leave out if it has none.",
            "# headers = []",
            "# To finish: tests that fail without the stack and pass with it.",
            "test = []",
            "# To finish: how its effect is measured.",
            'measure = ""',
            "# To finish: the public work it answers: URLs of issues, pull requests, papers.",
            f"answers = {_array(self.answers)}",
            f"since = {_quoted(since)}",
            *([] if self.order is None else [f"order = {self.order}"]),
        ]
        return "\n".join(lines) + "\n"


def check_name(name: str) -> None:
    """Refuse names that would be read as something else, or not be found again.

    Raises:
        UsageError: it is no name for a stack.
    """
    if not NAME.match(name) or len(name) > LONGEST_NAME:
        msg = f"{name!r} is no name for a stack"
        raise UsageError(
            msg, next_step=f"use up to {LONGEST_NAME} lower case letters and digits, and single hyphens between words"
        )
    if name in _RESERVED:
        msg = f"{name!r} means something else in commands"
        raise UsageError(msg, next_step="choose another name")


def new_stack(
    root: Path, new: NewStack, *, to_recipe: bool = False, recipe: Recipe | None = None, since: str | None = None
) -> Changes:
    """What has to be written for a stack to exist; writes nothing.

    Args:
        to_recipe: also put it into the recipes of its engines.
        recipe: put it into this one alone, which may be anywhere.
        since: the day it began; today if not given.

    Raises:
        UsageError: the name is taken or none, or what it says is not what a stack.toml may say.
        RecipeError: a recipe cannot be added to.
    """
    check_name(new.name)
    folder = root / "patches" / new.name
    if folder.exists():
        msg = (
            f"there is a stack {new.name!r} already" if (folder / "stack.toml").exists() else f"{folder} is in the way"
        )
        raise UsageError(msg, where=str(folder), next_step="choose another name")
    known = stack_names(root)
    for needed in new.requires:
        if needed not in known:
            msg = f"there is no stack {needed!r} to require"
            raise UsageError(msg, next_step=did_you_mean(needed, known))
    text = new.render(since or datetime.datetime.now(datetime.UTC).date().isoformat())
    data = tomllib.loads(text)
    try:
        StackFile.model_validate(data)
    except ValidationError as error:
        first = problems(error, data, StackFile.model_json_schema())[0]
        raise UsageError(first.message, where=".".join(map(str, first.key)), next_step=first.hint) from None
    changes = Changes()
    if not (root / ATTRIBUTES).exists() and not _keeps_bytes(root / ".gitattributes"):
        changes.write(ATTRIBUTES, b"# Every byte of a patch counts: git must not convert line ends here.\n* -text\n")
    changes.write(f"patches/{new.name}/stack.toml", text.encode())
    for engine in new.engines:
        changes.write(f"patches/{new.name}/{engine}/series", b"")
    if to_recipe:
        chosen = [recipe] if recipe is not None else [load_recipe(name, root) for name in recipe_names(root)]
        for path, written in _recipes_with(root, new, chosen).items():
            changes.write(path, written)
    return changes


def _keeps_bytes(attributes: Path) -> bool:
    return attributes.is_file() and "* -text" in attributes.read_text("utf-8", "replace").splitlines()


def _recipes_with(root: Path, new: NewStack, recipes: Sequence[Recipe]) -> dict[str, bytes]:
    found = {}
    for recipe in recipes:
        if recipe.series not in new.engines:
            continue
        missing = [needed for needed in new.requires if needed not in recipe.stacks]
        if missing:
            msg = f"recipe {recipe.name} has no stack {missing[0]!r}, which {new.name!r} requires"
            raise RecipeError(msg, where=str(recipe.path), next_step=f"add {missing[0]!r} to its stacks first")
        # The file itself, where a link leads to it: a link would be replaced by a file.
        path = recipe.path.resolve()
        place = path.relative_to(root.resolve()) if path.is_relative_to(root.resolve()) else path
        found[place.as_posix()] = with_stack(path.read_text(encoding="utf-8"), new.name, str(path)).encode()
    if not found:
        msg = f"no recipe is for {' or '.join(new.engines)}"
        raise RecipeError(msg, where=str(root / "recipes"), next_step="leave --add-to-recipe out")
    return found


def with_stack(text: str, name: str, where: str) -> str:
    """A recipe's text with one more stack at the end of its ``stacks``, everything else left as it is written.

    Raises:
        RecipeError: it has no ``stacks`` array of its own line.
    """
    raw = text.encode("utf-8")
    tree = Parser(Language(tree_sitter_toml.language())).parse(raw)
    array = _stacks_array(tree.root_node)
    if array is None:
        msg = "the recipe has no `stacks`"
        raise RecipeError(msg, where=where, next_step=f'write `stacks = ["{name}"]` above its first table')
    items = [child for child in array.named_children if child.type != "comment"]
    if not items:
        at = array.start_byte + 1
        done = raw[:at] + f'"{name}"'.encode() + raw[at:]
    else:
        end = items[-1].end_byte
        comma = raw[end : end + 1] == b","
        head, rest = raw[:end], raw[end + comma :]
        if items[-1].start_point[0] == array.start_point[0]:
            done = head + f', "{name}"'.encode() + (b"," if comma else b"") + rest
        else:
            # One a line: the new one gets a line of its own, indented like the last, below the last one's comment.
            line, feed, below = rest.partition(b"\n")
            comment = line if line.strip().startswith(b"#") else b""
            rest = feed + below if comment else rest
            indent = b" " * items[-1].start_point[1]
            done = head + b"," + comment + b"\n" + indent + f'"{name}"'.encode() + (b"," if comma else b"") + rest
    written = done.decode("utf-8")
    before, after = tomllib.loads(text)["stacks"], tomllib.loads(written)["stacks"]
    assert after == [*before, name], "the text was not changed as meant"
    return written


def _stacks_array(root: Node) -> Node | None:
    for pair in root.named_children:
        if pair.type != "pair":
            # Tables follow; a key of the top stands above them.
            if pair.type in ("table", "table_array_element"):
                return None
            continue
        key, *values = [child for child in pair.named_children if child.type != "comment"]
        if (key.text or b"").strip(b"\"'") == b"stacks" and values and values[0].type == "array":
            return values[0]
    return None


def _quoted(text: str) -> str:
    return '"' + "".join(_ESCAPES.get(c, c if ord(c) >= 32 and c != "\x7f" else f"\\u{ord(c):04x}") for c in text) + '"'


def _paragraph(text: str) -> str:
    escaped = text.strip().replace("\\", "\\\\").replace('"""', '""\\"').replace("\r", "\\r")
    escaped = "".join(c if c in "\n\t" or (ord(c) >= 32 and c != "\x7f") else f"\\u{ord(c):04x}" for c in escaped)
    return escaped[:-1] + '\\"' if escaped.endswith('"') and not escaped.endswith('\\"') else escaped


def _array(items: Sequence[str]) -> str:
    return "[" + ", ".join(map(_quoted, items)) + "]"
