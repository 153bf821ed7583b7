"""``forkyard numa-model``: how well bytes, bandwidths and barriers explain the published figures."""

from __future__ import annotations

import click

from forkyard.commands.answering import answers_anyway
from forkyard.console import Console
from forkyard.errors import EXIT_FINDINGS
from forkyard.numamodel.report import as_text, reproduce


@click.command(name="numa-model")
@answers_anyway
def numa_model(console: Console) -> int:
    """Predict a published table of --numa isolate and mirror, and say how far off each figure is.

    Nothing is measured. Ends with 12 if fewer than 8 of the 12 rows are within 15 %.
    """
    found = reproduce()
    console.result(found.as_json(), as_text(found))
    return 0 if found.ok else EXIT_FINDINGS
