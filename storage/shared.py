"""One stage's output in two experiments, without storing it twice where the file system can."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from perpcs.errors import StoreError
from storage.files import is_remote, local, reason

LINKED_BYTES = 1 << 16
"""Files from this size on are linked: weights and table data, which are never changed in place."""


def share(source: str, target: str) -> None:
    """A file or folder at `source` is at `target` too; whole or not at all. What is at `target` is replaced.

    Raises:
        StoreError: not local, or not writable.
    """
    if is_remote(source) or is_remote(target):
        raise StoreError(f"{source}: only local folders can be shared with another experiment")
    old, new = local(source), local(target)
    draft = new.with_name(f".{new.name}.{secrets.token_hex(6)}")
    try:
        new.parent.mkdir(parents=True, exist_ok=True)
        if old.is_dir():
            shutil.copytree(old, draft, copy_function=_link_or_copy)
            shutil.rmtree(new, ignore_errors=True)
        else:
            shutil.copy2(old, draft)
        draft.replace(new)
    except OSError as error:
        raise StoreError(f"{target}: cannot be shared from {source} ({reason(error)})") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _link_or_copy(source: str, target: str) -> str:
    if Path(source).stat().st_size >= LINKED_BYTES:
        try:
            os.link(source, target)
            return target
        except OSError:  # another file system, or one without links
            pass
    return str(shutil.copy2(source, target))
