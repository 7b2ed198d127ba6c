"""JSON files, plain or gzip, and the one-line errors about what is inside them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from perpcs.errors import DataError


@dataclass(frozen=True)
class Where:
    """A place in a file, for messages: file and record."""

    path: Path
    record: str = ""

    def inside(self, record: str) -> Where:
        """A record within this one."""
        return Where(self.path, f"{self.record}, {record}" if self.record else record)

    def error(self, field: str, problem: str, fix: str) -> DataError:
        """The one-line error: file, record, field, what is wrong, how to mend it."""
        return DataError(
            ": ".join(part for part in (str(self.path), self.record, field, problem) if part) + f"; {fix}"
        )

    def get(self, record: object, field: str) -> object:
        """A field that must be there and not be null; the record itself must be an object."""
        if not isinstance(record, dict):
            raise self.error("", f"is {show(record)}, not an object", "write it as {…}")
        if record.get(field) is None:
            problem = "is null" if field in record else "is missing"
            raise self.error(field, problem, f"the record has {', '.join(map(str, record)) or 'no fields'}")
        return record[field]

    def text(self, record: object, field: str, *, numbers: bool = False) -> str:
        """A text field; with `numbers`, whole numbers are taken as their digits."""
        value = self.get(record, field)
        if isinstance(value, str):
            return value
        if (
            numbers
            and isinstance(value, (int, float))
            and not isinstance(value, bool)
            and value == value // 1
        ):
            return str(int(value))
        raise self.error(field, f"is {show(value)}", f"write a text{' or a whole number' if numbers else ''}")

    def items(self, value: object, field: str = "") -> list[object]:
        """A list."""
        if not isinstance(value, list):
            raise self.error(field, f"is {show(value)}", "write a list […]")
        return value


def show(value: object) -> str:
    """A value as it stands in a message: one line, short."""
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def find_json(folder: Path, stem: str) -> Path:
    """folder/stem.json or folder/stem.json.gz; DataError when there is neither, or both."""
    plain, packed = folder / f"{stem}.json", folder / f"{stem}.json.gz"
    if plain.is_file() and packed.is_file():
        raise DataError(f"{plain}: {packed.name} is there too; remove the one that is out of date")
    if not plain.is_file() and not packed.is_file():
        hint = (
            "check population.path" if folder.is_dir() else "the folder does not exist; check population.path"
        )
        raise DataError(f"{plain}: no such file, nor {packed.name}; {hint}")
    return plain if plain.is_file() else packed


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What reading a damaged file raises, as one DataError."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged or truncated gzip ({error}); copy the file again") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; a gzip file must end in .gz") from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error


def read_json(path: Path) -> object:
    """The parsed file; DataError when it is damaged, truncated, or not JSON."""
    with readable(path):
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno} column {error.colno}"
        raise DataError(
            f"{path}: truncated or malformed JSON at {at} ({error.msg}); copy the file again"
        ) from error


def write_json(path: Path, value: object) -> None:
    """Writes the file, gzip when it ends in .gz; equal values give equal bytes."""
    data = json.dumps(value, ensure_ascii=False, indent=1).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
