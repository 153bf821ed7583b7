"""Evidence: what was run on the engine before and after the patches, and what came of it. Nothing is believed."""

from forkyard.pullrequest.evidence.model import FAIL, NOT_APPLICABLE, NOT_RUN, PASS, UNDECIDED, Evidence, Ledger

__all__ = ["FAIL", "NOT_APPLICABLE", "NOT_RUN", "PASS", "UNDECIDED", "Evidence", "Ledger"]
