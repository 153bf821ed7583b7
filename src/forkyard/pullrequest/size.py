"""How much of a person's time a branch asks for, by upstream's own figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forkyard.pullrequest.change import Change

# llama.cpp's CONTRIBUTING.md: a proper code review takes "something like one hour per 200-400 LOC".
LINES_AN_HOUR = (200, 400)
COMFORTABLE_LINES, COMFORTABLE_FILES = 400, 15
"""Added lines and touched files up to which one sitting is enough."""
MOST_LINES, MOST_FILES = 1000, 30
"""More than these nobody reviews in one piece; the limits are ours, upstream states none."""


@dataclass(frozen=True)
class Size:
    """Lines and files of a branch."""

    added: int
    removed: int
    files: int
    whole_added: int
    """Of the added lines, those in whole files of ours."""
    whole_files: int

    @property
    def hooks_added(self) -> int:
        """Lines added in files that are upstream's."""
        return self.added - self.whole_added

    @property
    def review_hours(self) -> tuple[float, float]:
        """From, to."""
        slow, fast = LINES_AN_HOUR
        return (round(self.added / fast, 2), round(self.added / slow, 2))

    @property
    def comfortable(self) -> bool:
        """Whether one sitting is enough."""
        return self.added <= COMFORTABLE_LINES and self.files <= COMFORTABLE_FILES

    @property
    def reviewable(self) -> bool:
        """Whether it can be reviewed in one piece at all."""
        return self.added <= MOST_LINES and self.files <= MOST_FILES

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "added": self.added,
            "removed": self.removed,
            "files": self.files,
            "added_in_upstream_files": self.hooks_added,
            "added_in_whole_files": self.whole_added,
            "whole_files": self.whole_files,
            "review_hours": list(self.review_hours),
            "limits": {"comfortable": [COMFORTABLE_LINES, COMFORTABLE_FILES], "most": [MOST_LINES, MOST_FILES]},
        }


def measure(change: Change, whole_files: frozenset[str]) -> Size:
    """Count a branch.

    Args:
        whole_files: paths in the tree of whole files of ours.
    """
    whole = [file for file in change.files if file.path in whole_files]
    return Size(
        added=sum(len(file.added) for file in change.files),
        removed=sum(file.removed for file in change.files),
        files=len(change.files),
        whole_added=sum(len(file.added) for file in whole),
        whole_files=len(whole),
    )
