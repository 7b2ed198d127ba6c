"""A pool as a folder of Parquet files that any tool reads, and back.

The folder holds `pool.json` (format, dtype and description), `sharers.parquet` and one `pieces_*.parquet` per
table. Row group i of every file belongs to the same few sharers, so a pool of any size streams through
memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from perpcs.errors import StoreError
from perpcs.records import Piece, SharerAdapter
from storage.files import exists, join, read_bytes, reason, write_bytes
from storage.pool import Pool
from storage.rows import check_sums, incoming, pieces_table, unpack
from storage.schema import Group, Header, groups, require_same
from storage.tables import matrix, vectors
from storage.view import PoolView

_SHARERS_PER_GROUP = 16
_OLDEST = 1
"""Exports look the same since this schema version."""


def export_pool(view: PoolView, folder: str) -> int:
    """Write the sharers of `view` that have not withdrawn to a new local folder; how many.

    Raises:
        StoreError: the folder is there already, or is not writable.
    """
    import pyarrow.parquet as pq

    if exists(folder):
        raise StoreError(f"{folder}: there is something already; export to a new folder")
    Path(folder).mkdir(parents=True)
    ids = [user_id for user_id, live in zip(view.ids, view.live, strict=True) if live]
    tables = groups(view.spec)
    writers: dict[str, Any] = {}
    try:
        for start in range(0, len(ids), _SHARERS_PER_GROUP):
            adapters = view.adapters(ids[start : start + _SHARERS_PER_GROUP])
            for name, rows in _as_tables(adapters, tables, view.header):
                if name not in writers:
                    writers[name] = pq.ParquetWriter(join(folder, f"{name}.parquet"), rows.schema)
                writers[name].write_table(rows, row_group_size=rows.num_rows)
    finally:
        for writer in writers.values():
            writer.close()
    write_bytes(
        join(folder, "pool.json"), view.header.to_json()
    )  # last: its presence says that the export is whole
    return len(ids)


def read_header(folder: str) -> Header:
    """The description of an exported pool.

    Raises:
        StoreError: not an export, or one that was cut short.
    """
    if not exists(join(folder, "pool.json")):
        raise StoreError(f"{folder}: no pool.json; not an exported pool, or its export was cut short")
    return Header.from_json(read_bytes(join(folder, "pool.json")), folder, oldest=_OLDEST)


def import_pool(pool: Pool, folder: str) -> int:
    """Commit every sharer of an export to `pool`, with all checks of a commit; how many were new.

    Raises:
        MismatchError: made for another base model, rank or set of projections. StoreError: a file is
        missing or damaged.
    """
    header = read_header(folder)
    require_same(pool.header, header.spec, pool.header.dtype, folder)
    try:
        return sum(len(pool.commit(adapters).added) for adapters in _read_groups(folder, header))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise StoreError(f"{folder}: the export is damaged ({reason(error)})") from error


def _as_tables(
    adapters: list[SharerAdapter], tables: tuple[Group, ...], header: Header
) -> Iterator[tuple[str, pa.Table]]:
    batch = [incoming(adapter, tables, header) for adapter in adapters]
    for group in tables:
        yield group.table, pieces_table(batch, group, header, started=0).drop_columns(["attempt", "started"])
    facts = ("user_id", "items", "steps", "loss", "seed")
    columns: dict[str, Any] = {name: [getattr(adapter, name) for adapter in adapters] for name in facts}
    if header.spec.history_dim:
        columns["history_key"] = vectors(np.stack([adapter.history_key for adapter in adapters]))
    yield "sharers", pa.table(columns)


def _read_groups(folder: str, header: Header) -> Iterator[list[SharerAdapter]]:
    import pyarrow.parquet as pq

    tables = groups(header.spec)
    if not exists(join(folder, "sharers.parquet")):  # the export of an empty pool
        return
    sharers = pq.ParquetFile(join(folder, "sharers.parquet"))
    files = {group: pq.ParquetFile(join(folder, f"{group.table}.parquet")) for group in tables}
    for i in range(sharers.num_row_groups):
        rows = sharers.read_row_group(i)
        pieces: list[dict[str, Piece]] = [{} for _ in range(rows.num_rows)]
        for group, file in files.items():
            _collect(file.read_row_group(i), group, header, pieces)
        yield _adapters(rows, pieces, header)


def _collect(rows: pa.Table, group: Group, header: Header, pieces: list[dict[str, Piece]]) -> None:
    """Distribute rows, ordered by layer, then sharer, as `pieces_table` writes them, after checking their
    checksums.
    """
    check_sums(rows, group, header.spec, group.table)
    arrays = {name: v.astype(np.float32) for name, v in unpack(rows, group, header.spec).items()}
    norms, nothing = rows["norm"].to_pylist(), np.zeros((rows.num_rows, 0), np.float32)
    for i in range(rows.num_rows):
        layer, sharer = divmod(i, len(pieces))
        gate, key = (arrays.get(name, nothing)[i] for name in ("gate", "gradient_key"))
        pieces[sharer][group.names[layer]] = Piece(arrays["a"][i], arrays["b"][i], gate, key, norms[i])


def _adapters(rows: pa.Table, pieces: list[dict[str, Piece]], header: Header) -> list[SharerAdapter]:
    spec = header.spec
    keys = matrix(rows["history_key"]) if spec.history_dim else np.zeros((rows.num_rows, 0), np.float32)
    facts = rows.select(["user_id", "items", "steps", "loss", "seed"]).to_pylist()
    return [
        SharerAdapter(rank=spec.rank, alpha=spec.alpha, pieces=found, history_key=keys[i], **fact)
        for i, (fact, found) in enumerate(zip(facts, pieces, strict=True))
    ]
