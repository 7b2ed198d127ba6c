"""What is in a pool: counts, bytes, tags, and what changed between two versions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perpcs.errors import StoreError
from storage.files import walk
from storage.ledger import Entry, members_at
from storage.sharers import event_rows
from storage.tables import open_table
from storage.upkeep import table_uris

if TYPE_CHECKING:
    from storage.pool import Pool


@dataclass(frozen=True)
class TableStats:
    """One table on disk. `live_bytes` counts the files of the newest version, `bytes` all files."""

    rows: int
    fragments: int
    versions: int
    files: int
    bytes: int
    live_bytes: int


@dataclass(frozen=True)
class PoolStats:
    """A pool in numbers."""

    version: int
    sharers: int
    withdrawn: int
    """Withdrawn, not erased yet."""
    erased: int
    tenants: dict[str, int]
    tags: dict[str, int]
    tables: dict[str, TableStats]
    parameter_bytes: int
    """The factors of one sharer in the stored type, nothing else."""
    bytes_per_sharer: float
    """Bytes of the newest version's files, everything included, by sharer."""


@dataclass(frozen=True)
class PoolDiff:
    """Sharers of version B against version A."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    replaced: tuple[str, ...]
    """The same id, committed anew after a withdrawal."""


def stats(pool: Pool) -> PoolStats:
    """Counts and sizes now."""
    roll = pool.log.refresh()
    tables = {uri.rsplit("/", 1)[-1].removesuffix(".lance"): _table_stats(uri) for uri in table_uris(pool)}
    size = 2 if pool.header.dtype == "float16" else 4
    live = sum(table.live_bytes for table in tables.values())
    return PoolStats(
        version=pool.log.version,
        sharers=len(roll.members),
        withdrawn=len(set(roll.left) - set(roll.erased)),
        erased=len(roll.erased),
        tenants=dict(sorted(Counter(entry.tenant for entry in roll.members.values()).items())),
        tags=dict(sorted(roll.tags.items())),
        tables=tables,
        parameter_bytes=sum(size * pool.spec.rank * (p.d_in + p.d_out) for p in pool.spec.projections),
        bytes_per_sharer=live / max(len(roll.members), 1),
    )


def diff(pool: Pool, a: int | str | None, b: int | str | None = None) -> PoolDiff:
    """What happened between versions (or tags) `a` and `b`; None is the newest.

    Raises:
        StoreError: no such version.
    """
    old, new = (
        {
            entry.user_id: entry.attempt
            for entry in members_at(pool.log.entries, pool.view(v).version)
            if entry.user_id
        }
        for v in (a, b)
    )
    return PoolDiff(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        replaced=tuple(sorted(i for i in old.keys() & new.keys() if old[i] != new[i])),
    )


def tag(pool: Pool, name: str, version: int | None = None) -> int:
    """Give a version (default: the newest) a name that `Pool.view` takes; the version. A name in use is
    moved.

    Raises:
        StoreError: the name is empty or a number, or there is no such version.
    """
    if not name.strip() or name.isdigit():
        raise StoreError(f"tag {name!r}: must be a word, so that it cannot be taken for a version")
    chosen = pool.view(version).version
    pool.log.append(event_rows([Entry(0, "tag", name, since=chosen)], pool.header))
    return chosen


def untag(pool: Pool, name: str) -> None:
    """Forget a name; the version stays readable.

    Raises:
        StoreError: there is no such tag.
    """
    if name not in pool.log.refresh().tags:
        raise StoreError(f"{pool.uri}: no tag {name!r}")
    pool.log.append(event_rows([Entry(0, "untag", name)], pool.header))


def _table_stats(uri: str) -> TableStats:
    table, files = open_table(uri), walk(uri)
    fragments = table.get_fragments()
    names = {file.path for fragment in fragments for file in fragment.metadata.files}
    return TableStats(
        rows=int(table.count_rows()),
        fragments=len(fragments),
        versions=sum(path.endswith(".manifest") for path, _ in files),
        files=len(files),
        bytes=sum(size for _, size in files),
        live_bytes=sum(size for path, size in files if path.rsplit("/", 1)[-1] in names),
    )
