"""The canary: whether the stacks still apply, build and pass on the newest upstream commit that can be reached."""

from forkyard.canary.report import as_json, as_text, write_reports
from forkyard.canary.watching import Watched, watch

__all__ = ["Watched", "as_json", "as_text", "watch", "write_reports"]
