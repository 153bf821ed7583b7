"""The examples that documents show of the bindings, as programs.

What is not run has a comment above it: ``<!-- not run: why -->``.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"^(<!-- not run: .+ -->\n)?```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
# For an example that opens no model; docs/python-api.md says so.
_OPENED = 'from forkyard_llm import Llama\n\nllm = Llama("model.gguf")\n\n'


@dataclass(frozen=True)
class Example:
    """A program, and where it stands."""

    page: str
    line: int
    text: str
    runs: bool

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.page}:{self.line}"


def examples() -> list[Example]:
    """Those of all documents."""
    found = []
    for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("bindings/**/*.md"), *ROOT.glob("docs/**/*.md")]):
        text = page.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            names = [node for node in ast.walk(ast.parse(match[2])) if isinstance(node, ast.Name)]
            uses = any(name.id == "llm" for name in names)
            opens = any(name.id == "llm" and isinstance(name.ctx, ast.Store) for name in names)
            if not uses and "forkyard_llm" not in match[2]:
                continue
            line = text[: match.start(2)].count("\n") + 1
            program = match[2] if opens or not uses else _OPENED + match[2]
            found.append(Example(str(page.relative_to(ROOT)), line, program, match[1] is None))
    return found
