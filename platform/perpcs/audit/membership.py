"""How well scores tell members from non-members: AUC, and true positives at a low false-positive rate.

The sharer is the unit: items of one sharer are drawn together. Shapes: S sharers, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perpcs.evaluation.statistics import interval

FALSE_POSITIVES = 0.01
"""The false-positive rate at which the true positives are counted (Carlini et al. 2022, LiRA)."""


@dataclass(frozen=True)
class Scores:
    """An attack's scores for one sharer's items: higher means rather a member."""

    members: np.ndarray
    others: np.ndarray


@dataclass(frozen=True)
class Leak:
    """An attack's success with 95 % intervals over sharers; intervals are None with fewer than 2 sharers."""

    auc: float
    auc_low: float | None
    auc_high: float | None
    tpr: float
    """True-positive rate at FALSE_POSITIVES, over all sharers with one threshold."""
    tpr_low: float | None
    tpr_high: float | None


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """Probability that a member scores above a non-member; ties count half."""
    order = np.sort(others)
    below = np.searchsorted(order, members, "left") + np.searchsorted(order, members, "right")
    return float(below.sum() / (2 * len(members) * len(others)))


def tpr_at(members: np.ndarray, others: np.ndarray, rate: float = FALSE_POSITIVES) -> float:
    """Fraction of members above the least threshold that at most a fraction `rate` of non-members exceeds."""
    allowed = int(rate * len(others))
    threshold = np.sort(others)[::-1][allowed]
    return float((members > threshold).mean())


def measure(scores: Sequence[Scores], *, resamples: int = 1000, seed: int = 0) -> Leak:
    """Success over all sharers' items, with intervals by drawing sharers with replacement."""
    generator = np.random.default_rng(seed)
    draws = generator.integers(len(scores), size=(resamples, len(scores)))
    found = np.array([_both([scores[i] for i in row]) for row in draws.tolist()])
    value = _both(scores)
    (auc_low, auc_high), (tpr_low, tpr_high) = (
        _within(interval(found[:, i], len(scores)), value[i]) for i in range(2)
    )
    return Leak(value[0], auc_low, auc_high, value[1], tpr_low, tpr_high)


def _both(scores: Sequence[Scores]) -> tuple[float, float]:
    members = np.concatenate([s.members for s in scores])
    others = np.concatenate([s.others for s in scores])
    return auc(members, others), tpr_at(members, others)


def _within(ends: tuple[float | None, float | None], value: float) -> tuple[float | None, float | None]:
    """The interval, which a rate at a threshold may leave on one side, stretched to its value."""
    low, high = ends
    return (None, None) if low is None or high is None else (min(low, value), max(high, value))
