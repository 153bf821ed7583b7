"""What an upstream allows a tool to do, and the words its tree keeps them in: data, an entry an engine family."""

from __future__ import annotations

from dataclasses import dataclass

from forkyard.errors import UsageError

MARKER = "[write this message yourself]"
"""How the message of a commit begins that a person must write."""
OWN_TRAILERS = ("Upstream-Status", "Retire-When", "Adds-Files")
"""Trailers that mean something to forkyard alone and never go upstream."""


@dataclass(frozen=True)
class Policy:
    """What may be prepared for one upstream."""

    site: str
    """The upstream's project on its public site."""
    prose: bool
    """Whether a text of ours may be part of what a person submits."""
    prose_why: str
    template: str = ".github/pull_request_template.md"
    disclosure: str | None = None
    """What the line of the template contains that asks how AI was used; ``None`` if upstream has no such line."""
    backend_ops: bool = False
    """Whether test-backend-ops is built and run here."""


POLICIES: dict[str, Policy] = {
    "llama.cpp": Policy(
        site="https://github.com/ggml-org/llama.cpp",
        prose=False,
        prose_why="llama.cpp's CONTRIBUTING.md and AGENTS.md forbid descriptions, commit messages and replies that a"
        " tool or model wrote; breaking this closes the pull request and can ban its author",
        disclosure="AI usage disclosure",
        backend_ops=True,
    ),
    "ik_llama.cpp": Policy(
        site="https://github.com/ikawrakow/ik_llama.cpp",
        prose=True,
        prose_why="ik_llama.cpp has no rule about who words a pull request; the text holds the patches' own messages",
    ),
}


def refuse_prose(family: str) -> None:
    """Refuse to write a description for an upstream that does not take one from a tool.

    Raises:
        UsageError: it does not.
    """
    policy = POLICIES[family]
    if not policy.prose:
        msg = f"forkyard writes no description for {family}"
        raise UsageError(
            msg,
            why=policy.prose_why,
            next_step="run it without --describe: upstream's empty template, the evidence and the checklist are"
            " prepared, and a named person writes the text",
        )


def without_own_trailers(message: str) -> str:
    """A commit message less the trailers that are forkyard's own."""
    lines = message.rstrip("\n").split("\n")
    start = len(lines)
    while start > 1 and lines[start - 1].strip():
        start -= 1
    kept = [line for line in lines[start:] if not line.startswith(tuple(f"{name}: " for name in OWN_TRAILERS))]
    return "\n".join([*lines[:start], *kept]).rstrip("\n") + "\n"


def branch_message(family: str, name: str, message: str) -> str:
    """The message of a patch's commit on a branch for upstream.

    Args:
        name: the patch's file name.
        message: the message of the patch itself.
    """
    if POLICIES[family].prose:
        return without_own_trailers(message)
    return f"{MARKER} {name.removesuffix('.patch')}\n"
