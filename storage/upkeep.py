"""Compaction and clean-up: what keeps a pool small and quick. Safe while readers and writers run.

Readers need no old table version: the log of sharers answers for every pool version, and committed pieces
never change, so a reader whose files are removed opens the table anew. Writers only append, which Lance
reconciles with everything done here.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from perpcs.errors import StoreError
from storage.files import join, reason, remove
from storage.pieces import pieces_uri
from storage.sharers import sharers_uri
from storage.tables import has_table, open_table, store_errors

if TYPE_CHECKING:
    from storage.pool import Pool

GRACE_S = 600.0
"""Seconds for which the files of an old table version stay, for readers that are at them."""
STRAY_GRACE_S = 86_400.0
"""Seconds after which a file that no version refers to, or a piece that no sharer has, is not being written
any more.
"""
_LOG = logging.getLogger(__name__)
_ATTEMPTS_PER_DELETE = 500
_BYTES_PER_FRAGMENT = 1 << 30
"""A fragment this large is not rewritten for the sake of fewer files."""


@dataclass(frozen=True)
class Upkeep:
    """How a pool tidies itself up after commits.

    Tier t holds the fragments of less than fan^t rows, but at least fan^(t-1). As soon as `fan` fragments
    are in a tier, they and the smaller ones become one of the next. So a row is rewritten once per tier,
    and a table of N rows has less than fan * log_fan(N) fragments, whatever the number of commits.
    """

    fan: int = 32
    grace_s: float = GRACE_S
    """Files of table versions older than this are removed; no reader takes longer over one read."""

    def target_rows(self, rows: Sequence[int], row_bytes: int) -> int | None:
        """Rows per fragment to compact to now, given the fragments' rows; None when nothing is to do."""
        largest = max(_BYTES_PER_FRAGMENT // max(row_bytes, 1), self.fan)
        tiers: Counter[int] = Counter()
        for count in rows:
            tier = self.fan
            while tier <= count:
                tier *= self.fan
            tiers[tier] += 1
        full = [tier for tier, fragments in tiers.items() if fragments >= self.fan and tier <= largest]
        return max(full, default=None)


@dataclass(frozen=True)
class Cleaned:
    """What a clean-up removed."""

    orphan_rows: int
    """Piece rows of commits that never finished, or lost a race."""
    versions: int
    files: int
    bytes: int
    strays: int
    """Files that no table version ever referred to: writes cut short."""

    def __add__(self, other: Cleaned) -> Cleaned:
        return Cleaned(*(getattr(self, n) + getattr(other, n) for n in self.__dataclass_fields__))


def table_uris(pool: Pool) -> list[str]:
    """All tables of a pool that exist, the sharers' first."""
    candidates = [sharers_uri(pool.uri), *(pieces_uri(pool.uri, group) for group in pool.tables)]
    return [uri for uri in candidates if has_table(uri)]


def compact(pool: Pool) -> dict[str, tuple[int, int]]:
    """Merge every table's fragments and drop deleted rows; {table: (fragments before, after)}.

    Raises:
        StoreError: the store cannot be written.
    """
    found = {}
    for uri in table_uris(pool):
        before = len(open_table(uri).get_fragments())
        compact_table(uri)
        found[uri.rsplit("/", 1)[-1]] = (before, len(open_table(uri).get_fragments()))
    return found


def compact_table(uri: str, target_rows: int | None = None, *, attempts: int = 5) -> None:
    """Rewrite fragments smaller than `target_rows` (default: 1 GiB's worth) and those with deleted rows.

    Another process may be at the same files; then Lance refuses one of the two, which tries again.
    """
    for attempt in range(attempts):
        table = open_table(uri)
        target = target_rows or max(_BYTES_PER_FRAGMENT // _row_bytes(table), 1)
        try:
            table.optimize.compact_files(
                target_rows_per_fragment=target,
                materialize_deletions=True,
                materialize_deletions_threshold=0.0,
            )
            return
        except (OSError, RuntimeError) as error:
            if "onflict" not in str(error) or attempt == attempts - 1:
                raise StoreError(f"{uri}: compaction failed: {reason(error)}") from error
            time.sleep(0.05 * 2**attempt)


def cleanup(pool: Pool, *, grace_s: float = STRAY_GRACE_S) -> Cleaned:
    """Remove what nobody needs and what is older than `grace_s` seconds.

    That is: rows of unfinished commits, files of old table versions, and files of writes that were cut
    short. Every pool version stays readable. `grace_s` must be longer than the longest commit.
    """
    total = Cleaned(delete_orphans(pool, grace_s=grace_s), 0, 0, 0, 0)
    for uri in table_uris(pool):
        compact_table(uri)
        total += drop_old_files(uri, grace_s=grace_s, stray_grace_s=grace_s)
    return total


def drop_old_files(uri: str, *, grace_s: float, stray_grace_s: float = STRAY_GRACE_S) -> Cleaned:
    """Remove old versions of one table, and files that no version refers to.

    Removing versions is safe at any age. A stray file may be one that a writer is about to commit: removing
    that would break the table, so its grace must be longer than a commit takes.
    """
    with store_errors(uri, "removing old versions"):
        stats = open_table(uri).cleanup_old_versions(older_than=timedelta(seconds=grace_s))
        strays = [(path, size) for path, size, at in stray_files(uri) if at < time.time() - stray_grace_s]
    for path, _ in strays:
        remove(join(uri, path))
    files = stats.data_files_removed + stats.deletion_files_removed + stats.transaction_files_removed
    size = stats.bytes_removed + sum(size for _, size in strays)
    return Cleaned(0, stats.old_versions, files, size, len(strays))


def stray_files(uri: str) -> list[tuple[str, int, float]]:
    """(path in the table, bytes, time of change) of data and deletion files that no table version refers to.

    A file being written now is one of them, so only old ones may be removed.
    """
    table = open_table(uri)
    there = (
        table.all_files().read_all().to_pylist()
    )  # listed first: what is committed meanwhile is then tracked
    tracked = set(open_table(uri).tracked_files().read_all()["path"].to_pylist())
    return [
        (f["path"], f["size_bytes"], _seconds(f["last_modified"]))
        for f in there
        if f["path"] not in tracked and f["path"].startswith(("data/", "_deletions/"))
    ]


def delete_orphans(pool: Pool, *, grace_s: float) -> int:
    """Delete piece rows whose attempt is no sharer's, if they were started more than `grace_s` ago."""
    kept = kept_attempts(pool)
    before = int((time.time() - grace_s) * 1000)
    count = 0
    for uri in table_uris(pool)[1:]:
        with store_errors(uri, "looking for unfinished commits"):
            rows = open_table(uri).to_table(columns=["attempt"], filter=f"started < {before}")
        orphans = set(np.unique(rows["attempt"].to_numpy()).tolist()) - kept
        count += delete_attempts(uri, orphans)
    return count


def kept_attempts(pool: Pool) -> set[int]:
    """Attempts whose pieces some pool version still needs: members now or before, except the erased."""
    roll = pool.log.refresh()
    return (roll.attempts | set(roll.left)) - set(roll.erased)


def delete_attempts(uri: str, attempts: Iterable[int]) -> int:
    """Delete the rows of `attempts` from one pieces table; how many there were."""
    numbers, count = sorted(attempts), 0
    for i in range(0, len(numbers), _ATTEMPTS_PER_DELETE):
        chunk = ", ".join(map(str, numbers[i : i + _ATTEMPTS_PER_DELETE]))
        with store_errors(uri, "deleting pieces"):
            count += int(open_table(uri).delete(f"attempt IN ({chunk})")["num_deleted_rows"])
    return count


def after_commit(pool: Pool, plan: Upkeep, commits: int) -> None:
    """A slice of upkeep after this process's commit number `commits`: one table, when it is its turn.

    Never fails a commit that is done: trouble is logged, and the next turn tries again.
    """
    tables = [sharers_uri(pool.uri), *(pieces_uri(pool.uri, group) for group in pool.tables)]
    for uri in tables[commits % plan.fan :: plan.fan]:
        tidy_table(uri, plan, None)


def tidy_table(uri: str, plan: Upkeep, table: Any) -> None:
    """Merge a table's smaller fragments if `plan` says so. `table`: the newest version, where it is open
    already.
    """
    try:
        table = table or open_table(uri)
        target = plan.target_rows([f.count_rows() for f in table.get_fragments()], _row_bytes(table))
        if target:
            compact_table(uri, target)
            drop_old_files(uri, grace_s=plan.grace_s)
    except StoreError as error:
        _LOG.warning("upkeep put off: %s", error)


def _row_bytes(table: Any) -> int:
    """Bytes of a row's fixed-size columns."""
    return sum(
        field.type.list_size * field.type.value_type.bit_width // 8 if hasattr(field.type, "list_size") else 8
        for field in table.schema
    )


def _seconds(moment: datetime) -> float:
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
