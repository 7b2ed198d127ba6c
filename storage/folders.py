"""Whole folders by path or URI, such as a base model: written so that a reader sees all or nothing, read from local disk.

One file of the folder names its content by a hash (of a base: `fingerprint.txt`). On an object store that file is
removed first and written last, so a folder that has it is complete; copies on local disk are kept under this name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from perpcs.errors import StoreError
from storage.files import exists, is_remote, join, local, open_remote, read_text, reason, remove, walk

CACHE_ENV = "PERPCS_CACHE"
_MARK = re.compile(r"[0-9a-f]{8,64}")


def read_mark(uri: str, *, named_by: str) -> str | None:
    """The hash in the file `named_by`; None where it is missing: there is no folder, or not all of it.

    Raises:
        StoreError: it is no hash.
    """
    path = join(uri, named_by)
    if not exists(path):
        return None
    mark = read_text(path).strip()
    if not _MARK.fullmatch(mark):
        raise StoreError(f"{path}: must hold a hash in hex digits; the folder is damaged, make it again")
    return mark


@contextlib.contextmanager
def written_folder(uri: str, *, named_by: str) -> Iterator[Path]:
    """A local folder to fill, the last file to be written being `named_by`; uploaded at the end of the block."""
    if not is_remote(uri):
        yield local(uri)
        return
    with tempfile.TemporaryDirectory(prefix="perpcs-upload-") as folder:
        yield Path(folder)
        _upload(Path(folder), uri, last=named_by)


def local_folder(uri: str, *, named_by: str) -> Path:
    """Where the folder can be read on this machine: itself, or a copy that is made when it is first asked for.

    Copies are kept by hash in $PERPCS_CACHE (default: perpcs in the user's cache folder), one for all processes.

    Raises:
        StoreError: there is no such folder, or it cannot be copied.
    """
    if not is_remote(uri):
        return local(uri)
    mark = read_mark(uri, named_by=named_by)
    if mark is None:
        raise StoreError(f"{uri}: there is no {named_by}; the folder is missing or its upload did not finish")
    target = cache_root() / mark
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target.with_name(f"{mark}.lock")):
            if not target.exists():
                _download(uri, target)
    except OSError as error:
        raise StoreError(
            f"{uri}: cannot be copied to {target} ({reason(error)}); set {CACHE_ENV} to a folder with room"
        ) from error
    return target


def cache_root() -> Path:
    """Where copies of remote folders are kept."""
    if given := os.environ.get(CACHE_ENV):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "perpcs"


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process of this machine at a time: several workers must not download a large base side by side."""
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _upload(folder: Path, uri: str, *, last: str) -> None:
    remove(join(uri, last))
    paths = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: (p == folder / last, str(p)))
    wanted = {join(uri, str(path.relative_to(folder))): path for path in paths}
    for old, _ in walk(uri):
        if old not in wanted:
            remove(old)
    for target, path in wanted.items():
        _copy(str(path), target)


def _download(uri: str, target: Path) -> None:
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        for path, _ in walk(uri):
            inside = PurePosixPath(path.removeprefix(join(uri, "")).lstrip("/"))
            if ".." in inside.parts:  # a key of an object store may be anything
                raise StoreError(f"{path}: leads out of the folder")
            (draft / inside).parent.mkdir(parents=True, exist_ok=True)
            _copy(path, str(draft / inside))
        draft.replace(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _copy(source: str, target: str) -> None:
    """One file of any size, in pieces."""
    from pyarrow import fs

    try:
        sides = [
            open_remote(uri) if is_remote(uri) else (fs.LocalFileSystem(), uri) for uri in (source, target)
        ]
        (source_fs, source_path), (target_fs, target_path) = sides
        with (
            source_fs.open_input_stream(source_path) as data,
            target_fs.open_output_stream(target_path) as sink,
        ):
            while chunk := data.read(16 << 20):
                sink.write(chunk)
    except OSError as error:
        raise StoreError(f"{source}: cannot be copied to {target} ({reason(error)})") from error
