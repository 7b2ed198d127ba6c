"""Marks that a user was forgotten, so that an assembly which is under way meanwhile, on any replica, keeps nothing.

A mark is a time under a hash of the owner's name; it is removed when no assembly can be that old.
"""

from __future__ import annotations

import hashlib
import time

from perpcs.errors import StoreError
from serve.recipes import Owner
from storage.files import exists, join, read_json, remove, walk, write_json

KEEP_S = 3600.0


class Forgotten:
    """Marks in a folder that all replicas share."""

    def __init__(self, folder: str) -> None:
        self._folder = join(folder, "forgotten")

    def mark(self, owner: Owner) -> None:
        """From now on `since` an earlier time is true."""
        write_json(self._place(owner), {"at": time.time()})

    def since(self, owner: Owner, asked: float) -> bool:
        """Whether the owner was forgotten at or after that time."""
        place = self._place(owner)
        if not exists(place):
            return False
        try:
            return float(read_json(place)["at"]) >= asked
        except StoreError:
            return exists(place)  # removed meanwhile: too old to matter

    def tidy(self) -> None:
        """Remove old marks."""
        for place, _ in walk(self._folder):
            try:
                if float(read_json(place)["at"]) < time.time() - KEEP_S:
                    remove(place)
            except StoreError:
                continue  # another replica was first

    def _place(self, owner: Owner) -> str:
        return join(self._folder, f"{hashlib.sha256(owner.id.encode()).hexdigest()}.json")
