"""A pool's view with its FAISS indexes: what assembly searches and fetches."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from perpcs.errors import MismatchError
from storage.index import PoolIndex
from storage.layout import Paths
from storage.pool import Pool
from storage.view import Key, PoolView


class LancePieces:
    """A pool's view with its FAISS indexes, as `perpcs.assembly.pieces.Pieces`."""

    def __init__(self, view: PoolView, folder: str) -> None:
        self.view, self.spec, self.version = view, view.spec, view.version
        self.ids, self.live = view.ids, view.live
        self._folder = folder
        self._indexes: dict[Key, PoolIndex] = {}
        self._history_keys: np.ndarray | None = None

    @classmethod
    def open(
        cls, paths: Paths, fingerprint: str, *, version: int | None = None, checksums: bool = False
    ) -> LancePieces:
        """An experiment's pool at a version (default: now).

        checksums: compare pieces with theirs whenever they are read.

        Raises:
            MismatchError: it was made with another base than the one with this fingerprint.
        """
        view = Pool.open(paths.pool).view(version)
        if view.spec.fingerprint != fingerprint:
            raise MismatchError(
                f"{paths.pool}: the pool's pieces were made with base {view.spec.fingerprint}, "
                f"the experiment's base is {fingerprint}; train the sharers again in a new folder"
            )
        view.check = checksums
        return cls(view, paths.indexes)

    def search(
        self, key: Key, projection: str, queries: np.ndarray, k: int, *, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `perpcs.assembly.pieces.Pieces`."""
        return self.index(key).search(projection, queries, k, allowed=allowed)

    def scores(
        self, key: Key, projection: str, queries: np.ndarray, ordinals: np.ndarray | None = None
    ) -> np.ndarray:
        """See `perpcs.assembly.pieces.Pieces`."""
        return self.index(key).scores(projection, queries, ordinals)

    def fetch(self, wanted: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """See `perpcs.assembly.pieces.Pieces`."""
        return self.view.fetch_many(wanted)

    def history_keys(self) -> np.ndarray:
        """See `perpcs.assembly.pieces.Pieces`."""
        if self._history_keys is None:
            self._history_keys = self.view.history_keys()
        return self._history_keys

    def index(self, key: Key) -> PoolIndex:
        """The indexes of one kind of key."""
        if key not in self._indexes:
            self._indexes[key] = PoolIndex.open(self.view, key=key, folder=self._folder)
        return self._indexes[key]
