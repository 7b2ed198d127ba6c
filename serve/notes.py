"""Small notes about owners, as files in a folder that all replicas share. Each says `at` when it was written."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from perpcs.errors import StoreError
from serve.recipes import Owner
from storage.files import exists, read_json, remove, remove_empty, walk


def file_name(owner: Owner) -> str:
    """What stands for an owner in a path: a hash, so that no listing shows a name."""
    return hashlib.sha256(owner.id.encode()).hexdigest()


def read_note(place: str) -> dict[str, Any] | None:
    """The note; None when there is none, or it was removed meanwhile."""
    try:
        found: dict[str, Any] | None = read_json(place) if exists(place) else None
    except StoreError:
        if exists(place):
            raise
        return None
    return found


def drop_old(folder: str, *, keep_s: float) -> None:
    """Remove notes that are older; another replica may be at it too."""
    for place, _ in walk(folder):
        try:
            note = read_note(place)
        except StoreError:
            continue  # not ours to judge
        if note is not None and float(note.get("at", 0.0)) < time.time() - keep_s:
            remove(place)
            if (parent := place.rpartition("/")[0]) != folder.rstrip("/"):
                remove_empty(parent)
