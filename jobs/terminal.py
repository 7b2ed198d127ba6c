"""What a person sees while a program runs: log lines and progress bars, on standard error.

One console for both, so that lines scroll above a bar. Without a terminal there are lines only.
"""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from jobs.fleet_types import FleetEvent

CONSOLE = Console(stderr=True, highlight=False)
BARS = Progress(
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
    console=CONSOLE,
    transient=True,
)
"""All bars of the process, below each other: workers side by side move several at once."""
_DRAWING = threading.Lock()
OURS = ("perpcs", "storage", "jobs")
QUIET_ENV = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "LANCE_LOG": "error",
}
"""Read by transformers, tokenizers, huggingface_hub and lance when they are imported."""

RELAY_S = 0.2
"""Between two messages about one bar from a remote function."""

log = logging.getLogger(__name__)

Advance = Callable[[int], None]


class _Lines(logging.Handler):
    """Log records through the console: time and message, whole lines, the level only when it matters."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
            when = self.formatter.formatTime(record, "%H:%M:%S") if self.formatter else ""
            trace = f"\n{logging.Formatter().formatException(record.exc_info)}" if record.exc_info else ""
            CONSOLE.print(Text(f"{when} {level}{record.getMessage()}{trace}"), soft_wrap=True)
        except Exception:
            self.handleError(record)


def configure_logging() -> None:
    """Our own packages at INFO, everybody else at WARNING; safe to call again."""
    handler = _Lines()
    handler.setFormatter(logging.Formatter())
    root = logging.getLogger()
    root.handlers = [other for other in root.handlers if not isinstance(other, _Lines)] + [handler]
    root.setLevel(logging.WARNING)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    for name, value in QUIET_ENV.items():
        os.environ.setdefault(name, value)
    # Ray starts its processes by fork and exec at once, which is safe; nobody else here forks.
    warnings.filterwarnings("ignore", message="lance is not fork-safe")
    for category in (DeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)


@contextmanager
def progress(what: str, total: int, *, done: int = 0) -> Iterator[Advance]:
    """A bar for the length of the block, if this is a terminal; yields the function that advances it.

    In a remote function (see jobs.relay) the bar is drawn at the driver.
    """
    if _relays:
        with _relayed(what, total, done) as advance:
            yield advance
        return
    if not CONSOLE.is_terminal:
        yield lambda n: None
        return
    with _DRAWING:
        task = BARS.add_task(what, total=total, completed=done)
        BARS.start()
    try:
        yield lambda n: BARS.advance(task, n)
    finally:
        with _DRAWING:
            BARS.remove_task(task)
            if not BARS.tasks:
                BARS.stop()


Relay = Callable[[int, str, int, int | None], None]
_relays: list[Relay] = []
_numbers = itertools.count(secrets.randbits(48) << 16)
"""Of bars: those of two processes never have the same."""


@contextmanager
def relay_progress(send: Relay) -> Iterator[None]:
    """For the block, bars of this process are not drawn but sent: (number, what, total, advance)."""
    _relays.append(send)
    try:
        yield
    finally:
        _relays.remove(send)


@contextmanager
def _relayed(what: str, total: int, done: int) -> Iterator[Advance]:
    send, number = _relays[-1], next(_numbers)
    pending, sent_at = done, 0.0

    def advance(n: int) -> None:
        nonlocal pending, sent_at
        pending += n
        if time.monotonic() - sent_at > RELAY_S:
            send(number, what, total, pending)
            pending, sent_at = 0, time.monotonic()

    advance(0)
    try:
        yield advance
    finally:
        send(number, what, total, None)


@contextmanager
def fleet_progress(what: str, total: int) -> Iterator[Callable[[FleetEvent], None]]:
    """The `on_event` of `run_fleet` that moves a bar over users and writes a log line per event."""
    shown = 0
    with progress(what, total) as advance:

        def on_event(event: FleetEvent) -> None:
            nonlocal shown
            settled = event.done + event.failed
            advance(settled - shown)
            shown = settled
            if event.kind in ("lease", "began", "ended"):  # for the event log; other lines say the same here
                return
            level = logging.WARNING if event.kind in ("retry", "failed", "lost", "ill") else logging.INFO
            log.log(level, "%s: %s; %d of %d done", what, event.text, event.done, event.total)

        yield on_event
