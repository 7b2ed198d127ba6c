"""FAISS over a view's keys, one index per projection: cached on disk, never trusted blindly, never the only
truth.

n sharers, d key size, U queries, k results. Scores are inner products, best first.

- gate keys are stored raw and indexed as LN(g) / sqrt(d): with q the mean of LN(x_t), a result's score is
  exactly the paper's s = q . LN(g) / sqrt(d_in) (METHOD section 2, step 5).
- gradient keys are stored normalised and indexed as they are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from perpcs.errors import MismatchError, StoreError
from storage.files import join
from storage.index_files import Cached, folders, load, save
from storage.index_kinds import IndexSettings, add_all, all_vectors, new_index, search_index, training_rows
from storage.view import Key, PoolView

_LN_EPS = 1e-5
_SEARCHERS = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="perpcs-search")
BLOCK = 4096
"""Keys that are read from the store at a time."""


def layer_norm(x: np.ndarray) -> np.ndarray:
    """LN over the last axis, without affine parameters: (x - mean) / sqrt(var + 1e-5), float32."""
    x = np.asarray(x, np.float32)
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + np.float32(_LN_EPS))


def index_vectors(keys: np.ndarray, key: Key) -> np.ndarray:
    """[n, d] stored keys -> the [n, d] float32 vectors whose inner product with a query is the score."""
    if key == "gate":
        keys = layer_norm(keys) / np.float32(np.sqrt(keys.shape[1]))
    return np.ascontiguousarray(keys, np.float32)


@dataclass(frozen=True)
class _Opened:
    index: Any
    ordinals: np.ndarray
    """[positions] int64: the view's ordinal of each position of the index."""


@dataclass
class PoolIndex:
    """Indexes of one view and one kind of key, loaded or built at a projection's first search."""

    view: PoolView
    key: Key
    root: str
    settings: IndexSettings
    """As resolved for the view's number of sharers."""
    name: str
    """Of the settings as they were asked for: a pool that has grown still finds its older indexes."""
    _open: dict[str, _Opened] = field(default_factory=dict)

    @classmethod
    def open(
        cls, view: PoolView, *, key: Key, folder: str, settings: IndexSettings | None = None
    ) -> PoolIndex:
        """Indexes of `view`, cached in `folder`; a pool needs a cache folder of its own.

        Raises:
            StoreError: the pool has no such keys, or the settings are impossible.
        """
        have = {"gate": view.spec.gates, "gradient": bool(view.spec.sketch)}
        if key not in have:
            raise StoreError(f"key {key!r}: a pool index is over gate or gradient keys")
        if not have[key]:
            raise StoreError(f"{view.uri}: the pool holds no {key} keys; train its sharers with them")
        settings = settings or IndexSettings()
        resolved = settings.resolve(len(view))
        return cls(view, key, str(folder), resolved, f"{key}-{resolved.kind}-{settings.digest}")

    def build(self) -> None:
        """Make the cached indexes of all projections, those that are missing, stale or damaged."""
        for projection in self.view.spec.projections:
            self._opened(projection.name)

    def search(
        self, projection: str, queries: np.ndarray, k: int, *, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best sharers per query [U, d] among `allowed` [n] bool (default: all) that have not
        withdrawn.

        Returns scores [U, k] float32 and ordinals [U, k] int64, best first; -inf and -1 where there are
        fewer than k. A query's result does not depend on the other queries.

        Raises:
            StoreError: unknown projection. MismatchError: queries or mask of another size.
        """
        opened = self._opened(projection)
        queries = self._checked(projection, queries, opened)
        if allowed is not None and allowed.shape != (len(self.view),):
            raise MismatchError(
                f"mask of {projection} has shape {allowed.shape}, the view has {len(self.view)} sharers"
            )
        usable = self.view.live if allowed is None else self.view.live & allowed
        if not usable.any():
            return np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        scores, places = search_index(opened.index, self.settings, queries, k, usable=usable[opened.ordinals])
        return scores, np.where(places < 0, -1, opened.ordinals[places])

    def scores(self, projection: str, queries: np.ndarray, ordinals: np.ndarray | None = None) -> np.ndarray:
        """Inner products of queries [U, d] with everybody's keys, [U, n], by one matrix product; or with those of
        `ordinals` [U, c], added up in double precision. Live or not; raises as `search` does.
        """
        opened = self._opened(projection)
        queries = self._checked(projection, queries, opened)
        if ordinals is not None:
            some, place = np.unique(ordinals, return_inverse=True)
            keys = self._keys(projection, opened, some)[place.reshape(ordinals.shape)]
            return np.einsum("ucd,ud->uc", keys, queries, dtype=np.float64)
        out = np.empty((len(queries), len(self.view)), np.float32)
        stored = all_vectors(opened.index)
        if stored is not None:
            out[:, opened.ordinals] = queries @ stored.T
            return out
        for start in range(0, len(self.view), BLOCK):
            block = np.arange(start, min(start + BLOCK, len(self.view)))
            out[:, block] = queries @ self._vectors(projection, block).T
        return out

    def _keys(self, projection: str, opened: _Opened, ordinals: np.ndarray) -> np.ndarray:
        """[c, d] keys as they are indexed; from the index where that holds them as they are."""
        stored = all_vectors(opened.index)
        if stored is None:
            return self._vectors(projection, ordinals)
        place = np.empty(len(self.view), np.int64)
        place[opened.ordinals] = np.arange(len(self.view))
        return np.asarray(stored[place[ordinals]])

    def _checked(self, projection: str, queries: np.ndarray, opened: _Opened) -> np.ndarray:
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != opened.index.d:
            raise MismatchError(
                f"queries of {projection} have shape {queries.shape}, the {self.key} keys need [U, {opened.index.d}]"
            )
        return queries

    def search_many(
        self, queries: Mapping[str, np.ndarray], k: int, *, allowed: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """`search` for several projections at the same time, each with its queries [U, d] and, where given, its own
        mask [n].
        """
        masks = allowed or {}

        def search(name: str) -> tuple[np.ndarray, np.ndarray]:
            return self.search(name, queries[name], k, allowed=masks.get(name))

        return dict(zip(queries, _SEARCHERS.map(search, queries), strict=True))

    def recall(self, projection: str, queries: np.ndarray, k: int) -> float:
        """Fraction of the exact top k that this index finds, mean over `queries` [U, d]; 1 for a flat one."""
        exact = PoolIndex.open(self.view, key=self.key, folder=self.root, settings=IndexSettings("flat"))
        exact._open[projection] = exact._build(projection)
        wanted = exact.search(projection, queries, k)[1]
        found = self.search(projection, queries, k)[1]
        pairs = zip(wanted.tolist(), found.tolist(), strict=True)
        hits = [len(({*want} - {-1}) & {*got}) / max(len({*want} - {-1}), 1) for want, got in pairs]
        return float(np.mean(hits))

    def _opened(self, projection: str) -> _Opened:
        if projection not in self._open:
            cached = load(self._folder, projection, origin=self._origin())
            self._open[projection] = (cached and self._fit(cached)) or self._make(projection)
        return self._open[projection]

    @property
    def _folder(self) -> str:
        return join(self.root, f"{self.name}-{identity(self.view)}")

    def _origin(self, view: str = "") -> dict[str, Any]:
        return {
            "pool": self.view.header.id,
            "key": self.key,
            "settings": self.name,
            "view": view or identity(self.view),
        }

    def _fit(self, cached: Cached) -> _Opened | None:
        """A cached index as one of this view; None when it is over other sharers."""
        attempts = self.view.attempts
        if len(cached.attempts) != len(attempts):
            return None
        order = np.argsort(attempts)
        ordinals = order[np.minimum(np.searchsorted(attempts, cached.attempts, sorter=order), len(order) - 1)]
        return (
            _Opened(cached.index, ordinals) if np.array_equal(attempts[ordinals], cached.attempts) else None
        )

    def _make(self, projection: str) -> _Opened:
        opened = self._extend(projection) or self._build(projection)
        cached = Cached(opened.index, self.view.attempts[opened.ordinals])
        save(self._folder, projection, cached, origin=self._origin())
        return opened

    def _build(self, projection: str) -> _Opened:
        n = len(self.view)
        sample = self._vectors(projection, training_rows(self.settings, n))
        index = new_index(self.settings, sample.shape[1], sample)
        return _Opened(add_all(index, self._stream(projection, np.arange(n))), np.arange(n))

    def _extend(self, projection: str) -> _Opened | None:
        """The largest cached index over some of this view's sharers, at least half of them, with the rest
        added.
        """
        best, size = None, (len(self.view) + 1) // 2
        for folder in folders(self.root, f"{self.name}-"):
            view = folder.rsplit("-", 1)[-1]
            cached = load(folder, projection, origin=self._origin(view), mapped=False)
            if cached and len(cached.attempts) >= size and np.isin(cached.attempts, self.view.attempts).all():
                best, size = cached, len(cached.attempts)
        if best is None:
            return None
        new = np.flatnonzero(~np.isin(self.view.attempts, best.attempts))
        index = add_all(best.index, self._stream(projection, new))
        return self._fit(Cached(index, np.concatenate([best.attempts, self.view.attempts[new]])))

    def _vectors(self, projection: str, ordinals: np.ndarray) -> np.ndarray:
        return index_vectors(self.view.keys_of(projection, self.key, ordinals), self.key)

    def _stream(self, projection: str, ordinals: np.ndarray, size: int = BLOCK) -> Iterator[np.ndarray]:
        for start in range(0, len(ordinals), size):
            yield self._vectors(projection, ordinals[start : start + size])


def identity(view: PoolView) -> str:
    """16 hex digits of who is in the view, and of which pool: views of the same sharers share an index."""
    state = hashlib.blake2b(view.header.id.encode(), digest_size=8)
    state.update(view.attempts.tobytes())
    return state.hexdigest()
