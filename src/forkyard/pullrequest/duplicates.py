"""Where to look for work that is the same: searches of upstream's public site, ready to open. A person looks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from forkyard.pullrequest.change import Change

MOST_SYMBOLS, MOST_FILES = 6, 4


@dataclass(frozen=True)
class Search:
    """One search to open."""

    what: str
    query: str
    url: str

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {"what": self.what, "query": self.query, "url": self.url}


def searches(site: str, change: Change) -> list[Search]:
    """Searches for pull requests and issues by the symbols and files a branch touches."""
    found: list[Search] = []
    for symbol in change.symbols()[:MOST_SYMBOLS]:
        word = symbol.rsplit("::", 1)[-1]
        found += _both(site, f"the symbol {symbol}", word)
    touched = sorted(change.files, key=lambda file: (-(len(file.added) + file.removed), file.path))
    for file in [one for one in touched if one.status != "A"][:MOST_FILES]:
        name = PurePosixPath(file.path).name
        if name != "CMakeLists.txt":
            found += _both(site, f"the file {file.path}", name)
    return list({search.url: search for search in found}.values())


def _both(site: str, what: str, word: str) -> list[Search]:
    pulls, issues = f'is:pr "{word}"', f'is:issue "{word}"'
    return [
        Search(f"pull requests about {what}", pulls, f"{site}/pulls?q={quote(pulls)}"),
        Search(f"issues about {what}", issues, f"{site}/issues?q={quote(issues)}"),
    ]
