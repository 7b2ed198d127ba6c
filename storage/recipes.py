"""Recipes: the personal adapters of target users, one row per (user, method)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from perpcs.errors import StoreError
from perpcs.records import Recipe
from storage.tables import (
    CREATED,
    FORMAT,
    append,
    create_table,
    has_table,
    open_table,
    quoted,
    require_format,
    store_errors,
)
from storage.upkeep import GRACE_S, STRAY_GRACE_S, Upkeep, compact_table, drop_old_files, tidy_table

_FORMAT = 1
_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("method", pa.string()),
        ("fingerprint", pa.string()),
        ("pool_version", pa.int64()),
        ("merge", pa.string()),
        ("projections", pa.int32()),
        ("pieces", pa.int32()),
        ("ordinal_type", pa.string()),
        ("ordinals", pa.binary()),
        ("codes", pa.binary()),
        ("weight_scale", pa.float64()),
        ("extra", pa.string()),
    ],
    metadata={FORMAT: str(_FORMAT).encode()},
)


class RecipeStore:
    """Recipes in a Lance table at a path or URI, made at the first `put`.

    Writing appends; of several rows for one (user, method) the newest counts. So writers never wait for
    each other.
    """

    def __init__(self, uri: str) -> None:
        self.uri = str(uri)

    def put(self, recipes: Sequence[Recipe]) -> None:
        """Store recipes in one commit; each replaces the one with the same user and method.

        Raises:
            StoreError: the place is not writable.
        """
        newest = {(recipe.user_id, recipe.method): recipe for recipe in recipes}
        if not newest:
            return
        if has_table(self.uri):
            self._open()
        else:
            create_table(self.uri, _SCHEMA)
        rows = pa.Table.from_pylist([_row(recipe) for recipe in newest.values()], schema=_SCHEMA)
        tidy_table(self.uri, Upkeep(), append(self.uri, rows))

    def get(self, user_id: str, method: str) -> Recipe:
        """One recipe.

        Raises:
            StoreError: there is none for this user and method.
        """
        found = self._read(f"user_id = {quoted(user_id)} AND method = {quoted(method)}")
        if not found:
            raise StoreError(
                f"{self.uri}: no recipe of method {method!r} for user {user_id!r}; assemble it first"
            )
        return found[0]

    def at(self, table: Any, row_id: int) -> Recipe:
        """One recipe of an open table (`open_table`), by its stable row id: no scan.

        Raises:
            StoreError: the row, or the file that held it, is gone.
        """
        with store_errors(self.uri, "reading a recipe"):
            rows = table._take_rows([row_id], columns=_SCHEMA.names).to_pylist()
        if not rows:
            raise StoreError(f"{self.uri}: a recipe is gone; look again")
        return _recipe(rows[0])

    def all(self, method: str | None = None) -> list[Recipe]:
        """Every recipe, or those of one method, sorted by user and method."""
        return self._read(None if method is None else f"method = {quoted(method)}")

    def of(self, user_ids: Sequence[str], method: str) -> dict[str, Recipe]:
        """The recipes of one method that some users have, by user."""
        if not user_ids:
            return {}
        names = ", ".join(quoted(user_id) for user_id in dict.fromkeys(user_ids))
        found = self._read(f"method = {quoted(method)} AND user_id IN ({names})")
        return {recipe.user_id: recipe for recipe in found}

    def delete(self, user_id: str) -> int:
        """Forget a user's recipes; how many there were."""
        if not has_table(self.uri):
            return 0
        count = len(self._read(f"user_id = {quoted(user_id)}"))
        with store_errors(self.uri, "deleting recipes"):
            self._open().delete(f"user_id = {quoted(user_id)}")
        return count

    def erase(self, user_id: str, *, put: str | None = None) -> int:
        """Forget a user so that no byte is left: the rows, and every file that held them; how many rows.

        put: only the rows whose `extra` says so under this key.

        What a writer was cut short at, or lost a race with, is a file that no version refers to; it may be one
        that is being written right now, so only `tidy` removes it, when it is old.
        """
        if not has_table(self.uri):
            return 0
        count = 0
        with store_errors(self.uri, "erasing recipes"):
            condition = f"user_id = {quoted(user_id)}"
            while True:  # until none is found: an append may have come in between
                found = (
                    self._open().to_table(columns=["extra"], filter=condition, with_row_id=True).to_pylist()
                )
                rows = [r["_rowid"] for r in found if put is None or json.loads(r["extra"]).get("put") == put]
                if not rows:
                    break
                # By number: a table remembers the text of a condition.
                numbers = ", ".join(map(str, rows))
                count += int(self._open().delete(f"_rowid IN ({numbers})")["num_deleted_rows"])
        compact_table(self.uri)
        drop_old_files(self.uri, grace_s=0)
        return count

    def tidy(self, *, stray_grace_s: float = STRAY_GRACE_S) -> int:
        """Drop the rows that newer ones replaced, merge files, and remove the old ones; rows dropped.

        Safe while others put and read: a row put meanwhile is newer than those dropped. Files that no version
        refers to go when they are older than `stray_grace_s`, which must be longer than a commit takes.
        """
        if not has_table(self.uri):
            return 0
        with store_errors(self.uri, "looking for replaced recipes"):
            columns = ["user_id", "method", CREATED]
            rows = self._open().to_table(columns=columns, with_row_id=True).to_pylist()
        newest: dict[tuple[str, str], tuple[int, int]] = {}
        for row in rows:
            key, age = (row["user_id"], row["method"]), (row[CREATED], row["_rowid"])
            newest[key] = max(newest.get(key, age), age)
        kept = {row_id for _, row_id in newest.values()}
        old = [row["_rowid"] for row in rows if row["_rowid"] not in kept]
        for start in range(0, len(old), 1000):
            with store_errors(self.uri, "dropping replaced recipes"):
                numbers = ", ".join(map(str, old[start : start + 1000]))
                self._open().delete(f"_rowid IN ({numbers})")
        compact_table(self.uri)
        drop_old_files(self.uri, grace_s=GRACE_S, stray_grace_s=stray_grace_s)
        return len(old)

    def _open(self) -> Any:
        return require_format(open_table(self.uri), _FORMAT, self.uri)

    def _read(self, condition: str | None) -> list[Recipe]:
        if not has_table(self.uri):
            return []
        with store_errors(self.uri, "reading recipes"):
            rows = self._open().to_table(columns=[*_SCHEMA.names, CREATED], filter=condition)
        newest: dict[tuple[str, str], dict[str, Any]] = {}
        for row in sorted(rows.to_pylist(), key=lambda row: row[CREATED]):
            newest[row["user_id"], row["method"]] = row
        return [_recipe(newest[key]) for key in sorted(newest)]


def _row(recipe: Recipe) -> dict[str, Any]:
    ordinals, codes = np.ascontiguousarray(recipe.ordinals), np.ascontiguousarray(recipe.codes)
    if ordinals.shape != codes.shape or ordinals.ndim != 2 or codes.dtype != np.int8:
        raise StoreError(
            f"recipe of {recipe.user_id!r}: ordinals and int8 codes must both be [projections, pieces]"
        )
    return {
        "user_id": recipe.user_id,
        "method": recipe.method,
        "fingerprint": recipe.fingerprint,
        "pool_version": recipe.pool_version,
        "merge": recipe.merge,
        "projections": ordinals.shape[0],
        "pieces": ordinals.shape[1],
        "ordinal_type": ordinals.dtype.name,
        "ordinals": ordinals.astype(ordinals.dtype.newbyteorder("<")).tobytes(),
        "codes": codes.tobytes(),
        "weight_scale": float(recipe.weight_scale),
        "extra": json.dumps(dict(recipe.extra), ensure_ascii=False),
    }


def _recipe(row: dict[str, Any]) -> Recipe:
    shape = (row["projections"], row["pieces"])
    kind = np.dtype(row["ordinal_type"])
    ordinals = np.frombuffer(row["ordinals"], kind.newbyteorder("<")).astype(kind).reshape(shape)
    return Recipe(
        user_id=row["user_id"],
        method=row["method"],
        fingerprint=row["fingerprint"],
        pool_version=row["pool_version"],
        merge=row["merge"],
        ordinals=ordinals,
        codes=np.frombuffer(row["codes"], np.int8).reshape(shape).copy(),
        weight_scale=row["weight_scale"],
        extra=json.loads(row["extra"]),
    )
