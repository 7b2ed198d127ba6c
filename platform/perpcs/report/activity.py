"""Users by activity: the headline metric for thirds of the users, from those with the shortest histories up."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from perpcs.evaluation.contrasts import sample_of
from perpcs.evaluation.metrics import metric
from perpcs.evaluation.results import Results
from perpcs.evaluation.statistics import bootstrap, interval

FEWEST = 6
"""Users below which thirds say nothing."""


@dataclass(frozen=True)
class Third:
    """Some users of like activity and what each method reaches on them."""

    least: int
    most: int
    """History items."""
    users: tuple[str, ...]
    values: dict[str, tuple[float, float | None, float | None]]
    """Method → (value, low, high)."""


def thirds(results: Results) -> list[Third]:
    """Three groups of users by history length; none where all are alike, or too few, or the file does not say."""
    items = results.user_items
    lengths = sorted(set(items.values()))
    if len(items) < FEWEST or len(lengths) < 3 or not results.rows:
        return []
    order = sorted(items, key=lambda user: (items[user], user))
    cuts = [0, len(order) // 3, 2 * len(order) // 3, len(order)]
    return [_third(results, order[a:b]) for a, b in pairwise(cuts)]


def _third(results: Results, users: list[str]) -> Third:
    name = results.metrics[0]
    values = {
        method: found for method in results.methods if (found := _value(results, method, name, users)) is not None
    }  # fmt: skip
    lengths = [results.user_items[user] for user in users]
    return Third(min(lengths), max(lengths), tuple(users), values)


def _value(
    results: Results, method: str, name: str, users: list[str]
) -> tuple[float, float | None, float | None] | None:
    sample = sample_of(results, method, name)
    if sample is None:
        return None
    some = sample.only([user for user in users if user in set(sample.user_ids)])
    if not some.user_ids:
        return None
    finish = metric(name).finish
    low, high = interval(bootstrap([some], finish), len(some.user_ids))
    return some.value(finish), low, high
