"""Which commit another repository means by a name: exactly that ref, and of a tag the commit it stands for."""

from __future__ import annotations

from forkyard.gitstore.running import SHORT_S
from forkyard.gitstore.store import Store

_PLACES = ("{}", "refs/heads/{}", "refs/tags/{}", "refs/{}", "refs/remotes/{}", "refs/remotes/{}/HEAD")


def named_commit(store: Store, location: str, ref: str = "HEAD") -> str | None:
    """The commit a ref of another repository is at; ``None`` if it has no such ref.

    ``git ls-remote`` answers with every ref that ends in the name: asked for ``main`` with ``feature/main`` as well.

    Raises:
        GitFailure: the repository cannot be reached.
    """
    command = ["ls-remote", "--end-of-options", location, ref, f"{ref}^{{}}"]
    config = {"protocol.ext.allow": "never"}
    output = store._git(*command, users_config=True, config=config, timeout_s=SHORT_S)
    found = {}
    for line in output.decode("utf-8", "replace").splitlines():
        oid, _, name = line.partition("\t")
        found[name] = oid
    for place in _PLACES:
        name = place.format(ref)
        if name in found:
            return found.get(f"{name}^{{}}", found[name])
    return None
