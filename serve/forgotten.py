"""Marks that a user was forgotten, so that an assembly which is under way meanwhile, on any replica, keeps nothing.

A mark is a random word under a hash of the owner's name; it is removed when no assembly can be that old.
"""

from __future__ import annotations

import secrets
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
        """From now on `since` an earlier sign is true."""
        write_json(self._place(owner), {"at": time.time(), "sign": secrets.token_hex(12)})

    def sign(self, owner: Owner) -> str:
        """What tells the newest mark from others, '' where there is none; no clock has a part in it."""
        note = read_note(self._place(owner))
        return "" if note is None else str(note.get("sign", ""))  # an earlier version left none

    def since(self, owner: Owner, sign: str) -> bool:
        """Whether the owner was forgotten since `sign` was the newest."""
        try:
            return self.sign(owner) not in ("", sign)
        except StoreError:
            return True  # there is a mark that cannot be read: rather keep nothing

    def tidy(self) -> None:
        """Remove old marks."""
        drop_old(self._folder, keep_s=KEEP_S)

    def _place(self, owner: Owner) -> str:
        return join(self._folder, f"{file_name(owner)}.json")
