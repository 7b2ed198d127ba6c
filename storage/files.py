"""Small files by path or URI (`/data/x.json`, `s3://bucket/x.json`), whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perpcs.errors import StoreError


def is_remote(uri: str) -> bool:
    """Whether `uri` names an object store; `file://` and plain paths are local."""
    return "://" in uri and not uri.startswith("file://")


def local(uri: str) -> Path:
    """The local path of a plain path or a `file://` URI."""
    return Path(uri.removeprefix("file://"))


def join(uri: str | Path, *parts: str) -> str:
    """`uri` with `parts` appended, whatever the kind of `uri`."""
    base = str(uri)
    return "/".join([base.rstrip("/") or "/", *(part.strip("/") for part in parts)])


def exists(uri: str) -> bool:
    """Whether there is a file or folder at `uri`."""
    if not is_remote(uri):
        return local(uri).exists()
    from pyarrow import fs

    filesystem, path = open_remote(uri)
    try:
        return bool(filesystem.get_file_info(path).type != fs.FileType.NotFound)
    except OSError as error:
        raise StoreError(
            f"{uri}: the object store does not answer ({reason(error)}); check the address and "
            "credentials (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID)"
        ) from error


def remove(uri: str) -> None:
    """Delete one file; nothing happens when it is gone already."""
    try:
        if not is_remote(uri):
            local(uri).unlink(missing_ok=True)
            return
        filesystem, path = open_remote(uri)
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_file(path)
    except OSError as error:
        raise StoreError(f"{uri}: cannot be deleted ({reason(error)})") from error


def remove_empty(uri: str) -> None:
    """Delete a local folder that has nothing in it; an object store has no folders."""
    if not is_remote(uri):
        with contextlib.suppress(OSError):
            local(uri).rmdir()


def walk(uri: str) -> list[tuple[str, int]]:
    """Every file below `uri` with its size in bytes; empty when there is no such folder. Raises StoreError."""
    if not is_remote(uri):
        return list(_walk_local(local(uri)))
    from pyarrow import fs

    filesystem, path = open_remote(uri)
    scheme = uri.split("://")[0]
    try:
        found = filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    except OSError as error:
        raise StoreError(f"{uri}: cannot be listed ({reason(error)})") from error
    return [(f"{scheme}://{info.path}", int(info.size)) for info in found if info.type == fs.FileType.File]


def read_bytes(uri: str) -> bytes:
    """The file's bytes.

    Raises:
        StoreError: there is no such file, or it cannot be read.
    """
    try:
        if not is_remote(uri):
            return local(uri).read_bytes()
        filesystem, path = open_remote(uri)
        with filesystem.open_input_file(path) as source:
            return bytes(source.read())
    except OSError as error:
        raise StoreError(f"{uri}: cannot be read ({reason(error)})") from error


def write_bytes(uri: str, data: bytes) -> None:
    """Write the file so that a reader sees the old content or the new, never a part.

    Raises:
        StoreError: the folder is not writable, the disk is full, or the store refused.
    """
    try:
        if not is_remote(uri):
            _write_local(local(uri), data)
            return
        filesystem, path = open_remote(uri)
        with filesystem.open_output_stream(path) as sink:  # an object appears when its upload completes
            sink.write(data)
    except OSError as error:
        raise StoreError(f"{uri}: cannot be written ({reason(error)})") from error


def read_text(uri: str) -> str:
    """The file's text, UTF-8."""
    return read_bytes(uri).decode("utf-8")


def write_text(uri: str, text: str) -> None:
    """Write text as UTF-8, whole or not at all."""
    write_bytes(uri, text.encode("utf-8"))


def read_json(uri: str) -> Any:
    """The file's JSON value.

    Raises:
        StoreError: missing, or not JSON.
    """
    try:
        return json.loads(read_text(uri))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{uri}: is not JSON ({error})") from error


def write_json(uri: str, value: Any) -> None:
    """Write `value` as indented JSON with a final newline, whole or not at all."""
    write_text(uri, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def reason(error: BaseException) -> str:
    """An exception as one short line, for error messages."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    line = re.sub(r",? ?/\S+\.rs:\d+(:\d+)?", "", line)  # where in Lance's source it was raised helps nobody
    return re.sub(r"(LanceError\(\w+\)|External error|Generic \S+ error): ", "", line)[:300]


def _write_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with temporary.open("xb") as sink:
            sink.write(data)
            sink.flush()
            os.fsync(sink.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _walk_local(folder: Path) -> Iterator[tuple[str, int]]:
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # gone since it was listed
            if path.is_file():
                yield str(path), path.stat().st_size


def open_remote(uri: str) -> tuple[Any, str]:
    """(pyarrow's file system of an object store's URI, the path in it)."""
    from pyarrow import fs

    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{uri}: no file system for this address ({reason(error)}); for an object store check the address and "
            "the environment (AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID)"
        ) from error
    return filesystem, path
