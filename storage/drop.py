"""Removing a whole pool that something else has taken the place of."""

from __future__ import annotations

import shutil

from storage.files import is_remote, local, remove, walk
from storage.sharers import sharers_uri


def drop_pool(uri: str) -> None:
    """Remove every file of the pool at `uri`; nothing happens where there is none.

    What names a table's versions goes first, the sharers' before all others. So whoever is killed in between leaves an
    older state of the pool, or none, and never a table without its rows.
    """
    sharers = sharers_uri(uri)

    def last(path: str) -> tuple[bool, bool, str]:
        return "/_versions/" not in path, not path.startswith(f"{sharers}/"), path

    for path in sorted((path for path, _ in walk(uri)), key=last):
        remove(path)
    if not is_remote(uri):
        shutil.rmtree(local(uri), ignore_errors=True)
