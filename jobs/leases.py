"""Who trains whom: a pure book of leases, without Ray and without a clock of its own.

A worker leases one pack of users at a time. A pack that fails as a whole, by an exception or by its worker's
death, is halved: good users are soon apart from a bad one, and a pack too large for the memory shrinks. A
user that fails alone is charged, and after `retries` further attempts is recorded as failed. No user is
ever in two live leases.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Pack = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lease:
    """A pack of users that one worker trains. `id` is never used twice, not even by a restarted book."""

    id: str
    users: Pack


@dataclass(slots=True)
class _Live:
    lease: Lease
    worker: str
    seen: float


def even_packs(users: Sequence[str], *, size: int, workers: int) -> list[Pack]:
    """Users, in order, in packs of at most `size` and nearly the same size; one per worker at least."""
    if not users:
        return []
    count = max(-(-len(users) // size), min(workers, len(users)))
    bounds = [len(users) * i // count for i in range(count + 1)]
    return [tuple(users[low:high]) for low, high in pairwise(bounds)]


class LeaseBook:
    """Queue, live leases, finished and failed users of one fleet. Times are seconds of any one clock.

    `epoch` distinguishes the books of a restarted coordinator. Until `quiet_until` a book grants nothing: a
    restarted one first hears, through `beat`, which leases of its predecessor are still being worked on.
    """

    def __init__(
        self, packs: Iterable[Pack], *, retries: int, epoch: str = "0", quiet_until: float = float("-inf")
    ) -> None:
        self._queue = deque(packs)
        self._users = frozenset(user for pack in self._queue for user in pack)
        self._waiting = set(self._users)
        """Users in the queue; whoever is in a queued pack and not in here has left it."""
        self._live: dict[str, _Live] = {}
        self._held: dict[str, Lease] = {}
        self._charges: Counter[str] = Counter()
        self._granted = 0
        self._retries = retries
        self._epoch = epoch
        self._quiet_until = quiet_until
        self.total = len(self._users)
        self.done: set[str] = set()
        self.failed: dict[str, str] = {}

    @property
    def finished(self) -> bool:
        """Nothing waits and nobody works."""
        return not self._waiting and not self._live

    def held(self, worker: str) -> Lease | None:
        """The worker's live lease."""
        return self._held.get(worker)

    def is_live(self, lease: Lease) -> bool:
        """Whether the lease is somebody's."""
        return lease.id in self._live

    def lease(self, worker: str, now: float) -> Lease | None:
        """The worker's next pack, or the one it holds if it asks again; None when there is none just now."""
        if held := self._held.get(worker):
            return held
        if not self._waiting or now < self._quiet_until:
            return None
        pack: Pack = ()
        while not pack:
            pack = tuple(user for user in self._queue.popleft() if user in self._waiting)
        self._waiting.difference_update(pack)
        self._granted += 1
        return self._grant(Lease(f"{self._epoch}-{self._granted}", pack), worker, now)

    def beat(self, worker: str, lease: Lease, now: float) -> bool:
        """A worker's sign of life; False when its lease is no longer its own.

        A restarted book adopts a lease it does not know while it is quiet and the users still wait here.
        """
        if live := self._live.get(lease.id):
            live.seen = now
            return True
        if now >= self._quiet_until or not self._waiting.issuperset(lease.users):
            return False
        self._waiting.difference_update(lease.users)
        self._grant(lease, worker, now)
        return True

    def settle(self, lease: Lease, done: Collection[str], failed: Mapping[str, str]) -> list[str]:
        """A pack's outcome; users in neither set count as failed. Returns the users that will be tried again.

        The outcome of a lease that was taken away meanwhile still counts for what it finished.
        """
        # A restarted book does not know users that were finished before it was made.
        self.done.update(self._users.intersection(done))
        if not self._close(lease):
            self._waiting.difference_update(done)
            return []
        errors = dict.fromkeys(lease.users, "its worker reported neither success nor failure") | dict(failed)
        return [user for user, error in errors.items() if user not in self.done and self._charge(user, error)]

    def broke(self, lease: Lease, error: str, committed: Collection[str] = ()) -> list[str]:
        """A pack failed as a whole. Returns the users that will be tried again.

        committed: users that were finished all the same, before the failure.
        """
        if not self._close(lease):
            return []
        self.done.update(user for user in lease.users if user in committed)
        left = tuple(user for user in lease.users if user not in self.done)
        if len(left) == 1:
            return [user for user in left if self._charge(user, error)]
        # To the head of the queue: the bad user is found while the good ones of its pack are still few.
        for half in (left[len(left) // 2 :], left[: len(left) // 2]):
            self._wait(half, first=True)
        return list(left)

    def give_back(self, lease: Lease) -> None:
        """The pack goes back to the head of the queue as it is: what went wrong was not its fault."""
        if self._close(lease):
            self._wait(tuple(user for user in lease.users if user not in self.done), first=True)

    def silent(self, now: float, longer_than: float) -> list[tuple[str, Lease]]:
        """(worker, lease) of those whose last sign of life is too long ago."""
        return [(live.worker, live.lease) for live in self._live.values() if now - live.seen > longer_than]

    def _grant(self, lease: Lease, worker: str, now: float) -> Lease:
        self._live[lease.id] = _Live(lease, worker, now)
        self._held[worker] = lease
        return lease

    def _close(self, lease: Lease) -> bool:
        """End a live lease; False when it was not live."""
        live = self._live.pop(lease.id, None)
        if live is not None:
            self._held.pop(live.worker, None)
        return live is not None

    def _charge(self, user: str, error: str) -> bool:
        """Charge a failure to one user; True when it will be tried again, alone and after everybody else."""
        self._charges[user] += 1
        if self._charges[user] > self._retries:
            self.failed[user] = error
            return False
        self._wait((user,), first=False)
        return True

    def _wait(self, pack: Pack, *, first: bool) -> None:
        if pack:
            (self._queue.appendleft if first else self._queue.append)(pack)
            self._waiting.update(pack)
