"""What finished trials say: settings over their seeds, which are worth their cost, and which one to use."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np

from perpcs.evaluation.metrics import metric
from perpcs.evaluation.statistics import Sample, bootstrap, interval
from perpcs.sweep.space import Values

Row = Mapping[str, Any]
"""A row of the table of trials (docs/sweeps.md)."""


@dataclass(frozen=True)
class Point:
    """One setting under one metric: the mean over its seeds, with a 95 % interval over users."""

    values: Values
    metric: str
    value: float
    low: float | None
    high: float | None
    seeds: tuple[int, ...]
    by_seed: tuple[float, ...]
    bytes_per_user: float
    pool_bytes: float
    seconds: float
    """Preparing one target user, without generation."""
    samples: tuple[Sample, ...]
    """By seed, users' sums: enough to compare settings on the same users."""


def point_of(values: Values, rows: Sequence[Row], *, name: str, resamples: int) -> Point:
    """A setting from its trials, one per seed."""
    rows = sorted(rows, key=lambda row: row["seed"])
    found = [json.loads(row["metrics"])[name] for row in rows]
    samples = tuple(_sample(row, name) for row in rows)
    low, high = found[0][1:]
    if len(rows) > 1:
        draws = bootstrap(samples, metric(name).finish, resamples=resamples)
        low, high = interval(draws, min(len(sample.user_ids) for sample in samples))
    return Point(
        values=values,
        metric=name,
        value=fmean(value for value, _, _ in found),
        low=low,
        high=high,
        seeds=tuple(row["seed"] for row in rows),
        by_seed=tuple(value for value, _, _ in found),
        bytes_per_user=fmean(row["bytes_per_user"] for row in rows),
        pool_bytes=fmean(row["pool_bytes"] for row in rows),
        seconds=fmean(row["seconds_per_user"] for row in rows),
        samples=samples,
    )


def _sample(row: Row, name: str) -> Sample:
    user_ids, queries, sums = json.loads(row["user_sums"])[name]
    return Sample(tuple(user_ids), np.array(queries), np.array(sums))


def ranked(points: Sequence[Point]) -> list[Point]:
    """Best first; of equals the one with fewer bytes, then seconds."""
    sign = metric(points[0].metric).sign if points else 1
    return sorted(points, key=lambda p: (-sign * p.value, p.bytes_per_user, p.seconds))


def front(points: Sequence[Point], cost: Callable[[Point], float]) -> list[Point]:
    """The Pareto front, cheapest first: settings that nothing at most as dear is as good as."""
    kept: list[Point] = []
    if not points:
        return kept
    sign = metric(points[0].metric).sign
    for point in sorted(points, key=lambda p: (cost(p), -sign * p.value)):
        if not kept or sign * point.value > sign * kept[-1].value:
            kept.append(point)
    return kept


def recommend(points: Sequence[Point], *, resamples: int = 2000) -> Point:
    """The setting with the fewest bytes among those within one standard error of the best (Breiman et al. 1984).

    The standard error is that of the difference to the best on the same users. Only settings with the most seeds count.
    """
    most = max(len(point.seeds) for point in points)
    whole = ranked([point for point in points if len(point.seeds) == most])
    best = whole[0]
    as_good = [point for point in whole if point is best or _within(best, point, resamples)]
    return min(
        as_good, key=lambda p: (p.bytes_per_user, p.pool_bytes, p.seconds, -metric(p.metric).sign * p.value)
    )


def _within(best: Point, point: Point, resamples: int) -> bool:
    """Whether the difference on the same users is at most its standard error."""
    if best.seeds != point.seeds or [s.user_ids for s in best.samples] != [s.user_ids for s in point.samples]:
        return False
    draw = partial(bootstrap, finish=metric(best.metric).finish, resamples=resamples)
    return abs(best.value - point.value) <= float(np.std(draw(best.samples) - draw(point.samples)))
