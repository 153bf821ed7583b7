"""The one place that runs git: a bare store per engine family, and the repositories people work in."""

from forkyard.gitstore.formats import COMMITTER, EXPORT_CONFIG, EXPORT_OPTIONS, OBJECT_ID, Author, Entry, blob_id
from forkyard.gitstore.running import GitFailure
from forkyard.gitstore.store import Store

__all__ = [
    "COMMITTER",
    "EXPORT_CONFIG",
    "EXPORT_OPTIONS",
    "OBJECT_ID",
    "Author",
    "Entry",
    "GitFailure",
    "Store",
    "blob_id",
]
