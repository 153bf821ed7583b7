"""``forkyard stack``: the commands that work on one stack of patches."""

from __future__ import annotations

import click

from forkyard.commands.lazy import LazyGroup

_COMMANDS = {
    "new": "editing:new",
    "edit": "editing:edit",
    "refresh": "editing:refresh",
    "export": "editing:export",
    "import": "editing:import_",
    "from-branch": "adopting:from_branch",
    "lint": "lint:lint",
    "verify": "verify:verify",
}


@click.group(cls=LazyGroup, lazy=_COMMANDS)
def stack() -> None:
    """Make, edit, check and prove stacks of patches."""
