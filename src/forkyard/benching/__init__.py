"""Measuring built engines with their own ``llama-bench``: arms in turn over several rounds, medians, honest ties."""
