"""Methods of one experiment against each other over all its seeds: which differences are real.

Each run has its own comparisons (comparisons.py); here the runs of one configuration are pooled: the difference is
the mean over seeds, users are drawn and swapped within seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from perpcs.evaluation.comparisons import LEVEL
from perpcs.evaluation.metrics import metric
from perpcs.evaluation.results import Results
from perpcs.evaluation.statistics import Sample, bootstrap, holm, interval, mean_value, permutation_p

Pair = tuple[str, str, str]
"""(method, versus, metric)."""


@dataclass(frozen=True)
class Contrast:
    """A method minus another one on the same users and queries, mean over the seeds of one experiment."""

    group: str
    method: str
    versus: str
    metric: str
    difference: float
    low: float | None
    high: float | None
    p_value: float
    p_adjusted: float
    """Holm's correction over the contrasts of the experiment with the same `versus` and `metric`."""
    users: int
    """Users over all seeds; the same people under several seeds count once."""

    @property
    def real(self) -> bool:
        """The interval lies on one side of 0, and the corrected p-value agrees."""
        return apart(self.low, self.high) and self.p_adjusted <= LEVEL

    @property
    def verdict(self) -> str:
        """better, worse or not shown."""
        return judged(self.difference, self.metric, real=self.real)


def apart(low: float | None, high: float | None) -> bool:
    """Whether an interval leaves out 0."""
    return low is not None and high is not None and (low > 0 or high < 0)


def judged(difference: float, name: str, *, real: bool) -> str:
    """A difference under a metric in words."""
    if not real:
        return "not shown"
    return "better" if difference * metric(name).sign > 0 else "worse"


def same_users(runs: Sequence[Results]) -> bool:
    """Whether all runs have the same people with the same queries, so that one draw of users serves all."""
    return bool(runs[0].user_digests) and all(run.user_digests == runs[0].user_digests for run in runs)


def sample_of(run: Results, method: str, name: str) -> Sample | None:
    """A method's statistics by user in a run, None where the file has none."""
    found = next((s for s in run.user_sums if (s.method, s.metric) == (method, name)), None)
    return None if found is None else Sample(found.user_ids, np.array(found.queries), np.array(found.sums))


def contrasts(group: str, runs: Sequence[Results], *, resamples: int = 2000) -> tuple[Contrast, ...]:
    """Every comparison that all runs have, pooled over the runs; for one run its own comparisons.

    Left out are pairs of methods that answered different queries, and runs without sums by user.
    """
    pairs = [(c.method, c.versus, c.metric) for c in runs[0].comparisons]
    if len(runs) == 1:
        return tuple(Contrast(group, **vars(c)) for c in runs[0].comparisons)
    shared = [pair for pair in pairs if all(run.comparison(*pair) for run in runs)]
    found = [c for pair in shared for c in _pooled(group, pair, runs, resamples)]
    return tuple(_corrected(found))


def _pooled(group: str, pair: Pair, runs: Sequence[Results], resamples: int) -> Iterator[Contrast]:
    method, versus, name = pair
    samples = [(sample_of(run, method, name), sample_of(run, versus, name)) for run in runs]
    paired = [(a, b) for a, b in samples if a is not None and b is not None and _alike(a, b)]
    if len(paired) < len(runs):
        return
    finish, same = metric(name).finish, same_users(runs)
    one, two = [a for a, _ in paired], [b for _, b in paired]
    draws = bootstrap(one, finish, resamples=resamples, same_users=same)
    draws = draws - bootstrap(two, finish, resamples=resamples, same_users=same)
    users = len(one[0].user_ids) if same else sum(len(a.user_ids) for a in one)
    low, high = interval(draws, min(len(a.user_ids) for a in one))
    p = permutation_p(paired, finish, same_users=same)
    gap = mean_value(one, finish) - mean_value(two, finish)
    yield Contrast(group, method, versus, name, gap, low, high, p, p, users)


def _alike(a: Sample, b: Sample) -> bool:
    return a.user_ids == b.user_ids and bool((a.queries == b.queries).all())


def _corrected(found: Sequence[Contrast]) -> list[Contrast]:
    out = list(found)
    for family in dict.fromkeys((c.versus, c.metric) for c in found):
        places = [i for i, c in enumerate(found) if (c.versus, c.metric) == family]
        for i, p in zip(places, holm([found[i].p_value for i in places]), strict=True):
            out[i] = replace(found[i], p_adjusted=p)
    return out
