"""Keep what a scenario with a table of its own measures: its samples as they come, and its table at the end."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .records import Arm, RunInfo, Sample
from .running import Measured
from .store import Store

__all__ = ["Keeping", "kept"]


class Keeping:
    """One run in a store, or nowhere."""

    def __init__(self, info: RunInfo, store: Store | None) -> None:
        self._info, self._store = info, store

    def take(self, samples: Sequence[Sample]) -> None:
        """Samples, on the disk when this returns."""
        if self._store is not None:
            self._store.add(self._info.id, samples)

    def end(
        self,
        measured: Measured,
        table: str,
        *,
        facts: Mapping[str, Any],
        remarks: Sequence[str],
        failed: Mapping[str, str] | None = None,
    ) -> None:
        """What is known of the run now that it is over.

        Args:
            table: for people, as `results show` prints it.
            facts: as :attr:`forkyard_llm.measuring.records.RunInfo.facts`.
            remarks: as :attr:`forkyard_llm.measuring.records.RunInfo.remarks`, for reports, which have no such table.
            failed: arm -> why it could not be measured (default: as `measured` has it).
        """
        if self._store is None:
            return
        for arm, why in (measured.failed if failed is None else failed).items():
            self._store.fail(self._info.id, arm, why)
        facts = {**facts, "table": table}
        info = replace(self._info, model_type=measured.model, facts=facts, remarks=tuple(remarks))
        self._store.update(info.id, info)
        self._store.finish(self._info.id)


def kept(scenario: str, model: Path, arms: Sequence[Arm], store: Store | None, machine: Mapping[str, Any]) -> Keeping:
    """A run that is begun in `store`; what it measures before it is interrupted stays there, unfinished."""
    info = RunInfo(uuid.uuid4().hex, scenario, time.time(), model.name, model.stat().st_size, machine)
    if store is not None:
        store.begin(info, arms)
    return Keeping(info, store)
