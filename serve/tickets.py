"""The state of assemblies that nobody waits for, in files that all replicas see.

A replica that works on one says so every few seconds; where it has not for a minute, it has died: the state is `lost`,
and the history, which is never stored, has to be sent again.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from typing import Any

from serve.errors import ForgottenError
from serve.messages import Summary
from serve.notes import drop_old, file_name, read_note
from serve.recipes import Owner
from storage.files import exists, join, remove, remove_empty, walk, write_json

ALIVE_S = 10.0
LOST_S = 60.0
KEEP_S = 86_400.0
_FORM = re.compile(r"[0-9a-f]{24}")
_OPEN = ("waiting", "running")


class Tickets:
    """States by owner and ticket. Thread-safe: one look and write at a time."""

    def __init__(self, folder: str) -> None:
        self._folder = join(folder, "tickets")
        self._mine: set[str] = set()
        self._lock = threading.Lock()
        self._told = time.monotonic()

    def new(self, owner: Owner) -> str:
        """A ticket that waits."""
        ticket = secrets.token_hex(12)
        write_json(self._place(owner, ticket), {"status": "waiting", "at": time.time()})
        return ticket

    def begin(self, owner: Owner, ticket: str) -> None:
        """It is worked on, by this process, which keeps it alive. Raises ForgottenError when it was taken away."""
        place = self._place(owner, ticket)
        with self._lock:
            if not exists(place):
                raise ForgottenError("the user was forgotten before the assembly began; nothing is kept")
            self._mine.add(place)
            write_json(place, {"status": "running", "at": time.time()})

    def end(self, owner: Owner, ticket: str, status: str, **more: Any) -> None:
        """How it ended; nothing where it was taken away meanwhile."""
        place = self._place(owner, ticket)
        with self._lock:
            self._mine.discard(place)
            if exists(place):
                write_json(place, {"status": status, "at": time.time(), **more})

    def read(self, owner: Owner, ticket: str) -> Summary | None:
        """The state; None for a ticket that is not this owner's."""
        if not _FORM.fullmatch(ticket):
            return None
        state = read_note(self._place(owner, ticket))
        if state is None:
            return None
        if state["status"] in _OPEN and state["at"] < time.time() - LOST_S:
            state["status"] = "lost"
        return {"object": "assembly.ticket", "id": ticket, **{k: v for k, v in state.items() if k != "at"}}

    def forget(self, owner: Owner) -> None:
        """Remove an owner's."""
        with self._lock:
            for place, _ in walk(self._of(owner)):
                self._mine.discard(place)
                remove(place)
        remove_empty(self._of(owner))

    def keep_alive(self) -> None:
        """Say that this process is at its open ones; cheap to call often."""
        with self._lock:
            if time.monotonic() - self._told < ALIVE_S:
                return
            self._told = time.monotonic()
            self._mine = {place for place in self._mine if exists(place)}  # others may have been taken away
            for place in self._mine:
                write_json(place, {"status": "running", "at": time.time()})

    def tidy(self) -> None:
        """Remove old ones."""
        drop_old(self._folder, keep_s=KEEP_S)

    def _of(self, owner: Owner) -> str:
        return join(self._folder, file_name(owner))

    def _place(self, owner: Owner, ticket: str) -> str:
        return join(self._of(owner), f"{ticket}.json")
