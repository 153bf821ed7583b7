"""A group of commands that imports one only when it is called: a build with nothing to do must not read a linter."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import click


class LazyGroup(click.Group):
    """A group some of whose commands are named by where they are: ``module:attribute`` below this package.

    Args:
        lazy: command name -> where it is.
    """

    def __init__(self, *args: object, lazy: Mapping[str, str] | None = None, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, those not imported among them."""
        return sorted({*super().list_commands(ctx), *self._lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, imported if need be."""
        if cmd_name not in self._lazy:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self._lazy[cmd_name].partition(":")
        found = getattr(importlib.import_module(f"{__package__}.{module}"), attribute)
        assert isinstance(found, click.Command)
        return found
