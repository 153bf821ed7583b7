"""Every failure forkyard explains to a person, and the exit code each kind ends with.

An error says what happened, where, why, and what to do next. The command line maps the class to its
documented exit code in one place; library users catch :class:`ForkyardError` or a subclass.
"""

from __future__ import annotations

from typing import ClassVar


class ForkyardError(Exception):
    """Base of all errors a user can act on.

    Args:
        what: what happened, one sentence, no trailing full stop needed.
        where: file (and line), command, or URL it happened at.
        why: the cause as far as it is known.
        next_step: what the reader can do now.
    """

    exit_code: ClassVar[int] = 1
    kind: ClassVar[str] = "error"

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        why: str | None = None,
        next_step: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.why = why
        self.next_step = next_step
        super().__init__(self.describe())

    def describe(self) -> str:
        """The message as a person reads it: several lines, most important first."""
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.why:
            lines.append(f"  why:   {self.why}")
        if self.next_step:
            lines.append(f"  next:  {self.next_step}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, str | int | None]:
        """The same facts for machines (``--json``)."""
        return {
            "error": self.kind,
            "exit_code": self.exit_code,
            "what": self.what,
            "where": self.where,
            "why": self.why,
            "next": self.next_step,
        }


class UsageError(ForkyardError):
    """A command line or API call that cannot mean anything."""

    exit_code = 2
    kind = "usage"


class RecipeError(ForkyardError):
    """A recipe, variants file, stack description or lock that does not say what it must."""

    exit_code = 3
    kind = "recipe"


class SourceError(ForkyardError):
    """What arrived from a source is not what the pin says."""

    exit_code = 4
    kind = "source"


class NetworkError(ForkyardError):
    """A source could not be reached, or answered something useless."""

    exit_code = 5
    kind = "network"


class PatchError(ForkyardError):
    """A patch does not apply exactly, or is not a well-formed patch."""

    exit_code = 6
    kind = "patch"


class ToolchainError(ForkyardError):
    """A compiler or tool the build needs is missing or does not work."""

    exit_code = 7
    kind = "toolchain"


class GateError(ForkyardError):
    """A finished wheel failed one of the gates; it is not put into ``dist/``."""

    exit_code = 8
    kind = "gate"


class BuildError(ForkyardError):
    """Configuring, compiling, linking or packing failed."""

    exit_code = 9
    kind = "build"


class StorageError(ForkyardError):
    """The cache or output folder cannot be written: disk full, read-only, no permission."""

    exit_code = 10
    kind = "storage"


class BusyError(ForkyardError):
    """Another forkyard holds a lock for longer than the caller was willing to wait."""

    exit_code = 11
    kind = "busy"


EXIT_FINDINGS = 12
"""Exit code when a check of stacks (lint, verify, canary) ran to its end and found something."""

EXIT_CONFLICTS = 13
"""Exit code when a rebase waits for a person to resolve conflicts."""

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells use it."""
