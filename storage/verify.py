"""Is a pool whole? Every piece of every sharer read and hashed, and nothing there that should not be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from storage.ledger import Entry
from storage.pieces import pieces_uri
from storage.remains import remains
from storage.rows import checksum, content_digest, held_arrays, unpack
from storage.schema import Group
from storage.sharers import read_history_keys
from storage.tables import has_table, open_table, store_errors

if TYPE_CHECKING:
    from storage.pool import Pool

_MOST_PROBLEMS = 20
_BATCH_BYTES = 64 << 20


@dataclass
class Check:
    """What a verification found."""

    sharers: int = 0
    pieces: int = 0
    orphan_rows: int = 0
    """Rows of unfinished commits: harmless, removed by clean-up."""
    problems: list[str] = field(default_factory=list)
    """One line each; empty means that the pool is whole."""

    def add(self, problem: str) -> None:
        """Note a problem; after twenty only their number grows."""
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(problem)
        elif len(self.problems) == _MOST_PROBLEMS:
            self.problems.append("... and more")


def verify(pool: Pool, *, index_folders: Sequence[str] = ()) -> Check:
    """Read everything and compare it with its checksums; look through all files for rows of erased sharers.

    index_folders: where indexes of this pool are cached, to be looked through as well.

    Raises:
        StoreError: a table cannot be read at all; the message names it.
    """
    roll = pool.log.refresh()
    members = {entry.attempt: entry for entry in roll.members.values()}
    check = Check(sharers=len(members))
    known = {**members, **{a: entry for a, (entry, _) in roll.left.items() if a not in roll.erased}}
    sums: dict[int, dict[str, int]] = {attempt: {} for attempt in members}
    for group in pool.tables:
        _verify_table(pool, group, check, _Expected(members, known, set(roll.erased), sums))
    _verify_digests(pool, check, members, sums)
    for problem in remains(pool, index_folders=index_folders):
        check.add(problem)
    return check


@dataclass(frozen=True)
class _Expected:
    members: Mapping[int, Entry]
    known: Mapping[int, Entry]
    erased: set[int]
    sums: Mapping[int, dict[str, int]]


def _verify_table(pool: Pool, group: Group, check: Check, expected: _Expected) -> None:
    uri = pieces_uri(pool.uri, group)
    seen: Counter[tuple[int, int]] = Counter()
    if has_table(uri):
        with store_errors(uri, "reading every piece"):
            for rows in _batches(pool, group, uri):
                _verify_rows(pool, group, check, (rows, expected, seen))
    names = dict(zip(group.layers, group.names, strict=True))
    for attempt, entry in expected.members.items():
        for layer, name in names.items():
            if seen[attempt, layer] != 1:
                check.add(
                    f"sharer {entry.user_id!r}: {seen[attempt, layer]} rows for {name} in {group.table}, not 1"
                )


def _verify_rows(
    pool: Pool, group: Group, check: Check, part: tuple[pa.Table, _Expected, Counter[tuple[int, int]]]
) -> None:
    rows, expected, seen = part
    names = dict(zip(group.layers, group.names, strict=True))
    arrays = unpack(rows, group, pool.spec)
    held = [arrays[name] for name in held_arrays(pool.spec)]
    columns = (rows[name].to_pylist() for name in ("attempt", "layer", "user_id", "norm", "checksum"))
    for i, (attempt, layer, user_id, norm, stored) in enumerate(zip(*columns, strict=True)):
        seen[attempt, layer] += 1
        check.pieces += attempt in expected.members
        if attempt in expected.erased:
            check.add(
                f"{group.table}: a row of an erased sharer is still there (attempt {attempt}); erase again"
            )
        elif attempt not in expected.known:
            check.orphan_rows += 1
        elif expected.known[attempt].user_id != user_id:
            check.add(
                f"{group.table}: attempt {attempt} belongs to {expected.known[attempt].user_id!r}, not {user_id!r}"
            )
        elif checksum([array[i] for array in held], norm) != stored:
            check.add(
                f"sharer {user_id!r}: the piece at {names.get(layer, layer)} is damaged (checksum differs)"
            )
        elif attempt in expected.members and layer in names:
            expected.sums[attempt][names[layer]] = stored


def _batches(pool: Pool, group: Group, uri: str) -> Iterator[pa.Table]:
    row_bytes = 4 * pool.spec.rank * (group.d_in + group.d_out) + 4 * group.d_in + 4 * pool.spec.sketch**2
    columns = ["attempt", "layer", "user_id", "norm", "checksum", *held_arrays(pool.spec)]
    size = max(_BATCH_BYTES // row_bytes, 1)
    for batch in open_table(uri).to_batches(columns=columns, batch_size=size):
        yield pa.Table.from_batches([batch])


def _verify_digests(
    pool: Pool, check: Check, members: Mapping[int, Entry], sums: Mapping[int, Mapping[str, int]]
) -> None:
    """The sharers' own rows: ids, metadata and history keys, against the digest that was made at the commit."""
    places = {attempt: i for i, attempt in enumerate(members)}
    keys = read_history_keys(pool.uri, places, pool.spec.history_dim)
    order = [projection.name for projection in pool.spec.projections]
    for attempt, entry in members.items():
        if set(sums[attempt]) == set(order):
            facts = (entry.items, entry.steps, entry.loss, entry.seed)
            found = content_digest([sums[attempt][name] for name in order], keys[places[attempt]], facts)
            if found != entry.digest:
                check.add(f"sharer {entry.user_id!r}: history key or metadata differ from what was committed")
            if not np.isfinite(keys[places[attempt]]).all():
                check.add(f"sharer {entry.user_id!r}: the history key is not finite")
