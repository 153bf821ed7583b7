"""Upstream's own documents at the target: its rules in its words, and its template as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from forkyard.gitstore import Store
from forkyard.pullrequest.policy import POLICIES, Policy

NAMES = ("CONTRIBUTING.md", "AGENTS.md", "docs/ops.md", "ci/README.md", ".editorconfig", ".clang-format")


@dataclass(frozen=True)
class Documents:
    """Texts of the target's tree, by path; those it has not are not among them."""

    texts: Mapping[str, str]
    template: bytes | None
    """The pull request template, byte for byte; ``None`` if there is none."""
    policy: Policy

    @cached_property
    def _plain(self) -> dict[str, str]:
        return {path: re.sub(r"\s+", " ", text).lower() for path, text in self.texts.items()}

    def says(self, path: str, words: str) -> bool | None:
        """Whether a document holds some words, whatever its line breaks; ``None`` if there is no such document."""
        text = self._plain.get(path)
        return None if text is None else re.sub(r"\s+", " ", words).lower() in text

    @property
    def has_disclosure(self) -> bool:
        """Whether the template has the line that asks how AI was used."""
        wanted = self.policy.disclosure
        return bool(wanted and self.template and wanted.encode() in self.template)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "documents": sorted(self.texts),
            "template": self.policy.template if self.template is not None else None,
            "disclosure_line": self.has_disclosure,
        }


def read_documents(store: Store, tree: str, family: str) -> Documents:
    """Read what a tree says about pull requests."""
    policy = POLICIES[family]
    texts = {}
    for name in NAMES:
        data = store.read_file(tree, name)
        if data is not None:
            texts[name] = data.decode("utf-8", "replace")
    template = store.read_file(tree, policy.template)
    if template is not None:
        texts[policy.template] = template.decode("utf-8", "replace")
    return Documents(texts, template, policy)
