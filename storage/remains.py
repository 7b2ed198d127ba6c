"""Is anything left of those who were erased? Every data file on disk is read, whatever version it belongs to.

Rows that a table no longer shows can still be in its files: deleted but not rewritten, in files of old versions, in
files of writes that never ended. Every row carries its attempt number, and every cached index lists the attempts whose
vectors it holds, so a look at those numbers settles it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from storage.files import join, read_bytes, walk
from storage.index_files import any_vector
from storage.sharers import sharers_uri
from storage.tables import LANCE_ERRORS
from storage.upkeep import GRACE_S, stray_files, table_uris

if TYPE_CHECKING:
    from storage.pool import Pool


def remains(pool: Pool, *, index_folders: Sequence[str] = ()) -> Iterator[str]:
    """One line per file that holds, or may hold, something of an erased sharer.

    index_folders: where indexes of this pool are cached.
    """
    erased = np.array(sorted(pool.log.refresh().erased), np.int64)
    if not len(erased):
        return
    for uri in table_uris(pool):
        columns = ["attempt", *(["event"] if uri == sharers_uri(pool.uri) else [])]
        unfinished = {join(uri, path): at for path, _, at in stray_files(uri)}
        for path, _ in walk(join(uri, "data")):
            yield from _look(path, columns, erased, unfinished.get(path, time.time()))
    for folder in index_folders:
        for path, _ in walk(folder):
            if path.endswith(".attempts"):
                index = path.removesuffix(".attempts") + ".faiss"
                places = np.flatnonzero(np.isin(np.frombuffer(read_bytes(path), "<i8"), erased))
                if len(places) and any_vector(index, places):
                    yield f"{index}: holds keys of an erased sharer; {_FIX}"


_FIX = "run clean-up with --grace 0, and --index for folders of indexes"


def _look(path: str, columns: list[str], erased: np.ndarray, changed: float) -> Iterator[str]:
    from lance.file import LanceFileReader

    try:
        rows = LanceFileReader(path, columns=columns).read_all().to_table()
    except LANCE_ERRORS:
        if changed < time.time() - GRACE_S:  # younger: being written, or removed while we looked
            yield f"{path}: was never finished, and may hold rows of an erased sharer; {_FIX}"
        return
    theirs = np.isin(rows["attempt"].to_numpy(), erased)
    if "event" in columns:
        theirs &= np.array(rows["event"].to_pylist()) != "erase"
    if theirs.any():
        yield f"{path}: holds {theirs.sum()} rows of an erased sharer; {_FIX}"
