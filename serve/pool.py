"""The pool as it is now, for new assemblies, and as it was at the versions that recipes name."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from perpcs.assembly.merge import adapter_from_recipe
from perpcs.assembly.pieces import PartialPieces
from perpcs.errors import DataError, MismatchError
from perpcs.lora.bank import Adapter
from perpcs.records import Recipe
from serve.errors import StaleRecipeError
from storage.cache import PieceCache
from storage.lance_pieces import LancePieces
from storage.layout import Paths
from storage.masks import shared_mask
from storage.pool import Pool

VIEWS = 8
"""Versions of the pool that are kept open, those used last."""
STALE = "the assembled model was made with pieces or a base that are gone; assemble it again"


@dataclass(frozen=True)
class Sharing:
    """How much of the pool is assembled from, as the experiment says it."""

    sharers: int = 0
    ratio: float = 1.0
    seed: int = 0


class ServedPool:
    """Thread-safe. A sharer who withdraws is chosen no more from the next assembly on, on every replica."""

    def __init__(self, paths: Paths, fingerprint: str, sharing: Sharing, *, cache_bytes: int) -> None:
        """Raises StoreError when there is no pool, MismatchError when it was made with another base."""
        self.fingerprint, self.sharing = fingerprint, sharing
        self.cache = PieceCache(cache_bytes)
        self._folder = paths.indexes
        self._pool = Pool.open(paths.pool)
        if self._pool.spec.fingerprint != fingerprint:
            raise MismatchError(
                f"{paths.pool}: was made with base {self._pool.spec.fingerprint}, the experiment's base is "
                f"{fingerprint}; train the sharers again"
            )
        self.spec = self._pool.spec
        self._lock = threading.Lock()
        self._views: dict[int, LancePieces] = {}
        self._version = 0
        self._left: frozenset[int] = frozenset()
        self._erased: frozenset[int] = frozenset()

    def now(self, tenant: str) -> PartialPieces:
        """What a tenant's users are assembled from: sharers of nobody in particular, and the tenant's own; of these, what
        the experiment's `assembly.sharers` and `assembly.sharing_ratio` leave. Raises DataError where that is nothing."""
        with self._lock:
            self._refresh()
            pieces = self._at(self._version)
        allowed = pieces.view.of_tenants("", tenant)
        mask = shared_mask(
            pieces.ids, pieces.live & allowed, [p.name for p in self.spec.projections],
            sharers=self.sharing.sharers, ratio=self.sharing.ratio, seed=self.sharing.seed,
        )  # fmt: skip
        if mask is None:
            mask = np.repeat(allowed[:, None], len(self.spec.projections), axis=1)
        if not (mask & pieces.live[:, None]).any():
            raise DataError("the pool has no sharer from whom this tenant's users may be assembled")
        return PartialPieces(pieces, mask)

    def erased(self) -> frozenset[int]:
        """Attempts whose pieces are erased by now."""
        with self._lock:
            self._refresh()
            return self._erased

    def adapter(self, recipe: Recipe) -> Adapter:
        """What a recipe stands for. Raises StaleRecipeError when that cannot be made any more."""
        pieces = self.at(recipe.pool_version)
        used = np.unique(recipe.ordinals[recipe.codes != 0])
        if recipe.fingerprint != self.fingerprint or any(not pieces.ids[ordinal] for ordinal in used):
            raise StaleRecipeError(f"recipe: {STALE}")
        return adapter_from_recipe(recipe, pieces)

    def at(self, version: int) -> LancePieces:
        """The pool at a version."""
        with self._lock:
            self._refresh()
            return self._at(version)

    def _refresh(self) -> None:
        roll = self._pool.log.refresh()
        self._version = self._pool.log.version
        left, erased = frozenset(roll.left), frozenset(roll.erased)
        if (left, erased) != (self._left, self._erased):
            # Who withdrew or was erased meanwhile is so in older views too.
            self._views.clear()
            self.cache.forget({*left, *erased})
            self._left, self._erased = left, erased

    def _at(self, version: int) -> LancePieces:
        found = self._views.pop(version, None)
        if found is None:
            found = LancePieces(self._pool.view(version, cache=self.cache), self._folder)
        self._views[version] = found  # the last to go
        if len(self._views) > VIEWS:
            self._views.pop(next(iter(self._views)))
        return found
