"""Cached indexes on disk: written whole, checked byte for byte before use, thrown away when anything differs.

A cached index is three files: `<projection>.faiss`, `<projection>.attempts` (int64, little-endian: whose
vector is at each position) and `<projection>.json`, written last, with the checksums of both and what they
were made from.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perpcs.errors import StoreError
from storage.files import (
    is_remote,
    join,
    local,
    read_bytes,
    read_json,
    remove,
    walk,
    write_bytes,
    write_json,
)
from storage.tables import store_errors

FORMAT = 2
_CHUNK = 1 << 24


@dataclass(frozen=True)
class Cached:
    """An index in memory (or mapped from its file) and whose vector is at each position, [n] int64 attempts."""

    index: Any
    attempts: np.ndarray


def save(folder: str, projection: str, cached: Cached, *, origin: dict[str, Any]) -> None:
    """Write an index. `origin`: what it was made from; `load` wants the same.

    Raises:
        StoreError: the folder is not writable.
    """
    import faiss

    path = join(folder, f"{projection}.faiss")
    if is_remote(folder):
        write_bytes(path, faiss.serialize_index(cached.index).tobytes())
    else:
        local(folder).mkdir(parents=True, exist_ok=True)
        temporary = local(folder) / f".{projection}.{secrets.token_hex(6)}"
        with store_errors(path, "writing the index"):
            try:
                faiss.write_index(cached.index, str(temporary))
                temporary.replace(local(path))
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink()
    write_bytes(join(folder, f"{projection}.attempts"), cached.attempts.astype("<i8").tobytes())
    write_json(join(folder, f"{projection}.json"), _note(folder, projection, origin))


def load(folder: str, projection: str, *, origin: dict[str, Any], mapped: bool = True) -> Cached | None:
    """A cached index, or None when it is missing, made from something else, or its bytes are not those
    written.

    `mapped`: local files are mapped into memory instead of read; such an index must not be added to.
    """
    import faiss

    path = join(folder, f"{projection}.faiss")
    try:
        if read_json(join(folder, f"{projection}.json")) != _note(folder, projection, origin):
            return None
        attempts = np.frombuffer(read_bytes(join(folder, f"{projection}.attempts")), "<i8").astype(np.int64)
        if is_remote(folder):
            index = faiss.deserialize_index(np.frombuffer(read_bytes(path), np.uint8))
        else:
            index = faiss.read_index(str(local(path)), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except (StoreError, OSError, RuntimeError):  # faiss raises RuntimeError for bytes that it cannot parse
        return None
    return Cached(index, attempts) if index.ntotal == len(attempts) else None


def any_vector(path: str, places: np.ndarray) -> bool:
    """Whether the index file at `path` has anything but zeros at one of `places` (zeros stand for erased sharers).

    True where that cannot be told.
    """
    import faiss

    try:
        if is_remote(path):
            index = faiss.deserialize_index(np.frombuffer(read_bytes(path), np.uint8))
        else:
            index = faiss.read_index(str(local(path)))
        if hasattr(index, "make_direct_map"):
            index.make_direct_map()
        return any(index.reconstruct(int(place)).any() for place in places)
    except (StoreError, OSError, RuntimeError):
        return True


def folders(root: str, prefix: str) -> list[str]:
    """Cache folders below `root` whose name starts with `prefix`."""
    names = {path.rsplit("/", 2)[-2] for path, _ in walk(root) if path.endswith(".json")}
    return [join(root, name) for name in sorted(names) if name.startswith(prefix)]


def purge(root: str, *, keep: str) -> int:
    """Delete all cached indexes below `root` but those of the view identity `keep`; how many files."""
    gone = [path for path, _ in walk(root) if not path.rsplit("/", 2)[-2].endswith(f"-{keep}")]
    for path in gone:
        remove(path)
    return len(gone)


def _note(folder: str, projection: str, origin: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        **origin,
        "projection": projection,
        "index": _checksum(join(folder, f"{projection}.faiss")),
        "attempts": _checksum(join(folder, f"{projection}.attempts")),
    }


def _checksum(path: str) -> str:
    state = hashlib.blake2b(digest_size=16)
    if is_remote(path):
        state.update(read_bytes(path))
    else:
        with Path(local(path)).open("rb") as source:
            while chunk := source.read(_CHUNK):
                state.update(chunk)
    return state.hexdigest()
