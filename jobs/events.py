"""The event log of an experiment: JSON lines, one for every lease, pack, retry, death and driver.

In a folder it is one file that is appended to. An object store has no appending: there every run writes parts
of its own, each anew as it grows, at most every few seconds.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from perpcs.errors import StoreError
from storage.files import exists, is_remote, join, local, read_bytes, walk, write_bytes
from storage.layout import Paths

FLUSH_S = 5.0
"""Between two writes of a part: what a killed driver's log may lack at most, on an object store."""
PART_BYTES = 1 << 20
"""After which a new part begins, so that a long run does not write ever more."""

log = logging.getLogger(__name__)

Event = dict[str, Any]


class EventLog:
    """Appends to the log; use as a context manager. A log that cannot be written never stops the work."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._remote = is_remote(paths.root)
        self._run = f"{int(time.time() * 1000):013d}-{secrets.token_hex(3)}"
        self._part, self._held, self._written = 0, bytearray(), 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._told = False

    def __enter__(self) -> EventLog:
        if self._remote:
            self._thread = threading.Thread(target=self._keep_writing, name="event-log", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._write_part()

    def append(self, event: Mapping[str, Any]) -> None:
        """One line."""
        line = json.dumps(event, ensure_ascii=False).encode() + b"\n"
        if self._remote:
            with self._lock:
                self._held += line
            return
        try:
            path = local(self._paths.events)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as sink:
                if sink.tell() and _torn(sink):
                    line = b"\n" + line  # a driver was killed while it wrote
                sink.write(line)
        except OSError as error:
            self._tell(error)

    def _keep_writing(self) -> None:
        while not self._over.wait(FLUSH_S):
            self._write_part()

    def _write_part(self) -> None:
        with self._lock:
            data, part = bytes(self._held), self._part
            if len(data) == self._written:
                return
        try:
            write_bytes(join(self._paths.event_parts, f"{self._run}-{part:05d}.jsonl"), data)
        except StoreError as error:
            self._tell(error)  # and it is tried again, with what comes meanwhile
            return
        with self._lock:
            self._written = len(data)
            if len(data) > PART_BYTES:
                self._part, self._held, self._written = part + 1, self._held[len(data) :], 0

    def _tell(self, error: Exception) -> None:
        if not self._told:
            log.warning("the event log cannot be written, training goes on: %s", error)
        self._told = True


def read_events(paths: Paths) -> Iterator[Event]:
    """Every event, runs in the order of their start. A line that was cut off by a kill is left out."""
    if is_remote(paths.root):
        places = sorted(path for path, _ in walk(paths.event_parts))
    else:
        places = [paths.events] if exists(paths.events) else []
    for place in places:
        for line in read_bytes(place).splitlines():
            with suppress(ValueError):
                yield json.loads(line)


def _torn(sink: Any) -> bool:
    sink.seek(-1, 2)
    return bool(sink.read(1) != b"\n")
