"""Where assembly finds pieces: the interface that a Lance pool with FAISS indexes fulfils, and one in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
import torch

from perpcs.errors import StoreError
from perpcs.keys.gate import gate_index
from perpcs.records import PoolSpec, SharerAdapter

KeyKind = Literal["gate", "gradient"]


class Pieces(Protocol):
    """One version of a pool. Ordinals number its sharers in the order of `ids`."""

    spec: PoolSpec
    version: int
    ids: tuple[str, ...]
    live: np.ndarray
    """[n] bool: which sharers may be chosen; those who withdrew keep their ordinals and are found no more."""

    def search(
        self, key: KeyKind, projection: str, queries: np.ndarray, k: int, *, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """queries [U, d] -> (scores [U, k], ordinals [U, k]), best first, -1 where there are fewer than k."""
        ...

    def scores(
        self, key: KeyKind, projection: str, queries: np.ndarray, ordinals: np.ndarray | None = None
    ) -> np.ndarray:
        """Of everybody, also those who withdrew: [U, n] by one matrix product, where a query's last digits may depend on
        who is asked together with it; or of ordinals [U, c], added up exactly."""
        ...

    def fetch(self, wanted: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """ordinals [n] by projection -> (a [n, r, i], b [n, o, r]) by projection."""
        ...

    def history_keys(self) -> np.ndarray:
        """[n, d] unit history keys in ordinal order."""
        ...


def usable(pieces: Pieces) -> np.ndarray:
    """Ordinals of the sharers that may be chosen. Raises StoreError when there are none."""
    ordinals = np.flatnonzero(pieces.live)
    if not ordinals.size:
        raise StoreError("the pool has no sharer to assemble from; train some, or use an older pool")
    return ordinals


def exact_scores(queries_Ud: np.ndarray, keys_Ucd: np.ndarray) -> np.ndarray:
    """[U, c] inner products, added up in double precision: the same whoever else is asked."""
    return np.einsum("ucd,ud->uc", keys_Ucd, queries_Ud, dtype=np.float64)


class PartialPieces:
    """Some pieces of a pool (the papers' sharing ratio): the others are not found. Ordinals stay the whole pool's."""

    def __init__(self, whole: Pieces, shared_nP: np.ndarray) -> None:
        """shared_nP: [n, P] bool, which pieces are shared, projections in the spec's order."""
        self.whole, self.spec, self.version, self.ids = whole, whole.spec, whole.version, whole.ids
        self.shared = shared_nP & whole.live[:, None]
        self.live = self.shared.any(axis=1)
        self._column = {p.name: j for j, p in enumerate(whole.spec.projections)}

    def search(
        self, key: KeyKind, projection: str, queries: np.ndarray, k: int, *, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Pieces`."""
        mask = self.shared[:, self._column[projection]]
        return self.whole.search(
            key, projection, queries, k, allowed=mask if allowed is None else mask & allowed
        )

    def scores(
        self, key: KeyKind, projection: str, queries: np.ndarray, ordinals: np.ndarray | None = None
    ) -> np.ndarray:
        """See `Pieces`; 0, no gain, for a piece that is not shared."""
        mask = self.shared[:, self._column[projection]]
        return self.whole.scores(key, projection, queries, ordinals) * (
            mask if ordinals is None else mask[ordinals]
        )

    def fetch(self, wanted: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """See `Pieces`."""
        return self.whole.fetch(wanted)

    def history_keys(self) -> np.ndarray:
        """See `Pieces`."""
        return self.whole.history_keys()


class RankedPieces:
    """A pool that ranks everybody once for the same gradient queries: any top-k of any part of it is then read off.

    Exactly what searching the part would find, where the pool's search is exact. Larger pools are searched each time.
    """

    def __init__(self, whole: Pieces, *, limit: int = 4096) -> None:
        """limit: the most sharers that are ranked."""
        self.whole, self.spec, self.version, self.ids = whole, whole.spec, whole.version, whole.ids
        self.live, self.limit = whole.live, limit
        self._ranked: dict[tuple[str, int], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._scored: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}

    def search(
        self, key: KeyKind, projection: str, queries: np.ndarray, k: int, *, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Pieces`. `queries` must not change between calls with the same array."""
        if key != "gradient" or len(self.ids) > self.limit:
            return self.whole.search(key, projection, queries, k, allowed=allowed)
        scores, ordinals = self._ranking(projection, queries)
        found = ordinals >= 0 if allowed is None else (ordinals >= 0) & allowed[ordinals]
        first = np.argsort(~found, axis=1, kind="stable")[:, :k]
        there = np.take_along_axis(found, first, 1)
        return (
            np.where(there, np.take_along_axis(scores, first, 1), np.float32(-np.inf)),
            np.where(there, np.take_along_axis(ordinals, first, 1), -1),
        )

    def scores(
        self, key: KeyKind, projection: str, queries: np.ndarray, ordinals: np.ndarray | None = None
    ) -> np.ndarray:
        """See `Pieces` and `search`."""
        if ordinals is not None or len(self.ids) > self.limit:
            return self.whole.scores(key, projection, queries, ordinals)
        place = projection, id(queries)
        if place not in self._scored:
            self._scored[place] = queries, self.whole.scores(key, projection, queries)
        return self._scored[place][1]

    def fetch(self, wanted: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """See `Pieces`."""
        return self.whole.fetch(wanted)

    def history_keys(self) -> np.ndarray:
        """See `Pieces`."""
        return self.whole.history_keys()

    def _ranking(self, projection: str, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        place = projection, id(queries)
        if place not in self._ranked:
            # The queries are kept as well, so that no other array can get their id.
            found = self.whole.search("gradient", projection, queries, len(self.ids))
            self._ranked[place] = queries, *found
        return self._ranked[place][1:]


def shared_pieces(pieces: Pieces) -> np.ndarray:
    """[n, P] bool: which pieces may be chosen."""
    if isinstance(pieces, PartialPieces):
        return pieces.shared
    return np.broadcast_to(pieces.live[:, None], (len(pieces.ids), len(pieces.spec.projections)))


class MemoryPieces:
    """All pieces in memory, searched exactly: the pool of the example script and of GPU machines without a store."""

    def __init__(self, spec: PoolSpec, sharers: Sequence[SharerAdapter], *, version: int = 1) -> None:
        self.spec, self.version = spec, version
        self._sharers = sorted(sharers, key=lambda s: s.user_id)
        self.ids = tuple(s.user_id for s in self._sharers)
        self.live = np.ones(len(self.ids), bool)
        self._keys: dict[tuple[str, str], np.ndarray] = {}

    def search(
        self, key: KeyKind, projection: str, queries: np.ndarray, k: int, *, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Pieces`; ties go to the lower ordinal."""
        scores = np.asarray(queries, np.float32) @ self._key_rows(key, projection).T
        if allowed is not None:
            scores = np.where(allowed, scores, -np.inf)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(scores, order, 1)
        return best, np.where(np.isfinite(best), order, -1)

    def scores(
        self, key: KeyKind, projection: str, queries: np.ndarray, ordinals: np.ndarray | None = None
    ) -> np.ndarray:
        """See `Pieces`."""
        rows, queries = self._key_rows(key, projection), np.asarray(queries, np.float32)
        return queries @ rows.T if ordinals is None else exact_scores(queries, rows[ordinals])

    def fetch(self, wanted: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """See `Pieces`."""
        return {
            name: (
                np.stack([self._sharers[o].pieces[name].a for o in ordinals]),
                np.stack([self._sharers[o].pieces[name].b for o in ordinals]),
            )
            for name, ordinals in wanted.items()
        }

    def history_keys(self) -> np.ndarray:
        """See `Pieces`."""
        return np.stack([s.history_key for s in self._sharers])

    def _key_rows(self, key: KeyKind, projection: str) -> np.ndarray:
        if (key, projection) not in self._keys:
            pieces = [s.pieces[projection] for s in self._sharers]
            rows = np.stack([p.gate if key == "gate" else p.gradient_key for p in pieces])
            self._keys[key, projection] = (
                gate_index(torch.from_numpy(rows)).numpy() if key == "gate" else rows
            )
        return self._keys[key, projection]
