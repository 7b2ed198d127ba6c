"""Marks that a user was forgotten, so that an assembly which is under way meanwhile, on any replica, keeps nothing.

A mark is a time under a hash of the owner's name; it is removed when no assembly can be that old.
"""

from __future__ import annotations

import time

from perpcs.errors import StoreError
from serve.notes import drop_old, file_name, read_note
from serve.recipes import Owner
from storage.files import join, write_json

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
        try:
            note = read_note(self._place(owner))
        except StoreError:
            return True  # there is a mark that cannot be read: rather keep nothing
        return note is not None and float(note["at"]) >= asked

    def tidy(self) -> None:
        """Remove old marks."""
        drop_old(self._folder, keep_s=KEEP_S)

    def _place(self, owner: Owner) -> str:
        return join(self._folder, f"{file_name(owner)}.json")
