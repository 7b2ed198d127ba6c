"""The pool: sharers' pieces in Lance tables, committed so that a sharer is there as a whole or not at all.

Order of a commit: the pieces of the whole batch, one append per table; then one append to the sharers
table, which makes them visible. A writer that dies before the last append leaves rows that nobody reads and
clean-up removes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perpcs.errors import StoreError
from perpcs.records import PoolSpec, SharerAdapter
from storage.cache import PieceCache
from storage.ledger import Entry, members_at
from storage.pieces import pieces_uri
from storage.rows import Incoming, check_adapter, incoming, pieces_table
from storage.schema import HEADER, Dtype, Group, Header, groups, pieces_schema, require_same, sharers_schema
from storage.sharers import SharerLog, event_rows, sharers_uri
from storage.tables import append, create_table, has_table, open_table
from storage.upkeep import Upkeep, after_commit
from storage.view import PoolView


def pool_exists(uri: str) -> bool:
    """Whether there is a pool at `uri`, of whatever version."""
    return has_table(sharers_uri(uri))


@dataclass(frozen=True)
class Commit:
    """What a commit did. `version` is the first pool version that holds all of it."""

    version: int
    added: tuple[str, ...]
    skipped: tuple[str, ...]
    """Were there already, with the same content."""
    superseded: tuple[str, ...]
    """Another writer's commit of the same id came first, or the sharer has withdrawn meanwhile."""


class Pool:
    """A pool at a path or URI. One object per process; open it again in another."""

    def __init__(self, uri: str, header: Header, log: SharerLog) -> None:
        self.uri = uri
        self.header = header
        self.tables: tuple[Group, ...] = groups(header.spec)
        self.log = log
        self.upkeep: Upkeep | None = Upkeep()
        """What commits of this object tidy up; None leaves it to `storage.upkeep`."""
        self._commits = 0

    @property
    def spec(self) -> PoolSpec:
        """What all sharers have in common."""
        return self.header.spec

    @classmethod
    def create(cls, uri: str, *, spec: PoolSpec, dtype: Dtype = "float32") -> Pool:
        """A new, empty pool.

        Raises:
            StoreError: there is a pool already, or the place is not writable.
        """
        if pool_exists(uri):
            raise StoreError(f"{uri}: there is a pool already; open it or choose another folder")
        return cls.open_or_create(uri, spec=spec, dtype=dtype)

    @classmethod
    def open(cls, uri: str) -> Pool:
        """An existing pool.

        Raises:
            StoreError: there is none, or it is damaged. MismatchError: another schema version.
        """
        if not pool_exists(uri):
            raise StoreError(f"{uri}: there is no pool here; train sharers first or check the path")
        table = open_table(sharers_uri(uri))
        metadata = table.schema.metadata or {}
        if HEADER not in metadata:
            raise StoreError(
                f"{uri}: the sharers table has no pool description; it was not written by perpcs"
            )
        return cls(str(uri), Header.from_json(metadata[HEADER], str(uri)), SharerLog(table, sharers_uri(uri)))

    @classmethod
    def open_or_create(cls, uri: str, *, spec: PoolSpec, dtype: Dtype = "float32") -> Pool:
        """The pool at `uri`, created if missing; safe when many processes do it at once.

        Raises:
            MismatchError: it is there with another description; names the field and both values.
        """
        if not pool_exists(uri):
            create_table(sharers_uri(uri), sharers_schema(Header.new(spec, dtype)))
        pool = cls.open(uri)
        require_same(pool.header, spec, dtype, str(uri))
        return pool

    def committed(self) -> frozenset[str]:
        """Ids of the sharers that are in the pool now."""
        return frozenset(self.log.refresh().members)

    def view(self, version: int | str | None = None, *, cache: PieceCache | None = None) -> PoolView:
        """The pool as it was at `version` (a number or a tag; default: now); later commits do not change it.

        Raises:
            StoreError: there is no such version.
        """
        roll = self.log.refresh()
        latest = self.log.version
        if isinstance(version, str):
            if version not in roll.tags:
                raise StoreError(f"{self.uri}: no tag {version!r}; there are {sorted(roll.tags) or 'none'}")
            version = roll.tags[version]
        version = latest if version is None else version
        if not 1 <= version <= latest:
            raise StoreError(f"{self.uri}: there is no version {version}; the newest is {latest}")
        members = members_at(self.log.entries, version)
        now = roll.attempts
        live = np.array([member.attempt in now for member in members], bool)
        view = PoolView(self.uri, self.header, version=version, members=members, live=live)
        view.cache = cache
        return view

    def commit(
        self, adapters: Sequence[SharerAdapter], *, tenant: str = "", decided: int | None = None
    ) -> Commit:
        """Add finished sharers, all in one step; readers see none of them or all.

        A sharer that is there with the same content is skipped, so a repeated commit changes nothing.
        `decided`: the pool version at which it was decided to add them (default: now); whoever withdrew after
        that is left out.

        Raises:
            MismatchError: an adapter of another shape. StoreError: values that are not finite, or an id
            that is there with other
                content. Nothing is written then.
        """
        for adapter in adapters:
            check_adapter(adapter, self.header, self.uri, self.tables)
        batch, skipped = self._plan(adapters)
        if not batch:
            return Commit(self.log.version, (), skipped, ())
        seen = self.log.version if decided is None else min(decided, self.log.version)
        started = time.time_ns() // 1_000_000
        for group in self.tables:
            uri = pieces_uri(self.uri, group)
            if not has_table(uri):
                create_table(uri, pieces_schema(group, self.header))
            append(uri, pieces_table(batch, group, self.header, started=started))
        entries = [_entry(one, tenant, seen) for one in batch]
        keys = np.stack([np.asarray(one.adapter.history_key, np.float32) for one in batch])
        version = self.log.append(event_rows(entries, self.header, history_keys=keys))
        outcome = self._outcome(batch, skipped, version)
        self._commits += 1
        if self.upkeep:
            after_commit(self, self.upkeep, self._commits)
        return outcome

    def _plan(self, adapters: Sequence[SharerAdapter]) -> tuple[list[Incoming], tuple[str, ...]]:
        """What has to be written, and the ids that are there already."""
        there = {user_id: entry.digest for user_id, entry in self.log.refresh().members.items()}
        batch: dict[str, Incoming] = {}
        skipped: dict[str, None] = {}
        for adapter in adapters:
            one, user_id = incoming(adapter, self.tables, self.header), adapter.user_id
            if there.get(user_id, one.digest) != one.digest:
                raise StoreError(
                    f"{self.uri}: sharer {user_id!r} is committed already with other content; "
                    "withdraw it first, or leave it out"
                )
            if user_id not in there:
                batch[user_id], there[user_id] = one, one.digest
            elif user_id not in batch:
                skipped[user_id] = None
        return list(batch.values()), tuple(skipped)

    def _outcome(self, batch: Sequence[Incoming], skipped: tuple[str, ...], version: int) -> Commit:
        """Who won where two writers brought the same id: the log decides, for every reader alike."""
        attempts = self.log.refresh().attempts
        won = tuple(one.adapter.user_id for one in batch if one.attempt in attempts)
        lost = tuple(one.adapter.user_id for one in batch if one.attempt not in attempts)
        return Commit(version, won, skipped, lost)


def _entry(one: Incoming, tenant: str, seen: int) -> Entry:
    adapter = one.adapter
    return Entry(
        version=0,
        event="commit",
        user_id=adapter.user_id,
        attempt=one.attempt,
        tenant=tenant,
        seen=seen,
        digest=one.digest,
        items=adapter.items,
        steps=adapter.steps,
        loss=float(adapter.loss),
        seed=adapter.seed,
    )
