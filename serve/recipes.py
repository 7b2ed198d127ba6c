"""The recipes that the service makes: one current one per tenant and user, in a Lance table that all replicas share.

Every request looks at the table's version (a file listing); only fragments that are new are read. So a replica never
answers with a recipe that was replaced or forgotten before the request came in, whoever did it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from perpcs.errors import StoreError
from perpcs.records import Recipe
from storage.files import exists, join
from storage.recipes import RecipeStore
from storage.tables import CREATED, open_table, store_errors

METHOD = "served"
PUT = "put"
"""Key of a recipe's `extra` that is different for every row."""
STRAY_GRACE_S = 900.0
"""A commit of ours takes far less, so what no version refers to after that is left over."""


@dataclass(frozen=True)
class Owner:
    """Whose recipe: users are named within their tenant."""

    tenant: str
    user: str

    @property
    def id(self) -> str:
        """The name in the store; tenants have no slash, so no two owners share one."""
        return f"{self.tenant}/{self.user}"


def versioned(recipe: Recipe, extra: dict[str, str]) -> Recipe:
    """The recipe with `extra` and a version that names its content."""
    digest = hashlib.sha256()
    for part in (
        recipe.fingerprint,
        recipe.pool_version,
        recipe.merge,
        recipe.weight_scale,
        recipe.ordinals.shape,
    ):
        digest.update(f"{part}\n".encode())
    digest.update(np.ascontiguousarray(recipe.ordinals, np.uint32).tobytes() + recipe.codes.tobytes())
    told = {**extra, "version": digest.hexdigest()[:16], PUT: secrets.token_hex(8)}
    return replace(recipe, method=METHOD, extra=told)


class ServedRecipes:
    """Thread-safe. Raises StoreError when the store does not answer."""

    def __init__(self, folder: str) -> None:
        self.store = RecipeStore(join(folder, "recipes.lance"))
        self._lock = threading.Lock()
        self._looked = -1.0
        self._version = 0
        self._table: Any = None
        self._rows: dict[tuple[int, int], list[tuple[str, int, int, str]]] = {}
        self._newest: dict[str, tuple[int, int, str]] = {}

    def current(self, owner: Owner) -> str | None:
        """Version of the owner's recipe now; None when there is none."""
        self._look(time.monotonic())
        found = self._newest.get(owner.id)
        return None if found is None else found[2]

    def all_current(self, owners: Iterable[Owner]) -> dict[Owner, str | None]:
        """`current` of several, with one look at the store."""
        self._look(time.monotonic())
        newest = self._newest
        return {owner: found[2] if (found := newest.get(owner.id)) else None for owner in owners}

    def users(self, tenant: str) -> list[str]:
        """Users of a tenant that have a recipe, sorted."""
        self._look(time.monotonic())
        prefix = f"{tenant}/"
        with self._lock:  # another thread may be adding to it
            names = [name for name in self._newest if name.startswith(prefix)]
        return sorted(name.removeprefix(prefix) for name in names)

    def get(self, owner: Owner) -> Recipe | None:
        """The owner's recipe now; None when there is none."""
        for attempt in range(3):
            self._look(time.monotonic())
            with self._lock:
                found, table = self._newest.get(owner.id), self._table
            if found is None:
                return None
            try:
                return self.store.at(table, found[1])
            except StoreError:  # gone or moved to another file meanwhile: look again
                if attempt == 2:
                    raise
        raise AssertionError

    def put(self, recipe: Recipe) -> None:
        """Store an owner's recipe; it replaces the one before."""
        self.store.put([recipe])

    def erase(self, owner: Owner) -> int:
        """Forget an owner; no byte of the name or recipe is left in the table."""
        return self.store.erase(owner.id)

    def take_back(self, recipe: Recipe) -> None:
        """Erase what one `put` has written, and nothing that was put since."""
        self.store.erase(recipe.user_id, put=recipe.extra[PUT])

    def tidy(self) -> None:
        """Drop replaced rows and what was left over; any replica may, at any time."""
        self.store.tidy(stray_grace_s=STRAY_GRACE_S)

    def _look(self, asked: float) -> None:
        """Bring the map up to date, once for all who asked before it began."""
        with self._lock:
            if self._looked >= asked:
                return
            began = time.monotonic()
            try:
                self._read_new()
            except StoreError:  # a clean-up may have removed a file between listing and reading
                self._read_new()
            self._looked = began  # not where it failed: whoever waits must look for themselves

    def _read_new(self) -> None:
        if not exists(self.store.uri):
            return
        table = open_table(self.store.uri)
        if table.version == self._version:
            return
        fragments = {(f.fragment_id, f.num_deletions): f for f in table.get_fragments()}
        rows = {key: self._rows[key] for key in fragments if key in self._rows}
        with store_errors(self.store.uri, "reading recipes"):
            rows |= {key: _rows(f) for key, f in fragments.items() if key not in rows}
        only_new = all(key in fragments for key in self._rows)
        newest = self._newest if only_new else {}
        parts = [part for key, part in rows.items() if not (only_new and key in self._rows)]
        for user_id, created, row, version in (entry for part in parts for entry in part):
            newest[user_id] = max(newest.get(user_id, (-1, -1, "")), (created, row, version))
        self._rows, self._newest = rows, newest
        self._table, self._version = table, int(table.version)


def _rows(fragment: Any) -> list[tuple[str, int, int, str]]:
    columns = ["user_id", "extra", CREATED]
    found = fragment.scanner(columns=columns, with_row_id=True).to_table().to_pydict()
    versions = (json.loads(extra).get("version", "") for extra in found["extra"])
    return list(zip(found["user_id"], found[CREATED], found["_rowid"], versions, strict=True))
