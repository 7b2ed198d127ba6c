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

from serve.messages import Summary
from serve.notes import drop_old, file_name, read_note
from serve.recipes import Owner
from storage.files import join, remove, walk, write_json

ALIVE_S = 10.0
LOST_S = 60.0
KEEP_S = 86_400.0
_FORM = re.compile(r"[0-9a-f]{24}")
_OPEN = ("waiting", "running")


class Tickets:
    """States by owner and ticket. Thread-safe."""

    def __init__(self, folder: str) -> None:
        self._folder = join(folder, "tickets")
        self._mine: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._told = time.monotonic()

    def new(self, owner: Owner) -> str:
        """A ticket that waits."""
        ticket = secrets.token_hex(12)
        write_json(self._place(owner, ticket), {"status": "waiting", "at": time.time()})
        return ticket

    def tell(self, owner: Owner, ticket: str, status: str, **more: Any) -> None:
        """Record a state; this process keeps an open one alive."""
        place, state = self._place(owner, ticket), {"status": status, "at": time.time(), **more}
        with self._lock:
            if status in _OPEN:
                self._mine[place] = state
            else:
                self._mine.pop(place, None)
        write_json(place, state)

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
        for place, _ in walk(self._of(owner)):
            remove(place)

    def keep_alive(self) -> None:
        """Say that this process is at its open ones; cheap to call often."""
        with self._lock:
            if time.monotonic() - self._told < ALIVE_S:
                return
            self._told = time.monotonic()
            mine = dict(self._mine)
        for place, state in mine.items():
            write_json(place, {**state, "at": time.time()})

    def tidy(self) -> None:
        """Remove old ones."""
        drop_old(self._folder, keep_s=KEEP_S)

    def _of(self, owner: Owner) -> str:
        return join(self._folder, file_name(owner))

    def _place(self, owner: Owner, ticket: str) -> str:
        return join(self._of(owner), f"{ticket}.json")
