"""A sharer takes their pieces back: hidden at once, then erased so that no byte is left.

`withdraw` is one append to the log. `erase` deletes the rows of everybody who has withdrawn, rewrites the
files that held them, removes the old files and every index that was built with them, and then searches what
is left for samples of the erased data.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from perpcs.errors import StoreError
from perpcs.records import Recipe
from storage.files import exists, read_bytes, walk
from storage.index import identity, index_vectors
from storage.index_files import purge
from storage.ledger import Entry, erased_mark, erasures, members_at
from storage.pieces import pieces_uri
from storage.pool import Pool
from storage.rows import held_arrays, unpack
from storage.sharers import event_rows, sharers_uri
from storage.tables import matrix, open_table, store_errors
from storage.upkeep import compact_table, delete_attempts, drop_old_files, table_uris

_SAMPLE = 48
"""Bytes of a sample. Trained numbers do not repeat that long by chance."""


@dataclass(frozen=True)
class Erased:
    """What an erasure did."""

    sharers: int
    rows: int
    samples: int
    """Samples of the erased data that were searched for."""
    found: tuple[str, ...]
    """Files that still hold one of them; empty is the proof."""


def withdraw(pool: Pool, user_id: str, *, ahead: bool = False) -> int:
    """Hide a sharer from every view made from now on; the pool version at which that holds.

    `ahead`: they may be no sharer yet, only chosen or in training; what is being made of them is kept out.

    Raises:
        StoreError: there is no such sharer.
    """
    roll = pool.log.refresh()
    current = roll.members.get(user_id)
    if current is None and (not ahead or roll.departed(user_id)):
        raise StoreError(
            f"{pool.uri}: no sharer {user_id!r} to withdraw; it never was one, or has withdrawn already"
        )
    event = (
        _bar(user_id, pool.log.version) if current is None else Entry(0, "withdraw", user_id, current.attempt)
    )
    version = pool.log.append(event_rows([event], pool.header))
    pool.log.refresh()
    return version


def _bar(user_id: str, version: int) -> Entry:
    attempt = secrets.randbits(63)
    return Entry(0, "bar", "", attempt, seen=version, digest=erased_mark(user_id, attempt))


def affected_recipes(pool: Pool, recipes: Iterable[Recipe], user_ids: Sequence[str]) -> list[Recipe]:
    """The recipes that give weight to a piece of one of `user_ids`, whatever pool version they were made
    with.

    Ask before erasing: an erased sharer has no id to ask for (`stale_recipes` finds its recipes still).
    """
    names = set(user_ids)
    attempts = {entry.attempt for entry in pool.log.refresh().members.values() if entry.user_id in names}
    attempts |= {entry.attempt for entry, _ in pool.log.refresh().left.values() if entry.user_id in names}
    return _using(pool, recipes, attempts)


def stale_recipes(pool: Pool, recipes: Iterable[Recipe]) -> list[Recipe]:
    """The recipes that give weight to a piece of anybody who has withdrawn, erased or not: to be assembled
    again.
    """
    roll = pool.log.refresh()
    return _using(pool, recipes, set(roll.left) | set(roll.erased))


def _using(pool: Pool, recipes: Iterable[Recipe], attempts: set[int]) -> list[Recipe]:
    marks: dict[int, np.ndarray] = {}
    found = []
    for recipe in recipes:
        if recipe.pool_version not in marks:
            members = members_at(pool.log.entries, recipe.pool_version)
            marks[recipe.pool_version] = np.array([m.attempt in attempts for m in members], bool)
        used = recipe.ordinals[recipe.codes != 0].astype(np.int64)
        if marks[recipe.pool_version][used].any():
            found.append(recipe)
    return found


def erase(pool: Pool, *, index_folders: Sequence[str] = ()) -> Erased:
    """Physically delete everybody who has withdrawn. May be repeated after a crash; a second time changes
    nothing.

    `index_folders`: where indexes of this pool are cached; those of other sharers than the present are
    removed.

    Raises:
        StoreError: the store cannot be written.
    """
    attempts = _to_erase(pool)
    if not attempts:
        _purge_indexes(
            pool, index_folders
        )  # one may have been made, or not been named, when they were erased
        return Erased(0, 0, 0, ())
    sharers = len(attempts & set(pool.log.refresh().left))
    samples = take_samples(pool, attempts)
    seen = pool.log.version
    pool.log.append(event_rows(erasures(pool.log.entries, seen=seen), pool.header))
    rows = sum(delete_attempts(uri, attempts) for uri in table_uris(pool)[1:])
    with store_errors(pool.uri, "deleting sharers"):
        numbers = ", ".join(map(str, sorted(attempts)))
        table = open_table(sharers_uri(pool.uri))
        table.delete(f"(event != 'erase' AND attempt IN ({numbers})) OR (event = 'erase' AND seen < {seen})")
    for uri in table_uris(pool):
        compact_table(uri)
        drop_old_files(uri, grace_s=0)
    _purge_indexes(pool, index_folders)
    return Erased(sharers, rows, len(samples), tuple(search(samples, [pool.uri, *index_folders])))


def _purge_indexes(pool: Pool, folders: Sequence[str]) -> None:
    """Remove cached indexes of other sharers than the present, once anybody was erased."""
    if pool.log.refresh().erased:
        for folder in folders:
            purge(folder, keep=identity(pool.view()))


def take_samples(pool: Pool, attempts: set[int]) -> list[bytes]:
    """Runs of bytes from the pieces, keys and histories of `attempts`, as tables and indexes hold them."""
    samples = set()
    numbers = ", ".join(map(str, sorted(attempts)))
    for group in pool.tables:
        first = group.layers[0]
        uri, columns = pieces_uri(pool.uri, group), list(held_arrays(pool.spec))
        with store_errors(uri, "reading pieces"):
            found = open_table(uri).to_table(
                columns=columns, filter=f"layer = {first} AND attempt IN ({numbers})"
            )
        for name, array in unpack(found, group, pool.spec).items():
            flat = array.reshape(len(array), math.prod(array.shape[1:]))
            samples |= {row.tobytes()[:_SAMPLE] for row in flat}
            if name == "gate":
                samples |= {row.tobytes()[:_SAMPLE] for row in index_vectors(flat, "gate")}
    if pool.spec.history_dim:
        uri = sharers_uri(pool.uri)
        condition = f"event = 'commit' AND attempt IN ({numbers})"
        with store_errors(uri, "reading histories"):
            rows = open_table(uri).to_table(columns=["history_key"], filter=condition)
        samples |= {row.tobytes()[:_SAMPLE] for row in matrix(rows["history_key"])}
    return sorted(sample for sample in samples if any(sample))


def search(samples: Sequence[bytes], folders: Sequence[str]) -> list[str]:
    """Files below `folders` that hold one of `samples`."""
    return [path for folder in folders for path, _ in walk(folder) if _holds(path, samples)]


def _holds(path: str, samples: Sequence[bytes]) -> bool:
    try:
        data = read_bytes(path)
    except StoreError:
        if exists(path):
            raise
        return False  # a writer's temporary file: renamed or removed meanwhile
    return any(sample in data for sample in samples)


def _to_erase(pool: Pool) -> set[int]:
    """Attempts of those who have withdrawn whose rows are still there, with theirs that never counted."""
    roll = pool.log.refresh()
    commits = [entry for entry in pool.log.entries if entry.event == "commit"]
    ids = {entry.user_id for entry, _ in roll.left.values()}
    ids |= {user_id for user_id in {entry.user_id for entry in commits} - ids if roll.departed(user_id)}
    theirs = {
        entry.attempt for entry in commits if entry.user_id in ids
    } - roll.attempts  # who came back stays
    uri = sharers_uri(pool.uri)
    with store_errors(uri, "reading the sharers"):
        rows = open_table(uri).to_table(columns=["attempt"], filter="event = 'commit'")
    return theirs & set(rows["attempt"].to_pylist())
