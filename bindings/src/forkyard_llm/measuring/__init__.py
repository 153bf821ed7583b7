"""The one room where engines are measured: their programs run in turn, samples kept, medians with honest intervals.

`forkyard-llm bench`, `compare` and `tune` use it on installed payloads, forkyard's own commands on wheels it built.
"""
