"""Finished trials of a sweep: one Lance table with a row per trial, each once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from storage.files import exists, join
from storage.tables import append, create_table, open_table, store_errors
from storage.upkeep import Upkeep, tidy_table

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("seed", pa.int64()),
        ("method", pa.string()),
        ("values", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("metrics", pa.string()),
        ("users", pa.int64()),
        ("queries", pa.int64()),
        ("bytes_per_user", pa.float64()),
        ("pool_bytes", pa.int64()),
        ("trainable_parameters", pa.int64()),
        ("forward_tokens", pa.int64()),
        ("backward_tokens", pa.int64()),
        ("seconds_per_user", pa.float64()),
        ("answered", pa.int64()),
        ("spent", pa.float64()),
        ("user_sums", pa.string()),
        ("predictions", pa.list_(pa.string())),
        ("experiment", pa.string()),
        ("state", pa.string()),
        ("at", pa.int64()),
    ]
)


class TrialTable:
    """Trials at a path or URI. One writer at a time; readers see whole commits."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @classmethod
    def of(cls, root: str) -> TrialTable:
        """The table of the sweep whose folder is `root`."""
        return cls(join(root, "trials.lance"))

    def states(self) -> dict[str, str]:
        """Trial id -> the state of the experiment (base and pool) it was evaluated over."""
        return {row["id"]: row["state"] for row in self.rows(["id", "state"])}

    def rows(self, columns: Sequence[str] = ()) -> list[dict[str, Any]]:
        """All trials, in the order of their commits; of several with one id the last.

        Raises:
            StoreError: the table is damaged.
        """
        if not exists(self.uri):
            return []
        names = list(columns) or SCHEMA.names
        with store_errors(self.uri, "reading trials"):
            found = open_table(self.uri).to_table(columns=list(dict.fromkeys(["id", *names]))).to_pylist()
        return list({row["id"]: row for row in found}.values())

    def add(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Append in one commit what is not there yet in the same state; how many were.

        Raises:
            StoreError: the place is not writable.
        """
        known = self.states()
        new = {row["id"]: dict(row) for row in rows if known.get(row["id"]) != row["state"]}
        if new:
            if not exists(self.uri):
                create_table(self.uri, SCHEMA)
            table = pa.Table.from_pylist(list(new.values()), schema=SCHEMA)
            tidy_table(self.uri, Upkeep(), append(self.uri, table))
        return len(new)
