"""What was asked for and what became of it: the facts every report is made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from forkyard.adopting.base import Base
from forkyard.adopting.dropping import Reduced, Twins
from forkyard.adopting.fork import Location
from forkyard.adopting.linearising import OwnCommits
from forkyard.adopting.series import Draft, Settled
from forkyard.gitstore.history import CommitFacts
from forkyard.recipes import Recipe
from forkyard.sources import Obtained

WRITTEN, PARTLY, CONFLICTS, NOTHING, DRY = "written", "written in part", "conflicts", "nothing left", "not written"


@dataclass(frozen=True)
class Wish:
    """What is asked for."""

    repository: str
    branch: str
    engine: str
    name: str | None = None
    recipe: str | None = None
    base: str | None = None
    upstream: str | None = None
    squash: bool = False
    partial: bool = False
    note_origin: bool = False
    add_to_recipe: bool = False
    dry_run: bool = False
    offline: bool = False


@dataclass(frozen=True)
class Adoption:
    """What became of a fork."""

    wish: Wish
    root: Path
    """The project."""
    name: str
    recipe: Recipe
    pin: Obtained
    location: Location
    tip: CommitFacts
    shallow: bool
    base: Base
    own: OwnCommits
    twins: Twins
    reduced: Reduced
    drafts: tuple[Draft, ...]
    settled: tuple[Settled, ...]
    home: str
    """The commit the stack's first patch is made on: the pin, with what is applied before the stack."""
    state: str
    patches: tuple[str, ...] = ()
    """File name of each settled draft that is not gone, in order."""
    ready: int = 0
    """So many of them, from the first, have nothing to decide and were exported."""
    written: tuple[str, ...] = ()
    folder: Path | None = None
    """What is kept for a person to go on with."""
    notes: tuple[str, ...] = ()

    @property
    def staying(self) -> tuple[Settled, ...]:
        """Drafts of which something is left at home."""
        return tuple(one for one in self.settled if not one.gone)

    @property
    def conflicts(self) -> tuple[Settled, ...]:
        """Those a person has to look at."""
        return tuple(one for one in self.settled if not one.clean)
