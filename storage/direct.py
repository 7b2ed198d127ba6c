"""Wide rows straight from a table's local data files into the arrays where they are wanted.

Lance reads, joins and sorts a scattered selection, which copies it three times; at 100 MiB a request that is
most of the time. But a wide fixed-size list without nulls lies in its file as it is: a page is one buffer, row
after row, and the file's metadata says where it starts. So each row can be read by one system call, with no
copy besides.

Nothing is taken on trust: a column whose pages are not rows times width long, or whose rows differ from what
Lance itself reads there, is left to Lance, and so is all that is not a local file.

k rows, n numbers in a row.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np

from storage.files import is_remote, join, local
from storage.tables import LANCE_ERRORS, matrix

_OFFSET = (1 << 32) - 1
"""A row address is the fragment's number in the upper 32 bits, the row's number in the fragment in the lower."""
_SIGN_EXPONENT_MANTISSA = np.int32(0x8FFFE000 - (1 << 32))
_SUPPORTED = hasattr(os, "preadv") and hasattr(os, "posix_fadvise")


@dataclass(frozen=True)
class _Column:
    """Where the rows of one column are in one data file."""

    width: int
    """Bytes of a row."""
    first_rows: tuple[int, ...]
    """Number of each page's first row."""
    starts: tuple[int, ...]
    """Byte position of each page."""

    def position(self, row: int) -> int:
        page = bisect_right(self.first_rows, row) - 1
        return self.starts[page] + (row - self.first_rows[page]) * self.width


@dataclass(frozen=True)
class _Sink:
    """Where rows of one column go."""

    into: np.ndarray
    """[k, n] float32."""
    stored: np.ndarray | None
    """[n] float16, a row to convert from; None where rows are stored as float32."""

    def fill(self, handle: int, position: int, place: int) -> bool:
        """Read one row; False where the file ends too early."""
        row = self.into[place] if self.stored is None else self.stored
        if os.preadv(handle, [row.data], position) != row.nbytes:
            return False
        if self.stored is not None:
            widen(self.stored, self.into[place])
        return True


def widen(halves: np.ndarray, into: np.ndarray) -> None:
    """[n] float16 -> [n] float32, exact for every finite number, twice as fast as numpy's own conversion.

    Sign, exponent and mantissa are moved to where float32 has them; the product makes up for the other bias of the
    exponent, and turns subnormal halves into normal floats.
    """
    bits = into.view(np.int32)
    np.copyto(bits, halves.view(np.int16))  # the sign fills the upper half
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, _SIGN_EXPONENT_MANTISSA, out=bits)
    np.multiply(into, np.float32(2.0**112), out=into)


class DirectReader:
    """Rows of one version of a table by address, where the table is local."""

    def __init__(self, table: Any, uri: str, columns: Sequence[str]) -> None:
        """`columns`: fixed-size lists of float32 or float16."""
        self._uri = uri
        self._types = {name: table.schema.field(name).type for name in columns}
        self._ids = {f.name(): f.id() for f in table.lance_schema.fields() if f.name() in columns}
        local_files = _SUPPORTED and not is_remote(uri)
        self._files = {f.fragment_id: f.metadata.files for f in table.get_fragments()} if local_files else {}

    def read(self, addresses: np.ndarray, into: Mapping[str, np.ndarray]) -> bool:
        """Fill `into`, [k, n] float32 by column, with the rows at `addresses` [k].

        Returns False where that is left to Lance; `into` then holds nothing of use.
        """
        try:
            return all(self._fill(*part, into) for part in _by_fragment(addresses))
        except OSError:  # clean-up removed the file
            return False

    def _fill(
        self, fragment: int, rows: list[int], places: list[int], into: Mapping[str, np.ndarray]
    ) -> bool:
        path, columns = self._layout(fragment)
        sinks = {name: _Sink(into[name], _buffer(self._types[name])) for name in columns}
        if not sinks:
            return False
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for row in rows:  # first, so that a cold disk serves them all at once
                for column in columns.values():
                    os.posix_fadvise(handle, column.position(row), column.width, os.POSIX_FADV_WILLNEED)
            return all(
                sinks[name].fill(handle, column.position(row), place)
                for row, place in zip(rows, places, strict=True)
                for name, column in columns.items()
            )
        finally:
            os.close(handle)

    def _layout(self, fragment: int) -> tuple[str, Mapping[str, _Column]]:
        """The data file that holds all columns, and where; no columns when Lance has to read them."""
        for file in self._files.get(fragment, ()):
            numbers = dict(zip(file.fields, file.column_indices, strict=True))
            if getattr(file, "base_id", None) is None and all(i in numbers for i in self._ids.values()):
                wanted = tuple((name, numbers[self._ids[name]], t) for name, t in self._types.items())
                path = str(local(join(self._uri, "data", file.path)))
                return path, _examine(path, wanted)
        return "", {}


def _by_fragment(addresses: np.ndarray) -> Iterator[tuple[int, list[int], list[int]]]:
    """(fragment, rows in it, their places in `addresses`), in file order."""
    order = np.argsort(addresses, kind="stable")
    fragments, starts = np.unique(addresses[order] >> 32, return_index=True)
    for fragment, places in zip(fragments.tolist(), np.split(order, starts[1:]), strict=True):
        yield fragment, (addresses[places] & _OFFSET).tolist(), places.tolist()


def _buffer(kind: Any) -> np.ndarray | None:
    return None if kind.value_type.bit_width == 32 else np.empty(kind.list_size, np.float16)


@lru_cache(maxsize=16_384)
def _examine(path: str, wanted: tuple[tuple[str, int, Any], ...]) -> Mapping[str, _Column]:
    """Where the columns `wanted` (name, number in the file, type) are; empty when they lie in another way.

    The answer is kept: data files never change, and their names are random.
    """
    from lance.file import LanceFileReader

    try:
        reader = LanceFileReader(path, columns=[name for name, _, _ in wanted])
        metadata = reader.metadata()
        found = {
            name: _lay_out(metadata.columns[number].pages, kind.list_size * kind.value_type.bit_width // 8)
            for name, number, kind in wanted
        }
        if any(rows != metadata.num_rows for _, rows in found.values()):
            return {}
        columns = {name: column for name, (column, _) in found.items()}
        rows = sorted({metadata.num_rows - 1, *(row for c in columns.values() for row in c.first_rows)})
        samples = reader.take_rows(rows).to_table()
    except LANCE_ERRORS:
        return {}
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        for name, column in columns.items():
            for row, sample in zip(rows, matrix(samples[name]), strict=True):
                if os.pread(file.fileno(), column.width, column.position(row)) != sample.tobytes():
                    return {}
    return columns


def _lay_out(pages: Sequence[Any], width: int) -> tuple[_Column, int]:
    """A column and its rows, if each page is one buffer with a whole number of rows; else no rows (-1)."""
    counts = [page.buffers[0].size // width for page in pages if len(page.buffers) == 1]
    starts = [page.buffers[0].position for page in pages if len(page.buffers) == 1]
    whole = len(counts) == len(pages) and all(page.buffers[0].size % width == 0 for page in pages)
    firsts = tuple(accumulate(counts, initial=0))
    return _Column(width, firsts[:-1], tuple(starts)), firsts[-1] if whole else -1
