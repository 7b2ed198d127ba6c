"""The state of a running training in the experiment: one safetensors file, replaced as a whole."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from perpcs.train.team import ALONE, State, Team
from storage.files import exists, join, read_bytes, remove, walk, write_bytes

log = logging.getLogger(__name__)


class StoreJournal:
    """See `perpcs.train.team.Journal`. A state is found again under its `key` only, a hash of what it was made with."""

    def __init__(self, uri: str, key: str, *, team: Team = ALONE, every_s: float) -> None:
        self._folder, self._path = uri, join(uri, f"{key}.safetensors")
        self._team, self._every_s, self._kept_at = team, every_s, time.monotonic()

    def load(self) -> State | None:
        """The newest state; the same for every process of the team, since none goes on before all have loaded."""
        from safetensors.torch import load

        if not exists(self._path):
            return None
        state = load(read_bytes(self._path))
        log.info("task adaptation goes on after step %d", int(state["steps"]))
        return state

    def step(self, state: Callable[[], State]) -> None:
        """Write the state when `every_s` seconds have passed; the first process does, all have the same."""
        if self._team.rank or time.monotonic() - self._kept_at < self._every_s:
            return
        from safetensors.torch import save

        write_bytes(self._path, save({name: value.cpu().contiguous() for name, value in state().items()}))
        self._kept_at = time.monotonic()

    def end(self) -> None:
        """The training is over and what it made is saved: nobody needs the state, nor those of earlier settings."""
        for path, _ in walk(self._folder):
            remove(path)
