"""How fast a model can be on a machine with several memory nodes: bytes, bandwidths, barriers.

The time of one batch is the slowest node's time to read its share of the weights or to multiply with them, whichever is
longer, plus a cost for every barrier, plus a cost for the activations that all threads exchange. Six costs are fitted
to part of a published table, and the rest of the table is predicted: :mod:`forkyard.numamodel.report`.
"""
