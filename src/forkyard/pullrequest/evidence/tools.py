"""Running one tool of a built engine in the evidence folder, its output in a log there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from forkyard.cache import explained
from forkyard.errors import BuildError, ToolchainError
from forkyard.process import clean_environment, show, stream
from forkyard.pullrequest.evidence.builds import Engine

TOOL_TIMEOUT_S = 3600.0
QUIET_ABORT = {"GGML_NO_BACKTRACE": "1"}
"""An engine that aborts would fork a child to print a backtrace; two threads that abort at once leave children that
wait for each other for ever, and the engine waits for them."""


@dataclass
class Ran:
    """What tools said, all of one piece of evidence."""

    out: Path
    commands: list[str] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Wall time since the first of them could start."""
        return time.perf_counter() - self.started

    def run(
        self,
        engine: Engine,
        tool: str,
        arguments: Sequence[str],
        log: str,
        *,
        on_line: Callable[[str], None] | None = None,
        timeout_s: float = TOOL_TIMEOUT_S,
    ) -> Outcome:
        """Run ``tool`` of an engine; its log is begun anew when this is the first command to write to it.

        Paths are given relative to the evidence folder, so that the shown command says nothing of this machine.
        """
        program = engine.tool(tool).relative_to(self.out).as_posix()
        return self.command([program, *arguments], log, on_line=on_line, timeout_s=timeout_s)

    def command(
        self,
        command: Sequence[str],
        log: str,
        *,
        on_line: Callable[[str], None] | None = None,
        timeout_s: float = TOOL_TIMEOUT_S,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        shown: str | None = None,
    ) -> Outcome:
        """Run any command, as :meth:`run` does.

        Args:
            shown: what to show instead of the command, where it holds paths of this machine.
        """
        path = self.out / "logs" / log
        name = path.relative_to(self.out).as_posix()
        if name not in self.logs:
            self.logs.append(name)
            with explained("begin a log"):
                path.unlink(missing_ok=True)
        text = shown or show(command)
        if text not in self.commands:
            self.commands.append(text)
        lines: list[str] = []

        def listen(line: str) -> None:
            lines.append(line)
            if on_line is not None:
                on_line(line)

        try:
            status = stream(
                command,
                log=path,
                on_line=listen,
                timeout_s=timeout_s,
                cwd=cwd or self.out,
                env=env or clean_environment(extra=QUIET_ABORT),
            )
        except (BuildError, ToolchainError) as error:
            return Outcome(None, lines, error.what)
        why = "" if status == 0 else f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        return Outcome(status, lines, why)


@dataclass(frozen=True)
class Outcome:
    """How one command ended."""

    status: int | None
    """Exit status; ``None`` if it could not start or did not end in time."""
    lines: list[str]
    why: str
    """What is wrong; empty if nothing is."""
