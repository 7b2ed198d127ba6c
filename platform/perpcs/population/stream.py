"""One large JSON list, plain or gzip, entry by entry: memory for an entry, not for the file."""

from __future__ import annotations

import codecs
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from perpcs.errors import DataError
from perpcs.population.files import Where, readable

CHUNK = 1 << 20
"""Bytes that are read at a time; more when an entry is larger."""
_SPACE, _NUMBER = " \t\n\r", "0123456789.eE+-"


def read_entries(path: Path) -> Iterator[object]:
    """The entries of a file that holds one list, in order.

    DataError when it is no list, damaged, truncated, or not JSON, as soon as the place is reached.
    """
    with readable(path), path.open("rb") as raw:
        source = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if path.suffix == ".gz" else raw
        yield from _Entries(source, path)


class _Entries:
    """A window of text over the file; `at` is how far it is parsed."""

    def __init__(self, source: BinaryIO, path: Path) -> None:
        self.source, self.path = source, path
        self.decode = codecs.getincrementaldecoder("utf-8-sig")()
        self.parse = json.JSONDecoder().raw_decode
        self.text, self.at, self.ended = "", 0, False
        self.bytes, self.lines, self.column = 0, 0, 0

    def __iter__(self) -> Iterator[object]:
        self._open()
        first = True
        while self._next() != "]":
            if not first:
                self._take(",", "Expecting ',' delimiter")
                self._next()
            yield self._entry()
            first = False
        self._take("]", "")
        if self._next():
            raise self._malformed("Extra data", self.at)

    def _open(self) -> None:
        if self._next() == "[":
            self.at += 1
            return
        # No list: all of it, for the message; such a file is small, or no JSON.
        while self._more():
            pass
        Where(self.path).items(self._entry())

    def _next(self) -> str:
        """The next character that is no space, '' at the end; parsed up to there."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def _take(self, character: str, problem: str) -> None:
        if self._next() != character:
            raise self._malformed(problem, self.at)
        self.at += 1

    def _entry(self) -> object:
        """The value that starts here; where the window ends within it, with more of the file."""
        size = CHUNK
        while True:
            try:
                value, end = self.parse(self.text, self.at)
            except json.JSONDecodeError as error:
                ahead = error.pos - self.at
                if not self._more(size):
                    raise self._malformed(error.msg, self.at + ahead) from error
                size *= 2  # so that a large entry is not parsed anew for every chunk of it
                continue
            # A number that ends with the window, or in the middle of its fraction there, goes on behind it.
            if self.text[end : end + 1] in _NUMBER and isinstance(value, int | float) and self._more():
                continue
            self.at = end
            return cast(object, value)

    def _more(self, size: int = 0) -> bool:
        """Drop what is parsed and read on; False at the end of the file."""
        if self.ended:
            return False
        lines = self.text.count("\n", 0, self.at)
        self.column = self.at - self.text.rfind("\n", 0, self.at) - 1 if lines else self.column + self.at
        self.lines += lines
        data = self.source.read(size or CHUNK)
        try:
            more = self.decode.decode(data, final=not data)
        except UnicodeDecodeError as error:
            held = len(self.decode.getstate()[0])
            place = self.bytes - held + error.start
            raise UnicodeDecodeError("utf-8", error.object, place, place + 1, error.reason) from error
        self.bytes += len(data)
        self.text, self.at, self.ended = self.text[self.at :] + more, 0, not data
        return bool(data)

    def _malformed(self, problem: str, at: int) -> DataError:
        lines = self.lines + self.text.count("\n", 0, at)
        start = self.text.rfind("\n", 0, at)
        column = at - start if start >= 0 else self.column + at + 1
        return DataError(
            f"{self.path}: truncated or malformed JSON at line {lines + 1} column {column} ({problem}); "
            "copy the file again"
        )
