"""Values that a fleet's driver, coordinator and workers exchange. No Ray."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from jobs.leases import Lease


@dataclass(frozen=True, slots=True)
class PackReport:
    """What became of one pack: users committed, one-line errors of the others, seconds and tokens trained."""

    done: tuple[str, ...]
    failed: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    tokens: int = 0
    commit_seconds: float = 0.0
    """Of `seconds`, those spent writing to the store."""
    memory: int = 0
    """Most bytes of memory in use at once while it trained (see `jobs.memory`)."""


class PackWorker(Protocol):
    """Made once per worker process; holds the base model."""

    def run(self, user_ids: Sequence[str]) -> PackReport:
        """Train and commit a pack; users that alone are at fault go to `failed`, anything else may raise."""


class ForeignError(Exception):
    """A worker's exception of a class that the driver may not have; its text starts with the class's name."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The fleet's limits. Times in seconds."""

    total: int
    """Users that were to do when the fleet started."""
    pack: int
    workers: int
    retries: int
    stage: str = ""
    """Tag of the metrics."""
    beat_s: float = 2.0
    """Between two signs of life of a worker."""
    lost_s: float = 30.0
    """Silence after which a worker's lease goes to others; one that starts again is known at once."""

    longest_pause_s: float = 30.0
    """Pauses after failures double up to this."""

    @property
    def patience(self) -> int:
        """Workers' failures in a row, with no user finished between, after which the fleet gives up."""
        return 3 + 2 * self.workers

    @property
    def barren(self) -> int:
        """Packs that may fail before anybody was ever finished; with more, the fault is not the users'."""
        return 20 + 4 * self.workers


Kind = Literal[
    "began",
    "joined",
    "lease",
    "pack",
    "late",
    "retry",
    "failed",
    "lost",
    "ill",
    "waiting",
    "restarted",
    "ended",
]
"""began, ended: a driver's run. joined: a worker. lease: it got a pack. pack: the pack is trained and committed; late:
so it is, but its lease had been given to others. retry, failed: users. lost: a worker with what it held. ill: something
around the work. restarted: the coordinator. waiting: for room in the cluster."""


@dataclass(frozen=True, slots=True)
class FleetEvent:
    """Something worth a line in the log. done, failed, total: users of this fleet so far."""

    kind: Kind
    text: str
    worker: str = ""
    users: tuple[str, ...] = ()
    lease: str = ""
    seconds: float = 0.0
    tokens: int = 0
    commit_seconds: float = 0.0
    memory: int = 0
    done: int = 0
    failed: int = 0
    total: int = 0
    at: float = field(default_factory=time.time)
    """Unix time."""


@dataclass(frozen=True, slots=True)
class Order:
    """The answer to a worker that asks for work: a lease, stop, or (neither) ask again later."""

    lease: Lease | None = None
    stop: bool = False


@dataclass(frozen=True, slots=True)
class News:
    """Events since `cursor` was last given, and the state of the fleet."""

    events: tuple[FleetEvent, ...]
    cursor: tuple[str, int]
    failed: dict[str, str]
    error: Exception | None


@dataclass(frozen=True, slots=True)
class FleetReport:
    """How a fleet ended. done: users that are in the store since; failed: user -> one-line error."""

    done: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    workers: int = 0
