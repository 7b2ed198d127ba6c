"""What is left to train. Imports the store only: the fleet's coordinator runs it and needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from storage.files import read_json
from storage.layout import Paths
from storage.pool import Pool, pool_exists


def missing(uri: str, wanted: Callable[[], Sequence[str]]) -> list[str]:
    """The wanted users that the pool does not hold yet, and who did not withdraw from it: what is left to train."""
    if not pool_exists(uri):
        return list(wanted())
    roll = Pool.open(uri).log.refresh()
    return [user_id for user_id in wanted() if user_id not in roll.members and not roll.departed(user_id)]


def selected(paths: Paths) -> tuple[str, ...]:
    """The chosen sharers, as the selection stage wrote them."""
    return tuple(read_json(paths.selection)["sharers"])
