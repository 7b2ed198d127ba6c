"""What a part's `check` says of impossible values: (key, what it must be)."""

from __future__ import annotations

from collections.abc import Iterator

Problems = Iterator[tuple[str, str]]


def at_least(part: object, low: float, *keys: str) -> Problems:
    """Fields below `low`."""
    for key in keys:
        if getattr(part, key) < low:
            yield key, f"must be at least {low:g}"


def above_zero(part: object, *keys: str) -> Problems:
    """Fields that are not positive."""
    for key in keys:
        if getattr(part, key) <= 0:
            yield key, "must be above 0"


def within(part: object, low: float, high: float, *keys: str) -> Problems:
    """Fields outside of [low, high]."""
    for key in keys:
        if not low <= getattr(part, key) <= high:
            yield key, f"must be between {low:g} and {high:g}"
