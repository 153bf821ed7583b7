"""For all tests: Ctrl-C means what it means on a terminal, whoever started pytest."""

from __future__ import annotations

import signal

# A runner that starts us in the background leaves SIGINT ignored, and programs we start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
