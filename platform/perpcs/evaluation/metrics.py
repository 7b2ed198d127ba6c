"""Metrics of the LaMP tasks (METHOD section 6), in a form that can be resampled by user.

A metric is two functions. `columns` turns N queries into statistics that add up, [N, C]; `finish` turns such
a sum and its number of queries into the value. Accuracy adds hits, RMSE adds squares, macro-F1 adds confusion
counts; so the value for any resample of users needs only the users' sums, never the texts again.

Shapes: N queries, C columns of the metric, L labels; `...` any leading axes (resamples).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from perpcs.errors import ConfigError, DataError

LOWEST_RATING, HIGHEST_RATING = 1.0, 5.0
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")

T = TypeVar("T")
Columns = Callable[[Sequence[str], Sequence[str], Sequence[str]], np.ndarray]
Finish = Callable[[np.ndarray, np.ndarray], np.ndarray]


def rating(text: str) -> float | None:
    """The first number of an output to LaMP-3, or None when there is none on the scale of 1 to 5.

    A number off the scale is no rating either: taken at its word, one "2019" would outweigh hundreds of
    answers.
    """
    found = _NUMBER.search(text)
    value = float(found.group()) if found else None
    return value if value is not None and LOWEST_RATING <= value <= HIGHEST_RATING else None


def rating_errors(predictions: Sequence[str], golds: Sequence[str]) -> np.ndarray:
    """Absolute errors of ratings, [N]; an answer that is no rating counts as the farther end of the scale.

    Raises DataError when a gold is no rating.
    """
    errors = []
    for index, (prediction, gold) in enumerate(zip(predictions, golds, strict=True)):
        truth, guess = rating(gold), rating(prediction)
        if truth is None:
            raise DataError(
                f"gold {index} is {gold!r}: a rating from 1 to 5 is needed; check the outputs file"
            )
        farthest = max(truth - LOWEST_RATING, HIGHEST_RATING - truth)
        errors.append(farthest if guess is None else abs(guess - truth))
    return np.array(errors, dtype=np.float64)


def _hits(predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    pairs = zip(predictions, golds, strict=True)
    return np.array([p.strip() == g.strip() for p, g in pairs], dtype=np.float64)[:, None]


def _confusion(predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """[N, 3 L]: per label true positive, false positive, false negative.

    An output that is no label only misses the gold; it is nobody's false positive.
    """
    place = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(golds), len(labels), 3))
    for row, (p, g) in enumerate(zip(predictions, golds, strict=True)):
        prediction, gold = p.strip(), g.strip()
        if gold not in place:
            raise DataError(f"gold {row} is {gold!r}: not among the {len(labels)} labels of the task")
        if prediction == gold:
            counts[row, place[gold], 0] = 1
            continue
        counts[row, place[gold], 2] = 1
        if prediction in place:
            counts[row, place[prediction], 1] = 1
    return counts.reshape(len(golds), 3 * len(labels))


def _absolute(predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    return rating_errors(predictions, golds)[:, None]


def _square(predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    return rating_errors(predictions, golds)[:, None] ** 2


def _rouge(kind: str) -> Columns:
    def columns(predictions: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> np.ndarray:
        from rouge_score.rouge_scorer import (
            RougeScorer,
        )  # imports nltk: a second that other tasks need not pay

        scorer = RougeScorer([kind], use_stemmer=False)
        pairs = zip(predictions, golds, strict=True)
        return np.array([scorer.score(g.strip(), p.strip())[kind].fmeasure for p, g in pairs])[:, None]

    return columns


def _mean(sums: np.ndarray, queries: np.ndarray) -> np.ndarray:
    return sums[..., 0] / queries


def _root_mean(sums: np.ndarray, queries: np.ndarray) -> np.ndarray:
    # A difference of float sums may fall a hair below zero when a permutation leaves only perfect answers.
    return np.sqrt(np.maximum(sums[..., 0], 0.0) / queries)


def _macro_f1(sums: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Mean over labels of 2 tp / (2 tp + fp + fn).

    As in LaMP, over the task's label list. Labels that occur neither as gold nor as answer are left out;
    scikit-learn counts them as 0, which would push down every resample that misses a rare label. The
    published sets have all labels, so the point values agree.
    """
    tp, fp, fn = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    total = 2 * tp + fp + fn
    f1 = np.divide(2 * tp, total, out=np.zeros_like(total), where=total > 0)
    return f1.sum(axis=-1) / np.maximum((total > 0).sum(axis=-1), 1)


@dataclass(frozen=True)
class Metric:
    """`columns(predictions, golds, labels)` is [N, C]; `finish(sums [..., C], queries [...])` is [...]."""

    name: str
    title: str
    columns: Columns | None
    """None: it is not made from texts."""
    finish: Finish
    higher_is_better: bool = True

    @property
    def sign(self) -> int:
        """+1 where more is better, -1 where less is."""
        return 1 if self.higher_is_better else -1


GOLD_LOSS = "gold_loss"
"""How unlikely the users' own answers are under the method: not made from what it wrote, but from `MethodOutput.losses`."""
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "Accuracy", _hits, _mean),
        Metric("macro_f1", "Macro-F1", _confusion, _macro_f1),
        Metric("mae", "MAE", _absolute, _mean, higher_is_better=False),
        Metric("rmse", "RMSE", _square, _root_mean, higher_is_better=False),
        Metric("rouge_1", "ROUGE-1", _rouge("rouge1"), _mean),
        Metric("rouge_l", "ROUGE-L", _rouge("rougeL"), _mean),
        Metric(GOLD_LOSS, "Nats per gold token", None, _mean, higher_is_better=False),
    )
}
_LABEL, _TEXT = ("accuracy", "macro_f1"), ("rouge_1", "rouge_l")
TASK_METRICS: dict[str, tuple[str, ...]] = {
    "LaMP-1": _LABEL,
    "LaMP-2M": _LABEL,
    "LaMP-2N": _LABEL,
    "LaMP-3": ("mae", "rmse"),
    "LaMP-4": _TEXT,
    "LaMP-5": _TEXT,
    "LaMP-6": _TEXT,
    "LaMP-7": _TEXT,
}
"""The metrics of a task; the first one is the headline."""


def _named(name: str, known: dict[str, T], what: str) -> T:
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "known: " + ", ".join(known)
    raise ConfigError(f"{name!r}: no such {what}; {hint}")


def metric(name: str) -> Metric:
    """The metric of that name; ConfigError with a suggestion when there is none."""
    return _named(name, METRICS, "metric")


def task_metrics(task: str) -> tuple[str, ...]:
    """Metric names of a LaMP task, headline first; ConfigError when the task is unknown."""
    return _named(task, TASK_METRICS, "task")


def telling(names: Sequence[str]) -> list[str]:
    """The metrics by which methods are compared in words: the headline, and the golds' loss where it is there."""
    return [*names[:1], *(name for name in names[1:] if name == GOLD_LOSS)]


def labels_of(golds: Sequence[str]) -> tuple[str, ...]:
    """The labels that occur as golds, sorted: the label list where a task publishes none."""
    return tuple(sorted({gold.strip() for gold in golds}))


def columns(
    name: str, predictions: Sequence[str], golds: Sequence[str], *, labels: Sequence[str] | None = None
) -> np.ndarray:
    """Statistics of each query under the metric, [N, C], which add up over queries and users.

    labels: the label list of macro-F1; by default the labels that occur as golds.
    Raises DataError when there are no queries or the numbers of predictions and golds differ.
    """
    if len(predictions) != len(golds):
        raise DataError(f"{len(predictions)} predictions for {len(golds)} golds: one each is needed")
    if not golds:
        raise DataError("no queries to score: the targets have none; check population.split and evaluate")
    made = metric(name).columns
    if made is None:
        raise ConfigError(f"{name}: cannot be made from texts; the golds' losses are needed")
    return made(predictions, golds, labels_of(golds) if labels is None else labels)


def score(
    metric_names: Sequence[str],
    predictions: Sequence[str],
    golds: Sequence[str],
    *,
    labels: Sequence[str] | None = None,
) -> dict[str, float]:
    """Corpus value of each metric over all queries. Source: METHOD section 6; LaMP, section 2."""
    values = {}
    for name in metric_names:
        sums = columns(name, predictions, golds, labels=labels).sum(axis=0)
        values[name] = float(metric(name).finish(sums, np.array(len(golds))))
    return values
