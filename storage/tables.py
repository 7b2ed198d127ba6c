"""Thin helpers over Lance: open, create once, append, and errors as one line each."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from perpcs.errors import MismatchError, StoreError
from storage.files import exists, is_remote, join, local, reason

CREATED = "_row_created_at_version"
"""Lance's own column: the table version whose commit brought the row in. It survives compaction."""

FORMAT = b"perpcs.format"
"""Key in a table's schema metadata: the version of its columns. Tables without it are of version 1."""

LANCE_ERRORS = (OSError, ValueError, RuntimeError, pa.ArrowException)


@contextlib.contextmanager
def store_errors(uri: str, action: str) -> Iterator[None]:
    """Turn what Lance and Arrow raise for a bad store into a StoreError naming the table and the action."""
    try:
        yield
    except StoreError:
        raise
    except BaseException as error:
        # Lance's Rust side reports some damage as a panic, which is no Exception.
        if not isinstance(error, LANCE_ERRORS) and type(error).__name__ != "PanicException":
            raise
        raise StoreError(f"{uri}: {action} failed: {reason(error)}") from error


def open_table(uri: str, version: int | None = None) -> Any:
    """The Lance table at `uri`, at its newest version or at `version`.

    Raises:
        StoreError: there is no table, or it is damaged.
    """
    import lance

    with store_errors(uri, "opening the table"):
        return lance.dataset(uri, version=version)


def has_table(uri: str) -> bool:
    """Whether a table was ever committed at `uri`; a folder that a failed creation left behind is none.

    Raises:
        StoreError: the object store does not answer.
    """
    versions = join(uri, "_versions")
    if is_remote(uri):
        return exists(versions)
    try:
        with os.scandir(local(versions)) as entries:  # reads no more than it needs: there may be thousands
            return any(entry.name.endswith(".manifest") for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return False


def require_format(table: Any, newest: int, uri: str) -> Any:
    """The table, if this release knows its columns.

    Raises:
        MismatchError: it was written by a newer release.
    """
    found = int((table.schema.metadata or {}).get(FORMAT, b"1"))
    if found > newest:
        raise MismatchError(
            f"{uri}: the table has format {found}, this release reads up to {newest}; use a newer one"
        )
    return table


def create_table(uri: str, schema: pa.Schema) -> Any:
    """An empty table; if another process was first, its table is opened.

    Stable row ids make Lance remember the version that brought a row in (CREATED) when it rewrites files.
    """
    from lance.dataset import LanceDataset, LanceOperation

    try:
        # Not write_dataset(mode="create"): of two at once, the second overwrites what the first holds by
        # then.
        return LanceDataset.commit(
            uri,
            LanceOperation.Overwrite(schema, []),
            read_version=0,
            max_retries=0,
            enable_stable_row_ids=True,
        )
    except LANCE_ERRORS as error:
        if not has_table(uri):
            raise StoreError(f"{uri}: creating the table failed: {reason(error)}") from error
    return open_table(uri)


def append(uri: str, rows: pa.Table) -> Any:
    """Append in one commit and return the table at exactly that version.

    Appends of other processes never conflict: Lance puts one after the other.
    """
    import lance

    with store_errors(uri, "appending"):
        return lance.write_dataset(rows, uri, mode="append")


def vectors(values: np.ndarray) -> pa.Array:
    """[n, d] -> a fixed-size list column without a copy where the array is contiguous."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), values.shape[1])


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A fixed-size list column -> [n, d] array in its stored type, without a copy where it is one chunk."""
    if column.null_count:
        raise StoreError(f"a column of vectors has {column.null_count} rows without a vector; it is damaged")
    parts = column.chunks or [pa.array([], column.type)]
    array = parts[0] if len(parts) == 1 else pa.concat_arrays(parts)
    width, start = array.type.list_size, array.offset
    flat = array.values[start * width : (start + len(array)) * width]  # flatten() would copy
    return flat.to_numpy(zero_copy_only=False).reshape(len(array), width)


def quoted(text: str) -> str:
    """A string literal for Lance's SQL filters."""
    return "'" + text.replace("'", "''") + "'"
