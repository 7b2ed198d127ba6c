"""One pieces table as a view sees it: which row holds which sharer's layer, and scattered reads of rows.

n sharers of the view, L layers of the kind, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from perpcs.errors import StoreError
from storage.direct import DirectReader
from storage.files import join
from storage.schema import Group, Header, pieces_schema
from storage.tables import LANCE_ERRORS, has_table, open_table, store_errors


def pieces_uri(pool_uri: str, group: Group) -> str:
    """Where a pieces table is."""
    return join(pool_uri, f"{group.table}.lance")


@dataclass(frozen=True)
class _Opened:
    """One version of the table, and where the view's pieces are in it."""

    table: Any
    rows: np.ndarray
    """[n, L] int64: number of a piece's row in the table; -1 where there is none."""
    addresses: np.ndarray
    """[rows of the table] int64: Lance's row addresses."""
    direct: DirectReader


class PieceRows:
    """Rows of one table by (sharer, layer). Committed rows never change, so any table version that has them
    will do. Threads may share it.
    """

    def __init__(self, pool_uri: str, header: Header, group: Group, attempts: np.ndarray) -> None:
        """`attempts`: [n] int64, the committed attempt of each sharer in ordinal order."""
        self.group = group
        self._schema = pieces_schema(group, header)
        self.uri = pieces_uri(pool_uri, group)
        self.attempts = attempts
        self._layer = {name: i for i, name in enumerate(group.names)}
        self._held: _Opened | None = None

    def layer(self, projection: str) -> int:
        """Index of a projection along L."""
        return self._layer[projection]

    def take(
        self, layers: np.ndarray, ordinals: np.ndarray, columns: Sequence[str]
    ) -> tuple[pa.Table, np.ndarray]:
        """Rows for pairs (layer index, ordinal), repeats allowed: (table, place), pair i being row place[i]
        of the table.

        The table is in file order and has no row twice: handing rows over in another order costs Lance as
        much again as reading them.

        Raises:
            StoreError: a piece is not there, or the table cannot be read.
        """
        if not len(ordinals):
            empty = pa.schema([self._schema.field(name) for name in columns]).empty_table()
            return empty, np.empty(0, np.int64)
        opened = self._opened()
        try:
            return self._read(opened, self._find(opened, layers, ordinals), columns)
        except LANCE_ERRORS as error:
            if isinstance(error, StoreError):
                raise
            # Clean-up removed the files of the version that was open; the rows live on elsewhere.
            opened = self._opened(anew=True)
        with store_errors(self.uri, "reading pieces"):
            return self._read(opened, self._find(opened, layers, ordinals), columns)

    def read_direct(self, layers: np.ndarray, ordinals: np.ndarray, into: Mapping[str, np.ndarray]) -> bool:
        """Fill `into["a"]` [k, r * d_in] and `into["b"]` [k, d_out * r], float32, with k pairs as for `take`.

        Returns False where `take` has to do it.

        Raises:
            StoreError: a piece is not there.
        """
        opened = self._opened()
        return opened.direct.read(opened.addresses[self._find(opened, layers, ordinals)], into)

    def _read(
        self, opened: _Opened, wanted: np.ndarray, columns: Sequence[str]
    ) -> tuple[pa.Table, np.ndarray]:
        rows, place = np.unique(wanted, return_inverse=True)
        return opened.table.take(rows.tolist(), columns=list(columns)), place

    def _find(self, opened: _Opened, layers: np.ndarray, ordinals: np.ndarray) -> np.ndarray:
        rows = opened.rows[ordinals, layers]
        if rows.min() < 0:
            missing = int(np.flatnonzero(rows < 0)[0])
            raise StoreError(
                f"{self.uri}: sharer number {ordinals[missing]} has no piece at "
                f"{self.group.names[layers[missing]]}; "
                "its sharer was erased after a withdrawal (rebuild the recipe), or the pool is damaged"
            )
        return rows

    def _opened(self, *, anew: bool = False) -> _Opened:
        """The newest version (as of the first call, or of `anew`) with its row map, from two narrow columns."""
        if self._held is not None and not anew:
            return self._held
        if not has_table(self.uri):
            raise StoreError(
                f"{self.uri}: the table is missing; nothing was committed yet, or the pool is damaged"
            )
        table = open_table(self.uri)
        with store_errors(self.uri, "reading the row map"):
            narrow = table.to_table(columns=["attempt", "layer"], with_row_address=True)
            direct = DirectReader(table, self.uri, ("a", "b"))
        addresses = narrow["_rowaddr"].to_numpy().astype(np.int64)
        self._held = _Opened(table, self._row_map(narrow), addresses, direct)
        return self._held

    def _row_map(self, narrow: pa.Table) -> np.ndarray:
        attempts, layers = narrow["attempt"].to_numpy(), narrow["layer"].to_numpy()
        order = np.argsort(self.attempts, kind="stable")
        at = np.searchsorted(self.attempts, attempts, sorter=order)
        ordinals = order[np.minimum(at, len(order) - 1)]
        known = self.attempts[ordinals] == attempts
        rows = np.full((len(self.attempts), len(self.group.layers)), -1, np.int64)
        column = _positions(self.group.layers, layers)
        rows[ordinals[known], column[known]] = np.flatnonzero(known)
        return rows


def _positions(wanted: Sequence[int], layers: np.ndarray) -> np.ndarray:
    """Index in `wanted` of each entry of `layers`."""
    lookup = np.zeros(max(wanted) + 1, np.int64)
    lookup[list(wanted)] = np.arange(len(wanted))
    return lookup[layers]
