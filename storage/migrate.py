"""Older pools brought to the present schema: `python -m jobs.pool migrate POOL`.

One step per version. A step changes what is there so that it may be repeated, and so that the old version can still
be read; then one commit of the sharers table records the new version. A migration that is cut short leaves a pool of
the version it had got to, and goes on when it is run again. Programs of an older release that have the pool open must
be stopped first: they look at the version when they open it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from perpcs.errors import MismatchError, StoreError
from storage.files import reason
from storage.schema import HEADER, SCHEMA_VERSION, wrong_version
from storage.sharers import sharers_uri
from storage.tables import LANCE_ERRORS, has_table, open_table

_TURNS = 5


def _to_2(uri: str) -> None:
    """The log may hold `bar` events, which version 1 overlooks: no row changes, but version 1 must stay out."""


STEPS: Mapping[int, Callable[[str], None]] = {1: _to_2}
"""Version -> what has to be done to the pool at a URI before it is of the next version."""


def migrate(uri: str) -> tuple[int, int]:
    """Bring the pool at `uri` to this release's schema; (version found, version now), equal if nothing was to do.

    Raises:
        StoreError: there is no pool, or the store cannot be written. MismatchError: the pool is newer than this
            release.
    """
    if not has_table(sharers_uri(uri)):
        raise StoreError(f"{uri}: there is no pool here; check the path")
    first = _version(uri)
    for version in range(first, SCHEMA_VERSION):
        STEPS[version](uri)
        _record(uri, version + 1)
    return first, SCHEMA_VERSION


def _record(uri: str, version: int) -> None:
    """Write the version into the pool's description, in one commit; others may commit at the same time."""
    for turn in range(_TURNS):
        table = open_table(sharers_uri(uri))
        value = _description(uri, table)
        if value["schema_version"] >= version:
            return  # another migration was faster
        try:
            text = json.dumps({**value, "schema_version": version}, separators=(",", ":"))
            table.update_schema_metadata({HEADER.decode(): text})
            return
        except LANCE_ERRORS as error:
            if turn == _TURNS - 1:
                raise StoreError(f"{uri}: recording the schema version failed: {reason(error)}") from error
            time.sleep(0.05 * 2**turn)


def _version(uri: str) -> int:
    found = int(_description(uri, open_table(sharers_uri(uri)))["schema_version"])
    if found > SCHEMA_VERSION:
        raise MismatchError(f"{uri}: {wrong_version(found, uri)}")
    return found


def _description(uri: str, table: Any) -> dict[str, Any]:
    try:
        return dict(json.loads((table.schema.metadata or {})[HEADER]))
    except (KeyError, ValueError, TypeError) as error:
        raise StoreError(f"{uri}: the pool's description is missing or damaged ({error})") from error
