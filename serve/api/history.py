"""Histories in requests: checked, put into time order, and nowhere kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perpcs.population.files import Where
from perpcs.population.items import read_profile
from perpcs.population.tasks import get_task
from perpcs.records import Item
from serve.api.problems import Problem
from serve.config import LimitsConfig


def read_history(raw: Sequence[dict[str, Any]], task: str, limits: LimitsConfig) -> tuple[Item, ...]:
    """Items, oldest first. Raises Problem for too many, DataError for one that lacks a field of the task."""
    if len(raw) > limits.history_items:
        raise Problem(
            400, f"history: has {len(raw)} items, at most {limits.history_items} are taken", param="history"
        )
    size = sum(len(str(value)) for item in raw for value in item.values())
    if size > limits.history_characters:
        raise Problem(
            400,
            f"history: has {size} characters, at most {limits.history_characters} are taken",
            param="history",
        )
    # Ids only tell items of one history apart.
    numbered = [{"id": str(i), **item} for i, item in enumerate(raw)]
    return read_profile(numbered, task=get_task(task), where=Where(Path("history")), notes=Counter())
