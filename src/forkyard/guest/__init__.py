"""Proof on machines nobody has to own: an engine in a QEMU guest with several NUMA nodes; see docs/numa-guest.md.

*Guest* is one boot of QEMU with one *topology* (nodes, their CPUs and memory). In it several *cases* run: a server of
the engine with one way to ask for NUMA. What the guest sends back is an *observation*; *judging* holds it against what
the case's row of the table says.
"""
