"""A pool at one version: who is in it, their keys, and scattered reads of their pieces.

n sharers, r rank, d_in, d_out sizes of a projection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from perpcs.errors import StoreError
from perpcs.records import Piece, PoolSpec, SharerAdapter
from storage.cache import PieceCache
from storage.fetch import Pair, fetch_factors, read_pieces
from storage.ledger import Entry
from storage.pieces import PieceRows
from storage.rows import held_arrays, unpack
from storage.schema import Header, groups
from storage.sharers import read_history_keys

Key = Literal["gate", "gradient"]
_READERS = ThreadPoolExecutor(8, thread_name_prefix="perpcs-read")
"""Tables are read at the same time: the disk's, the network's and the copying time of one hides behind the others'."""
KEY_COLUMNS: Mapping[str, str] = {"gate": "gate", "gradient": "gradient_key"}


@dataclass(frozen=True, slots=True)
class SharerInfo:
    """What is known of a sharer besides the pieces."""

    user_id: str
    items: int
    steps: int
    loss: float
    seed: int
    tenant: str


class PoolView:
    """Immutable: the same ids, keys and pieces however the pool goes on. Made by `Pool.view`."""

    cache: PieceCache | None = None
    """Where `fetch` and `fetch_many` keep what they read; one cache may serve many views."""
    check: bool = False
    """Whether they compare pieces with their checksums as they read them."""

    def __init__(
        self, uri: str, header: Header, *, version: int, members: Sequence[Entry], live: np.ndarray
    ) -> None:
        self.uri = uri
        self.version = version
        self.header = header
        self.ids: tuple[str, ...] = tuple(member.user_id for member in members)
        """Sharer ids in ordinal order: sorted. An erased sharer keeps its place under an empty id."""
        self.live = live
        """[n] bool: not withdrawn when the view was made. Only these may be used in new assemblies."""
        self._members = tuple(members)
        self._attempts = np.array([member.attempt for member in members], np.int64)
        self._where = {name: group for group in groups(header.spec) for name in group.names}
        self._tables = {g.table: PieceRows(uri, header, g, self._attempts) for g in groups(header.spec)}

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def spec(self) -> PoolSpec:
        """What all sharers have in common."""
        return self.header.spec

    @property
    def attempts(self) -> np.ndarray:
        """[n] int64: the committed attempt of each sharer; two views with the same attempts have the same
        content.
        """
        return self._attempts

    @cached_property
    def _ordinals(self) -> dict[str, int]:
        return {user_id: i for i, user_id in enumerate(self.ids) if user_id}

    def ordinal(self, user_id: str) -> int:
        """The place of a sharer in `ids`.

        Raises:
            StoreError: no such sharer at this version.
        """
        if user_id not in self._ordinals:
            raise StoreError(f"{self.uri}: no sharer {user_id!r} at version {self.version}")
        return self._ordinals[user_id]

    def keys(self, projection: str, key: Key) -> np.ndarray:
        """[n, d] float32 keys of one projection in ordinal order; d is d_in for gates, m * m for gradient
        keys.

        Zero rows for erased sharers.

        Raises:
            StoreError: the pool has no such keys or no such projection.
        """
        return self.keys_of(projection, key, np.arange(len(self)))

    def keys_of(self, projection: str, key: Key, ordinals: np.ndarray) -> np.ndarray:
        """`keys` of some sharers, [k, d] in the order of `ordinals` [k]."""
        column, rows = KEY_COLUMNS[key], self._rows(projection)
        if column not in held_arrays(self.spec):
            raise StoreError(f"{self.uri}: the pool holds no {key} keys; train the sharers with them")
        there = np.flatnonzero(self._present[ordinals])
        found, place = rows.take(np.full(len(there), rows.layer(projection)), ordinals[there], [column])
        values = unpack(found, rows.group, self.spec)[column]
        keys = np.zeros((len(ordinals), values.shape[1]), np.float32)
        keys[there] = values[place]
        return keys

    def fetch(self, projection: str, ordinals: np.ndarray) -> Pair:
        """Factors a [k, r, d_in], b [k, d_out, r], float32, of sharers `ordinals` [k] (repeats allowed)."""
        return self.fetch_many({projection: ordinals})[projection]

    def fetch_many(self, wanted: Mapping[str, np.ndarray]) -> dict[str, Pair]:
        """`fetch` for several projections at once: one scattered read per table.

        Raises:
            StoreError: an unknown projection, an ordinal outside the view, or a piece that is not there.
        """
        found: dict[str, Pair] = {}
        by_table: dict[str, list[str]] = {}
        for name, ordinals in wanted.items():
            self._check_ordinals(name, np.asarray(ordinals))
            by_table.setdefault(self._rows(name).group.table, []).append(name)

        def read(table: str) -> dict[str, Pair]:
            chosen = {name: np.asarray(wanted[name], np.int64) for name in by_table[table]}
            return fetch_factors(self._tables[table], chosen, self.spec, cache=self.cache, check=self.check)

        # One table, and what is in memory, is read in this thread: handing it over costs more than a cached piece.
        here = len(by_table) == 1 or all(self._holds(*pair) for pair in wanted.items())
        for pairs in (map if here else _READERS.map)(read, by_table):
            found.update(pairs)
        return {name: found[name] for name in wanted}

    def _holds(self, projection: str, ordinals: np.ndarray) -> bool:
        rows = self._rows(projection)
        return self.cache is not None and self.cache.holds(
            rows.group.table, rows.attempts[np.asarray(ordinals, np.int64)].tolist(), rows.layer(projection)
        )

    def adapter(self, user_id: str) -> SharerAdapter:
        """A whole sharer as it was committed, bit for bit in a float32 pool.

        Raises:
            StoreError: no such sharer at this version.
        """
        return self.adapters([user_id])[0]

    def adapters(self, user_ids: Sequence[str]) -> list[SharerAdapter]:
        """`adapter` for several sharers: one read per table."""
        ordinals = np.array([self.ordinal(user_id) for user_id in user_ids], np.int64)
        pieces: list[dict[str, Piece]] = [{} for _ in user_ids]
        for rows in self._tables.values():
            for held, found in zip(pieces, read_pieces(rows, ordinals, self.spec), strict=True):
                held.update(found)
        members = [self._members[i] for i in ordinals]
        places = {member.attempt: i for i, member in enumerate(members)}
        histories = read_history_keys(self.uri, places, self.spec.history_dim)
        return [
            SharerAdapter(
                user_id=member.user_id,
                rank=self.spec.rank,
                alpha=self.spec.alpha,
                pieces={p.name: found[p.name] for p in self.spec.projections},
                history_key=history,
                items=member.items,
                steps=member.steps,
                loss=member.loss,
                seed=member.seed,
            )
            for member, found, history in zip(members, pieces, histories, strict=True)
        ]

    def history_keys(self) -> np.ndarray:
        """[n, d] float32 mean history embeddings in ordinal order; zero rows for erased sharers."""
        places = {int(attempt): i for i, attempt in enumerate(self._attempts)}
        return read_history_keys(self.uri, places, self.spec.history_dim)

    def of_tenants(self, *tenants: str) -> np.ndarray:
        """[n] bool: the sharers that were committed for one of `tenants`; for `PoolIndex.search`'s `allowed`."""
        return np.array([member.tenant in tenants for member in self._members], bool)

    def without(self, *user_ids: str) -> np.ndarray:
        """[n] bool: everybody but `user_ids`, for targets who must not be served their own pieces."""
        return np.array([member.user_id not in user_ids for member in self._members], bool)

    def info(self) -> list[SharerInfo]:
        """Metadata of every sharer in ordinal order."""
        return [SharerInfo(m.user_id, m.items, m.steps, m.loss, m.seed, m.tenant) for m in self._members]

    @cached_property
    def _present(self) -> np.ndarray:
        return np.array([member.event == "commit" for member in self._members], bool)

    def _rows(self, projection: str) -> PieceRows:
        if projection not in self._where:
            raise StoreError(f"{self.uri}: the pool has no projection {projection!r}")
        return self._tables[self._where[projection].table]

    def _check_ordinals(self, projection: str, ordinals: np.ndarray) -> None:
        if ordinals.ndim != 1 or (
            ordinals.size and not 0 <= int(ordinals.min()) <= int(ordinals.max()) < len(self)
        ):
            raise StoreError(
                f"{self.uri}: ordinals of {projection} must be a vector of numbers from 0 to {len(self) - 1} "
                f"at version {self.version}; was the recipe made with another pool?"
            )
