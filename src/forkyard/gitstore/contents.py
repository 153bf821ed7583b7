"""Reading many files at once: one git for all of them."""

from __future__ import annotations

from collections.abc import Iterable

from forkyard.gitstore.store import Store


def read_blobs(store: Store, oids: Iterable[str]) -> dict[str, bytes]:
    """Content by object id; those the store does not hold, or that are no files, are left out.

    Raises:
        GitFailure: the store is damaged.
    """
    wanted = sorted(set(oids))
    if not wanted:
        return {}
    output = store._git("cat-file", "--batch", stdin="".join(f"{oid}\n" for oid in wanted).encode())
    found: dict[str, bytes] = {}
    position = 0
    while position < len(output):
        end = output.index(b"\n", position)
        words = output[position:end].decode("ascii").split(" ")
        position = end + 1
        if len(words) != 3:
            continue
        size = int(words[2])
        if words[1] == "blob":
            found[words[0]] = output[position : position + size]
        # Every content is followed by a line feed of its own.
        position += size + 1
    return found
