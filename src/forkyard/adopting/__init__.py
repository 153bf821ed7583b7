"""Turning somebody's fork into a stack: its base, its own commits in a line, and a series a person finishes."""
