"""The fleet's one actor: leases packs, hears outcomes and signs of life, and keeps the news for the driver.

The store is the truth: `todo` reads it, so a restarted coordinator knows what is left, and users that a dead
worker had already committed are not trained again. A plain class with a clock that is passed in; `jobs.fleet`
makes a Ray actor of it. Every call may arrive twice (Ray repeats calls after a restart) without harm.
"""

from __future__ import annotations

import errno
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Literal

from jobs.fleet_types import FleetEvent, ForeignError, Kind, News, Order, PackReport, Plan
from jobs.leases import Lease, LeaseBook, even_packs
from perpcs.errors import ConfigError, MismatchError, PerpcsError, StoreError

NOBODY = Lease("", ())
NOTHING = PackReport(())


def verdict(error: BaseException) -> Literal["fatal", "ill", "pack"]:
    """Whose fault an exception of `PackWorker.run` is.

    fatal: the experiment's, nobody can be trained; ill: the surroundings', the same pack may pass later
    (store busy, disk full); pack: the pack's, smaller ones may pass.
    """
    if isinstance(error, ConfigError | MismatchError):
        return "fatal"
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return "ill" if full or isinstance(error, StoreError) else "pack"


class Coordinator:
    """See the module. todo: reads the store; the users that are selected and not committed, in order. on_event: told
    of everything, beside the news."""

    def __init__(
        self,
        todo: Callable[[], Sequence[str]],
        plan: Plan,
        *,
        restarted: bool = False,
        clock: Callable[[], float] = time.monotonic,
        on_event: Callable[[FleetEvent], None] = lambda event: None,
    ) -> None:
        self._on_event = on_event
        self._todo = todo
        self._plan = plan
        self._clock = clock
        self._epoch = uuid.uuid4().hex[:8]
        self._book = LeaseBook(
            even_packs(tuple(todo()), size=plan.pack, workers=plan.workers),
            retries=plan.retries,
            epoch=self._epoch,
            quiet_until=clock() + 3 * plan.beat_s if restarted else float("-inf"),
        )
        self._done_before = plan.total - self._book.total
        self._asked: dict[str, bool] = {}
        self._failures_in_a_row = 0
        self._barren_packs = 0
        self._next_look = float("-inf")
        self._reported: set[str] = set()
        self._error: Exception | None = None
        self._dismissed = False
        self._events: list[FleetEvent] = []
        self._forgotten = 0
        if restarted:
            self._tell("restarted", f"the coordinator starts again; {self._book.total} users are left")

    def join(self, worker: str, where: str) -> None:
        """A worker process starts at `where` (host, process). What its predecessor held is taken back."""
        if held := self._book.held(worker):
            self._take_back(worker, held, "its worker died")
        elif self._asked.get(worker) is False:
            self._count_failure(worker, PerpcsError("its process died before it could load the base model"))
        self._asked[worker] = False
        self._tell("joined", f"worker {worker} runs ({where})", worker)

    def order(self, worker: str) -> Order:
        """The next pack for a worker."""
        self._asked[worker] = True
        self._look_for_silent(self._clock())
        if self._over:
            return Order(stop=True)
        held, lease = self._book.held(worker), self._book.lease(worker, self._clock())
        if lease is not None and lease != held:
            self._tell("lease", f"worker {worker} trains {_counted(lease.users)}", worker, lease=lease)
        return Order(lease)

    def beat(self, worker: str, lease: Lease) -> bool:
        """A worker's sign of life while it trains; False when its lease was given to somebody else."""
        return self._book.beat(worker, lease, self._clock())

    def report(self, worker: str, lease: Lease, report: PackReport) -> None:
        """A pack's outcome."""
        if lease.id in self._reported:
            return  # calls may arrive twice
        self._reported.add(lease.id)
        before, known = len(self._book.failed), self._book.is_live(lease)
        new = tuple(user for user in report.done if user not in self._book.done)
        again = self._book.settle(lease, report.done, report.failed)
        if report.done:
            self._failures_in_a_row = 0
        rate = len(report.done) / report.seconds if report.seconds else 0.0
        self._tell(
            "pack" if known else "late",
            f"worker {worker}: {_counted(report.done)} in {report.seconds:.1f} s ({rate:.1f} users/s)",
            worker,
            lease=Lease(lease.id, new),
            report=report,
        )
        self._tell_outcome(worker, again, before, next(iter(report.failed.values()), ""))

    def broke(self, worker: str, lease: Lease, error: Exception) -> float:
        """`PackWorker.run` raised. Returns the seconds to pause before asking again."""
        kind = verdict(error)
        if kind != "pack":
            self._book.give_back(lease)
            return self._count_failure(worker, error, fatal=kind == "fatal")
        self._blame(worker, lease, one_line(error))
        self._barren_packs += 1
        if not self._done and self._barren_packs >= self._plan.barren:
            self._error = self._error or error
        return 0.0

    def stillborn(self, worker: str, error: Exception) -> float | None:
        """A worker could not be made: a user's mistake ends the fleet at once, anything else may pass.

        Returns the seconds to pause before another try; None: do not try again.
        """
        pause = self._count_failure(worker, error, fatal=isinstance(error, PerpcsError))
        return None if self._over else pause

    def dismiss(self) -> None:
        """The driver goes: every worker stops after the pack it has in work."""
        self._dismissed = True

    def news(self, cursor: tuple[str, int] = ("", 0)) -> News:
        """Events from `cursor` on. Older ones are dropped: the one reader has them."""
        epoch, seen = cursor
        drop = max(0, seen - self._forgotten) if epoch == self._epoch else 0
        self._events = self._events[drop:]
        self._forgotten += drop
        end = self._forgotten + len(self._events)
        return News(tuple(self._events), (self._epoch, end), dict(self._book.failed), self._error)

    @property
    def _over(self) -> bool:
        return self._dismissed or self._error is not None or self._book.finished

    @property
    def _done(self) -> int:
        return self._done_before + len(self._book.done)

    def _look_for_silent(self, now: float) -> None:
        if now < self._next_look:
            return
        self._next_look = now + min(self._plan.beat_s, self._plan.lost_s / 4)
        for silent, held in self._book.silent(now, self._plan.lost_s):
            self._take_back(silent, held, f"its worker was silent for {self._plan.lost_s:g} s")

    def _take_back(self, worker: str, lease: Lease, why: str) -> None:
        text = f"worker {worker} is lost with {_counted(lease.users)} in work: {why}"
        self._tell("lost", text, worker, lease=lease)
        self._blame(worker, lease, why)

    def _blame(self, worker: str, lease: Lease, error: str) -> None:
        before = len(self._book.failed)
        self._tell_outcome(worker, self._book.broke(lease, error, self._committed(lease)), before, error)

    def _committed(self, lease: Lease) -> set[str]:
        """The lease's users that the store holds; none while it cannot be read: a second commit changes nothing."""
        try:
            return set(lease.users) - set(self._todo())
        except Exception as error:
            self._tell("ill", f"the store cannot be read: {one_line(error)}")
            return set()

    def _tell_outcome(self, worker: str, again: list[str], failed_before: int, error: str) -> None:
        if again:
            text = f"{_counted(again)} will be tried again: {error}"
            self._tell("retry", text, worker, lease=Lease("", tuple(again)))
        for user, why in list(self._book.failed.items())[failed_before:]:
            self._tell("failed", f"user {user} failed for good: {why}", worker, lease=Lease("", (user,)))

    def _count_failure(self, worker: str, error: Exception, *, fatal: bool = False) -> float:
        self._failures_in_a_row += 1
        self._tell("ill", f"worker {worker}: {one_line(error)}", worker)
        if fatal or self._failures_in_a_row >= self._plan.patience:
            self._error = self._error or error
        return min(self._plan.longest_pause_s, 0.25 * 2**self._failures_in_a_row)

    def _tell(
        self, kind: Kind, text: str, worker: str = "", *, lease: Lease = NOBODY, report: PackReport = NOTHING
    ) -> None:
        event = FleetEvent(
            kind, text, worker, users=lease.users, lease=lease.id,
            seconds=report.seconds, tokens=report.tokens,
            commit_seconds=report.commit_seconds, memory=report.memory,
            done=self._done, failed=len(self._book.failed), total=self._plan.total,
        )  # fmt: skip
        self._events.append(event)
        self._on_event(event)


def one_line(error: BaseException) -> str:
    """An exception as one line: its own words when written for users, else with its class."""
    text = " ".join(str(error).split())[:300]
    return (
        text
        if isinstance(error, PerpcsError | ForeignError)
        else f"{type(error).__name__}: {text}".rstrip(": ")
    )


def _counted(users: Sequence[str]) -> str:
    return f"user {users[0]}" if len(users) == 1 else f"{len(users)} users"
