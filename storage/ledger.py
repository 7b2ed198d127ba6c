"""The log of who is in a pool, and what it says at any version. Pure functions over rows; no files.

The sharers table is only ever appended to (and, when a withdrawn sharer is erased, rows are deleted). Each
row is an event, and the table version that brought the row in is the event's time. Folding the events up to
version v gives the pool as it was at v, so every version stays readable for ever, through any compaction,
at no cost.

- commit: these pieces, under this attempt number, are a sharer. The first commit of an id wins; later ones
  are ignored until the id is withdrawn. `seen` is the version its writer had read: a commit that was under
  way while its id was withdrawn does not bring the sharer back.
- withdraw: the id's current attempt leaves the pool.
- erase: stands in for a commit and a withdrawal whose rows are deleted. It keeps the attempt number, the
  versions between which it was a member (`since` <= v < `until`) and its place in the order of ids (right
  after `sort_id`, as number `sort_n`), but no id: recipes of old versions count sharers in this order. A
  salted hash of the id voids a commit of it that was under way. Every erasure writes all of them anew, and
  the newest row of an attempt counts.
- bar: keeps out an id that is no member, but withdrew after it had been chosen to be one: commits of it that
  were decided before do not count. It holds the same salted hash.
- tag, untag: `user_id` is a name for version `since`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

EVENTS = ("commit", "withdraw", "erase", "bar", "tag", "untag")


@dataclass(frozen=True, slots=True)
class Entry:
    """One event. `version` is the table version of its commit: the event's time."""

    version: int
    event: str
    user_id: str
    attempt: int = 0
    tenant: str = ""
    seen: int = 0
    digest: bytes = bytes(16)
    items: int = 0
    steps: int = 0
    loss: float = 0.0
    seed: int = 0
    since: int = 0
    until: int = 0
    sort_id: str = ""
    sort_n: int = 0

    @property
    def order(self) -> tuple[str, int]:
        """Key of the order of sharers: by id; an erased one keeps its place after the id that preceded it."""
        return (self.sort_id, self.sort_n) if self.event == "erase" else (self.user_id, 0)


@dataclass
class Roll:
    """The fold of a log."""

    members: dict[str, Entry] = field(default_factory=dict)
    """Commits that count now, by id."""
    left: dict[int, tuple[Entry, int]] = field(default_factory=dict)
    """Commits that counted until a withdrawal, by attempt, with the version of the withdrawal."""
    erased: dict[int, Entry] = field(default_factory=dict)
    """Erasures by attempt."""
    bars: list[Entry] = field(default_factory=list)
    tags: dict[str, int] = field(default_factory=dict)
    _last_left: dict[str, int] = field(default_factory=dict)

    def take(self, entries: Iterable[Entry], version: int | None = None) -> Roll:
        """Take events in log order, up to and including `version`; returns itself.

        Erasures count from the start, whatever their version: the next erasure writes their rows anew,
        later in the log, and a commit that one of them voids may lie between.
        """
        held = list(entries)
        self.erased.update({entry.attempt: entry for entry in held if entry.event == "erase"})
        for entry in held:
            if version is None or entry.version <= version:
                self._apply(entry)
        return self

    def _apply(self, entry: Entry) -> None:
        if entry.event == "commit":
            if entry.user_id not in self.members and not self._was_under_way(entry):
                self.members[entry.user_id] = entry
        elif entry.event == "withdraw":
            current = self.members.get(entry.user_id)
            if current is not None and current.attempt == entry.attempt:
                self.left[entry.attempt] = (self.members.pop(entry.user_id), entry.version)
                self._last_left[entry.user_id] = entry.version
        elif entry.event == "bar":
            self.bars.append(entry)
        elif entry.event == "tag":
            self.tags[entry.user_id] = entry.since
        elif entry.event == "untag":
            self.tags.pop(entry.user_id, None)

    def departed(self, user_id: str) -> bool:
        """Whether an id has withdrawn and not come back, erased since or not."""
        if user_id in self.members:
            return False
        return user_id in self._last_left or _marked(user_id, [*self.erased.values(), *self.bars])

    def _was_under_way(self, commit: Entry) -> bool:
        """Whether its id was withdrawn (and perhaps erased since) after its writer had looked."""
        if commit.seen < self._last_left.get(commit.user_id, 0):
            return True
        late = [gone for gone in self.erased.values() if commit.seen < gone.until <= commit.version]
        late += [bar for bar in self.bars if commit.seen < bar.version]
        return _marked(commit.user_id, late)

    @property
    def attempts(self) -> set[int]:
        """Attempts of the members: whose pieces may be used in new assemblies."""
        return {entry.attempt for entry in self.members.values()}


def fold(entries: Iterable[Entry], version: int | None = None) -> Roll:
    """The state after all events up to and including `version`; None takes all. `entries` in log order."""
    return Roll().take(entries, version)


def members_at(entries: Sequence[Entry], version: int) -> list[Entry]:
    """The sharers at `version` in the order that ordinals count: by id, erased ones in their old places."""
    roll = fold(entries, version)
    found = [entry for entry in roll.members.values() if entry.attempt not in roll.erased]
    found += [entry for entry in roll.erased.values() if entry.since <= version < entry.until]
    return sorted(found, key=lambda entry: entry.order)


def erasures(entries: Sequence[Entry], *, seen: int) -> list[Entry]:
    """Erase events for everybody who has withdrawn, and again for those erased before.

    An erased sharer's place is right after the nearest smaller id that stays. That keeps the order among
    all who were ever members of the same version, which is all that old ordinals need.
    """
    roll = fold(entries)
    leaving = {a: kept for a, kept in roll.left.items() if a not in roll.erased}
    people = [*roll.members.values(), *(entry for entry, _ in leaving.values()), *roll.erased.values()]
    found, last, count = [], "", 0
    for entry in sorted(people, key=lambda entry: entry.order):
        if entry.event == "commit" and entry.attempt not in leaving:
            last, count = entry.user_id, 0
            continue
        count += 1
        if entry.event == "erase":
            gone = replace(entry, version=0, seen=seen, sort_id=last, sort_n=count)
        else:
            mark, until = erased_mark(entry.user_id, entry.attempt), leaving[entry.attempt][1]
            gone = Entry(
                0, "erase", "", entry.attempt, seen=seen, digest=mark, since=entry.version, until=until,
                sort_id=last, sort_n=count,
            )  # fmt: skip
        found.append(gone)
    return found


def _marked(user_id: str, gone: Iterable[Entry]) -> bool:
    return any(entry.digest == erased_mark(user_id, entry.attempt) for entry in gone)


def erased_mark(user_id: str, attempt: int) -> bytes:
    """16 bytes by which a late commit of an erased id is known: a hash of the id, salted with the attempt
    number.
    """
    return hashlib.blake2b(user_id.encode(), key=attempt.to_bytes(8, "little"), digest_size=16).digest()
