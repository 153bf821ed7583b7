"""The table: in which guests the engine runs in which ways, and what must hold."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from forkyard.guest.topology import GAP, Node, Topology


class Outcome(Enum):
    """What may come of asking for NUMA."""

    MIRROR = "mirror"
    """Works; every wanted buffer has a copy on every used node, wholly there, and nothing is read from elsewhere."""
    SPLIT = "split"
    """Works; the weights' pages are on the nodes that compute their rows."""
    OFF = "off"
    """Works as without; the log says why."""
    REFUSED = "refused"
    """Does not start; the log names the node and the bytes it lacks."""
    PARTLY = "partly"
    """Works without the copies that could not be made; the log names the node and the bytes it lacks."""


@dataclass(frozen=True)
class Expect:
    """One way in which a case may end well."""

    outcome: Outcome
    nodes: tuple[int, ...] = ()
    """The nodes the engine uses; for ``REFUSED`` and ``PARTLY`` the one that lacks memory."""
    kinds: tuple[str, ...] = ("weights", "kv")
    """Buffers that must be mirrored."""
    alias: bool | None = None
    """If False, no buffer may serve a node itself; None: either."""


@dataclass(frozen=True)
class Case:
    """One run of the engine's server."""

    name: str
    title: str
    topology: Topology
    threads: int
    expect: tuple[Expect, ...]
    """Any of these."""
    numa: str = "mirror"
    words: str | None = None
    """Of ``--numa-mirror``."""
    mmap: bool = True
    before: tuple[str, ...] = ()
    """Shell lines that prepare the guest; they stay in force for the cases after it."""
    launcher: tuple[str, ...] = ()
    """What starts the server."""
    gone: tuple[int, ...] = ()
    """CPUs that ``before`` takes away."""

    @property
    def twin(self) -> str:
        """Name of the run without NUMA whose text it must give."""
        return f"off-t{self.threads}-{'mmap' if self.mmap else 'read'}"


TWO = Topology("two-nodes", "two nodes with two CPUs and 1 GiB each", (Node(2, 1024), Node(2, 1024)))
FOUR = Topology("four-nodes", "four nodes with a CPU and 768 MiB each", (Node(1, 768),) * 4)
SMALL = Topology("small-node", "the second node has 96 MiB", (Node(1, 2048), Node(1, 96)))
MEMORY_ONLY = Topology("memory-only", "the third node has no CPU", (Node(1, 1024), Node(1, 1024), Node(0, 512)))
NUMBER_GAP = Topology("number-gap", "there are nodes 0 and 2, and no node 1", (Node(1, 1024), GAP, Node(1, 1024)))

TOPOLOGIES = (TWO, FOUR, SMALL, MEMORY_ONLY, NUMBER_GAP)

_BOTH = (Expect(Outcome.MIRROR, (0, 1)),)
# Only memory of node 0, by a control group, which unlike a policy cannot be overruled.
_GROUP = (
    "mount -t cgroup2 cgroup /sys/fs/cgroup",
    "echo +cpuset > /sys/fs/cgroup/cgroup.subtree_control",
    "mkdir /sys/fs/cgroup/one",
    "echo 0 > /sys/fs/cgroup/one/cpuset.mems",
    "echo 0-3 > /sys/fs/cgroup/one/cpuset.cpus",
)
_IN_GROUP = ("sh", "-c", 'echo $$ > /sys/fs/cgroup/one/cgroup.procs; exec "$@"', "sh")

CASES = (
    Case("mirror", "a model that is mapped", TWO, 4, _BOTH),
    Case("mirror-read", "a model that is read, not mapped", TWO, 2, _BOTH, mmap=False),
    Case("mirror-t3", "a thread less than CPUs: groups of two and one", TWO, 3, _BOTH),
    Case("mirror-t1", "a single thread", TWO, 1, _BOTH),
    Case(
        "weights-only",
        "--numa-mirror weights",
        TWO,
        4,
        (Expect(Outcome.MIRROR, (0, 1), ("weights",)),),
        words="weights",
    ),
    Case("kv-only", "--numa-mirror kv", TWO, 2, (Expect(Outcome.MIRROR, (0, 1), ("kv",)),), words="kv"),
    Case(
        "interleaved",
        "numactl --interleave=all: no buffer lies on one node",
        TWO,
        2,
        (Expect(Outcome.MIRROR, (0, 1), alias=False),),
        mmap=False,
        launcher=("numactl", "--interleave=all"),
    ),
    Case(
        "membind",
        "numactl --membind=0: a policy that speaks against the second copy",
        TWO,
        2,
        (*_BOTH, Expect(Outcome.REFUSED, (1,))),
        mmap=False,
        launcher=("numactl", "--membind=0"),
    ),
    Case(
        "cpus-of-one",
        "numactl --physcpubind: only the CPUs of node 0",
        TWO,
        2,
        (Expect(Outcome.OFF),),
        launcher=("numactl", "--physcpubind=0,1"),
    ),
    Case(
        "cpuset-memory",
        "a control group with the CPUs of both nodes and the memory of node 0",
        TWO,
        2,
        (Expect(Outcome.REFUSED, (1,)), Expect(Outcome.OFF)),
        mmap=False,
        before=_GROUP,
        launcher=_IN_GROUP,
    ),
    Case("split", "--numa split of a mapped model", TWO, 4, (Expect(Outcome.SPLIT, (0, 1)),), numa="split"),
    Case(
        "split-read",
        "--numa split of a model that is read",
        TWO,
        2,
        (Expect(Outcome.SPLIT, (0, 1)),),
        "split",
        mmap=False,
    ),
    Case("mirror-four", "a thread for each node", FOUR, 4, (Expect(Outcome.MIRROR, (0, 1, 2, 3)),)),
    Case("mirror-four-t2", "fewer threads than nodes", FOUR, 2, (Expect(Outcome.MIRROR, (0, 1, 2, 3)),)),
    Case(
        "cpus-of-two",
        "numactl --physcpubind: only the CPUs of nodes 1 and 3",
        FOUR,
        2,
        (Expect(Outcome.MIRROR, (1, 3)),),
        launcher=("numactl", "--physcpubind=1,3"),
    ),
    Case(
        "split-four",
        "--numa split over four nodes",
        FOUR,
        4,
        (Expect(Outcome.SPLIT, (0, 1, 2, 3)),),
        numa="split",
        mmap=False,
    ),
    Case(
        "cpu-offline",
        "the only CPU of node 1 is taken offline",
        FOUR,
        3,
        (Expect(Outcome.MIRROR, (0, 2, 3)),),
        before=("echo 0 > /sys/devices/system/cpu/cpu1/online",),
        gone=(1,),
    ),
    Case("too-small", "no room for the copy", SMALL, 2, (Expect(Outcome.REFUSED, (1,)),)),
    Case(
        "too-small-best-effort",
        "no room for the copy, --numa-mirror best-effort",
        SMALL,
        2,
        (Expect(Outcome.PARTLY, (1,)),),
        words="best-effort",
    ),
    Case("memory-only", "a node without CPUs gets no copy", MEMORY_ONLY, 2, _BOTH),
    Case("number-gap", "node numbers that are not consecutive", NUMBER_GAP, 2, (Expect(Outcome.MIRROR, (0, 2)),)),
    Case(
        "number-gap-split",
        "--numa split with such numbers",
        NUMBER_GAP,
        2,
        (Expect(Outcome.SPLIT, (0, 2)),),
        numa="split",
        mmap=False,
    ),
)


@dataclass(frozen=True)
class Server:
    """How an engine's server is asked for the same thing."""

    program: str
    fixed: tuple[str, ...]
    """Small, quiet, one request at a time, nothing computed that is not asked for."""
    mapped: tuple[str, ...]
    read: tuple[str, ...]

    def words(self, model: str, port: int, threads: int, *, mmap: bool) -> list[str]:
        """The command without NUMA."""
        place = ["-m", model, "--host", "127.0.0.1", "--port", str(port), "-t", str(threads)]
        return [self.program, *place, *self.fixed, *(self.mapped if mmap else self.read)]


_FIXED = ("--no-warmup", "-np", "1", "-c", "256", "-cram", "0", "--ctx-checkpoints", "0")
SERVERS = {
    "llama.cpp": Server(
        "llama-server", (*_FIXED, "-fit", "off", "--no-ui"), ("--load-mode", "mmap"), ("--load-mode", "none")
    ),
    "ik_llama.cpp": Server("llama-server", _FIXED, (), ("--no-mmap",)),
}


def numa_words(case: Case) -> list[str]:
    """What a case adds to the command."""
    return ["--numa", case.numa, *(["--numa-mirror", case.words] if case.words else [])]
