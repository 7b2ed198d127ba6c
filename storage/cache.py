"""An LRU of fetched pieces, by bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

PieceKey = tuple[str, int, int]
"""(table, attempt, layer): names a piece's content for ever, so views of any version may share a cache."""
Factors = tuple[np.ndarray, np.ndarray]


class PieceCache:
    """The factors (a, b) of the pieces used last, ready for use, up to `max_bytes`. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.hits = 0
        self.misses = 0
        self._held: OrderedDict[PieceKey, Factors] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: PieceKey) -> Factors | None:
        """The piece, now the youngest; None when it is not held."""
        with self._lock:
            found = self._held.get(key)
            if found is None:
                self.misses += 1
                return None
            self._held.move_to_end(key)
            self.hits += 1
            return found

    def holds(self, table: str, attempts: Sequence[int], layer: int) -> bool:
        """Whether all these pieces are here; counts as no use of them."""
        return all((table, attempt, layer) in self._held for attempt in attempts)

    def put(self, key: PieceKey, a: np.ndarray, b: np.ndarray) -> None:
        """Hold copies of a piece's factors, and drop the oldest pieces that no longer fit."""
        held = (a.copy(), b.copy())
        with self._lock:
            self._drop(key)
            self._held[key] = held
            self.nbytes += _size(held)
            while self.nbytes > self.max_bytes:
                self._drop(next(iter(self._held)))

    def forget(self, attempts: set[int]) -> None:
        """Drop every piece of these attempts: sharers that withdrew."""
        with self._lock:
            for key in [key for key in self._held if key[1] in attempts]:
                self._drop(key)

    def __len__(self) -> int:
        return len(self._held)

    def _drop(self, key: PieceKey) -> None:
        gone = self._held.pop(key, None)
        if gone is not None:
            self.nbytes -= _size(gone)


def _size(held: Factors) -> int:
    return int(held[0].nbytes + held[1].nbytes)
